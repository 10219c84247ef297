"""The same numbers on a GPU; skipped, with the reason, where there is none."""

import argparse
import copy
import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from made_checkpoints import (
    GOLDEN_SIZES,
    golden_case,
    golden_state,
    gpt_call,
    random_state,
    save_checkpoint,
)
from scripted import ScriptedValidation

import finetune_hindi_xnli
from load_checkpoint_helper import load_pretrained_checkpoint
from model import GPTBatched, GPTClassification, GPTFlexAttention, PackedRow
from xnli_gpt.errors import TrainingError
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.training import trainer as trainer_room
from xnli_gpt.training.batches import StepCutter
from xnli_gpt.training.distributed import ALONE
from xnli_gpt.training.graphs import step_graphs_of
from xnli_gpt.training.memory import find_max_tokens
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.options import TrainingMachineOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.state import TrainState
from xnli_gpt.training.step import autocast, train_step
from xnli_gpt.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
DEVICE = torch.device("cuda")
VOCAB = 300
# Longer than the short window of 7 blocks, of one token, at a block's edge, and in between.
LENGTHS = (1000, 3, 130, 1, 128, 64)
# The longest is one that varlen takes, which knows no window.
UNWINDOWED_LENGTHS = (896, 3, 130, 1, 128, 64)


@pytest.fixture(autouse=True)
def exact_and_really_compiled():
    """Float32 products in float32, and no quiet way around compiled code.

    FlexAttention that is compiled once too often goes on without its kernel: right, but with all
    scores in memory.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    torch._dynamo.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield
    torch._dynamo.reset()
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(params=GOLDEN_SIZES)
def loaded(request, tmp_path):
    size = GOLDEN_SIZES[request.param]
    path = save_checkpoint(
        tmp_path / "state.pt",
        golden_state(request.param),
        code=gpt_call(size["layers"], size["heads"], 128),
    )
    return golden_case(request.param), load_pretrained_checkpoint(path, device=DEVICE)[0]


def as_flex(trunk):
    flex = GPTFlexAttention.from_config(trunk.config)
    flex.load_state_dict({**trunk.state_dict(), "lm_head.weight": trunk.lm_head_weight})
    return flex.to(DEVICE)


@pytest.mark.parametrize("form", [lambda trunk: trunk, as_flex], ids=["batched", "flex"])
def test_golden_features_on_cuda(loaded, form):
    case, trunk = loaded
    model = form(trunk)
    ids, docs, long_ids = (
        torch.from_numpy(case[name]).to(DEVICE) for name in ("ids", "docs", "long_ids")
    )
    with torch.inference_mode():
        found = {
            "features": model.forward_features(ids),
            "features_docs": model.forward_features(ids, docs=docs),
            "features_long": model.forward_features(
                long_ids, windows=tuple(case["long_windows"].tolist())
            )[torch.from_numpy(case["long_at"]).to(DEVICE)],
        }
    for name, features in found.items():
        assert np.abs(features.cpu().numpy() - case[name]).max() < 1e-4, name


@torch.inference_mode()
def pooled(trunk, examples):
    lengths = [len(example) for example in examples]
    row = PackedRow.of(torch.from_numpy(np.concatenate(examples)), lengths, multiple=128)
    return trunk.pooled_features(row.to(DEVICE)).cpu().numpy()


@pytest.mark.parametrize("backend", ["flex", "groups"])
def test_golden_features_of_packed_rows(loaded, backend):
    """Whatever an example ends with, it is pooled; windows and places count from its beginning."""
    case, trunk = loaded
    trunk.row_attention = backend
    documents = [case["ids"][case["docs"] == number] for number in np.unique(case["docs"])]
    ends = np.cumsum([len(document) for document in documents]) - 1
    expected = case["features_docs"][ends]
    assert np.abs(pooled(trunk, documents) - expected).max() < 1e-4
    trunk.config = dataclasses.replace(trunk.config, windows=tuple(case["long_windows"].tolist()))
    prefixes = [case["long_ids"][: last + 1] for last in case["long_at"]]
    assert np.abs(pooled(trunk, prefixes) - case["features_long"]).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_step_in_every_precision_moves_float32_masters(tmp_path, dtype):
    path = save_checkpoint(tmp_path / "state.pt", golden_state("small"), code=gpt_call(12, 1, 128))
    args = argparse.Namespace(pretrained_ckpt_path=str(path), device="cuda", dtype=dtype)
    config = load_pretrained_checkpoint(path)[0].config
    model = GPTClassification(GPTBatched(config), num_classes=3)
    model, optimizer, scaler = finetune_hindi_xnli.load_pretrained_model(args, model)
    assert scaler.is_enabled() == (dtype == "float16")
    before = model.pretrained_model.block_lambdas.detach().clone()
    ids = torch.randint(0, 300, (4, 40), device="cuda")
    with torch.autocast("cuda", getattr(torch, dtype), enabled=dtype != "float32"):
        logits = model(ids, torch.tensor([40, 3, 17, 22], device="cuda"))
    # A sum would overflow float16 at the scaler's first scale, and the update be left out.
    scaler.scale((logits.logsumexp(-1) - logits[:, 0]).mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not torch.equal(model.pretrained_model.block_lambdas, before)


# Packed rows


@pytest.fixture
def model(tmp_path):
    """A small classifier with no weight at zero."""
    state = random_state("small", layers=6, heads=1, dim=128, vocab=VOCAB, seed=1)
    path = save_checkpoint(tmp_path / "state.pt", state)
    trunk, _, _ = load_pretrained_checkpoint(path, max_seq_len=1024)
    torch.manual_seed(0)
    return GPTClassification(trunk, num_classes=3).to(DEVICE)


def examples_of(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCAB, (length,), generator=generator) for length in lengths]


def packed(examples):
    lengths = [len(example) for example in examples]
    return PackedRow.of(torch.cat(examples), lengths, multiple=128).to(DEVICE)


def logits_alone(model, examples):
    """Every example by itself, without packing, by torch's own attention."""
    trunk, head = model.pretrained_model, model.head
    last = torch.stack([trunk.forward_features(ids.to(DEVICE))[-1] for ids in examples])
    return head.output(head.hidden(last).relu()).float()


