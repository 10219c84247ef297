"""Training that draws premises with all their pairs: the order, the gradient of a step, a run."""

import json

import numpy as np
import pytest
import small_run
import torch
from hypothesis import given
from hypothesis import strategies as st

import finetune_hindi_xnli as finetune
from model import GPTBatched, GPTClassification, GPTConfig
from xnli_gpt.data.encoded import EncodedSplit, offsets_of
from xnli_gpt.data.packing import packed_rows, rows_sharing_premises
from xnli_gpt.data.premises import Premises, premises_of
from xnli_gpt.training.batches import StepCutter
from xnli_gpt.training.distributed import Ranks
from xnli_gpt.training.order import ExampleOrder, Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.step import loss_of

VOCAB = 97
sizes_of_premises = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def shuffled_premises(sizes: list[int]) -> Premises:
    """Premises of so many examples each, whose examples stand anywhere."""
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.random.default_rng(len(numbers)).permutation(numbers)
    return Premises(numbers, np.full(len(numbers), 3))


def split_of(sizes: list[int]) -> EncodedSplit:
    """Random rows, of which so many have each premise, in any order."""
    generator = np.random.default_rng(5)
    rows, spans = [], []
    for size in sizes:
        premise = generator.integers(1, VOCAB, generator.integers(4, 30))
        for _ in range(size):
            hypothesis = generator.integers(1, VOCAB, generator.integers(1, 12))
            rows.append(np.concatenate([premise, hypothesis]))
            spans.append((1, len(premise) - 1))
    order = generator.permutation(len(rows))
    return EncodedSplit(
        np.concatenate([rows[i] for i in order]),
        offsets_of([len(rows[i]) for i in order]),
        np.array(spans, dtype=np.int32)[order],
        np.arange(len(rows)) % 3,
    )


@given(sizes_of_premises, st.integers(1, 30), st.integers(0, 3))
def test_an_epoch_is_every_example_once_in_steps_of_whole_premises(sizes, per_step, seed):
    premises, N = shuffled_premises(sizes), sum(sizes)
    order = ExampleOrder(N, per_step, seed, premises=premises)
    assert order.epoch_steps == -(-N // per_step)
    for epoch in range(2):
        steps = [order.of_step(epoch * order.epoch_steps + i) for i in range(order.epoch_steps)]
        assert sorted(np.concatenate(steps).tolist()) == list(range(N))
        for step in steps:
            assert len(step)
            for number in np.unique(premises.numbers[step]):
                here = int((premises.numbers[step] == number).sum())
                assert here == sizes[number] or sizes[number] > N // order.epoch_steps
    three = [len(step) for step in steps] if set(sizes) <= {1, 2, 3} else []
    assert all(abs(size - N / order.epoch_steps) <= 3 for size in three)


def test_the_order_is_a_function_of_seed_and_step():
    premises = shuffled_premises([3] * 20)
    one, two = (ExampleOrder(60, 12, 1, premises=premises) for _ in range(2))
    backwards = [two.of_step(step).tolist() for step in reversed(range(15))]
    assert [one.of_step(step).tolist() for step in range(15)] == backwards[::-1]
    assert one.of_step(0).tolist() != one.of_step(5).tolist()
    other = ExampleOrder(60, 12, 2, premises=premises)
    assert one.of_step(0).tolist() != other.of_step(0).tolist()


@given(sizes_of_premises, st.integers(1, 5))
def test_every_premise_of_a_step_is_one_ranks(sizes, world_size):
    premises = shuffled_premises(sizes)
    lengths = np.random.default_rng(1).integers(4, 60, sum(sizes))
    shares = [Ranks(rank, world_size).share_of(lengths, premises) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(sum(sizes)))
    of_ranks = [set(premises.numbers[share].tolist()) for share in shares]
    assert sum(map(len, of_ranks)) == len(set().union(*of_ranks))


@pytest.fixture(scope="module")
def model() -> GPTClassification:
    config = GPTConfig.of_family(
        "small", vocab_size=VOCAB, num_layers=6, num_heads=1, model_dim=128, max_seq_len=64
    )
    torch.manual_seed(0)
    model = GPTClassification(GPTBatched(config), 3)
    for name, parameter in model.named_parameters():
        if "c_proj" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def gradients_of_step(model, split, max_tokens, ranks=1, premises=None) -> dict:
    row_of = packed_rows if premises is None else rows_sharing_premises
    every = np.arange(len(split))
    examples = Examples(
        split.lengths, split.labels, lambda rows: row_of(split, rows), premises=premises
    )
    recipe = Recipe(examples_per_step=len(split), num_steps=1, eval_interval=1, dropout=0.3)
    model.zero_grad()
    for rank in range(ranks):
        cutter = StepCutter(recipe, examples, model.dropout_width, Ranks(rank, ranks))
        batches = cutter.batches(7, every, max_tokens)
        for batch in batches.micro_batches:
            assert len(batch.inputs.input_ids) <= 1.03 * max_tokens
            loss_of(batch, batches.total_weight, model, recipe).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("max_tokens", "ranks"), [(5000, 1), (200, 1), (90, 2), (5000, 3)])
def test_the_gradient_of_a_step_is_that_of_its_pairs(model, max_tokens, ranks):
    split = split_of([3, 3, 1, 7, 3, 2])
    premises = premises_of(split, np.arange(len(split)))
    assert sorted(np.bincount(premises.numbers)) == [1, 2, 3, 3, 3, 7]
    expected = gradients_of_step(model, split, 5000)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    found = gradients_of_step(model, split, max_tokens, ranks, premises)
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * largest, rtol=0, msg=name)


def test_a_premise_is_computed_once(model):
    split = split_of([3] * 8)
    premises = premises_of(split, np.arange(len(split)))
    row, labels = rows_sharing_premises(split, np.concatenate(premises.groups()))
    real = sum(row.doc_lens[:8])
    saved = premises.saved_share(split.lengths)
    assert real == pytest.approx(split.lengths.sum() * (1 - saved)) and saved > 0.3
    assert torch.equal(labels, torch.from_numpy(split.labels[np.concatenate(premises.groups())]))


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return small_run.make_assets(tmp_path_factory.mktemp("assets"))


def test_a_run_says_its_order_and_goes_on_with_no_other(assets, tmp_path, capsys):
    words = small_run.command(assets, tmp_path, "--max_steps", 4, "--group_premises")
    assert finetune.main(words) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["steps"] == 4
    assert "group_premises: true" in (tmp_path / "config.yaml").read_text()
    capsys.readouterr()
    assert finetune.main(small_run.command(assets, tmp_path, "--max_steps", 8)) == 2
    assert "--group_premises" in capsys.readouterr().err


def test_even_sampling_is_another_order(assets, tmp_path, capsys):
    words = small_run.command(assets, tmp_path, "--group_premises", "--sampling", "even")
    assert finetune.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--group_premises with --sampling even" in line and "leave one of the two out" in line
