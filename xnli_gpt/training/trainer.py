"""The loop: steps, evaluations and saves, in their order and at their times."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from xnli_gpt.errors import TrainingError
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.memory import step_within_memory
from xnli_gpt.training.optimizer import set_learning_rate
from xnli_gpt.training.order import ExampleOrder, Examples
from xnli_gpt.training.progress_line import ProgressLine
from xnli_gpt.training.recipe import (
    OF_EVALUATIONS,
    Progress,
    Recipe,
    StepResult,
    UnsettledStep,
    learning_rate_factor,
)
from xnli_gpt.training.records import StepLog
from xnli_gpt.training.resume import SaveTimes
from xnli_gpt.training.signals import Stopped, StopSignals
from xnli_gpt.training.step import StepBatches, pinned, prefetched, prepare_step

MAX_SKIPPED_IN_A_ROW = 20
# Steps prepared ahead of the one that is computed.
PREFETCHED_STEPS = 4
# On a GPU a loss is looked at so many steps late: the host does not wait for it.
UNSETTLED_STEPS = 16


def fine_tune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    examples: Examples,
    evaluate: Callable[[], dict | None],
    is_better: Callable[[dict, dict | None], bool],
    on_evaluation: Callable[[Progress, dict], None],
    on_best: Callable[[Progress, dict], None],
    save: Callable[[Progress], None],
    in_words: Callable[[dict], str],
    progress: Progress,
    save_interval: int | None = None,
    stop: StopSignals | None = None,
    ranks: Ranks = ALONE,
    log: StepLog | None = None,
) -> Progress:
    """Train from where `progress` is to `recipe.num_steps`, or to early stopping.

    A forward pass takes at most `progress.max_tokens_per_batch` tokens: fewer where the GPU's
    memory does not suffice. `evaluate` gives the validation metrics, or None where a signal
    broke it off; `on_best` is called first where they are the best so far, then `on_evaluation`
    with the line for the metrics file. `save` is called every `save_interval` steps (without it
    every ten minutes), at the end, and before a signal's Stopped is raised. `log` gets every step.
    `in_words` tells the metrics of an evaluation for its line on the screen. Raises TrainingError
    where the loss is no number, or where a single example does not fit into memory.
    """
    stop = stop or StopSignals()
    saves = SaveTimes(save_interval, progress.step)
    order = ExampleOrder(
        len(examples.lengths), recipe.examples_per_step, recipe.seed, examples.even_sets
    )
    epoch_steps = order.epoch_steps
    on_gpu = next(model.parameters()).device.type == "cuda"

    def prepare(step: int) -> StepBatches:
        indices = order.of_step(step)
        max_tokens = progress.max_tokens_per_batch
        batches = prepare_step(
            recipe, step, indices, examples, max_tokens, model.dropout_width, ranks
        )
        return pinned(batches) if on_gpu else batches

    def take_step(batches: StepBatches, line: ProgressLine) -> None:
        started = time.perf_counter()
        progress.learning_rate = _learning_rate(recipe, progress)
        set_learning_rate(optimizer, progress.learning_rate)
        model.train()
        result = step_within_memory(
            model, optimizer, scaler, recipe, batches, prepare, progress, line, ranks
        )
        _count_step(progress, result, batches.num_examples)
        evaluating = _evaluation_is_due(progress, recipe)
        if not on_gpu or evaluating or len(progress.unsettled) >= UNSETTLED_STEPS:
            _settle(progress, log)
        seconds = time.perf_counter() - started
        progress.train_seconds += seconds
        progress.recent.add(seconds, batches.num_examples)
        line.show(progress, progress.step / epoch_steps)

    def take_in(metrics: dict, line: ProgressLine) -> None:
        progress.before_last = _state_before(progress, recipe)
        progress.lines.append(_metrics_line(progress, metrics, epoch_steps))
        if is_better(metrics, progress.best):
            progress.best, progress.best_step = metrics, progress.step
            progress.evaluations_since_best = 0
            on_best(progress, metrics)
        else:
            progress.evaluations_since_best += 1
        on_evaluation(progress, progress.lines[-1])
        line.say(_evaluation_sentence(progress, in_words(metrics)))
        progress.evaluated_step = progress.step
        progress.losses.clear()

    steps = map(prepare, range(progress.step, recipe.num_steps))
    steps = prefetched(steps, PREFETCHED_STEPS) if on_gpu else steps
    with (
        ProgressLine(recipe.num_steps, progress.step) as line,
        stop.deferred(),
        _written_at_the_end(log),
    ):
        while True:
            if _evaluation_is_due(progress, recipe):
                with line.evaluating(progress.step):
                    metrics = evaluate()
                if metrics is not None:
                    take_in(metrics, line)
                    if log is not None:
                        log.flush()
            finished = _is_finished(progress, recipe)
            stopping, saving = ranks.any(stop.received is not None, saves.due_at(progress.step))
            if stopping or saving or (finished and saves.last_step < progress.step):
                _settle(progress, log)
                if log is not None:
                    log.flush(to_disk=True)
                save(progress)
                saves.note(progress.step)
            if stopping:
                raise Stopped(
                    f"stopped by {stop.received or 'a signal to another rank'} after step "
                    f"{progress.step}, which is saved"
                )
            if finished:
                return progress
            take_step(next(steps), line)


@contextlib.contextmanager
def _written_at_the_end(log: StepLog | None) -> Iterator[None]:
    """Whatever ends the run, what waits to be written is; the error that ended it counts more."""
    try:
        yield
    except BaseException:
        if log is not None:
            with contextlib.suppress(OSError):
                log.flush()
        raise
    if log is not None:
        log.flush()


def _state_before(progress: Progress, recipe: Recipe) -> dict | None:
    """What the evaluation at the last step changes, where a longer run would not have it: it
    would evaluate at its interval alone."""
    if progress.step % recipe.eval_interval == 0:
        return None
    kept = {name: getattr(progress, name) for name in OF_EVALUATIONS}
    return kept | {"losses": list(progress.losses), "best_of_sets": dict(progress.best_of_sets)}


def take_back_last_evaluation(progress: Progress) -> None:
    """Make of the state of a finished run that of a longer one at the same step."""
    for name, value in progress.before_last.items():
        setattr(progress, name, value)
    progress.lines.pop()
    progress.before_last = None


def _evaluation_is_due(progress: Progress, recipe: Recipe) -> bool:
    at_interval = progress.step % recipe.eval_interval == 0 or progress.step == recipe.num_steps
    return at_interval and progress.evaluated_step < progress.step


def _is_finished(progress: Progress, recipe: Recipe) -> bool:
    stopped_early = 0 < recipe.early_stopping <= progress.evaluations_since_best
    return stopped_early or progress.step == recipe.num_steps


def _learning_rate(recipe: Recipe, progress: Progress) -> float:
    """The rate of the next update."""
    return recipe.learning_rate * learning_rate_factor(
        recipe.lr_schedule, progress.updates, recipe.num_steps, recipe.warmup_ratio
    )


def _count_step(progress: Progress, result: StepResult, examples: int) -> None:
    progress.step += 1
    progress.examples += examples
    progress.updates += not result.skipped
    progress.skipped += result.skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise TrainingError(
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row overflowed float16 (last loss "
            f"{float(result.loss)}): use --dtype bfloat16 or float32, or lower --learning_rate"
        )
    progress.unsettled.append(UnsettledStep(progress.step, progress.learning_rate, result))


def _settle(progress: Progress, log: StepLog | None = None) -> None:
    """Look at the steps since the last look and write them down; raises TrainingError where
    training diverged."""
    if not progress.unsettled:
        return
    steps, progress.unsettled = progress.unsettled, []
    results = [one.result for one in steps]
    numbers = torch.stack([torch.stack([r.loss, r.grad_norm]) for r in results]).tolist()
    for one, (loss, norm) in zip(steps, numbers, strict=True):
        if log is not None:
            log.add(one.step, _step_numbers(one, loss, norm))
        if one.result.skipped:
            continue
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {loss} and gradient norm {norm} are not finite: lower "
                "--learning_rate, use --grad_clip, or use --dtype float32"
            )
        progress.losses.append(loss)


def _step_numbers(one: UnsettledStep, loss: float, norm: float) -> dict[str, object]:
    """A line of steps.jsonl; a skipped step (of float16) moved no weight."""
    return {
        "loss": loss if math.isfinite(loss) else None,
        "learning_rate": one.learning_rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        **({"skipped": True} if one.result.skipped else {}),
    }


def _metrics_line(progress: Progress, metrics: dict, epoch_steps: int) -> dict:
    return {
        "step": progress.step,
        "epoch": progress.step / epoch_steps,
        "train_loss": float(np.mean(progress.losses)) if progress.losses else None,
        "learning_rate": progress.learning_rate,
        "skipped_steps": progress.skipped,
        "examples_per_second": progress.recent.examples_per_second,
        "validation": metrics,
    }


def _evaluation_sentence(progress: Progress, figures: str) -> str:
    best = " (best so far)" if progress.best_step == progress.step else ""
    return f"step {progress.step}: validation {figures}{best}"
