"""Steps in few shapes, and when their CUDA graphs are recorded; `test_cuda.py` runs them."""

import contextlib
import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model import GPTBatched, GPTClassification, GPTConfig, PackedRow
from xnli_gpt.training import graphs
from xnli_gpt.training.batches import StepBatches, StepCutter
from xnli_gpt.training.graphs import ShapedStep, StepGraphs, StepShapes, recordable
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.options import TrainingMachineOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.step import train_step
from xnli_gpt.training.table_rows import CHUNK, TableRows

VOCAB, PAIRS = 90, 6
RECIPE = Recipe(examples_per_step=PAIRS, num_steps=9, eval_interval=9, dropout=0.3)


@pytest.fixture
def model() -> GPTClassification:
    config = GPTConfig.of_family(
        "small", vocab_size=VOCAB, num_layers=6, num_heads=2, model_dim=32, max_seq_len=64
    )
    torch.manual_seed(0)
    return GPTClassification(GPTBatched(config), num_classes=3)


@pytest.fixture
def examples() -> Examples:
    generator = np.random.default_rng(0)
    lengths = generator.integers(8, 40, 60)
    rows = [torch.from_numpy(generator.integers(0, VOCAB, length)) for length in lengths]
    labels = torch.from_numpy(generator.integers(0, 3, 60))

    def get_batch(positions: np.ndarray) -> tuple[PackedRow, torch.Tensor]:
        chosen = [rows[position] for position in positions]
        return PackedRow.of(torch.cat(chosen), list(map(len, chosen)), 4), labels[positions]

    return Examples(lengths, labels.numpy(), get_batch)


def step_of(number: int, examples: Examples, width: int, max_tokens: int = 1 << 16) -> StepBatches:
    indices = np.arange(PAIRS * number, PAIRS * (number + 1))
    return StepCutter(RECIPE, examples, width).batches(number, indices, max_tokens)


def shapes_of(examples: Examples) -> StepShapes:
    return StepShapes.of(examples.lengths, PAIRS, VOCAB)


def with_own_lengths(shaped: ShapedStep, plain: StepBatches) -> ShapedStep:
    """What a CPU computes by the lengths, which kernels of a GPU read from the device."""
    (batch,), row = shaped.micro_batches, plain.micro_batches[0].inputs
    own = row.seq_lens[: len(row.last_token_idx)]
    filler = len(batch.inputs.input_ids) - sum(own)
    lengths = (*own, filler) if filler else own
    inputs = dataclasses.replace(batch.inputs, seq_lens=lengths, doc_lens=lengths)
    return dataclasses.replace(shaped, micro_batches=[dataclasses.replace(batch, inputs=inputs)])


def test_a_shaped_step_is_the_same_step(model, examples):
    """Over several steps: a row of a table that is in a step with no gradient moves all the same,
    as AdamW moves it."""
    plain, shaped = model, copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = [configure_optimizers("cpu", one) for one in (plain, shaped)]
    for number in range(4):
        step = step_of(number, examples, model.dropout_width)
        in_shape = with_own_lengths(shapes_of(examples).shaped(step), step)
        assert len(in_shape.table_rows.ids) > len(step.table_rows.ids)
        expected = train_step(plain, optimizers[0], scaler, RECIPE, step)
        found = train_step(shaped, optimizers[1], scaler, RECIPE, in_shape)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        assert float(found.grad_norm) == pytest.approx(float(expected.grad_norm), rel=1e-5)
    for (name, one), other in zip(plain.named_parameters(), shaped.parameters(), strict=True):
        # Four steps of 1e-4 and less; Adam moves by the sign of noise where a gradient is nothing.
        close = torch.isclose(one, other, rtol=0, atol=2e-6)
        assert close.float().mean() > 0.99, name


def test_steps_come_in_few_shapes_and_little_padding(examples, model):
    shapes = shapes_of(examples)
    steps = [step_of(number, examples, model.dropout_width) for number in range(10)]
    shaped = [shapes.shaped(step) for step in steps]
    rows = [len(step.micro_batches[0].inputs.input_ids) for step in shaped]
    assert all(length % shapes.multiple == 0 for length in rows)
    assert len({step.shape for step in shaped}) <= len(set(rows)) + 1
    real = int(examples.lengths.sum())
    assert 0 <= sum(rows) / real - 1 < 0.06
    longest = {max(step.micro_batches[0].inputs.seq_lens) for step in shaped}
    assert longest == {int(examples.lengths.max())}


def test_a_step_of_several_micro_batches_stays_as_it_is(examples, model):
    step = step_of(0, examples, model.dropout_width, max_tokens=60)
    assert len(step.micro_batches) > 1
    assert shapes_of(examples).shaped(step) is step


def test_a_step_takes_over_anothers_numbers_in_one_buffer(examples, model):
    shapes = shapes_of(examples)
    one, other = (
        shapes.shaped(step_of(number, examples, model.dropout_width)) for number in (0, 0)
    )
    other.integers.copy_(other.integers.flip(0))
    copied = one.copied_to(torch.device("cpu"))
    static = dataclasses.replace(copied, integers=copied.integers.clone())._with_parts(
        copied.mask.clone()
    )
    static.fetch(other)
    parts = [
        static.micro_batches[0].inputs.input_ids,
        static.micro_batches[0].labels,
        static.table_rows.ids,
        *static.table_rows.firsts,
    ]
    assert all(part._base is not None for part in parts), "parts are views of the buffer"
    assert torch.equal(static.integers, one.integers.flip(0))
    assert torch.equal(parts[0], one.integers.flip(0)[: len(parts[0])])


