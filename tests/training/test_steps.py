"""One step: gradients however it is cut, dropout, clipping, decay, schedule, precision."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from training_parts import LOSSES, NUM_CLASSES, Data, no_scaler, recipe_of

from xnli_gpt.training.batches import MicroBatch, StepBatches, StepCutter
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.order import ExampleOrder, dropout_masks
from xnli_gpt.training.recipe import (
    balanced_class_weights,
    learning_rate_factor,
    steps_per_epoch,
)
from xnli_gpt.training.step import train_step
from xnli_gpt.training.table_rows import TableRows

CUTS = {
    "whole": [[0, 1, 2, 3, 4, 5, 6]],
    "one at a time": [[0], [1], [2], [3], [4], [5], [6]],
    "uneven": [[0, 1], [2], [3, 4, 5, 6]],
    "another order": [[6, 2, 4], [0, 5], [3, 1]],
    "backwards, one at a time": [[6], [5], [4], [3], [2], [1], [0]],
}


def cut_as(cut, recipe, step, indices, data, width) -> StepBatches:
    """The step's examples in the micro-batches of `cut`, which no budget of tokens would give."""
    masks = dropout_masks(recipe.seed, step, len(indices), width, recipe.dropout)
    weights = torch.tensor(recipe.weight_of_class or [1.0] * NUM_CLASSES)
    micro_batches, total = [], 0.0
    for positions in map(np.array, cut):
        row, labels = data.get_batch(indices[positions])
        micro_batches.append(MicroBatch(row, labels, None if masks is None else masks[positions]))
        total += float(weights[labels].sum())
    table_rows = TableRows.of([batch.inputs.input_ids for batch in micro_batches])
    return StepBatches(micro_batches, total, len(indices), 1 << 20, 0, table_rows)


