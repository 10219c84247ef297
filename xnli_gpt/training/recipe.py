"""What a run computes besides model and data, and the schedule of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from xnli_gpt.choices import SCHEDULES
from xnli_gpt.errors import UsageError
from xnli_gpt.training.options import RecipeOptions

# The group's recipe: the rate falls to a tenth at 90 % of the steps and stays there.
FINAL_LR_FRACTION = 0.1
DECAY_END = 0.9


@dataclass(frozen=True, kw_only=True)
class Recipe(RecipeOptions):
    """A recipe's options with what follows from them for one dataset: all that decides what a run
    computes, besides model and data."""

    examples_per_step: int  # of all ranks
    num_steps: int
    eval_interval: int  # in steps
    weight_of_class: tuple[float, ...] | None = None
    early_stopping: int = 0  # evaluations without a better one; 0 never stops
    dtype: torch.dtype = torch.float32


def number_of_steps(max_steps: int | None, num_epochs: float, epoch_steps: int) -> int:
    """Return the steps of a run: `max_steps`, or without it those of its epochs."""
    return max_steps or max(1, round(num_epochs * epoch_steps))


def eval_interval_of(eval_interval: int | None, epoch_steps: int) -> int:
    """Return the steps between evaluations, by default a quarter of an epoch."""
    return eval_interval or max(1, epoch_steps // 4)


def class_weights_of(
    options: RecipeOptions, labels: np.ndarray, num_classes: int
) -> tuple[float, ...] | None:
    """Return the weight of every class in the loss, by the labels [N] that are trained on.

    Raises UsageError where a drawn subset lacks a class.
    """
    if (np.bincount(labels, minlength=num_classes) == 0).any():
        raise UsageError([f"`max_train_examples` {len(labels)}: no example of a class; raise it"])
    balanced = options.class_weights == "balanced"
    return balanced_class_weights(labels, num_classes) if balanced else None


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """Return N / (classes × examples of the class) for every class, scikit-learn's "balanced"."""
    counts = np.bincount(labels, minlength=num_classes)
    assert counts.all(), "a class without examples is refused when the data is read"
    return tuple((len(labels) / (num_classes * counts)).tolist())


def learning_rate_factor(schedule: str, update: int, num_steps: int, warmup_ratio: float) -> float:
    """Return the share of the peak rate at an update counted from 0.

    Warm-up rises linearly over `warmup_ratio` of the steps; then linear or cosine decay reaches
    a tenth at 90 % of the steps and stays there (the group's recipe); constant stays at 1.
    """
    assert schedule in SCHEDULES, schedule
    warmup_steps = warmup_steps_of(num_steps, warmup_ratio)
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    decay_steps = max(1.0, DECAY_END * num_steps - warmup_steps)
    done = min(1.0, (update - warmup_steps) / decay_steps)
    shape = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * shape


def warmup_steps_of(num_steps: int, warmup_ratio: float) -> int:
    """Return the number of updates over which the rate rises."""
    return math.ceil(warmup_ratio * num_steps)


def steps_per_epoch(num_examples: int, examples_per_step: int) -> int:
    """Return the steps that see every example once; the last of an epoch may be smaller."""
    return math.ceil(num_examples / examples_per_step)
