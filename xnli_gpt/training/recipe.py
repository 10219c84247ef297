"""What a run computes besides model and data, the schedule of its rate, and where it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xnli_gpt.choices import SCHEDULES
from xnli_gpt.training.records import RecentRate

# The group's recipe: the rate falls to a tenth at 90 % of the steps and stays there.
FINAL_LR_FRACTION = 0.1
DECAY_END = 0.9


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a run computes, besides model and data."""

    examples_per_step: int
    num_steps: int
    eval_interval: int
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.1
    lr_schedule: str = "linear"
    grad_clip: float = 1.0
    dropout: float = 0.1
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    early_stopping: int = 0  # evaluations without a better one; 0 never stops
    seed: int = 0
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a step's examples, the gradient's norm, and whether the scaler skipped it."""

    loss: Tensor
    grad_norm: Tensor
    skipped: bool


@dataclass(frozen=True)
class UnsettledStep:
    """A step whose loss nobody has looked at."""

    step: int
    learning_rate: float
    result: StepResult


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0  # steps whose examples were seen
    updates: int = 0  # steps that moved the weights: the schedule's clock
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict | None = None  # the validation metrics of the best evaluation
    best_step: int = 0
    best_of_sets: dict[str, dict] = field(default_factory=dict)  # by set, with their "step"
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    examples: int = 0
    max_tokens_per_batch: int = 0
    learning_rate: float = 0.0  # of the last step
    evaluated_step: int = 0
    lines: list[dict] = field(default_factory=list)  # of the metrics file
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    before_last: dict | None = None  # of the evaluation at the end, see `take_back_last_evaluation`
    unsettled: list[UnsettledStep] = field(default_factory=list)  # not yet looked at
    recent: RecentRate = field(default_factory=RecentRate)  # of this process

    @property
    def examples_per_second(self) -> float:
        """The mean over the whole run, whatever processes it had."""
        return self.examples / self.train_seconds if self.train_seconds else 0.0


# Fields of Progress that do not outlive their process, and those that an evaluation changes,
# besides the lines of the metrics file.
OF_THIS_PROCESS = ("unsettled", "recent")
OF_EVALUATIONS = ("best", "best_step", "best_of_sets", "evaluations_since_best")
OF_EVALUATIONS += ("evaluated_step", "losses")


def learning_rate_factor(schedule: str, update: int, num_steps: int, warmup_ratio: float) -> float:
    """The share of the peak rate at an update counted from 0.

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
    """The updates over which the rate rises."""
    return math.ceil(warmup_ratio * num_steps)


def steps_per_epoch(num_examples: int, examples_per_step: int) -> int:
    """Steps that see every example once; the last of an epoch may be smaller."""
    return math.ceil(num_examples / examples_per_step)