@pytest.mark.parametrize("counts", [[1, 2], [CHUNK, 1, 0], [3 * CHUNK + 1, CHUNK + 1, 5]])
def test_rows_of_tables_are_summed_in_chunks_whatever_fills_them_up(counts):
    ids = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    plain = TableRows.of([ids])
    rows = plain.filled_up(8, 20)
    values = torch.randn(len(ids), 3, dtype=torch.float64)
    of_chunks = torch.nn.functional.embedding_bag(
        rows.places[0], values, rows.chunks[0], mode="sum"
    )
    found = torch.nn.functional.embedding_bag(
        torch.arange(len(of_chunks)), of_chunks, rows.firsts[0], mode="sum"
    )
    expected = torch.zeros(20, 3, dtype=torch.float64).index_add_(0, ids, values)
    torch.testing.assert_close(found, expected[rows.ids])
    assert rows.ids.unique().numel() == 8
    sizes = rows.chunks[0].diff(append=torch.tensor([len(ids)]))
    assert int(sizes.max()) <= CHUNK
    with pytest.raises(ValueError, match="21 distinct tokens of a vocabulary of 20"):
        plain.filled_up(21, 20)


# When there are graphs


def graphs_of(options: TrainingMachineOptions, **changes: object) -> StepGraphs | None:
    """Those of a run on a GPU, but for `changes`."""
    has = {
        "device": "cuda",
        "world_size": 1,
        "dtype": torch.bfloat16,
        "weight_of_class": None,
        "row_attention": "varlen",
        "gradient_checkpointing": False,
        "embedding_update": "exact",
    }
    has |= changes
    weight = SimpleNamespace(device=torch.device(has["device"]))
    trunk = SimpleNamespace(
        row_attention=has["row_attention"],
        gradient_checkpointing=has["gradient_checkpointing"],
        config=SimpleNamespace(vocab_size=VOCAB),
    )
    recipe = dataclasses.replace(RECIPE, dtype=has["dtype"], weight_of_class=has["weight_of_class"])
    return graphs.step_graphs_of(
        options,
        SimpleNamespace(pretrained_model=trunk, parameters=lambda: iter([weight])),
        SimpleNamespace(embedding_update=has["embedding_update"]),
        recipe,
        SimpleNamespace(lengths=np.array([5, 6, 7])),
        SimpleNamespace(world_size=has["world_size"]),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"device": "cpu"}, False),
        ({"world_size": 2}, False),
        ({"dtype": torch.float16}, False),
        ({"weight_of_class": (1.0, 2.0, 1.0)}, False),
        ({"row_attention": "flex"}, False),
        ({"row_attention": None}, False),
        ({"gradient_checkpointing": True}, False),
        ({"embedding_update": "lazy"}, False),
    ],
)
def test_only_steps_that_never_ask_the_host_become_graphs(changes, expected, monkeypatch):
    monkeypatch.setattr(graphs, "StepGraphs", lambda *of: of)
    assert (graphs_of(TrainingMachineOptions(), **changes) is not None) is expected
    assert graphs_of(TrainingMachineOptions(cuda_graphs="never"), **changes) is None


@pytest.fixture
def no_graphs(monkeypatch):
    """A device on which recording fails."""

    @contextlib.contextmanager
    def failing(*_: object, **__: object):
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", failing)


def test_where_recording_fails_steps_go_on_without_and_say_so(
    model, examples, no_graphs, monkeypatch, capsys
):
    optimizer = configure_optimizers("cpu", model)
    of_steps = StepGraphs(model, optimizer, RECIPE, shapes_of(examples))
    step = step_of(0, examples, model.dropout_width)
    shaped = of_steps.shapes.shaped(step)
    done = []
    monkeypatch.setattr(graphs, "train_step", lambda *given: done.append(given[-1]))
    for _ in range(3):
        of_steps.step(shaped)
    assert done == [shaped] * 3 and not of_steps.graphs
    said = capsys.readouterr().out
    assert said.count("no CUDA graph of a step (operation not permitted") == 1
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4] * len(optimizer.param_groups)
    assert not any(group["capturable"] for group in optimizer.param_groups)


def test_rates_on_the_device_update_as_numbers_do(model):
    """What is recorded reads the rate of its group from memory."""
    other = copy.deepcopy(model)
    by_numbers, by_memory = (
        configure_optimizers("cpu", one, backbone_lr_scale=0.5) for one in (model, other)
    )
    rates = torch.tensor([group["lr"] for group in by_memory.param_groups])
    for optimizer, one in ((by_numbers, model), (by_memory, other)):
        for parameter in one.parameters():
            parameter.grad = torch.ones_like(parameter)
        with recordable(optimizer, rates) if one is other else contextlib.nullcontext():
            optimizer.step()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    assert all(isinstance(group["lr"], float) for group in by_memory.param_groups)
