"""Rows of token ids as one packed row: what a model takes."""

from __future__ import annotations

from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.data.encoded import EncodedSplit, pack
from xnli_gpt.data.premises import premise_of
from xnli_gpt.network.packed_row import PackedRow, row_multiple


def packed_rows(split: EncodedSplit, indices: np.ndarray) -> tuple[PackedRow, Tensor]:
    """Return the examples `indices` of a split as one row, and their labels [B]."""
    tokens, lengths, labels = pack(split, indices)
    return PackedRow.of(tokens, lengths.tolist(), row_multiple(len(tokens))), labels


def has_neighbours(split: EncodedSplit, indices: np.ndarray) -> bool:
    """Return whether any two neighbours among examples have their premise in common."""
    premises = [premise_of(split, index) for index in indices]
    return any(one and one == other for one, other in pairwise(premises))


def rows_sharing_premises(split: EncodedSplit, indices: np.ndarray) -> tuple[PackedRow, Tensor]:
    """Return the examples `indices` of a split as one row, in which a premise that neighbours have
    in common stands once, and their labels [B]."""
    docs, tokens = [], []
    for _, of_premise in groupby(indices, key=lambda index: premise_of(split, index)):
        of_premise = list(of_premise)
        start, length = split.premise_spans[of_premise[0]]
        shared = int(start + length)
        rows = [split.row(index) for index in of_premise]
        tokens += [rows[0][:shared], *(row[shared:] for row in rows)]
        docs.append((shared, [len(row) - shared for row in rows]))
    ids = torch.from_numpy(np.concatenate(tokens).astype(np.int64))
    labels = torch.from_numpy(np.asarray(split.labels[np.asarray(indices)], dtype=np.int64))
    return PackedRow.sharing(ids, docs, row_multiple(len(ids))), labels
