"""The language-model loss of a loaded trunk, on token shards and against shuffled texts, and what
it says of the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xnli_gpt.errors import CheckpointError
from xnli_gpt.network.config import GPTConfig

SHARD_MAGIC = 20240520
SHARD_HEADER_INTS = 256

# On the rows of the recorded loss, right loads of real checkpoints differed by 2e-5 nats; rows of
# another length by up to 0.03; a wrong network, head count, cap or norm by 0.16 to 5.
LM_LOSS_SAME_ROWS = 0.002
LM_LOSS_OTHER_ROWS = 0.15
# Nats a token between shuffled and true order: 3.1 and 5.0 with the right tokenizer on two real
# checkpoints, 0.13 at most with five wrong ones, 0.5 through the other family's network.
SELF_CHECK_GAP = 1.0


class LanguageModel(Protocol):
    """What the checks need of a trunk."""

    config: GPTConfig
    embed: torch.nn.Module

    def lm_loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss in nats of `targets` [B, T] after `input_ids` [B, T]."""


def read_token_shard(path: str | Path) -> np.ndarray:
    """Return the tokens of a pretraining shard, mapped from the file.

    Header of 256 int32: magic 20240520, version 1 (uint16 tokens) or 2 (token width in bits at
    index 3, 0 meaning 32), token count at index 2. Raises CheckpointError for anything else.
    """
    path = Path(path)
    try:
        header = np.fromfile(path, dtype="<i4", count=SHARD_HEADER_INTS)
        num_bytes = path.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be read ({error.strerror}); give a token shard"
        ) from error
    if len(header) < SHARD_HEADER_INTS or header[0] != SHARD_MAGIC:
        found = header[0] if len(header) else "an empty file"
        raise CheckpointError(
            f"{path}: not a token shard (found {found}, expected magic {SHARD_MAGIC}); "
            "give a .bin that the pretraining reads"
        )
    version, count, bits = int(header[1]), int(header[2]), int(header[3])
    width = {1: {bits: 16}, 2: {0: 32, 16: 16, 32: 32}}.get(version, {}).get(bits)
    if width is None:
        raise CheckpointError(
            f"{path}: shard of version {version} with tokens of {bits} bits, expected version 1, "
            "or 2 with 16 or 32 bits"
        )
    header_bytes = 4 * SHARD_HEADER_INTS
    there = (num_bytes - header_bytes) // (width // 8)
    if count < 2 or there < count:
        raise CheckpointError(
            f"{path}: its header says {count} tokens, but {there} are there; copy the file again"
        )
    return np.memmap(path, dtype=f"<u{width // 8}", mode="r", offset=header_bytes, shape=(count,))


@torch.inference_mode()
def lm_check(
    trunk: LanguageModel,
    tokens: np.ndarray,
    *,
    row_length: int,
    max_rows: int,
    batch_tokens: int = 4096,
) -> dict:
    """Return the language-model loss of the trunk on the first rows of a shard, each on its own.

    Row r predicts tokens r·T+1 … (r+1)·T from tokens r·T … (r+1)·T-1. Returns the mean loss in
    nats, the rows and the tokens. Raises CheckpointError for tokens that the model has no row for.
    """
    num_rows = min(max_rows, (len(tokens) - 1) // row_length)
    if num_rows < 1:
        raise CheckpointError(
            f"a shard of {len(tokens)} tokens has no row of {row_length}: lower `lm_row_length`"
        )
    used = torch.from_numpy(tokens[: num_rows * row_length + 1].astype(np.int64))
    highest = int(used.max())
    if highest >= trunk.config.vocab_size:
        raise CheckpointError(
            f"the shard has token {highest}, but the checkpoint only {trunk.config.vocab_size} "
            "embedding rows: it was written with another tokenizer"
        )
    inputs, targets = (used[i : i + num_rows * row_length].view(num_rows, -1) for i in (0, 1))
    device, total = trunk.embed.weight.device, 0.0
    rows_at_once = max(1, batch_tokens // row_length)
    for ids, wanted in zip(inputs.split(rows_at_once), targets.split(rows_at_once), strict=True):
        total += trunk.lm_loss(ids.to(device), wanted.to(device)).item() * len(ids)
    return {"lm_loss": total / num_rows, "rows": num_rows, "tokens": num_rows * row_length}


@torch.inference_mode()
def lm_self_check(trunk: LanguageModel, texts: Sequence[np.ndarray], seed: int = 0) -> dict:
    """Return the language-model loss on texts, and on the same texts with their tokens shuffled.

    `texts` are rows of token ids, each opening with the end-of-text token, which stays in front.
    A trunk that knows the language in these tokens finds the true order far likelier; with another
    tokenizer, or a wrong load, the two hardly differ. Returns both losses in nats a token, their
    difference, and `suspicious` (see `SELF_CHECK_GAP`).
    """
    generator = np.random.default_rng(seed)
    shuffled = [np.concatenate([text[:1], generator.permutation(text[1:])]) for text in texts]
    right, wrong = _loss_of_texts(trunk, texts), _loss_of_texts(trunk, shuffled)
    return {
        "lm_loss": right,
        "shuffled_loss": wrong,
        "gap": wrong - right,
        "suspicious": wrong - right < SELF_CHECK_GAP,
    }


def _loss_of_texts(
    trunk: LanguageModel, texts: Sequence[np.ndarray], rows_at_once: int = 16
) -> float:
    device, total, count = trunk.embed.weight.device, 0.0, 0
    by_length = sorted(texts, key=len)
    for i in range(0, len(by_length), rows_at_once):
        rows = [torch.from_numpy(text.astype(np.int64)) for text in by_length[i : i + rows_at_once]]
        targets = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
        inputs = pad_sequence([row[:-1] for row in rows], batch_first=True)  # [B, T]
        predicted = int((targets != -100).sum())
        total += trunk.lm_loss(inputs.to(device), targets.to(device)).item() * predicted
        count += predicted
    return total / count


def lm_verdict(difference: float) -> str:
    """Return what a difference between measured and recorded loss (nats) says of the load."""
    if abs(difference) <= LM_LOSS_SAME_ROWS:
        return "agrees: the load is right"
    if abs(difference) <= LM_LOSS_OTHER_ROWS:
        return "near: give the rows of the recorded loss (their length and number) for a proof"
    return (
        f"differs by more than {LM_LOSS_OTHER_ROWS}: wrong load, wrong tokens, or a recorded loss "
        "of other data or much longer rows"
    )
