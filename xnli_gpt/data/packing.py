"""Rows of token ids as one packed row: what a model takes."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.data.encoded import EncodedSplit, pack
from xnli_gpt.network.packed_row import PackedRow, row_multiple


def packed_rows(split: EncodedSplit, indices: np.ndarray) -> tuple[PackedRow, Tensor]:
    """Return the examples `indices` of a split as one row, and their labels [B]."""
    tokens, lengths, labels = pack(split, indices)
    return PackedRow.of(tokens, lengths.tolist(), row_multiple(len(tokens))), labels


def premise_of(split: EncodedSplit, index: int) -> bytes:
    """Return what an example begins with, its premise included: examples with the same share it."""
    start, length = split.premise_spans[index]
    return split.row(index)[: start + length].tobytes()


def has_neighbours(split: EncodedSplit, indices: np.ndarray) -> bool:
    """Return whether any two neighbours among examples have their premise in common."""
    premises = [premise_of(split, index) for index in indices]
    return any(one and one == other for one, other in pairwise(premises))


def rows_sharing_premises(split: EncodedSplit, indices: np.ndarray) -> PackedRow:
    """Return the examples `indices` of a split as one row, in which a premise that neighbours have
    in common stands once."""
    docs, tokens = [], []
    for _, of_premise in groupby(indices, key=lambda index: premise_of(split, index)):
        of_premise = list(of_premise)
        start, length = split.premise_spans[of_premise[0]]
        shared = int(start + length)
        rows = [split.row(index) for index in of_premise]
        tokens += [rows[0][:shared], *(row[shared:] for row in rows)]
        docs.append((shared, [len(row) - shared for row in rows]))
    ids = torch.from_numpy(np.concatenate(tokens).astype(np.int64))
    return PackedRow.sharing(ids, docs)


def cut_by_premises(
    split: EncodedSplit, rows: np.ndarray, max_tokens: int
) -> list[np.ndarray] | None:
    """Return the rows cut into batches of at most `max_tokens` in which a premise is counted once,
    those with one premise side by side, the longest first. None where hardly any repeats."""
    groups: dict[bytes, list[int]] = {}
    for row in rows.tolist():
        groups.setdefault(premise_of(split, row), []).append(row)
    lengths = split.lengths
    saved = sum((len(g) - 1) * int(split.premise_spans[g[0]].sum()) for g in groups.values())
    if saved < LEAST_SAVED * int(lengths[rows].sum()):
        return None
    batches, batch, tokens, attended = [], [], 0, 0
    for group in sorted(groups.values(), key=lambda group: -int(lengths[group].max())):
        shared, begins = int(split.premise_spans[group[0]].sum()), True
        for row in group:
            length = int(lengths[row])
            cost = length if begins else length - shared
            full = tokens + cost > max_tokens or attended + length > MOST_ATTENDED * max_tokens
            if batch and full:
                batches.append(np.array(batch))
                batch, tokens, attended, cost = [], 0, 0, length
            batch.append(row)
            tokens, attended, begins = tokens + cost, attended + length, False
    return [*batches, np.array(batch)]


# The share of all tokens that must be saved, since a row of shared premises takes longer to make.
LEAST_SAVED = 0.05
# Attention in groups reads a premise for each of its examples: their tokens are bounded too.
MOST_ATTENDED = 2
