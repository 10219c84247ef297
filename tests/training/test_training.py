"""Optimizer groups, schedule, the exact step, mixed precision and the loop of training."""

import copy
import dataclasses
import math
import threading
import time

import numpy as np
import pytest
import torch
from limits import HANG_S
from scripted import ScriptedValidation
from sklearn.utils.class_weight import compute_class_weight

from model import GPTBatched, GPTClassification, GPTConfig, PackedRow
from xnli_gpt.errors import TrainingError
from xnli_gpt.files import save_atomically
from xnli_gpt.training.batches import MicroBatch, StepBatches, StepCutter, prefetched
from xnli_gpt.training.memory import MAX_TOKENS, find_max_tokens
from xnli_gpt.training.optimizer import RowAdamW, configure_optimizers
from xnli_gpt.training.order import ExampleOrder, Examples, dropout_masks
from xnli_gpt.training.progress_line import LineTimes, ProgressLine
from xnli_gpt.training.recipe import (
    Recipe,
    balanced_class_weights,
    learning_rate_factor,
    steps_per_epoch,
)
from xnli_gpt.training.records import Records
from xnli_gpt.training.state import PendingStep, TrainState
from xnli_gpt.training.step import train_step
from xnli_gpt.training.table_rows import TableRows
from xnli_gpt.training.trainer import MAX_SKIPPED_IN_A_ROW, Trainer

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
    "class weights": dict(weight_of_class=(0.5, 1.0, 3.0)),
    "label smoothing": dict(label_smoothing=0.2),
    "all, with dropout": dict(weight_of_class=(0.5, 1.0, 3.0), label_smoothing=0.2, dropout=0.4),
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
            if not name.endswith(("skip_weights", "lambdas")):
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

    @property
    def examples(self) -> Examples:
        return Examples(self.lengths, self.labels.numpy(), self.get_batch)


def recipe_of(**changes) -> Recipe:
    plain = Recipe(examples_per_step=8, num_steps=4, eval_interval=100, dropout=0.0, grad_clip=0.0)
    return dataclasses.replace(plain, **changes)


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


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


class Calls(Records):
    """Keeps what a trainer gives its records, in their order."""

    def __init__(self):
        self.calls: list[tuple] = []

    def add_evaluation(self, state, line):
        self.calls.append(("line", line))

    def keep_best(self, state, metrics):
        self.calls.append(("best", state.step))


class Run:
    """Trains with a scripted validation, and keeps what its records were given."""

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
        self.rates: list[list[float]] = []
        self.overflowed: list[bool] = []
        records = Calls()
        self.calls = records.calls
        update = self.optimizer.step

        def noted_update(*arguments):
            """At every step, once the rates are set and the scaler has looked at the gradients."""
            self.rates.append([group["lr"] for group in self.optimizer.param_groups])
            self.overflowed.append(bool(getattr(self.optimizer, "found_inf", 0)))
            return update(*arguments)

        self.optimizer.step = noted_update
        trainer = Trainer(
            model,
            self.optimizer,
            scaler or no_scaler(),
            recipe,
            self.data.examples,
            ScriptedValidation(accuracies),
            records,
            TrainState(max_tokens_per_batch=max_tokens_per_batch),
        )
        self.trainer, self.state = trainer, trainer.train()

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
    assert run.state.examples == 20


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
    assert (run.state.step, run.state.best_step) == (steps, best_step)
    assert run.state.best["accuracy"] == max(accuracies[:steps])
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
    skipped = run.state.skipped
    assert 1 < skipped < 20
    assert run.state.step == 24
    assert run.state.updates == 24 - skipped
    assert run.lines[-1]["skipped_steps"] == skipped
    assert sum(run.overflowed) == skipped and run.overflowed[0]
    # A step that was skipped is followed by one with the same rate.
    updates = np.cumsum([0] + [not overflow for overflow in run.overflowed[:-1]])
    rates = [1e-3 * learning_rate_factor("linear", update, 24, 0.1) for update in updates]
    assert [rates_of_step[0] for rates_of_step in run.rates] == pytest.approx(rates)