def with_gradients(model, logits):
    model.zero_grad(set_to_none=True)
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), gradients


def assert_same(found, expected, tolerance):
    (logits, gradients), (expected_logits, expected_gradients) = found, expected
    assert float((logits - expected_logits).abs().max()) < tolerance
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        assert float((gradients[name] - gradient).abs().max()) < tolerance * largest, name


@pytest.mark.parametrize("backend", ["flex", "groups"])
def test_a_packed_row_is_its_examples_one_at_a_time(model, backend):
    examples = examples_of(LENGTHS)
    expected = with_gradients(model, logits_alone(model, examples))
    model.pretrained_model.row_attention = backend
    found = with_gradients(model, model(packed(examples)))
    assert_same(found, expected, 1e-4)


@pytest.mark.parametrize("backend", ["flex", "varlen", "groups"])
def test_a_packed_row_in_bfloat16_is_close(model, backend):
    """Half precision's own error is some hundredths; a key too many or too few is far more."""
    examples = examples_of(UNWINDOWED_LENGTHS)
    expected, exact = with_gradients(model, logits_alone(model, examples))
    model.pretrained_model.row_attention = backend
    with autocast(DEVICE.type, torch.bfloat16):
        logits = model(packed(examples))
    found, gradients = with_gradients(model, logits)
    assert not torch.equal(found, expected), "autocast must have been in force"
    assert float((found - expected).norm() / expected.norm()) < 0.1
    for name, gradient in exact.items():
        close = torch.cosine_similarity(gradients[name].flatten(), gradient.flatten(), dim=0)
        assert close > 0.95, f"{name}: {close}"


def test_varlen_refuses_an_example_for_which_a_window_binds(model):
    model.pretrained_model.row_attention = "varlen"
    with pytest.raises(ValueError, match="1000 tokens, beyond the window"):
        model(packed(examples_of(LENGTHS)))


@pytest.mark.parametrize("backend", ["flex", "varlen"])
@pytest.mark.parametrize("left_over", [0.0, 1e4, float("nan")])
def test_the_filler_leaves_gradients_alone_whatever_memory_held(model, backend, left_over):
    """A gradient that no kernel writes is what the allocator's block held before."""
    examples = examples_of([61, 40, 77, 50])
    row, without_filler = packed(examples), PackedRow.of(torch.cat(examples), [61, 40, 77, 50])
    assert len(row.input_ids) > len(torch.cat(examples))
    model.pretrained_model.row_attention = backend

    def gradients(row):
        torch.cuda.empty_cache()
        sizes = (1 << 12, 1 << 15, 1 << 20)
        held = [torch.full((n,), left_over, device=DEVICE) for n in sizes for _ in range(256)]
        del held
        with autocast(DEVICE.type, torch.bfloat16):
            logits = model(row)
        return with_gradients(model, logits)[1]

    expected, found = gradients(without_filler.to(DEVICE)), gradients(row)
    for name, gradient in expected.items():
        if "blocks" in name:
            close = torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0)
            assert close > 0.99, f"{name}: {close}"


# Compiled code


