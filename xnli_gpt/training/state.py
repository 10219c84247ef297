"""Where a run is: its counters, the best evaluation so far, and what was measured of its steps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

# The rate that is shown is that of so much time of training.
RECENT_SECONDS = 60.0


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a step's examples, the gradient's norm, and whether the scaler skipped it."""

    loss: Tensor
    grad_norm: Tensor
    skipped: bool


@dataclass(frozen=True)
class PendingStep:
    """A step whose loss nobody has looked at: on a GPU it may not be computed yet."""

    step: int
    learning_rate: float
    skipped: bool
    numbers: Tensor  # [2], the loss and the gradient's norm, on the host
    copied: torch.cuda.Event | None  # when they are there; None: they are

    @classmethod
    def of(cls, step: int, learning_rate: float, result: StepResult) -> PendingStep:
        """Return a step with its numbers on their way to the host, which does not wait for them."""
        numbers = torch.stack([result.loss, result.grad_norm])
        copied = None
        if numbers.is_cuda:
            numbers, copied = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
            copied.record()
        return cls(step, learning_rate, result.skipped, numbers, copied)

    def loss_and_norm(self) -> tuple[float, float]:
        """Return the loss and the gradient's norm, waiting for this step and no later one."""
        if self.copied is not None:
            self.copied.synchronize()
        return tuple(self.numbers.tolist())


class RecentRate:
    """Examples per second of the last steps of this process: what an earlier process took, or the
    compiling of the first step, is soon forgotten."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds, self._examples = 0.0, 0

    def add(self, seconds: float, examples: int) -> None:
        """Count a step."""
        self._steps.append((seconds, examples))
        self._seconds += seconds
        self._examples += examples
        while len(self._steps) > 1 and self._seconds - self._steps[0][0] >= RECENT_SECONDS:
            old_seconds, old_examples = self._steps.popleft()
            self._seconds -= old_seconds
            self._examples -= old_examples

    @property
    def examples_per_second(self) -> float:
        """Return the rate; 0 before the first step."""
        return self._examples / self._seconds if self._seconds > 0 else 0.0


@dataclass
class TrainState:
    """Where a run is."""

    step: int = 0  # steps whose examples were seen
    updates: int = 0  # steps that moved the weights: the schedule's clock
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict | None = None  # the validation metrics of the best evaluation
    best_step: int = 0
    best_of_sets: dict[str, dict] = field(default_factory=dict)  # per dataset, with their "step"
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    examples: int = 0
    max_tokens_per_batch: int = 0  # the token budget of a micro-batch
    learning_rate: float = 0.0  # of the last step
    evaluated_step: int = 0
    lines: list[dict] = field(default_factory=list)  # of the metrics file
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    before_last: dict | None = None  # see `before_evaluation`
    pending: list[PendingStep] = field(default_factory=list)
    recent: RecentRate = field(default_factory=RecentRate)

    @property
    def examples_per_second(self) -> float:
        """Return the mean over the whole run, whatever processes it had."""
        return self.examples / self.train_seconds if self.train_seconds else 0.0

    def state_dict(self) -> dict[str, object]:
        """Return what outlives the process."""
        assert not self.pending, "a step that nobody has looked at may have diverged"
        kept = (one.name for one in fields(self) if one.name not in _OF_THIS_PROCESS)
        return {name: getattr(self, name) for name in kept}

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, object]) -> TrainState:
        """Return the state that was kept."""
        return cls(**state_dict)

    def before_evaluation(self) -> dict[str, object]:
        """Return what an evaluation changes, besides the lines of the metrics file.

        Kept of the evaluation at the end of a run, which a longer run would not have had.
        """
        kept = {name: getattr(self, name) for name in _CHANGED_BY_EVALUATIONS}
        return kept | {"losses": list(self.losses), "best_of_sets": dict(self.best_of_sets)}

    def take_back_last_evaluation(self) -> None:
        """Turn the state of a finished run into that of a longer run at the same step."""
        for name, value in self.before_last.items():
            setattr(self, name, value)
        self.lines.pop()
        self.before_last = None


_OF_THIS_PROCESS = ("pending", "recent")
_CHANGED_BY_EVALUATIONS = ("best", "best_step", "best_of_sets", "evaluations_since_best")
_CHANGED_BY_EVALUATIONS += ("evaluated_step", "losses")