def test_overflowing_without_end_is_an_error_that_names_what_to_try(model):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    recipe = recipe_of(num_steps=50, dtype=torch.float16)
    with pytest.raises(TrainingError, match=f"{MAX_SKIPPED_IN_A_ROW} steps.*use `dtype` bfloat16"):
        Run(model, recipe, scaler=scaler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_diverging_run_stops_with_what_to_try(model, dtype):
    recipe = recipe_of(num_steps=20, learning_rate=1e30, warmup_ratio=0.0, dtype=dtype)
    with pytest.raises(TrainingError, match="not finite: lower `learning_rate`"):
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


ROWS, WIDTH = 12, 4
# The rows that have a gradient in each step: some are met in every one, some once, some never.
TOUCHED = [[0, 1, 2, 3], [0, 1, 5], [0, 2, 7, 8], [0, 1], [0, 3, 5, 9], [0, 1, 2, 8]]


def gradient_of_rows(step: int, rows: list[int]) -> torch.Tensor:
    """Sparse, with a row that comes twice, as a token does in a batch."""
    generator = torch.Generator().manual_seed(step)
    rows = torch.tensor([*rows, rows[0]])
    values = torch.randn(len(rows), WIDTH, generator=generator)
    return torch.sparse_coo_tensor(rows[None], values, (ROWS, WIDTH), check_invariants=True)


def random_parameters() -> list[torch.nn.Parameter]:
    """A table and a matrix."""
    generator = torch.Generator().manual_seed(99)
    shapes = (ROWS, WIDTH), (3, WIDTH)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def update(optimizer, parameters, step: int, rows: list[int], dense: bool) -> None:
    table, matrix = parameters
    gradient = gradient_of_rows(step, rows)
    table.grad = gradient.coalesce().to_dense() if dense else gradient
    matrix.grad = torch.full_like(matrix, 0.1 * (step + 1))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def updated(touched, *, embedding_update=None, weight_decay=0.0, lr=1e-3, reload_at=None):
    """Parameters after the steps `touched`, and their optimizer; no `embedding_update` is torch's
    own AdamW with dense gradients. At `reload_at` the optimizer goes through its state dict."""

    def optimizer_of(parameters):
        options = dict(lr=lr, weight_decay=weight_decay)
        if embedding_update is None:
            return torch.optim.AdamW(parameters, fused=True, **options)
        return RowAdamW(parameters, embedding_update, **options)

    parameters = random_parameters()
    optimizer = optimizer_of(parameters)
    for step, rows in enumerate(touched):
        if step == reload_at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = optimizer_of(parameters)
            optimizer.load_state_dict(state)
        update(optimizer, parameters, step, rows, dense=embedding_update is None)
        kept = getattr(optimizer, "_dense_gradients", {})
        assert not any(memory.any() for memory in kept.values()), "zero between steps"
    return parameters, optimizer


def assert_bit_for_bit(found, expected, names=("exp_avg", "exp_avg_sq")) -> None:
    (found, of_found), (expected, of_expected) = found, expected
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        for name in names:
            assert torch.equal(of_found.state[one][name], of_expected.state[other][name]), name


@pytest.mark.parametrize("reload_at", [None, 1, 4])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_exact_sparse_updates_are_those_of_adamw_on_dense_gradients(weight_decay, reload_at):
    options = dict(weight_decay=weight_decay)
    found = updated(TOUCHED, embedding_update="exact", reload_at=reload_at, **options)
    assert_bit_for_bit(found, updated(TOUCHED, **options))
    assert not torch.equal(found[0][0][7], random_parameters()[0][7])


def test_exact_updates_move_rows_by_their_momentum_and_keep_zeroed_memory():
    one, optimizer = updated(TOUCHED[:1], embedding_update="exact")
    two, _ = updated([*TOUCHED[:1], [0]], embedding_update="exact")
    assert not torch.equal(one[0][3], two[0][3]), "row 3 was met in the first step alone"
    (memory,) = optimizer._dense_gradients.values()
    assert memory.shape == (ROWS, WIDTH) and not memory.any()
    assert one[0].grad is None


def test_lazy_moments_of_a_met_row_are_the_dense_ones_and_others_rest():
    lazy = updated(TOUCHED, embedding_update="lazy")
    dense = updated(TOUCHED)
    met = TOUCHED[-1]
    for name in ("exp_avg", "exp_avg_sq"):
        found, expected = (run[1].state[run[0][0]][name] for run in (lazy, dense))
        torch.testing.assert_close(found[met], expected[met], rtol=1e-5, atol=1e-8)
    unmet = [row for row in range(ROWS) if row not in sum(TOUCHED, [])]
    assert torch.equal(lazy[0][0][unmet], random_parameters()[0][unmet])
    # What was met once has not moved since.
    before, _ = updated(TOUCHED[:3], embedding_update="lazy")
    assert torch.equal(lazy[0][0][7], before[0][7])
    assert torch.equal(lazy[0][1], dense[0][1]), "parameters with dense gradients are as ever"


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lazy_updates_of_rows_met_in_every_step_are_the_exact_ones(weight_decay):
    touched = [list(range(ROWS))] * 5
    lazy, exact = (
        updated(touched, embedding_update=kind, weight_decay=weight_decay)[0]
        for kind in ("lazy", "exact")
    )
    torch.testing.assert_close(lazy[0], exact[0], rtol=0, atol=1e-7)


def test_lazy_weights_differ_from_exact_ones_by_the_moves_left_out_and_no_more():
    lr, steps = 1e-3, 20
    generator = np.random.default_rng(1)
    touched = [generator.choice(ROWS, 3, replace=False).tolist() for _ in range(steps)]
    lazy = updated(touched, embedding_update="lazy", lr=lr)[0][0]
    after = [random_parameters()[0]]
    after += [
        updated(touched[: n + 1], embedding_update="exact", lr=lr)[0][0] for n in range(steps)
    ]
    left_out, bound = torch.zeros(ROWS, WIDTH), torch.zeros(ROWS, 1)
    # |m| / sqrt(v) of any gradients, by Cauchy and Schwarz, right after one; it falls from there.
    largest = 0.1 / math.sqrt(0.001) / math.sqrt(1 - 0.81 / 0.999)
    last_met = {}
    for n, rows in enumerate(touched, start=1):
        last_met |= dict.fromkeys(rows, n)
        for row in set(last_met) - set(rows):
            left_out[row] += (after[n][row] - after[n - 1][row]).detach()
            correction = math.sqrt(1 - 0.999**n) / (1 - 0.9**n)
            bound[row] += (
                lr * correction * largest * (0.9 / math.sqrt(0.999)) ** (n - last_met[row])
            )
    difference = (after[-1] - lazy).detach()
    torch.testing.assert_close(difference, left_out, rtol=0, atol=1e-6)
    assert (difference.abs() <= bound + 1e-6).all()
    assert 0.1 * lr < difference.abs().max() < 20 * lr


@pytest.mark.parametrize("reload_at", [1, 4])
def test_a_lazy_optimizer_resumes_bit_for_bit(reload_at):
    resumed = updated(TOUCHED, embedding_update="lazy", reload_at=reload_at)
    assert_bit_for_bit(resumed, updated(TOUCHED, embedding_update="lazy"))


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_an_overflow_of_float16_leaves_embedding_rows_alone(embedding_update):
    embedding = torch.nn.Embedding(ROWS, WIDTH, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = RowAdamW(embedding.parameters(), embedding_update, lr=0.1, weight_decay=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for _ in range(2):
        scaler.scale(100 * embedding(torch.tensor([1, 4, 4])).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        if float(scaler.get_scale()) == 2.0**127:
            assert torch.equal(embedding.weight, before)
        scaler.update(new_scale=2.0)
        optimizer.zero_grad(set_to_none=True)
    moved = (embedding.weight - before).abs().amax(1)
    # The skipped step counts as none: this is Adam's first move, as long as the rate.
    assert moved[[1, 4]].tolist() == pytest.approx([0.1, 0.1], rel=1e-4)
    assert moved[[0, 2, 3]].tolist() == [0, 0, 0]


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_configured_embeddings_have_sparse_gradients_and_their_own_rate(model, embedding_update):
    optimizer = configure_optimizers(
        "cpu", model, 2e-3, backbone_lr_scale=0.1, embedding_update=embedding_update
    )
    assert optimizer.embedding_update == embedding_update
    row, _ = Data(num_rows=3).get_batch(np.arange(3))
    model(row).square().sum().backward()
    sparse = {name for name, p in model.named_parameters() if p.grad.is_sparse}
    tables = {"embed", *(f"value_embeds.{t}" for t in range(3))}
    assert sparse == {f"pretrained_model.{table}.weight" for table in tables}
    embedding = model.pretrained_model.embed.weight
    before = embedding.detach().clone()
    optimizer.step()
    moved = (embedding - before).abs().amax(1)
    # Adam's first move is as long as the rate, wherever there is a gradient.
    used = row.input_ids[: sum(row.seq_lens[:3])].unique()
    assert moved[used].tolist() == pytest.approx([2e-4] * len(used), rel=0.05)
    assert int((moved > 0).sum()) == len(used), "the filler must move nothing"


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


@pytest.mark.parametrize("learning_rate", [1e-2])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_weights_do_not_depend_on_max_tokens_per_batch(model, loss, learning_rate):
    """Plain gradient descent: Adam divides a gradient of 1e-9 by itself, rounding and all."""
    after = []
    for max_tokens in (1000, 25):
        trained = copy.deepcopy(model)
        groups = [{"params": list(trained.parameters()), "lr_scale": 1.0}]
        run = Run(
            trained,
            recipe_of(num_steps=3, learning_rate=learning_rate, grad_clip=1.0, **loss),
            optimizer=torch.optim.SGD(groups),
            max_tokens_per_batch=max_tokens,
        )
        assert run.state.max_tokens_per_batch == max_tokens
        assert (len(run.data.asked) > 3) == (max_tokens == 25), "a budget that cuts, and one not"
        after.append(trained.state_dict())
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor, rtol=0, atol=1e-6)
    assert not torch.equal(after[0]["head.output.weight"], model.head.output.weight)


def real_tokens(row: PackedRow) -> int:
    return sum(row.seq_lens[: len(row.last_token_idx)])


def fail_beyond(model, tokens: int) -> None:
    """The model, on a device whose memory holds so many tokens."""

    def refuse(_, inputs) -> None:
        if real_tokens(inputs[0]) > tokens:
            raise torch.OutOfMemoryError("no memory")

    model.register_forward_pre_hook(refuse)


def fail_once_at(model, call: int) -> None:
    """One forward pass fails, whatever it takes: the ones before it have left their gradients."""
    calls = iter(range(1 << 20))

    def refuse(*_) -> None:
        if next(calls) == call:
            raise torch.OutOfMemoryError("no memory")

    model.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
@pytest.mark.parametrize(
    "fail",
    [lambda model: fail_beyond(model, 30), lambda model: fail_once_at(model, 1)],
    ids=["in the first micro-batch", "in the second one"],
)
def test_out_of_memory_changes_the_cut_and_not_the_result(model, capsys, fail, embedding_update):
    recipe = recipe_of(num_steps=3, learning_rate=1e-2, dropout=0.3, grad_clip=1.0)
    trained = {}
    for budget in (60, 30):
        trained[budget] = copy.deepcopy(model)
        if budget == 60:
            fail(trained[budget])
        optimizer = configure_optimizers(
            "cpu", trained[budget], 1e-2, embedding_update=embedding_update
        )
        run = Run(trained[budget], recipe, optimizer=optimizer, max_tokens_per_batch=budget)
        assert run.state.max_tokens_per_batch == 30
        assert run.state.step == run.state.updates == 3
        notes = [line for line in capsys.readouterr().out.splitlines() if "out of GPU" in line]
        assert len(notes) == (budget == 60)
        assert all(
            "at most 30 tokens" in note and "(max_tokens_per_batch)" in note for note in notes
        )
    for one, other in zip(*(trained[budget].parameters() for budget in (60, 30)), strict=True):
        assert torch.equal(one, other)


def test_the_budget_is_halved_until_it_fits_and_kept_from_there(model, capsys):
    fail_beyond(model, 25)
    run = Run(model, recipe_of(num_steps=4), max_tokens_per_batch=1 << 16)
    notes = [line for line in capsys.readouterr().out.splitlines() if "out of GPU" in line]
    budgets = [int(note.split("at most ")[1].split()[0]) for note in notes]
    # The step is far smaller than the budget: half of what failed is tried, not half of that.
    assert len(budgets) <= 3 and budgets[0] < 100
    assert all(after <= before / 2 for before, after in zip(budgets, budgets[1:], strict=False))
    assert run.state.max_tokens_per_batch == budgets[-1] <= 25
    assert all("step 1 again" in note for note in notes)


@pytest.mark.parametrize("max_tokens", [40, 2])
def test_an_example_that_does_not_fit_is_an_error_that_names_what_to_try(model, capsys, max_tokens):
    fail_beyond(model, 5)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TrainingError, match="`gradient_checkpointing`.*`block_size`"):
        Run(model, recipe_of(num_steps=2), max_tokens_per_batch=max_tokens)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    tried_again = "out of GPU" in capsys.readouterr().out
    assert tried_again == (max_tokens == 40), "one example a micro-batch can't be cut further"


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "with the scaler of float16"])
@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_out_of_memory_in_the_update_leaves_the_weights_and_the_step_is_done_again(
    model, monkeypatch, embedding_update, scaled
):
    """The first update makes the moments: it may be what memory does not suffice for."""
    scaler, other_scaler = (
        torch.amp.GradScaler("cpu", enabled=scaled, init_scale=8.0, growth_interval=2)
        for _ in range(2)
    )
    recipe = recipe_of(num_steps=2, learning_rate=1e-2)
    expected = copy.deepcopy(model)
    options = dict(learning_rate=1e-2, embedding_update=embedding_update)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    allocate, failures = RowAdamW._allocate, []

    def allocate_at_the_second_attempt(optimizer) -> None:
        if not failures:
            failures.append([p.detach().clone() for p in model.parameters()])
            raise torch.OutOfMemoryError("no memory")
        allocate(optimizer)

    monkeypatch.setattr(RowAdamW, "_allocate", allocate_at_the_second_attempt)
    optimizer = configure_optimizers("cpu", model, **options)
    run = Run(model, recipe, optimizer=optimizer, scaler=scaler, max_tokens_per_batch=40)
    assert all(map(torch.equal, failures[0], before)), "the failed update must not move anything"
    budget = run.state.max_tokens_per_batch
    assert budget <= 20
    optimizer = configure_optimizers("cpu", expected, **options)
    Run(expected, recipe, optimizer=optimizer, scaler=other_scaler, max_tokens_per_batch=budget)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    assert scaler.state_dict() == other_scaler.state_dict()


