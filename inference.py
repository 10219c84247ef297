"""From a fine-tuned checkpoint, or one that is being fine-tuned, to logits and predictions.

from inference import XNLIClassifier

classifier = XNLIClassifier.load("out/hindi_xnli-ckpt.pt")
classifier.predict([(premise, hypothesis), ...])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from command_line import UsageError
from evaluation import classification_metrics, predict_logits
from load_checkpoint_helper import FINE_TUNED_KIND
from model import GPTClassification, PackedRow, row_multiple
from training import (
    ALONE,
    Ranks,
    RunError,
    StopSignals,
    autocast,
    cut_by_tokens,
    read_whole,
)
from xnli_data import EncodedSplit, pack

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a forward pass without gradients, which needs little memory.
EVALUATION_TOKENS = 16384


def device_of(name: str | None, ranks: Ranks = ALONE) -> torch.device:
    """The device that --device names, by itself a GPU where there is one.

    Raises UsageError: a GPU that was asked for is never replaced by a CPU.
    """
    device = _named_device(name)
    if device.type == "cpu" or ranks.world_size == 1:
        return device
    if device.index is not None:
        raise UsageError([f"--device {name}: every rank has its own GPU; say cuda"])
    if ranks.local_rank >= torch.cuda.device_count():
        raise UsageError(
            [
                f"LOCAL_RANK {ranks.local_rank}: only {torch.cuda.device_count()} GPUs here; "
                "start one process a GPU"
            ]
        )
    return torch.device("cuda", ranks.local_rank)


def _named_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError([f"--device {name}: expected cpu, cuda or cuda:N"]) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError([f"--device {name}: expected cpu, cuda or cuda:N"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            [
                f"--device {name}: no CUDA device here; ask the scheduler for a GPU, "
                "or say --device cpu"
            ]
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError([f"--device {name}: only {torch.cuda.device_count()} here"])
    return device


def dtype_of(name: str | None, device: torch.device) -> torch.dtype:
    """What --dtype names, by itself bfloat16 on a GPU and float32 on a CPU."""
    name = name or ("bfloat16" if device.type == "cuda" else "float32")
    return DTYPES[name]


def read_fine_tuned(path: Path) -> dict:
    """The content of a NAME-ckpt.pt. Raises RunError where it is damaged, or another file."""
    saved = read_whole(path)
    if not isinstance(saved, dict) or saved.get("kind") != FINE_TUNED_KIND:
        raise RunError(f"{path}: not a fine-tuned checkpoint of this project")
    return saved


def packed_rows(split: EncodedSplit, indices: np.ndarray) -> tuple[PackedRow, Tensor]:
    """The examples `indices` of a split as one row, and their labels [B]."""
    tokens, lengths, labels = pack(split, indices)
    return PackedRow.of(tokens, lengths.tolist(), row_multiple(len(tokens))), labels


def evaluate_split(
    model: GPTClassification,
    split: EncodedSplit,
    classes: Sequence[str],
    dtype: torch.dtype,
    max_tokens: int,
    max_batches: int | None = None,
    ranks: Ranks = ALONE,
    stop: StopSignals | None = None,
) -> dict | None:
    """Metrics on a whole split, or on every rank's first batches of the longest rows.

    Every row is computed by one rank. Where a GPU's memory does not hold `max_tokens` at once,
    half of them are tried. None where a noted signal broke it off on some rank.
    """
    share = ranks.share_of(split.lengths)
    cuts = cut_by_tokens(split.lengths[share], max_tokens)[:max_batches]
    own = [share[cut] for cut in cuts if len(cut)]
    model.eval()
    own_logits = _logits_within_memory(model, split, own, len(classes), dtype, stop)
    broken_off = stop is not None and stop.received is not None
    if ranks.any(broken_off)[0]:
        return None
    # What other ranks compute is zero here: the sum is exact.
    logits, computed = torch.zeros(len(split), len(classes)), torch.zeros(len(split))
    if own:
        own_rows = torch.from_numpy(np.concatenate(own))
        logits[own_rows], computed[own_rows] = own_logits, 1.0
    rows = ranks.sum_over_all(computed).nonzero()[:, 0]
    logits = ranks.sum_over_all(logits)[rows]
    return classification_metrics(logits, np.asarray(split.labels)[rows.numpy()], classes)


def _logits_within_memory(
    model: GPTClassification,
    split: EncodedSplit,
    groups: list[np.ndarray],
    num_classes: int,
    dtype: torch.dtype,
    stop: StopSignals | None,
) -> Tensor:
    """Logits [rows of all groups, classes], in the order of the groups."""
    try:
        return _logits_of(model, split, groups, num_classes, dtype, stop)
    except torch.OutOfMemoryError:
        if max(map(len, groups)) == 1:
            raise
    # Outside of the handler, whose exception holds on to the tensors of the failed pass.
    torch.cuda.empty_cache()
    halves = [half for group in groups for half in np.array_split(group, 2) if len(half)]
    return _logits_within_memory(model, split, halves, num_classes, dtype, stop)


def _logits_of(
    model: GPTClassification,
    split: EncodedSplit,
    groups: Sequence[np.ndarray],
    num_classes: int,
    dtype: torch.dtype,
    stop: StopSignals | None,
) -> Tensor:
    device = next(model.parameters()).device

    def batches() -> Iterator[tuple[np.ndarray, PackedRow]]:
        first = 0
        for group in groups:
            if stop is not None and stop.received is not None:
                return
            yield np.arange(first, first + len(group)), packed_rows(split, group)[0]
            first += len(group)

    def predict(row: PackedRow) -> Tensor:
        with autocast(device.type, dtype):
            return model(row.to(device))

    return predict_logits(predict, batches(), sum(map(len, groups)), num_classes)
