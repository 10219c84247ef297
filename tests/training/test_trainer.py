"""The loop of training: evaluations, the best model, early stopping, skipped steps, bad losses."""

import math

import numpy as np
import pytest
import torch
from training_parts import Run, recipe_of

from xnli_gpt.errors import TrainingError
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.recipe import learning_rate_factor
from xnli_gpt.training.state import PendingStep
from xnli_gpt.training.trainer import MAX_SKIPPED_IN_A_ROW


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
