"""Fine-tuning: optimizer, schedule, one exact step, the loop, and what it saves.

A step is the gradient of its examples' mean loss, however they are cut into micro-batches: each
micro-batch adds its summed loss divided by the summed weights of the whole step, and an example's
dropout mask is drawn for the step and handed out by position.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

SCHEDULES = ("linear", "cosine", "constant")
# The group's recipe: the rate falls to a tenth at 90 % of the steps and stays there.
FINAL_LR_FRACTION = 0.1
DECAY_END = 0.9
MAX_SKIPPED_IN_A_ROW = 20
PLAIN_LINES_PER_RUN = 20

# (positions in the split) -> ids [B, T], lengths [B], labels [B]
GetBatch = Callable[[np.ndarray], tuple[Tensor, Tensor, Tensor]]
# (lengths of a step's examples) -> positions in the step, one array a micro-batch
CutStep = Callable[[np.ndarray], Sequence[np.ndarray]]


class TrainingError(RuntimeError):
    """Training can't go on; the message says what was seen and what to try."""


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


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0  # steps whose examples were seen
    updates: int = 0  # steps that moved the weights: the schedule's clock
    skipped: int = 0
    skipped_in_a_row: int = 0
    best: dict | None = None  # the validation metrics of the best evaluation
    best_step: int = 0
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    examples: int = 0
    losses: list[float] = field(default_factory=list)  # since the last evaluation

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a step's examples, the gradient's norm, and whether the scaler skipped it."""

    loss: float
    grad_norm: float
    skipped: bool


def configure_optimizers(
    device_type: str,
    model: nn.Module,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    backbone_lr_scale: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (0.9, 0.999) with decay on matrices only: none on embeddings, scalars and biases.

    Every group keeps its `lr_scale` (the trunk's is `backbone_lr_scale`), which
    `set_learning_rate` applies at every step. Frozen parameters are left out.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = backbone_lr_scale if name.startswith("pretrained_model.") else 1.0
            is_matrix = parameter.dim() >= 2 and "embed" not in name
            groups.setdefault((scale, weight_decay if is_matrix else 0.0), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": params, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), params in groups.items()
        ],
        lr=learning_rate,
        betas=(0.9, 0.999),
        fused=device_type == "cuda",
    )
    set_learning_rate(optimizer, learning_rate)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group `learning_rate` times its own `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def learning_rate_factor(schedule: str, update: int, num_steps: int, warmup_ratio: float) -> float:
    """The share of the peak rate at an update counted from 0.

    Warm-up rises linearly over `warmup_ratio` of the steps; then linear or cosine decay reaches
    a tenth at 90 % of the steps and stays there (the group's recipe); constant stays at 1.
    """
    assert schedule in SCHEDULES, schedule
    warmup_steps = math.ceil(warmup_ratio * num_steps)
    if update < warmup_steps:
        return (update + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    decay_steps = max(1.0, DECAY_END * num_steps - warmup_steps)
    done = min(1.0, (update - warmup_steps) / decay_steps)
    shape = 1 - done if schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return FINAL_LR_FRACTION + (1 - FINAL_LR_FRACTION) * shape


def steps_per_epoch(num_examples: int, examples_per_step: int) -> int:
    """Steps that see every example once; the last of an epoch may be smaller."""
    return math.ceil(num_examples / examples_per_step)


def examples_of_step(num_examples: int, examples_per_step: int, step: int, seed: int) -> np.ndarray:
    """Positions of the examples of a step: every one once an epoch, in a new order each."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_examples, examples_per_step))
    order = _epoch_order(num_examples, seed, epoch)
    return order[step_in_epoch * examples_per_step : (step_in_epoch + 1) * examples_per_step]


@lru_cache(maxsize=2)
def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def dropout_masks(seed: int, step: int, num_examples: int, width: int, p: float) -> Tensor | None:
    """[examples of the step, width] of 0 and 1/(1-p): a function of seed, step and position."""
    if p == 0:
        return None
    mixed_seed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(mixed_seed >> 1)
    kept = torch.rand(num_examples, width, generator=generator) >= p
    return kept / (1 - p)


def balanced_class_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """N / (classes × examples of the class), scikit-learn's "balanced"."""
    counts = np.bincount(labels, minlength=num_classes)
    assert counts.all(), "a class without examples is refused when the data is read"
    return tuple((len(labels) / (num_classes * counts)).tolist())


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    step: int,
    indices: np.ndarray,
    get_batch: GetBatch,
    micro_batches: Sequence[np.ndarray],
) -> StepResult:
    """One optimizer step on the examples `indices`; `micro_batches` are positions in them.

    The weights move by the gradient of sum(w·loss) / sum(w) over the step, w the class weights.
    """
    device = next(model.parameters()).device
    batches = [(positions, get_batch(indices[positions])) for positions in micro_batches]
    weights = None
    if recipe.class_weights is not None:
        weights = torch.tensor(recipe.class_weights)
    total_weight = sum(_weight_of(labels, weights) for _, (_, _, labels) in batches)
    masks = dropout_masks(recipe.seed, step, len(indices), model.dropout_width, recipe.dropout)
    weights = None if weights is None else weights.to(device)

    optimizer.zero_grad(set_to_none=True)
    total_loss = torch.zeros((), device=device)
    for positions, (input_ids, lengths, labels) in batches:
        mask = None if masks is None else masks[torch.from_numpy(positions)].to(device)
        with autocast(device.type, recipe.dtype):
            logits = model(input_ids.to(device), lengths.to(device), mask)
        summed = F.cross_entropy(
            logits,
            labels.to(device),
            weight=weights,
            label_smoothing=recipe.label_smoothing,
            reduction="sum",
        )
        loss = summed / total_weight
        scaler.scale(loss).backward()
        total_loss += loss.detach()
    return _apply_gradient(model, optimizer, scaler, recipe, float(total_loss))


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision in `dtype`; float32 is none."""
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not torch.float32)


def _weight_of(labels: Tensor, weights: Tensor | None) -> float:
    return float(len(labels)) if weights is None else float(weights[labels].double().sum())


def _apply_gradient(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    loss: float,
) -> StepResult:
    scaler.unscale_(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, recipe.grad_clip or math.inf)
    overflowed = not bool(torch.isfinite(norm))
    if not math.isfinite(loss) or overflowed:
        if not (scaler.is_enabled() and overflowed):
            raise TrainingError(
                f"loss {loss} and gradient norm {float(norm)} are not finite: lower "
                "--learning_rate, use --grad_clip, or use --dtype float32"
            )
    # The scaler itself leaves out the update where a gradient overflowed.
    scaler.step(optimizer)
    scaler.update()
    return StepResult(loss, float(norm), skipped=overflowed)


def fine_tune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    lengths: np.ndarray,
    get_batch: GetBatch,
    cut_step: CutStep,
    evaluate: Callable[[], dict],
    is_better: Callable[[dict, dict | None], bool],
    on_evaluation: Callable[[Progress, dict], None],
    on_best: Callable[[Progress, dict], None],
) -> Progress:
    """Train for `recipe.num_steps`, or until early stopping.

    `lengths` [N] are the tokens of the training examples. `evaluate` gives the validation
    metrics; `on_best` is called first where they are the best so far, then `on_evaluation` with
    the line for the metrics file. Raises TrainingError where the loss is no number.
    """
    progress = Progress()
    epoch_steps = steps_per_epoch(len(lengths), recipe.examples_per_step)
    with _ProgressLine(recipe.num_steps) as line:
        while progress.step < recipe.num_steps:
            started = time.perf_counter()
            rate = recipe.learning_rate * learning_rate_factor(
                recipe.lr_schedule, progress.updates, recipe.num_steps, recipe.warmup_ratio
            )
            set_learning_rate(optimizer, rate)
            indices = examples_of_step(
                len(lengths), recipe.examples_per_step, progress.step, recipe.seed
            )
            model.train()
            result = train_step(
                model,
                optimizer,
                scaler,
                recipe,
                progress.step,
                indices,
                get_batch,
                cut_step(lengths[indices]),
            )
            _count_step(progress, result, len(indices), time.perf_counter() - started)
            line.show(progress, result, rate, progress.step / epoch_steps)
            if progress.step % recipe.eval_interval == 0 or progress.step == recipe.num_steps:
                metrics = evaluate()
                if is_better(metrics, progress.best):
                    progress.best, progress.best_step = metrics, progress.step
                    progress.evaluations_since_best = 0
                    on_best(progress, metrics)
                else:
                    progress.evaluations_since_best += 1
                on_evaluation(progress, _metrics_line(progress, metrics, rate, epoch_steps))
                line.say(_evaluation_sentence(progress, metrics))
                progress.losses.clear()
                if 0 < recipe.early_stopping <= progress.evaluations_since_best:
                    break
    return progress


def _count_step(progress: Progress, result: StepResult, examples: int, seconds: float) -> None:
    progress.step += 1
    progress.examples += examples
    progress.train_seconds += seconds
    progress.updates += not result.skipped
    progress.skipped += result.skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if result.skipped else 0
    if progress.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        raise TrainingError(
            f"{MAX_SKIPPED_IN_A_ROW} steps in a row overflowed float16 (last loss {result.loss}): "
            "use --dtype bfloat16 or float32, or lower --learning_rate"
        )
    if not result.skipped:
        progress.losses.append(result.loss)


def _metrics_line(progress: Progress, metrics: dict, rate: float, epoch_steps: int) -> dict:
    return {
        "step": progress.step,
        "epoch": progress.step / epoch_steps,
        "train_loss": float(np.mean(progress.losses)) if progress.losses else None,
        "learning_rate": rate,
        "skipped_steps": progress.skipped,
        "examples_per_second": progress.examples_per_second,
        "validation": metrics,
    }


def _evaluation_sentence(progress: Progress, metrics: dict) -> str:
    best = " (best so far)" if progress.best_step == progress.step else ""
    return (
        f"step {progress.step}: validation accuracy {metrics['accuracy']:.4f}, "
        f"macro F1 {metrics['macro_f1']:.4f}, loss {metrics['loss']:.4f}{best}"
    )


class _ProgressLine:
    """A bar on a terminal; elsewhere some twenty plain lines a run."""

    def __init__(self, num_steps: int):
        self.num_steps = num_steps
        self.bar = tqdm(total=num_steps, unit="step", disable=None, dynamic_ncols=True)
        self.plain_every = max(1, num_steps // PLAIN_LINES_PER_RUN)
        self.started = time.perf_counter()

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, progress: Progress, result: StepResult, rate: float, epoch: float) -> None:
        speed = progress.examples_per_second
        if not self.bar.disable:
            self.bar.update()
            self.bar.set_postfix_str(
                f"loss {result.loss:.3f}, lr {rate:.1e}, {speed:.0f} examples/s", refresh=False
            )
        elif progress.step % self.plain_every == 0 or progress.step == self.num_steps:
            elapsed = time.perf_counter() - self.started
            left = elapsed / progress.step * (self.num_steps - progress.step)
            self.say(
                f"step {progress.step}/{self.num_steps}, epoch {epoch:.2f}: "
                f"loss {result.loss:.4f}, lr {rate:.2e}, {speed:.1f} examples/s, {left:.0f} s left"
            )

    def say(self, sentence: str) -> None:
        self.bar.write(sentence, file=sys.stdout)
        sys.stdout.flush()


def save_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside `path`, sync and rename: a reader sees the old file or the whole new one."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_checkpoint(path: Path, content: Mapping[str, object]) -> None:
    """A torch file that loads with `weights_only=True`."""
    save_atomically(path, lambda partial: torch.save(dict(content), partial))


def save_json(path: Path, content: object) -> None:
    """Indented JSON, Devanagari left readable."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    save_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