@pytest.mark.parametrize("backend", ["flex", "groups"])
def test_the_compiled_trunk_gives_the_same(model, backend):
    model.pretrained_model.row_attention = backend
    row = packed(examples_of(LENGTHS))
    expected = with_gradients(model, model(row))
    compile_trunk(model.pretrained_model)
    found = with_gradients(model, model(row))
    assert_same(found, expected, 1e-4)


def rows_of_many_sizes():
    """Of two blocks and more and some examples, each of another size than the others."""
    generator = np.random.default_rng(0)
    for count in (3, 5, 8, 13, 21, 34):
        yield packed(examples_of(generator.integers(90, 200, count).tolist(), seed=count))


@pytest.mark.parametrize("backend", ["flex", "varlen", "groups"])
def test_the_compiled_trunk_is_not_compiled_anew_for_other_lengths(model, backend):
    model.pretrained_model.row_attention = backend
    compile_trunk(model.pretrained_model)

    def step(row):
        with autocast(DEVICE.type, torch.bfloat16):
            logits = model(row)
        logits.square().sum().backward()

    first, second, *others = rows_of_many_sizes()
    step(first)
    step(second)
    with torch.compiler.set_stance("fail_on_recompile"):
        for row in others:
            step(row)


@pytest.mark.parametrize("compiled", [False, True], ids=["trunk as it is", "compiled trunk"])
def test_flex_keeps_its_kernel_through_training_and_evaluation(model, compiled):
    """Two windows, pooling, and with gradients or without: each needs code of its own."""
    model.pretrained_model.row_attention = "flex"
    if compiled:
        compile_trunk(model.pretrained_model)
    for row in rows_of_many_sizes():
        for enabled in (True, False):
            with autocast(DEVICE.type, torch.bfloat16), torch.set_grad_enabled(enabled):
                logits = model(row)
            if enabled:
                logits.sum().backward()
    # In pieces longer than the window too, and more than 128 examples.
    for lengths in (LENGTHS, [30] * 200):
        with autocast(DEVICE.type, torch.bfloat16):
            model(packed(examples_of(lengths))).sum().backward()


# Steps


class Data:
    """Random examples of 20 to 200 tokens."""

    def __init__(self, count):
        generator = np.random.default_rng(0)
        self.lengths = generator.integers(20, 200, count)
        self.rows = examples_of(self.lengths.tolist())
        self.labels = torch.from_numpy(generator.integers(0, 3, count))

    def get_batch(self, positions):
        rows = [self.rows[i] for i in positions]
        lengths = [len(row) for row in rows]
        return PackedRow.of(torch.cat(rows), lengths, multiple=128), self.labels[positions]

    @property
    def examples(self):
        return Examples(self.lengths, self.labels.cpu().numpy(), self.get_batch)


def recipe_of(data, **changes):
    plain = Recipe(examples_per_step=len(data.lengths), num_steps=3, eval_interval=3)
    return dataclasses.replace(plain, **changes)


def no_scaler():
    return torch.amp.GradScaler(DEVICE.type, enabled=False)


def trainer_of(model, data, max_tokens, **changes):
    """A short run from a copy of `model`."""
    model = copy.deepcopy(model)
    return Trainer(
        model,
        configure_optimizers(DEVICE.type, model),
        no_scaler(),
        recipe_of(data, **changes),
        data.examples,
        ScriptedValidation([0.5] * 9),
        state=TrainState(max_tokens_per_batch=max_tokens),
    )


def tuned(model, data, max_tokens, **changes):
    """The state that a short run ends in, and the weights."""
    trainer = trainer_of(model, data, max_tokens, **changes)
    return trainer.train(), weights_of(trainer.model)


