"""One exact step: the gradient of its examples' mean loss, however they are cut into micro-batches
and dealt out to processes.

Each micro-batch adds its summed loss divided by the summed weights of the whole step, and an
example's dropout mask is drawn for the step and handed out by position, so that memory alone
decides the cut.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnli_gpt.errors import TrainingError
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.optimizer import with_gradients
from xnli_gpt.training.order import Examples, cut_by_tokens, dropout_masks
from xnli_gpt.training.recipe import Recipe, StepResult

# What F.cross_entropy leaves out of the sum.
IGNORED_LABEL = -100


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes."""

    inputs: object
    labels: Tensor  # [B]
    dropout_mask: Tensor | None  # [B, width]


@dataclass(frozen=True)
class StepBatches:
    """A rank's examples of one optimizer step, cut to `max_tokens` a micro-batch."""

    micro_batches: Sequence[MicroBatch]
    total_weight: float  # of all ranks' examples
    num_examples: int  # of all ranks
    max_tokens: int
    most_tokens: int  # of the largest micro-batch


def prepare_step(
    recipe: Recipe,
    step: int,
    indices: np.ndarray,
    examples: Examples,
    max_tokens: int,
    dropout_width: int,
    ranks: Ranks = ALONE,
) -> StepBatches:
    """This rank's share of the examples `indices` [B], ready for `train_step`."""
    lengths = examples.lengths[indices]
    masks = dropout_masks(recipe.seed, step, len(indices), dropout_width, recipe.dropout)
    share = ranks.share_of(lengths)
    # A rank that gets none at the end of an epoch takes part with one that counts nothing.
    counts = len(share) > 0
    share = share if counts else np.zeros(1, dtype=int)
    micro_batches, most_tokens = [], 0
    for cut in cut_by_tokens(lengths[share], max_tokens):
        positions = share[cut]
        inputs, labels = examples.get_batch(indices[positions])
        mask = None if masks is None else masks[torch.from_numpy(positions)]
        labels = labels if counts else torch.full_like(labels, IGNORED_LABEL)
        micro_batches.append(MicroBatch(inputs, labels, mask))
        most_tokens = max(most_tokens, int(lengths[positions].sum()))
    total_weight = _weight_of(examples.labels[indices], recipe.class_weights)
    return StepBatches(micro_batches, total_weight, len(indices), max_tokens, most_tokens)


def _weight_of(labels: np.ndarray, class_weights: tuple[float, ...] | None) -> float:
    if class_weights is None:
        return float(len(labels))
    return float(np.asarray(class_weights)[labels].sum())


def pinned(batches: StepBatches) -> StepBatches:
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
    ranks: Ranks = ALONE,
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
    try:
        ranks.sum_gradients(optimizer)
        return apply_gradient(optimizer, scaler, recipe, ranks.sum_over_all(total_loss))
    except torch.OutOfMemoryError:
        if ranks.world_size == 1:
            raise
        # The others have gone on: this rank can't repeat the step by itself.
        raise TrainingError(
            f"rank {ranks.rank}: out of GPU memory in the update: use a smaller "
            "--max_tokens_per_batch, or a larger GPU"
        ) from None


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
    for parameter in with_gradients(optimizer):
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    return gradients
