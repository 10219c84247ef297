"""Fine-tuning: optimizer, schedule, one exact step, the loop, and what it saves.

A step is the gradient of its examples' mean loss, however they are cut into micro-batches: each
micro-batch adds its summed loss divided by the summed weights of the whole step, and an example's
dropout mask is drawn for the step and handed out by position. So memory alone decides the cut.
"""

from __future__ import annotations

import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

SCHEDULES = ("linear", "cosine", "constant")
EMBEDDING_UPDATES = ("exact", "lazy")
# The group's recipe: the rate falls to a tenth at 90 % of the steps and stays there.
FINAL_LR_FRACTION = 0.1
DECAY_END = 0.9
MAX_SKIPPED_IN_A_ROW = 20
PLAIN_LINES_PER_RUN = 20

# Tokens of a forward pass: beyond this nothing gets faster.
MAX_TOKENS = 65536
TRIAL_TOKENS = 4096
GPU_MEMORY_SHARE = 0.8
CPU_ACTIVATION_BYTES = 4 << 30
# Values kept for the backward pass, a token, a block and a unit of width.
ACTIVATIONS_PER_UNIT = 32
# Steps prepared ahead of the one that is computed.
PREFETCHED_STEPS = 4
# On a GPU a loss is looked at so many steps late: the host does not wait for it.
UNSETTLED_STEPS = 16

# (positions in the split) -> what the model takes (with `to` and `pin_memory`), labels [B]
GetBatch = Callable[[np.ndarray], tuple[object, Tensor]]


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
    max_tokens_per_batch: int = 0
    losses: list[float] = field(default_factory=list)  # since the last evaluation
    unsettled: list[StepResult] = field(default_factory=list)  # not yet looked at

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.train_seconds if self.train_seconds else 0.0


@dataclass(frozen=True)
class StepResult:
    """Mean loss of a step's examples, the gradient's norm, and whether the scaler skipped it."""

    loss: Tensor
    grad_norm: Tensor
    skipped: bool


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    inputs: object
    labels: Tensor  # [B]
    dropout_mask: Tensor | None  # [B, width]


@dataclass(frozen=True)
class StepBatches:
    """The examples of one optimizer step, cut to `max_tokens` a micro-batch."""

    micro_batches: Sequence[MicroBatch]
    total_weight: float
    num_examples: int
    max_tokens: int
    most_tokens: int  # of the largest micro-batch


