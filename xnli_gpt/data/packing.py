"""Rows of token ids as one packed row: what a model takes."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from xnli_gpt.data.encoded import EncodedSplit, pack
from xnli_gpt.network.packed_row import PackedRow, row_multiple


def packed_rows(split: EncodedSplit, indices: np.ndarray) -> tuple[PackedRow, Tensor]:
    """The examples `indices` of a split as one row, and their labels [B]."""
    tokens, lengths, labels = pack(split, indices)
    return PackedRow.of(tokens, lengths.tolist(), row_multiple(len(tokens))), labels
