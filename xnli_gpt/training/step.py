"""One exact step: the gradient of its examples' mean loss, however they are cut into micro-batches.

Each micro-batch adds its summed loss divided by the summed weights of the whole step.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnli_gpt.errors import TrainingError
from xnli_gpt.training.batches import MicroBatch, StepBatches
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.losses import LOSSES
from xnli_gpt.training.optimizer import with_gradients
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.state import StepResult
from xnli_gpt.training.table_rows import TableRows


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    recipe: Recipe,
    batches: StepBatches,
    ranks: Ranks = ALONE,
) -> StepResult:
    """Do one optimizer step by the gradient of sum(w·loss) / sum(w), w the class weights.

    Raises torch.OutOfMemoryError with the weights as they were.
    """
    device = next(model.parameters()).device
    optimizer.zero_grad(set_to_none=True)
    total_loss = torch.zeros((), device=device)
    tables = TableGradients(model, batches.table_rows.to(device))
    for number, batch in enumerate(batches.micro_batches):
        loss = loss_of(batch, batches.total_weight, model, recipe)
        scaler.scale(loss).backward()
        tables.take(number)
        total_loss += loss.detach()
    tables.hand_over()
    try:
        ranks.sum_gradients(optimizer)
        return apply_gradient(optimizer, scaler, recipe, ranks.all_reduce(total_loss))
    except torch.OutOfMemoryError:
        if ranks.world_size == 1:
            # Where the step is repeated its gradients are unscaled anew, by the scale as it is.
            scaler.update(scaler.get_scale())
            raise
        # The others have gone on: this rank can't repeat the step by itself.
        raise TrainingError(
            f"rank {ranks.rank}: out of GPU memory in the update: use a smaller "
            "`max_tokens_per_batch`, or a larger GPU"
        ) from None


class TableGradients:
    """Sums the sparse gradients of a model's tables over the micro-batches of a step.

    `coalesce` would give the same, and make the host wait for the device to tell how many rows
    there are.
    """

    def __init__(self, model: nn.Module, rows: TableRows):
        self.rows = rows
        self.tables = [
            module.weight
            for module in model.modules()
            if isinstance(module, nn.Embedding) and module.sparse
        ]
        self.summed: dict[nn.Parameter, Tensor] = {}

    def take(self, micro_batch: int) -> None:
        """Take over what the backward pass of a micro-batch has left."""
        rows = self.rows
        places, chunks, firsts = (
            kind[micro_batch] for kind in (rows.places, rows.chunks, rows.firsts)
        )
        all_chunks = torch.arange(len(chunks), device=chunks.device)
        for table in self.tables:
            if table.grad is None:
                continue
            values = table.grad._values()  # [N, D], in the order of the tokens
            assert len(values) == len(places), "a table is read once for every token"
            table.grad = None
            of_chunks = F.embedding_bag(places, values, chunks, mode="sum")  # [C, D]
            summed = F.embedding_bag(all_chunks, of_chunks, firsts, mode="sum")  # [U, D]
            before = self.summed.get(table)
            self.summed[table] = summed if before is None else before.add_(summed)

    def hand_over(self) -> None:
        """Give every table its gradient, in which each row stands once."""
        indices = self.rows.ids[None]
        # Checks would wait for the device; left out without a word, torch 2.11 warns of it.
        with torch.sparse.check_sparse_tensor_invariants(False):
            for table, values in self.summed.items():
                table.grad = torch.sparse_coo_tensor(
                    indices, values, table.shape, is_coalesced=True
                )


def loss_of(batch: MicroBatch, total_weight: float, model: nn.Module, recipe: Recipe) -> Tensor:
    """Return a micro-batch's share of the step's mean loss, a scalar on the model's device."""
    device = next(model.parameters()).device
    mask = batch.dropout_mask
    with autocast(device.type, recipe.dtype):
        logits = model(
            batch.inputs.to(device),
            dropout_mask=None if mask is None else mask.to(device, non_blocking=True),
        )
    summed = LOSSES[recipe.loss](
        logits,
        batch.labels.to(device, non_blocking=True),
        _class_weights_on(device, recipe.weight_of_class),
        recipe.label_smoothing,
    )
    return summed / total_weight


@lru_cache(maxsize=1)
def _class_weights_on(device: torch.device, weights: tuple[float, ...] | None) -> Tensor | None:
    return None if weights is None else torch.tensor(weights, device=device)


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Return the context of mixed precision in `dtype`; float32 is none."""
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
    """Return all gradients; of sparse ones, whose rows are summed first, the rows."""
    gradients = []
    for parameter in with_gradients(optimizer):
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    return gradients