def test_prefetching_keeps_the_order_and_makes_few_ahead():
    made = []

    def items():
        for item in range(20):
            made.append(item)
            yield item

    for taken, item in enumerate(prefetched(items(), 3), start=1):
        assert item == taken - 1
        if taken in (1, 5):
            deadline = time.monotonic() + HANG_S
            while len(made) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)
        # Three that wait, and one in the hand of their maker.
        assert len(made) <= taken + 3 + 1
        if taken in (1, 5):
            assert len(made) >= taken + 3, "they must be made ahead"
    assert taken == 20


def test_what_a_prefetching_maker_raises_is_raised_at_the_consumer():
    def items():
        yield 1
        raise KeyError("row 7")

    threads = threading.active_count()
    taken = []
    with pytest.raises(KeyError, match="row 7"):
        for item in prefetched(items(), 2):
            taken.append(item)
    assert taken == [1]
    assert threading.active_count() == threads


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_a_prefetching_generator_stops_its_thread(taken):
    threads = threading.active_count()
    items = prefetched(iter(range(1000)), 2)
    for _ in range(taken):
        next(items)
    assert threading.active_count() == threads + 1
    items.close()
    assert threading.active_count() == threads


def on_meta(layers: int, width: int) -> GPTClassification:
    with torch.device("meta"):
        config = GPTConfig.of_family(
            "small",
            vocab_size=VOCAB,
            num_layers=layers,
            num_heads=2,
            model_dim=width,
            max_seq_len=32,
        )
        return GPTClassification(GPTBatched(config), NUM_CLASSES)