class RowAdamW(torch.optim.AdamW):
    """AdamW that also takes the sparse gradients of embedding tables.

    `embedding_update` "exact" does with them what AdamW does with dense ones: a row without a
    gradient goes on moving by its momentum. With "lazy" such a row rests, and only the rows of
    the step's tokens are read and written: when a row is met again its moments have decayed as
    they would have, but the moves of the steps in between are left out.
    """

    def __init__(self, params: object, embedding_update: str = "exact", **options: object):
        assert embedding_update in EMBEDDING_UPDATES, embedding_update
        super().__init__(params, fused=True, **options)
        self.embedding_update = embedding_update
        self._dense_gradients: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; the sparse gradients are used up."""
        touched, resting = [], []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    gradient = parameter.grad.coalesce()
                    rows, values = gradient.indices()[0], gradient.values()  # [U], [U, D]
                    parameter.grad = None
                    if self.embedding_update == "lazy":
                        resting.append((group, parameter, rows, values))
                    else:
                        parameter.grad = self._as_dense(parameter, rows, values)
                        touched.append((parameter, rows))
        # All memory is taken before anything moves: there is no half of an update.
        self._allocate()
        if resting and not self._overflowed():
            moved = [self._moved_rows(*table) for table in resting]
            for (_, parameter, rows, _), new in zip(resting, moved, strict=True):
                self._write_rows(parameter, rows, *new)
        result = super().step(closure)
        for parameter, rows in touched:
            parameter.grad.index_fill_(0, rows, 0)
            parameter.grad = None
        return result

    def _overflowed(self) -> bool:
        """What the scaler of float16 found; the fused update looks at it by itself."""
        found = getattr(self, "found_inf", None)
        return found is not None and bool(found)

    def _allocate(self) -> None:
        """The moments of all dense gradients, as the first update would make them."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if parameter.grad is not None and not state:
                    state["step"] = torch.zeros((), device=parameter.device)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    def _as_dense(self, parameter: nn.Parameter, rows: Tensor, values: Tensor) -> Tensor:
        """A gradient of the table's shape. Its memory is kept and is zero between steps, since
        filling it anew would cost half as much as the update."""
        if parameter not in self._dense_gradients:
            self._dense_gradients[parameter] = torch.zeros_like(parameter)
        return self._dense_gradients[parameter].index_copy_(0, rows, values)

    def _moved_rows(
        self, group: dict, table: nn.Parameter, rows: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new values and moments of `rows` [U], each [U, D]."""
        state = self.state[table]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["last_step"] = torch.zeros(len(table), dtype=torch.int32, device=table.device)
        # Loading a state makes a tensor of the number.
        step = int(state["step"]) + 1
        beta1, beta2 = group["betas"]
        gap = (step - state["last_step"][rows]).float()[:, None]  # [U, 1]
        average = state["exp_avg"][rows] * beta1**gap + (1 - beta1) * grad
        square = state["exp_avg_sq"][rows] * beta2**gap + (1 - beta2) * grad.square()
        rate = group["lr"] / (1 - beta1**step)
        scale = math.sqrt(1 - beta2**step)
        decayed = table[rows] * (1 - group["lr"] * group["weight_decay"])
        return decayed - rate * average / (square.sqrt() / scale + group["eps"]), average, square

    def _write_rows(
        self, table: nn.Parameter, rows: Tensor, values: Tensor, average: Tensor, square: Tensor
    ) -> None:
        state = self.state[table]
        state["step"] = int(state["step"]) + 1
        state["last_step"][rows] = state["step"]
        table[rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = values, average, square


def configure_optimizers(
    device_type: str,
    model: nn.Module,
    learning_rate: float = 1e-4,
    weight_decay: float = 0.01,
    backbone_lr_scale: float = 1.0,
    embedding_update: str = "exact",
) -> RowAdamW:
    """AdamW (0.9, 0.999) with decay on matrices only: none on embeddings, scalars and biases.

    Every group keeps its `lr_scale` (the trunk's is `backbone_lr_scale`), which
    `set_learning_rate` applies at every step. Frozen parameters are left out. The embeddings of
    `model` are made to give sparse gradients: a step touches few of their rows.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = backbone_lr_scale if name.startswith("pretrained_model.") else 1.0
            is_matrix = parameter.dim() >= 2 and "embed" not in name
            groups.setdefault((scale, weight_decay if is_matrix else 0.0), []).append(parameter)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = True
    optimizer = RowAdamW(
        [
            {"params": params, "weight_decay": decay, "lr_scale": scale}
            for (scale, decay), params in groups.items()
        ],
        embedding_update=embedding_update,
        lr=learning_rate,
        betas=(0.9, 0.999),
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


def cut_by_tokens(lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """Positions of a step's examples, the longest first, cut into micro-batches of at most
    `max_tokens`; an example of more tokens has one of its own."""
    order = np.argsort(-lengths, kind="stable")
    cuts, tokens = [0], 0
    for place, length in enumerate(lengths[order]):
        if tokens + length > max_tokens and place > cuts[-1]:
            cuts.append(place)
            tokens = 0
        tokens += length
    return np.split(order, cuts[1:])


def set_up_libraries() -> None:
    """Set what makes a step on a CPU faster, where the user has not: large pages for large
    tensors, and room for the code that oneDNN generates for every shape (its default of 1024
    shapes is just too few). To be called before the first tensor is made."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")


def find_max_tokens(
    model: nn.Module, recipe: Recipe, lengths: np.ndarray, get_batch: GetBatch
) -> int:
    """Tokens that a forward and backward pass may take: on a CPU those of some gigabytes of
    activations, on a GPU what a trial pass on the longest examples says that its memory holds."""
    device = next(model.parameters()).device
    config = model.pretrained_model.config
    itemsize = recipe.dtype.itemsize
    if device.type != "cuda":
        per_token = config.num_layers * config.model_dim * itemsize * ACTIVATIONS_PER_UNIT
        return min(MAX_TOKENS, CPU_ACTIVATION_BYTES // per_token)
    # The longest examples: what they need a token is the most that is needed.
    trial = cut_by_tokens(lengths, TRIAL_TOKENS)[0]
    trial_tokens = int(lengths[trial].sum())
    inputs, _ = get_batch(trial)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with autocast(device.type, recipe.dtype):
        logits = model(inputs.to(device))
    logits.sum().backward()
    per_token = (torch.cuda.max_memory_allocated(device) - held) / trial_tokens
    model.zero_grad(set_to_none=True)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    torch.cuda.empty_cache()
    # Gradients and two moments, float32, are not there yet.
    free = torch.cuda.mem_get_info(device)[0] - 3 * 4 * trained
    return int(min(MAX_TOKENS, max(lengths.max(), GPU_MEMORY_SHARE * free / per_token)))


def prepare_step(
    recipe: Recipe,
    step: int,
    indices: np.ndarray,
    lengths: np.ndarray,
    max_tokens: int,
    get_batch: GetBatch,
    dropout_width: int,
) -> StepBatches:
    """The examples `indices` with their `lengths` [B] in tokens, ready for `train_step`."""
    masks = dropout_masks(recipe.seed, step, len(indices), dropout_width, recipe.dropout)
    micro_batches, total_weight, most_tokens = [], 0.0, 0
    for positions in cut_by_tokens(lengths, max_tokens):
        inputs, labels = get_batch(indices[positions])
        mask = None if masks is None else masks[torch.from_numpy(positions)]
        micro_batches.append(MicroBatch(inputs, labels, mask))
        total_weight += _weight_of(labels, recipe.class_weights)
        most_tokens = max(most_tokens, int(lengths[positions].sum()))
    return StepBatches(micro_batches, total_weight, len(indices), max_tokens, most_tokens)


def _weight_of(labels: Tensor, class_weights: tuple[float, ...] | None) -> float:
    if class_weights is None:
        return float(len(labels))
    return float(torch.tensor(class_weights, dtype=torch.float64)[labels].sum())


def _pinned(batches: StepBatches) -> StepBatches:
    """The same in memory that a GPU fetches by itself, while it computes."""
    pinned = [
        MicroBatch(
            batch.inputs.pin_memory(),
            batch.labels.pin_memory(),
            None if batch.dropout_mask is None else batch.dropout_mask.pin_memory(),
        )
        for batch in batches.micro_batches
    ]
    return replace(batches, micro_batches=pinned)


def prefetched(items: Iterator[object], count: int) -> Iterator[object]:
    """`items`, made by a thread up to `count` ahead; its exceptions are raised here."""
    ready: queue.Queue = queue.Queue(maxsize=count)
    stopped = threading.Event()

    def put(entry: tuple[str, object]) -> None:
        while not stopped.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put(("item", item))
                if stopped.is_set():
                    return
            put(("end", None))
        except Exception as error:  # handed over to the consumer, whatever it is
            put(("error", error))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    batches: StepBatches,
) -> StepResult:
    """One optimizer step, by the gradient of sum(w·loss) / sum(w), w the class weights.

    Raises torch.OutOfMemoryError with the weights as they were.
    """
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    total_loss = torch.zeros((), device=device)
    for batch in batches.micro_batches:
        loss = loss_of(batch, batches.total_weight, model, recipe)
        scaler.scale(loss).backward()
        total_loss += loss.detach()
    return apply_gradient(optimizer, scaler, recipe, total_loss)


def loss_of(batch: MicroBatch, total_weight: float, model: nn.Module, recipe: Recipe) -> Tensor:
    """A micro-batch's share of the step's mean loss, a scalar on the model's device."""
    device = next(model.parameters()).device
    mask = batch.dropout_mask
    with autocast(device.type, recipe.dtype):
        logits = model(
            batch.inputs.to(device),
            dropout_mask=None if mask is None else mask.to(device, non_blocking=True),
        )
    summed = F.cross_entropy(
        logits,
        batch.labels.to(device, non_blocking=True),
        weight=_class_weights_on(device, recipe.class_weights),
        label_smoothing=recipe.label_smoothing,
        reduction="sum",
    )
    return summed / total_weight


@lru_cache(maxsize=1)
def _class_weights_on(device: torch.device, weights: tuple[float, ...] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, device=device)


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Mixed precision in `dtype`; float32 is none."""
    return torch.autocast(device_type, dtype=dtype, enabled=dtype is not torch.float32)


def apply_gradient(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    loss: Tensor,
) -> StepResult:
    """Clip the gradient and update the weights; `loss` is the step's, for the result."""
    scaler.unscale_(optimizer)
    gradients = _gradients(optimizer)
    norm = nn.utils.get_total_norm(gradients)
    if recipe.grad_clip:
        torch._foreach_mul_(gradients, (recipe.grad_clip / (norm + 1e-6)).clamp(max=1.0))
    # Only float16's scaler makes the host wait: it leaves out the update where a gradient
    # overflowed, and the schedule's clock with it.
    skipped = scaler.is_enabled() and not bool(torch.isfinite(norm))
    scaler.step(optimizer)
    scaler.update()
    return StepResult(loss, norm, skipped)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All gradients; of sparse ones, whose rows are summed first, the rows."""
    gradients = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.coalesce()
                    gradients.append(parameter.grad.values())
                else:
                    gradients.append(parameter.grad)
    return gradients


def fine_tune(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    lengths: np.ndarray,
    get_batch: GetBatch,
    max_tokens_per_batch: int,
    evaluate: Callable[[], dict],
    is_better: Callable[[dict, dict | None], bool],
    on_evaluation: Callable[[Progress, dict], None],
    on_best: Callable[[Progress, dict], None],
) -> Progress:
    """Train for `recipe.num_steps`, or until early stopping.

    `lengths` [N] are the tokens of the training examples, and a forward pass takes at most
    `max_tokens_per_batch` of them: fewer where the GPU's memory does not suffice. `evaluate`
    gives the validation metrics; `on_best` is called first where they are the best so far, then
    `on_evaluation` with the line for the metrics file. Raises TrainingError where the loss is no
    number, or where a single example does not fit into memory.
    """
    progress = Progress(max_tokens_per_batch=max_tokens_per_batch)
    epoch_steps = steps_per_epoch(len(lengths), recipe.examples_per_step)
    on_gpu = next(model.parameters()).device.type == "cuda"

    def prepare(step: int) -> StepBatches:
        indices = examples_of_step(len(lengths), recipe.examples_per_step, step, recipe.seed)
        batches = prepare_step(
            recipe,
            step,
            indices,
            lengths[indices],
            progress.max_tokens_per_batch,
            get_batch,
            model.dropout_width,
        )
        return _pinned(batches) if on_gpu else batches

    steps = map(prepare, range(progress.step, recipe.num_steps))
    steps = prefetched(steps, PREFETCHED_STEPS) if on_gpu else steps
    with _ProgressLine(recipe.num_steps) as line:
        for batches in steps:
            started = time.perf_counter()
            rate = recipe.learning_rate * learning_rate_factor(
                recipe.lr_schedule, progress.updates, recipe.num_steps, recipe.warmup_ratio
            )
            set_learning_rate(optimizer, rate)
            model.train()
            result = _step_within_memory(
                model, optimizer, scaler, recipe, batches, prepare, progress, line
            )
            _count_step(progress, result, batches.num_examples)
            evaluating = (
                progress.step % recipe.eval_interval == 0 or progress.step == recipe.num_steps
            )
            if not on_gpu or evaluating or len(progress.unsettled) >= UNSETTLED_STEPS:
                _settle(progress)
            progress.train_seconds += time.perf_counter() - started
            line.show(progress, rate, progress.step / epoch_steps)
            if evaluating:
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


def _step_within_memory(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    batches: StepBatches,
    prepare: Callable[[int], StepBatches],
    progress: Progress,
    line: _ProgressLine,
) -> StepResult:
    """A step, in smaller micro-batches where memory does not suffice: the result is the same."""
    while True:
        if batches.max_tokens > progress.max_tokens_per_batch:
            batches = prepare(progress.step)
        try:
            return train_step(model, optimizer, scaler, recipe, batches)
        except torch.OutOfMemoryError:
            if len(batches.micro_batches) == batches.num_examples:
                raise TrainingError(
                    "out of GPU memory with one example a micro-batch: use "
                    "--gradient_checkpointing, a smaller --block_size or a larger GPU"
                ) from None
            progress.max_tokens_per_batch = min(batches.max_tokens, batches.most_tokens) // 2
        # Outside of the handler, whose exception holds on to the tensors of the failed pass.
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        line.say(
            f"note: out of GPU memory; step {progress.step + 1} again with at most "
            f"{progress.max_tokens_per_batch} tokens a micro-batch (--max_tokens_per_batch)"
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
    if not result.skipped:
        progress.unsettled.append(result)


def _settle(progress: Progress) -> None:
    """Look at the steps since the last look; raises TrainingError where training diverged."""
    if not progress.unsettled:
        return
    results, progress.unsettled = progress.unsettled, []
    numbers = torch.stack([torch.stack([r.loss, r.grad_norm]) for r in results]).tolist()
    for loss, norm in numbers:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"loss {loss} and gradient norm {norm} are not finite: lower "
                "--learning_rate, use --grad_clip, or use --dtype float32"
            )
        progress.losses.append(loss)


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

    def show(self, progress: Progress, rate: float, epoch: float) -> None:
        speed = progress.examples_per_second
        # The last loss looked at: showing must not make the host wait for a GPU.
        loss = progress.losses[-1] if progress.losses else math.nan
        if not self.bar.disable:
            self.bar.update()
            self.bar.set_postfix_str(
                f"loss {loss:.3f}, lr {rate:.1e}, {speed:.0f} examples/s", refresh=False
            )
        elif progress.step % self.plain_every == 0 or progress.step == self.num_steps:
            elapsed = time.perf_counter() - self.started
            left = elapsed / progress.step * (self.num_steps - progress.step)
            self.say(
                f"step {progress.step}/{self.num_steps}, epoch {epoch:.2f}: "
                f"loss {loss:.4f}, lr {rate:.2e}, {speed:.1f} examples/s, {left:.0f} s left"
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
