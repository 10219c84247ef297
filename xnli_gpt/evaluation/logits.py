"""Logits and metrics of whole splits, computed without gradients within memory and by all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from xnli_gpt.choices import EVALUATION_TOKENS
from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.data.packing import has_neighbours, packed_rows, rows_sharing_premises
from xnli_gpt.data.premises import Premises, premises_of
from xnli_gpt.evaluation.scores import classification_metrics
from xnli_gpt.training.distributed import ALONE, Ranks
from xnli_gpt.training.order import cut_into_batches
from xnli_gpt.training.signals import StopSignals
from xnli_gpt.training.step import autocast

# The share of all tokens that must be saved, since a row of shared premises takes longer to make.
LEAST_SAVED = 0.05


@dataclass(frozen=True)
class Inference:
    """How logits are computed: precision, tokens of a forward pass, ranks, and what breaks off."""

    dtype: torch.dtype
    max_tokens: int = EVALUATION_TOKENS
    ranks: Ranks = ALONE
    stop: StopSignals | None = None

    def is_stopped(self) -> bool:
        """Return whether a signal was noted on this rank."""
        return self.stop is not None and self.stop.received is not None


def evaluate_split(
    model: nn.Module,
    split: EncodedSplit,
    classes: Sequence[str],
    inference: Inference,
    max_batches: int | None = None,
) -> dict | None:
    """Return metrics on a whole split, or on every rank's first batches of the longest rows.

    None where a noted signal broke it off on some rank.
    """
    computed = split_logits(model, split, len(classes), inference, max_batches)
    if computed is None:
        return None
    logits, rows = computed
    return classification_metrics(logits, np.asarray(split.labels)[rows], classes)


def split_logits(
    model: nn.Module,
    split: EncodedSplit,
    num_classes: int,
    inference: Inference,
    max_batches: int | None = None,
) -> tuple[Tensor, np.ndarray] | None:
    """Return logits [R, classes], float32 on the CPU, and the rows [R] of the split that they are
    of, in order: all of them, or those of every rank's first batches of the longest rows.

    Every row is computed by one rank. Where a GPU's memory does not hold a batch, it is halved.
    None where a noted signal broke it off on some rank.
    """
    ranks = inference.ranks
    own = batches_of_rank(model, split, inference)[:max_batches]
    own_logits = logits_of_batches(model, split, own, num_classes, inference)
    if ranks.any(inference.is_stopped())[0]:
        return None
    # What other ranks compute is zero here: the sum is exact.
    logits, computed = torch.zeros(len(split), num_classes), torch.zeros(len(split))
    if own:
        own_rows = torch.from_numpy(np.concatenate(own))
        logits[own_rows], computed[own_rows] = own_logits, 1.0
    rows = ranks.all_reduce(computed).nonzero()[:, 0]
    return ranks.all_reduce(logits)[rows], rows.numpy()


def batches_of_rank(
    model: nn.Module, split: EncodedSplit, inference: Inference
) -> list[np.ndarray]:
    """Return this rank's rows of a split cut into batches, the longest first; those with one
    premise side by side where that saves computing it again."""
    premises = _premises_worth_sharing(split) if model.shares_beginnings else None
    share = inference.ranks.share_of(split.lengths, premises)
    own = None if premises is None else premises.of(share)
    cuts = cut_into_batches(split.lengths[share], own, inference.max_tokens)
    return [share[cut] for cut in cuts if len(cut)]


def _premises_worth_sharing(split: EncodedSplit) -> Premises | None:
    if not len(split):
        return None
    premises = premises_of(split, np.arange(len(split)))
    return premises if premises.saved_share(split.lengths) >= LEAST_SAVED else None


def logits_of_batches(
    model: nn.Module,
    split: EncodedSplit,
    batches: Sequence[np.ndarray],
    num_classes: int,
    inference: Inference,
) -> Tensor:
    """Return logits [rows of all batches, classes], in the order of the batches.

    Batches that a GPU's memory does not hold are halved; rows after a signal are nan.
    """
    model.eval()
    try:
        computed = [
            _logits_of(model, split, batch, inference)
            for batch in batches
            if not inference.is_stopped()
        ]
    except torch.OutOfMemoryError:
        if max(map(len, batches)) == 1:
            raise
    else:
        # A row that was left out must not pass for one with an answer.
        logits = torch.full((sum(map(len, batches)), num_classes), torch.nan)
        if computed:
            done = torch.cat(computed).float().cpu()
            logits[: len(done)] = done
        return logits
    # Outside of the handler, whose exception holds on to the tensors of the failed pass.
    torch.cuda.empty_cache()
    halves = [half for batch in batches for half in np.array_split(batch, 2) if len(half)]
    return logits_of_batches(model, split, halves, num_classes, inference)


@torch.inference_mode()
def _logits_of(
    model: nn.Module, split: EncodedSplit, batch: np.ndarray, inference: Inference
) -> Tensor:
    """Return logits [B, classes] on the model's device."""
    device = next(model.parameters()).device
    shares = model.shares_beginnings and has_neighbours(split, batch)
    row, _ = rows_sharing_premises(split, batch) if shares else packed_rows(split, batch)
    with autocast(device.type, inference.dtype):
        return model(row.to(device))
