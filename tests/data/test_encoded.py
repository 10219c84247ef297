"""Rows of a split as a packed batch."""

import numpy as np
import pytest
import torch
from data_parts import encode_rows, rows_of

from xnli_gpt.data.encoded import pack


@pytest.mark.parametrize("indices", [[3, 0, 4], np.array([3, 0, 4]), [1, 1], [2], []])
def test_rows_are_packed_without_padding(tmp_path, encoding, indices):
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    tokens, lengths, labels = pack(split, indices)
    assert tokens.dtype == lengths.dtype == labels.dtype == torch.int64
    assert lengths.tolist() == split.lengths[np.asarray(indices, dtype=int)].tolist()
    assert labels.tolist() == split.labels[np.asarray(indices, dtype=int)].tolist()
    assert tokens.tolist() == [token for i in indices for token in split.row(i).tolist()]