def one_step(model, recipe, data, cut, step=5, scaler=None, learning_rate=0.1):
    """A step of plain gradient descent on all of `data`; returns its result and the gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    indices = np.arange(len(data.rows))[::-1].copy()
    batches = cut_as(cut, recipe, step, indices, data, model.dropout_width)
    result = train_step(model, optimizer, scaler or no_scaler(), recipe, batches)
    return result, {name: parameter.grad for name, parameter in model.named_parameters()}


def reference_gradient(model, recipe, data, step=5):
    """The full-batch loss written out: smoothed targets times weighted log-probabilities."""
    indices = np.arange(len(data.rows))[::-1].copy()
    row, labels = data.get_batch(indices)
    masks = dropout_masks(
        recipe.seed, step, len(indices), model.dropout_width, recipe.dropout or 0.0
    )
    log_probabilities = torch.log_softmax(model(row, dropout_mask=masks).double(), dim=1)
    weights = torch.tensor(recipe.weight_of_class or [1.0] * NUM_CLASSES, dtype=torch.float64)
    smoothing = recipe.label_smoothing
    total = sum(
        -weights[c]
        * ((1 - smoothing) * (label == c) + smoothing / NUM_CLASSES)
        * log_probabilities[row, c]
        for row, label in enumerate(labels.tolist())
        for c in range(NUM_CLASSES)
    )
    loss = total / sum(weights[label] for label in labels.tolist())
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return float(loss.detach()), dict(zip(names, gradients, strict=True))


def assert_same_gradients(found, expected, relative=2e-6):
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).abs().max())
        assert difference <= relative * largest, f"{name}: {difference} of {largest}"


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_steps_gradient_is_that_of_the_full_batch_however_it_is_cut(model, loss, cut):
    data, recipe = Data(num_rows=7), recipe_of(**loss)
    expected_loss, expected = reference_gradient(model, recipe, data)
    result, found = one_step(model, recipe, data, cut)
    assert_same_gradients(found, expected)
    assert result.loss == pytest.approx(expected_loss, rel=1e-6)
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)


def test_weights_after_a_step_do_not_depend_on_the_cut(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    recipe = recipe_of(**LOSSES["all, with dropout"], grad_clip=0.5)
    stepped = []
    for cut in (CUTS["whole"], CUTS["another order"]):
        model.load_state_dict(state)
        one_step(model, recipe, Data(num_rows=7), cut)
        stepped.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for name, tensor in stepped[0].items():
        torch.testing.assert_close(stepped[1][name], tensor, rtol=0, atol=1e-7)
    assert not torch.equal(stepped[0]["head.output.weight"], state["head.output.weight"])


def test_dropout_and_weights_do_change_the_gradient(model):
    """Else the exactness above would hold for options that nobody reads."""
    data = Data(num_rows=7)
    seen = set()
    for options in LOSSES.values():
        _, gradients = one_step(model, recipe_of(**options), data, CUTS["whole"], learning_rate=0)
        seen.add(float(gradients["head.output.weight"].square().sum()))
    assert len(seen) == len(LOSSES)


def test_dropout_is_a_function_of_seed_step_and_position():
    masks = dropout_masks(1, 2, 8, 200, 0.25)
    assert torch.equal(masks, dropout_masks(1, 2, 8, 200, 0.25))
    assert torch.equal(masks[:5], dropout_masks(1, 2, 5, 200, 0.25))
    assert not torch.equal(masks, dropout_masks(2, 2, 8, 200, 0.25))
    assert not torch.equal(masks, dropout_masks(1, 3, 8, 200, 0.25))
    assert not torch.equal(masks[0], masks[1])
    assert masks.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((masks == 0).float().mean()) == pytest.approx(0.25, abs=0.05)
    assert dropout_masks(1, 2, 8, 200, 0.0) is None


@pytest.mark.parametrize(("clip", "applied"), [(0.05, 0.05), (1e6, None), (0.0, None)])
def test_clipping_bounds_the_gradient_that_is_applied(model, clip, applied):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    result, _ = one_step(model, recipe_of(grad_clip=clip), Data(num_rows=7), CUTS["uneven"])
    moved = math.sqrt(
        sum(
            float((new.detach() - old).double().square().sum())
            for new, old in zip(model.parameters(), before, strict=True)
        )
    )
    assert result.grad_norm > 0.1
    # Plain gradient descent at 0.1 moves the weights by a tenth of what is applied.
    assert moved / 0.1 == pytest.approx(applied or float(result.grad_norm), rel=1e-3)


def test_decay_is_on_matrices_only(model):
    optimizer = configure_optimizers("cpu", model, weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert decay.keys() == set(names.values())
    undecayed = {name for name, value in decay.items() if value == 0}
    assert undecayed == {
        "pretrained_model.embed.weight",
        *(f"pretrained_model.value_embeds.{t}.weight" for t in range(3)),
        "pretrained_model.skip_weights",
        "pretrained_model.block_lambdas",
        "pretrained_model.value_lambdas",
        "head.hidden.bias",
        "head.output.bias",
    }
    assert {value for name, value in decay.items() if name not in undecayed} == {0.3}
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_the_optimizers_defaults_are_the_groups_recipe(model):
    groups = configure_optimizers("cpu", model).param_groups
    assert {group["lr"] for group in groups} == {1e-4}
    assert {group["weight_decay"] for group in groups} == {0.01, 0.0}


@pytest.mark.parametrize(
    ("schedule", "update", "expected"),
    [
        ("linear", 0, 0.1),
        ("linear", 4, 0.5),
        ("linear", 9, 1.0),
        ("linear", 10, 1.0),
        ("linear", 50, 0.55),
        ("linear", 89, 0.1 + 0.9 / 80),
        ("linear", 90, 0.1),
        ("linear", 99, 0.1),
        ("cosine", 0, 0.1),
        ("cosine", 10, 1.0),
        ("cosine", 30, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        ("cosine", 50, 0.55),
        ("cosine", 95, 0.1),
        ("constant", 5, 0.6),
        ("constant", 10, 1.0),
        ("constant", 99, 1.0),
    ],
)
def test_schedule_of_a_hundred_steps_with_ten_of_warm_up(schedule, update, expected):
    assert learning_rate_factor(schedule, update, 100, 0.1) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("num_steps", "warmup_ratio"), [(1, 0.1), (7, 0.0), (10, 1.0), (3, 0.95)])
def test_schedule_stays_between_zero_and_the_peak_in_short_runs(schedule, num_steps, warmup_ratio):
    rates = [
        learning_rate_factor(schedule, update, num_steps, warmup_ratio)
        for update in range(num_steps)
    ]
    assert all(0 < rate <= 1 for rate in rates)
    assert warmup_ratio > 0.9 or rates[0] == 1.0


def test_balanced_class_weights_equal_scikit_learns():
    labels = np.array([0] * 7 + [1] * 2 + [2] * 11)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert balanced_class_weights(labels, 3) == pytest.approx(tuple(expected))


def test_every_example_comes_once_an_epoch_in_an_order_of_the_seed():
    def epoch(number: int, seed: int = 4) -> list[list[int]]:
        steps = range(3 * number, 3 * number + 3)
        order = ExampleOrder(10, 4, seed)
        return [order.of_step(step).tolist() for step in steps]

    assert steps_per_epoch(10, 4) == 3
    for number in range(3):
        assert [len(step) for step in epoch(number)] == [4, 4, 2]
        assert sorted(sum(epoch(number), [])) == list(range(10))
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=5)
    assert epoch(2) == epoch(2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_mixed_precision_keeps_parameters_in_float32_and_comes_near_the_exact_gradient(
    model, dtype
):
    data, recipe = Data(num_rows=7), recipe_of(dtype=dtype)
    _, expected = reference_gradient(model, recipe, data)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16, init_scale=128.0)
    result, found = one_step(model, recipe, data, CUTS["uneven"], scaler=scaler)
    assert not result.skipped
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in expected.values()))
    assert result.grad_norm == pytest.approx(norm, rel=0.05), "clipping must see unscaled gradients"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_same_gradients(found, expected, relative=2e-6 if dtype is torch.float32 else 0.1)
    if dtype is not torch.float32:
        with pytest.raises(AssertionError):
            assert_same_gradients(found, expected)


def test_an_overflow_leaves_the_weights_and_is_reported(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    result, _ = one_step(
        model, recipe_of(dtype=torch.float16), Data(num_rows=7), CUTS["uneven"], scaler=scaler
    )
    assert result.skipped and math.isfinite(result.loss)
    assert scaler.get_scale() == 2.0**39
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def step_of(data, recipe, max_tokens=1 << 20, step=0, width=16) -> StepBatches:
    indices = np.arange(len(data.rows))
    return StepCutter(recipe, data.examples, width).batches(step, indices, max_tokens)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_steps_with_sparse_gradients_are_those_with_dense_ones(model, clip):
    """Norm and clipping included: rows that come in several micro-batches are summed first."""
    dense_model, data = copy.deepcopy(model), Data(num_rows=7)
    recipe = recipe_of(grad_clip=clip)
    optimizer = configure_optimizers("cpu", model, 1e-2)
    dense = configure_optimizers("cpu", dense_model, 1e-2)
    for module in dense_model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.sparse = False
    for step in range(3):
        batches = step_of(data, recipe, max_tokens=20, step=step, width=model.dropout_width)
        assert len(batches.micro_batches) > 2
        result = train_step(model, optimizer, no_scaler(), recipe, batches)
        expected = train_step(dense_model, dense, no_scaler(), recipe, batches)
        assert dense_model.pretrained_model.embed.weight.grad is not None
        norm = math.sqrt(
            sum(float(p.grad.double().square().sum()) for p in dense_model.parameters())
        )
        assert float(result.grad_norm) == pytest.approx(float(expected.grad_norm), rel=1e-6)
        if not clip:
            assert float(result.grad_norm) == pytest.approx(norm, rel=1e-5)
    for one, other in zip(model.parameters(), dense_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