def weights_of(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu()


def assert_same_run(one, two, model):
    """The weights went the same way: Adam moves a weight of tiny gradient by the sign of noise."""
    start = weights_of(model)
    moved = (one - start).norm()
    assert moved > 0
    assert (one - two).norm() < 1e-2 * moved


def test_prefetched_steps_do_not_depend_on_the_budget_of_tokens(model):
    data = Data(20)
    everything = int(data.lengths.sum())
    changes = {"examples_per_step": 8, "num_steps": 6, "eval_interval": 4}
    whole, weights = tuned(model, data, everything, **changes)
    cut, others = tuned(model, data, 250, **changes)
    assert_same_run(weights, others, model)
    assert whole.losses == pytest.approx(cut.losses, rel=1e-4)
    assert (cut.step, cut.examples, cut.max_tokens_per_batch) == (6, 40, 250)


@contextmanager
def gpu_memory_of(limit, monkeypatch):
    """The allocator's limit in bytes, and what the driver says is free accordingly."""
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(DEVICE)[1]
    monkeypatch.setattr(
        torch.cuda,
        "mem_get_info",
        lambda device=None: (limit - torch.cuda.memory_reserved(device), limit),
    )
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_the_tokens_found_fits_into_memory(model, dtype, monkeypatch):
    data = Data(400)
    recipe = recipe_of(data, dtype=dtype)
    model.train()
    optimizer = configure_optimizers(DEVICE.type, model)
    # What earlier tests have left in the allocator would be free, too.
    torch.cuda.empty_cache()
    with gpu_memory_of(torch.cuda.memory_reserved(DEVICE) + (1 << 30), monkeypatch):
        max_tokens = find_max_tokens(model, recipe, data.examples)
        assert 1000 < max_tokens < data.lengths.sum(), "memory must be what decides"
        assert all(parameter.grad is None for parameter in model.parameters())
        indices = np.arange(len(data.lengths))
        width = model.dropout_width
        batches = StepCutter(recipe, data.examples, width).batches(0, indices, max_tokens)
        result = train_step(model, optimizer, no_scaler(), recipe, batches)
    assert torch.isfinite(result.loss)


def reserved_peak(run):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    result = run()
    return result, torch.cuda.max_memory_reserved(DEVICE)


def test_out_of_memory_halves_the_budget_and_changes_no_result(model, monkeypatch, capsys):
    data = Data(96)
    everything = int(data.lengths.sum())
    (_, expected), little = reserved_peak(lambda: tuned(model, data, everything // 16))
    _, much = reserved_peak(lambda: tuned(model, data, everything))
    assert "out of GPU memory" not in capsys.readouterr().out
    assert much > little + (100 << 20), "else the limit between the two would be by chance"
    with gpu_memory_of((little + much) // 2, monkeypatch):
        state, weights = tuned(model, data, everything)
    assert f"note: out of GPU memory; step 1 again with at most {everything // 2} tokens" in (
        capsys.readouterr().out
    )
    assert everything // 16 < state.max_tokens_per_batch <= everything // 2
    assert state.step == 3
    assert_same_run(expected, weights, model)


def test_one_example_that_does_not_fit_is_an_error_of_one_line(model, monkeypatch):
    data = Data(2)
    full = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(trainer_room, "train_step", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(TrainingError, match="one example a micro-batch"):
        tuned(model, data, 1 << 20)


@contextmanager
def waiting_is_an_error():
    torch.cuda.synchronize(DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("class_weights", [None, (0.5, 1.0, 3.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("backend", ["flex", "varlen"])
def test_a_step_does_not_make_the_host_wait(model, backend, class_weights):
    """What torch can tell of: its sparse operations, with `coalesce`, are not covered."""
    model.pretrained_model.row_attention = backend
    data = Data(12)
    recipe = recipe_of(data, dtype=torch.bfloat16, weight_of_class=class_weights)
    optimizer = configure_optimizers(DEVICE.type, model)
    width = model.dropout_width
    indices = np.arange(len(data.lengths))
    batches = StepCutter(recipe, data.examples, width).batches(0, indices, 800).pin_memory()
    assert len(batches.micro_batches) > 1
    # Compiling, first moments and constants are made once and may wait.
    for _ in range(2):
        train_step(model, optimizer, no_scaler(), recipe, batches)
    with waiting_is_an_error():
        result = train_step(model, optimizer, no_scaler(), recipe, batches)
    assert torch.isfinite(result.loss)


# CUDA graphs


@pytest.mark.parametrize("compiled", [False, True], ids=["trunk as it is", "compiled trunk"])
def test_steps_by_graphs_are_those_without(model, compiled):
    """Of few shapes, so that most steps are replayed, and one that is too small for another's."""
    data = Data(45)
    changes = {"examples_per_step": 8, "num_steps": 24, "eval_interval": 12}
    changes |= {"dtype": torch.bfloat16, "dropout": 0.1}
    model.pretrained_model.row_attention = "varlen"
    if compiled:
        compile_trunk(model.pretrained_model)

    def trained(with_graphs):
        trainer = trainer_of(model, data, 1 << 16, **changes)
        trainer.graphs = step_graphs_of(
            TrainingMachineOptions(),
            trainer.model,
            trainer.optimizer,
            trainer.recipe,
            data.examples,
            ALONE,
        )
        if not with_graphs:
            # Rows of the same shapes, or sums would be in another order.
            trainer.graphs.pool = None
        trainer.train()
        return weights_of(trainer.model), trainer.graphs

    expected, none = trained(with_graphs=False)
    found, graphs = trained(with_graphs=True)
    assert not none.graphs
    assert graphs.graphs and max(graphs.met.values()) > 2
    assert graphs.pool is not None, "no graph failed"
    assert_same_run(expected, found, model)