def test_a_cpus_micro_batches_shrink_with_width_layers_and_bytes():
    def found(layers, width, dtype=torch.float32):
        examples = Examples(np.array([8]), np.array([0]), None)
        return find_max_tokens(on_meta(layers, width), recipe_of(dtype=dtype), examples)

    base = found(12, 768)
    assert found(12, 1536) == pytest.approx(base / 2, abs=1)
    assert found(24, 768) == pytest.approx(base / 2, abs=1)
    assert found(12, 768, torch.bfloat16) == pytest.approx(base * 2, abs=1)
    assert 1000 < base < MAX_TOKENS
    assert found(6, 32) == MAX_TOKENS


@pytest.mark.parametrize("bad_step", [1, 3])
def test_a_loss_that_is_no_number_is_an_error_in_that_very_step(model, bad_step):
    """On a CPU nothing is gained by looking later."""
    steps = []

    def spoil(_, __, logits):
        steps.append(len(steps) + 1)
        return logits * math.nan if len(steps) == bad_step else logits

    model.register_forward_hook(spoil)
    with pytest.raises(TrainingError, match="loss nan.*not finite: lower `learning_rate`"):
        Run(model, recipe_of(num_steps=10), max_tokens_per_batch=1000)
    assert len(steps) == bad_step, "one forward pass a step, and none after the bad one"


