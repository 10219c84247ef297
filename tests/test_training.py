"""Optimizer groups, schedule, the exact step, mixed precision and the loop of `training.py`."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from evaluation import is_better
from model import GPTBatched, GPTClassification, GPTConfig, PackedRow
from training import (
    MAX_SKIPPED_IN_A_ROW,
    MicroBatch,
    Recipe,
    StepBatches,
    TrainingError,
    balanced_class_weights,
    configure_optimizers,
    dropout_masks,
    examples_of_step,
    fine_tune,
    learning_rate_factor,
    save_atomically,
    steps_per_epoch,
    train_step,
)

VOCAB, NUM_CLASSES = 40, 3
CUTS = {
    "whole": [[0, 1, 2, 3, 4, 5, 6]],
    "one at a time": [[0], [1], [2], [3], [4], [5], [6]],
    "uneven": [[0, 1], [2], [3, 4, 5, 6]],
    "another order": [[6, 2, 4], [0, 5], [3, 1]],
    "backwards, one at a time": [[6], [5], [4], [3], [2], [1], [0]],
}
LOSSES = {
    "plain": {},
    "class weights": dict(class_weights=(0.5, 1.0, 3.0)),
    "label smoothing": dict(label_smoothing=0.2),
    "all, with dropout": dict(class_weights=(0.5, 1.0, 3.0), label_smoothing=0.2, dropout=0.4),
}


@pytest.fixture
def model() -> GPTClassification:
    """A tiny classifier with no weight at zero, so that every parameter has a gradient."""
    config = GPTConfig.of_family(
        "small", vocab_size=VOCAB, num_layers=6, num_heads=2, model_dim=32, max_seq_len=32
    )
    classifier = GPTClassification(GPTBatched(config), NUM_CLASSES)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in classifier.named_parameters():
            if not name.endswith("scalars"):
                scale = 1.0 if "embed" in name else 0.6 * parameter.size(-1) ** -0.5
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return classifier


class Data:
    """Random rows of different lengths."""

    def __init__(self, num_rows: int, seed: int = 0):
        generator = np.random.default_rng(seed)
        self.lengths = generator.integers(2, 20, num_rows)
        self.rows = [torch.from_numpy(generator.integers(0, VOCAB, n)) for n in self.lengths]
        self.labels = torch.from_numpy(generator.permutation(np.arange(num_rows) % NUM_CLASSES))
        self.asked: list[list[int]] = []

    def get_batch(self, positions):
        self.asked.append(list(positions))
        rows = [self.rows[i] for i in positions]
        row = PackedRow.of(torch.cat(rows), [len(row) for row in rows], multiple=16)
        return row, self.labels[positions]


def recipe_of(**changes) -> Recipe:
    plain = Recipe(examples_per_step=8, num_steps=4, eval_interval=100, dropout=0.0, grad_clip=0.0)
    return dataclasses.replace(plain, **changes)


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def cut_as(cut, recipe, step, indices, data, width) -> StepBatches:
    """The step's examples in the micro-batches of `cut`, which no budget of tokens would give."""
    masks = dropout_masks(recipe.seed, step, len(indices), width, recipe.dropout)
    weights = torch.tensor(recipe.class_weights or [1.0] * NUM_CLASSES)
    micro_batches, total = [], 0.0
    for positions in map(np.array, cut):
        row, labels = data.get_batch(indices[positions])
        micro_batches.append(MicroBatch(row, labels, None if masks is None else masks[positions]))
        total += float(weights[labels].sum())
    return StepBatches(micro_batches, total, len(indices), max_tokens=1 << 20)


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
    weights = torch.tensor(recipe.class_weights or [1.0] * NUM_CLASSES, dtype=torch.float64)
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
        "pretrained_model.scalars",
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
        return [examples_of_step(10, 4, step, seed).tolist() for step in steps]

    assert steps_per_epoch(10, 4) == 3
    for number in range(3):
        assert [len(step) for step in epoch(number)] == [4, 4, 2]
        assert sorted(sum(epoch(number), [])) == list(range(10))
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=5)
    assert epoch(2) == epoch(2)


class Run:
    """Runs `fine_tune` with a scripted validation, and keeps what its callbacks were given."""

    def __init__(
        self,
        model,
        recipe,
        *,
        data=None,
        accuracies=(),
        scaler=None,
        optimizer=None,
        max_tokens_per_batch=40,
    ):
        self.data = data or Data(num_rows=10)
        self.optimizer = optimizer or configure_optimizers("cpu", model, recipe.learning_rate)
        self.calls: list[tuple] = []
        self.rates: list[list[float]] = []
        accuracies = iter(accuracies)

        def evaluate() -> dict:
            accuracy = next(accuracies, 0.0)
            return {"accuracy": accuracy, "macro_f1": accuracy, "loss": 1.0}

        self.overflowed: list[bool] = []

        update = self.optimizer.step

        def noted_update(*arguments):
            """At every step, once the rates are set and the scaler has looked at the gradients."""
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
            self.overflowed.append(bool(getattr(self.optimizer, "found_inf", 0)))
            return update(*arguments)

        self.optimizer.step = noted_update
        self.progress = fine_tune(
            model,
            self.optimizer,
            scaler or no_scaler(),
            recipe,
            self.data.lengths,
            self.data.get_batch,
            max_tokens_per_batch,
            evaluate,
            lambda new, best: is_better("accuracy", new["accuracy"], best and best["accuracy"]),
            on_evaluation=lambda progress, line: self.calls.append(("line", line)),
            on_best=lambda progress, _: self.calls.append(("best", progress.step)),
        )

    @property
    def lines(self) -> list[dict]:
        return [value for kind, value in self.calls if kind == "line"]


