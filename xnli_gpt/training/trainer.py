"""The trainer: steps, evaluations and saves, in their order and at their times."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

from xnli_gpt.errors import TrainingError
from xnli_gpt.training.batches import StepBatches, StepCutter, prefetched
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.graphs import StepGraphs
from xnli_gpt.training.optimizer import set_learning_rate
from xnli_gpt.training.order import ExampleOrder, Examples
from xnli_gpt.training.progress_line import ProgressLine
from xnli_gpt.training.recipe import Recipe, learning_rate_factor
from xnli_gpt.training.records import Records
from xnli_gpt.training.saves import (
    SaveTimes,
    moments_by_names,
    random_states,
    set_random_states,
)
from xnli_gpt.training.signals import Stopped, StopSignals
from xnli_gpt.training.state import PendingStep, StepResult, TrainState
from xnli_gpt.training.step import train_step

MAX_SKIPPED_IN_A_ROW = 20
# Steps prepared ahead of the one that is computed.
PREFETCHED_STEPS = 4
# On a GPU so many losses at once are looked at, but for those of the last steps: the host would
# wait for them, and the device then for the host.
PENDING_STEPS, LATEST_STEPS = 16, 4


class Validation(Protocol):
    """How a model is scored while it is trained."""

    def evaluate(self, model: nn.Module) -> dict | None:
        """Return the metrics of the validation split; None where a signal broke it off."""

    def is_better(self, metrics: dict, best: dict | None) -> bool:
        """Return whether metrics are better than the best so far."""

    def in_words(self, metrics: dict) -> str:
        """Return what a line on the screen says of metrics."""


@dataclass
class Trainer:
    """Trains from where `state` is to `recipe.num_steps`, or to early stopping.

    A forward pass takes at most `state.max_tokens_per_batch` tokens: fewer where the GPU's memory
    does not suffice. A save is written every `save_interval` steps (without it every ten minutes),
    at the end, and before a signal's Stopped is raised.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    recipe: Recipe
    examples: Examples
    validation: Validation
    records: Records = field(default_factory=Records)
    state: TrainState = field(default_factory=TrainState)
    save_interval: int | None = None
    ranks: Ranks = ALONE
    stop: StopSignals = field(default_factory=StopSignals)
    graphs: StepGraphs | None = None

    def __post_init__(self) -> None:
        recipe, examples = self.recipe, self.examples
        self.order = ExampleOrder(
            len(examples.lengths),
            recipe.examples_per_step,
            recipe.seed,
            examples.even_sets,
            examples.premises,
        )
        self.cutter = StepCutter(recipe, examples, self.model.dropout_width, self.ranks)
        self.on_gpu = next(self.model.parameters()).device.type == "cuda"

    def train(self) -> TrainState:
        """Train to the end and return the state.

        Raises Stopped after a signal, and TrainingError where the loss is no number or a single
        example does not fit into memory.
        """
        self.save_times = SaveTimes(self.save_interval, self.state.step)
        steps = self._prepared_steps()
        with (
            ProgressLine(self.recipe.num_steps, self.state.step) as self.line,
            self.stop.deferred(),
            _flushed_at_the_end(self.records),
        ):
            while True:
                if self._evaluation_is_due():
                    self.evaluate()
                self._save_if_due()
                if self._is_finished():
                    return self.state
                self.step(next(steps))

    def step(self, batches: StepBatches) -> None:
        """Do one step: the rate of its update, its gradient within memory, and its numbers."""
        started = time.perf_counter()
        state = self.state
        state.learning_rate = self._learning_rate()
        set_learning_rate(self.optimizer, state.learning_rate)
        self.model.train()
        result = self._train_step_within_memory(batches)
        self._count(result, batches.num_examples)
        if not self.on_gpu or self._evaluation_is_due():
            self._settle()
        elif len(state.pending) >= PENDING_STEPS:
            self._settle(all_but=LATEST_STEPS)
        seconds = time.perf_counter() - started
        state.train_seconds += seconds
        state.recent.add(seconds, batches.num_examples)
        self.line.show(state, state.step / self.order.epoch_steps)

    def evaluate(self) -> None:
        """Score the validation split and note what it says; nothing where a signal broke it off."""
        state = self.state
        self._settle_tables()
        with self.line.evaluating(state.step):
            metrics = self.validation.evaluate(self.model)
        if metrics is None:
            return
        at_interval = state.step % self.recipe.eval_interval == 0
        # A longer run would evaluate at its interval alone.
        state.before_last = None if at_interval else state.before_evaluation()
        state.lines.append(self._metrics_line(metrics))
        if self.validation.is_better(metrics, state.best):
            state.best, state.best_step = metrics, state.step
            state.evaluations_since_best = 0
            self.records.keep_best(state, metrics)
        else:
            state.evaluations_since_best += 1
        self.records.add_evaluation(state, state.lines[-1])
        best = " (best so far)" if state.best_step == state.step else ""
        words = self.validation.in_words(metrics)
        self.line.say(f"step {state.step}: validation {words}{best}")
        state.evaluated_step = state.step
        state.losses.clear()
        self.records.flush()

    def state_dict(self) -> dict[str, object]:
        """Return all that a run depends on besides its command."""
        self._settle_tables()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": self.state.state_dict(),
            "random": random_states(),
        }

    def load_state_dict(self, state_dict: Mapping[str, dict]) -> None:
        """Put everything, the random generators too, where `state_dict` found it."""
        self.model.load_state_dict(state_dict["model"])
        self.optimizer.load_state_dict(moments_by_names(state_dict, self.model, self.optimizer))
        self.scaler.load_state_dict(state_dict["scaler"])
        self.state = TrainState.from_state_dict(state_dict["progress"])
        set_random_states(state_dict["random"])

    def save(self) -> None:
        """Write a save of the run as it is."""
        self._settle()
        self.records.flush(to_disk=True)
        if self.ranks.is_main_process:
            self.records.write_save(self.state_dict())

    def _prepared_steps(self) -> Iterator[StepBatches]:
        """Yield the micro-batches of every step; for a GPU made ahead of it, in pinned memory."""
        steps = map(self._prepare, range(self.state.step, self.recipe.num_steps))
        return prefetched(steps, PREFETCHED_STEPS) if self.on_gpu else steps

    def _prepare(self, step: int) -> StepBatches:
        budget = self.state.max_tokens_per_batch
        batches = self.cutter.batches(step, self.order.of_step(step), budget)
        if self.graphs is not None:
            batches = self.graphs.shapes.shaped(batches)
        return batches.pin_memory() if self.on_gpu else batches

    def _train_step_within_memory(self, batches: StepBatches) -> StepResult:
        """Do a step, in smaller micro-batches where memory does not suffice: the result is the
        same."""
        state = self.state
        while True:
            if batches.max_tokens > state.max_tokens_per_batch:
                batches = self._prepare(state.step)
            try:
                return self._train_step(batches)
            except torch.OutOfMemoryError:
                if all(len(batch.labels) == 1 for batch in batches.micro_batches):
                    raise TrainingError(
                        "out of GPU memory with one example a micro-batch: use "
                        "`gradient_checkpointing`, a smaller `block_size` or a larger GPU"
                    ) from None
                state.max_tokens_per_batch = min(batches.max_tokens, batches.most_tokens) // 2
            # Outside of the handler, whose exception holds on to the tensors of the failed pass.
            self.optimizer.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            self.line.say(
                f"note: out of GPU memory; step {state.step + 1} again with at most "
                f"{state.max_tokens_per_batch} tokens a micro-batch (max_tokens_per_batch)"
            )

    def _train_step(self, batches: StepBatches) -> StepResult:
        if self.graphs is not None:
            return self.graphs.step(batches)
        return train_step(self.model, self.optimizer, self.scaler, self.recipe, batches, self.ranks)

    def _settle_tables(self) -> None:
        if self.graphs is not None:
            self.graphs.settle()

    def _learning_rate(self) -> float:
        """Return the rate of the next update."""
        recipe = self.recipe
        return recipe.learning_rate * learning_rate_factor(
            recipe.lr_schedule, self.state.updates, recipe.num_steps, recipe.warmup_ratio
        )

    def _count(self, result: StepResult, examples: int) -> None:
        """Count a step and put its loss among those to be looked at."""
        state = self.state
        state.step += 1
        state.examples += examples
        state.updates += not result.skipped
        state.skipped += result.skipped
        state.skipped_in_a_row = state.skipped_in_a_row + 1 if result.skipped else 0
        if state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{MAX_SKIPPED_IN_A_ROW} steps in a row overflowed float16 (last loss "
                f"{float(result.loss)}): use `dtype` bfloat16 or float32, or lower `learning_rate`"
            )
        state.pending.append(PendingStep.of(state.step, state.learning_rate, result))

    def _settle(self, all_but: int = 0) -> None:
        """Look at the losses since the last look, but for those of the last steps, and write them
        down.

        Raises TrainingError where training diverged.
        """
        state = self.state
        looked_at = len(state.pending) - all_but
        steps, state.pending = state.pending[:looked_at], state.pending[looked_at:]
        for one in steps:
            loss, norm = one.loss_and_norm()
            self.records.add_step(one.step, _step_numbers(one, loss, norm))
            if one.skipped:
                continue
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(
                    f"loss {loss} and gradient norm {norm} are not finite: lower "
                    "`learning_rate`, use `grad_clip`, or use `dtype` float32"
                )
            state.losses.append(loss)

    def _save_if_due(self) -> None:
        """Save where it is time, at the end, and where a signal came to any rank: then raise
        Stopped."""
        state, times = self.state, self.save_times
        stopping, saving = self.ranks.any(self.stop.received is not None, times.due_at(state.step))
        if stopping or saving or (self._is_finished() and times.last_step < state.step):
            self.save()
            times.note(state.step)
        if stopping:
            raise Stopped(
                f"stopped by {self.stop.received or 'a signal to another rank'} after step "
                f"{state.step}, which is saved"
            )

    def _evaluation_is_due(self) -> bool:
        state, recipe = self.state, self.recipe
        at_interval = state.step % recipe.eval_interval == 0 or state.step == recipe.num_steps
        return at_interval and state.evaluated_step < state.step

    def _is_finished(self) -> bool:
        state, patience = self.state, self.recipe.early_stopping
        stopped_early = 0 < patience <= state.evaluations_since_best
        return stopped_early or state.step == self.recipe.num_steps

    def _metrics_line(self, metrics: dict) -> dict:
        """Return the line of metrics.jsonl for an evaluation."""
        state = self.state
        return {
            "step": state.step,
            "epoch": state.step / self.order.epoch_steps,
            "train_loss": float(np.mean(state.losses)) if state.losses else None,
            "learning_rate": state.learning_rate,
            "skipped_steps": state.skipped,
            "examples_per_second": state.recent.examples_per_second,
            "validation": metrics,
        }


@contextlib.contextmanager
def _flushed_at_the_end(records: Records) -> Iterator[None]:
    """Write what waits, whatever ends the run; the error that ended it counts more."""
    try:
        yield
    except BaseException:
        # A GPU that has failed fails whoever copies from it, by a RuntimeError.
        with contextlib.suppress(OSError, RuntimeError):
            records.flush(to_disk=True)
        raise
    records.flush(to_disk=True)


def _step_numbers(one: PendingStep, loss: float, norm: float) -> dict[str, object]:
    """Return a line of steps.jsonl; a skipped step (of float16) moved no weight."""
    return {
        "loss": loss if math.isfinite(loss) else None,
        "learning_rate": one.learning_rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        **({"skipped": True} if one.skipped else {}),
    }