# Lines of progress without a terminal


def times_of_lines(step_seconds, num_steps):
    """When lines come, in seconds from the start, in a run of equally long steps."""
    now = [0.0]
    times = LineTimes(lambda: now[0])
    lines = []
    for _ in range(num_steps):
        now[0] += step_seconds
        if times.is_due_after_step():
            lines.append(now[0])
            times.note_line()
    return lines


@pytest.mark.parametrize("step_seconds", [0.01, 0.7, 3.0, 10.0, 47.0])
def test_a_log_has_a_line_at_once_and_then_at_least_every_ten_seconds(step_seconds):
    lines = times_of_lines(step_seconds, int(300 / step_seconds))
    assert lines[0] == pytest.approx(step_seconds)
    gaps = np.diff(lines)
    assert gaps.max() <= max(10.0, step_seconds) + 1e-6
    assert gaps.min() > min(10.0 - 2 * step_seconds, step_seconds) - 1e-6


def test_a_run_of_hours_has_a_line_a_minute():
    lines = np.array(times_of_lines(0.5, 4 * 3600 * 2))
    assert np.diff(lines).max() <= 60.0
    assert np.diff(lines[lines > 1800]).min() >= 58.0
    assert len(lines) < 300


def test_another_line_is_a_line_too():
    now = [0.0]
    times = LineTimes(lambda: now[0])
    now[0] = 1.0
    assert times.is_due_after_step()
    times.note_line()
    now[0] = 9.0
    times.note_line()
    now[0] = 10.0
    assert not times.is_due_after_step()