def test_backbone_lr_scale_holds_throughout_the_schedule(model):
    recipe = recipe_of(num_steps=20, learning_rate=2e-3)
    optimizer = configure_optimizers("cpu", model, 2e-3, 0.01, backbone_lr_scale=0.1)
    trunk = {id(parameter) for parameter in model.pretrained_model.parameters()}
    run = Run(model, recipe, optimizer=optimizer)
    for update, rates in enumerate(run.rates):
        peak_share = learning_rate_factor("linear", update, 20, 0.1)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            of_trunk = {id(parameter) in trunk for parameter in group["params"]}
            assert len(of_trunk) == 1, "a group mixes trunk and head"
            scale = 0.1 if of_trunk == {True} else 1.0
            assert rate == pytest.approx(2e-3 * peak_share * scale)
    assert len(run.rates) == 20


def test_the_loop_sees_every_example_once_an_epoch(model):
    run = Run(model, recipe_of(examples_per_step=4, num_steps=6, seed=9))
    asked = sum(run.data.asked, [])
    assert sorted(asked[:10]) == sorted(asked[10:]) == list(range(10))
    assert asked[:10] != asked[10:]
    assert run.progress.examples == 20


@pytest.mark.parametrize(
    ("patience", "accuracies", "steps", "best_step"),
    [
        (2, [0.5, 0.6, 0.6, 0.5, 0.9], 4, 2),
        (1, [0.5, 0.4, 0.9], 2, 1),
        (3, [0.5, 0.4, 0.3, 0.6, 0.5], 5, 4),
        (2, [0.5, 0.4, 0.6, 0.5, 0.7], 5, 5),
        (0, [0.5, 0.4, 0.3, 0.2, 0.1], 5, 1),
    ],
)
def test_early_stopping_counts_evaluations_without_a_better_one(
    model, patience, accuracies, steps, best_step
):
    recipe = recipe_of(num_steps=5, eval_interval=1, early_stopping=patience)
    run = Run(model, recipe, accuracies=accuracies)
    assert (run.progress.step, run.progress.best_step) == (steps, best_step)
    assert run.progress.best["accuracy"] == max(accuracies[:steps])
    assert [line["step"] for line in run.lines] == list(range(1, steps + 1))


def test_validation_comes_every_interval_and_at_the_end_and_the_best_is_saved_first(model):
    run = Run(model, recipe_of(num_steps=7, eval_interval=3), accuracies=[0.5, 0.4, 0.6])
    told = [(kind, value if kind == "best" else value["step"]) for kind, value in run.calls]
    assert told == [("best", 3), ("line", 3), ("line", 6), ("best", 7), ("line", 7)]
    assert all(math.isfinite(line["train_loss"]) for line in run.lines)
    assert [line["epoch"] for line in run.lines] == [1.5, 3.0, 3.5]


def test_training_lowers_the_loss(model):
    recipe = recipe_of(num_steps=30, eval_interval=10, learning_rate=3e-3, grad_clip=1.0)
    losses = [line["train_loss"] for line in Run(model, recipe).lines]
    assert losses[-1] < 0.5 * losses[0]


def test_a_frozen_backbone_stays_bit_for_bit_and_the_head_moves(model):
    model.pretrained_model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Run(model, recipe_of(num_steps=3, learning_rate=1e-2, dropout=0.1))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("pretrained_model."), name


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


def test_skipped_steps_are_counted_and_do_not_advance_the_schedule(model):
    recipe = recipe_of(num_steps=24, eval_interval=24, dtype=torch.float16, learning_rate=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26)
    run = Run(model, recipe, scaler=scaler)
    skipped = run.progress.skipped
    assert 1 < skipped < 20
    assert run.progress.step == 24
    assert run.progress.updates == 24 - skipped
    assert run.lines[-1]["skipped_steps"] == skipped
    assert sum(run.overflowed) == skipped and run.overflowed[0]
    # A step that was skipped is followed by one with the same rate.
    updates = np.cumsum([0] + [not overflow for overflow in run.overflowed[:-1]])
    rates = [1e-3 * learning_rate_factor("linear", update, 24, 0.1) for update in updates]
    assert [rates_of_step[0] for rates_of_step in run.rates] == pytest.approx(rates)


def test_overflowing_without_end_is_an_error_that_names_what_to_try(model):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    recipe = recipe_of(num_steps=50, dtype=torch.float16)
    with pytest.raises(TrainingError, match=f"{MAX_SKIPPED_IN_A_ROW} steps.*--dtype bfloat16"):
        Run(model, recipe, scaler=scaler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_diverging_run_stops_with_what_to_try(model, dtype):
    recipe = recipe_of(num_steps=20, learning_rate=1e30, warmup_ratio=0.0, dtype=dtype)
    with pytest.raises(TrainingError, match="not finite: lower --learning_rate"):
        Run(model, recipe)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    save_atomically(path, lambda partial: partial.write_text("old"))

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        save_atomically(path, fail)
    assert path.read_text() == "old"