def test_an_evaluation_is_announced_where_it_may_be_long(model, capsys, monkeypatch):
    """The first one always; another one where the last took ten seconds or more."""
    monkeypatch.setattr("xnli_gpt.training.progress_line.SECONDS_BETWEEN_LINES", (0.0, 60.0))
    Run(model, recipe_of(num_steps=4, eval_interval=2))
    out = capsys.readouterr().out
    assert "step 2: evaluating on the validation split\n" in out
    assert "step 4: evaluating on the validation split, about 0 s\n" in out
    monkeypatch.undo()
    Run(model, recipe_of(num_steps=4, eval_interval=2))
    assert capsys.readouterr().out.count("evaluating on the validation split") == 1


def test_a_loss_that_nobody_has_looked_at_is_not_told_as_nan(capsys):
    """On a GPU losses are looked at some steps late, and evaluations clear those of before."""
    state = TrainState(step=1)
    with ProgressLine(num_steps=3, first_step=0) as line:
        line.show(state, epoch=0.1)
        state.step, state.losses = 2, [0.5]
        line.times = LineTimes()
        line.show(state, epoch=0.2)
        state.step, state.losses = 3, []
        line.show(state, epoch=0.3)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "loss" not in first and "loss 0.5000" in last


@pytest.mark.parametrize("embedding_update", ["exact", "lazy"])
def test_memory_taken_ahead_changes_no_bit_and_nothing_is_taken_later(model, embedding_update):
    expected = copy.deepcopy(model)
    options = dict(learning_rate=1e-2, embedding_update=embedding_update)
    optimizer = configure_optimizers("cpu", model, **options)
    optimizer.allocate()
    taken = {
        (number, name): value.data_ptr()
        for number, state in enumerate(optimizer.state.values())
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    dense = {table: gradient.data_ptr() for table, gradient in optimizer._dense_gradients.items()}
    assert len(dense) == (0 if embedding_update == "lazy" else 4)
    Run(model, recipe_of(num_steps=3, learning_rate=1e-2), optimizer=optimizer)
    other = configure_optimizers("cpu", expected, **options)
    Run(expected, recipe_of(num_steps=3, learning_rate=1e-2), optimizer=other)
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, two)
    for number, state in enumerate(optimizer.state.values()):
        assert all(
            taken[number, name] == value.data_ptr()
            for name, value in state.items()
            if isinstance(value, torch.Tensor)
        )
    assert dense == {t: gradient.data_ptr() for t, gradient in optimizer._dense_gradients.items()}


class LateEvent:
    """Stands in for a CUDA event: counts who waits for it."""

    def __init__(self):
        self.waited = 0

    def synchronize(self):
        self.waited += 1


def test_losses_of_the_last_steps_are_not_waited_for(model):
    run = Run(model, recipe_of(num_steps=1))
    trainer, events = run.trainer, [LateEvent() for _ in range(10)]
    trainer.state.pending = [
        PendingStep(step, 0.1, False, torch.tensor([float(step), 1.0]), event)
        for step, event in enumerate(events)
    ]
    trainer.state.losses.clear()
    trainer._settle(all_but=4)
    assert [event.waited for event in events] == [1] * 6 + [0] * 4
    assert trainer.state.losses == [0, 1, 2, 3, 4, 5]
    trainer._settle()
    assert [event.waited for event in events] == [1] * 10 and not trainer.state.pending
