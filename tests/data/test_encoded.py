"""Rows of a split as a batch, packed and padded."""

import numpy as np
import pytest
import torch
from data_parts import encode_rows, rows_of

from xnli_gpt.data.encoded import collate, pack


def test_collate(tmp_path, encoding):
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    for indices in ([3, 0, 4], np.array([3, 0, 4])):
        ids, lengths, labels = collate(split, indices)
        assert ids.dtype == lengths.dtype == labels.dtype
        assert ids.shape == (3, max(split.lengths[[3, 0, 4]]))
        assert lengths.tolist() == split.lengths[[3, 0, 4]].tolist()
        assert labels.tolist() == split.labels[[3, 0, 4]].tolist()
        for row, length, index in zip(ids, lengths, [3, 0, 4], strict=True):
            assert row[:length].tolist() == split.row(index).tolist()
            assert not row[length:].any()


@pytest.mark.parametrize("indices", [[3, 0, 4], np.array([3, 0, 4]), [1, 1], [2], []])
def test_pack_has_the_rows_of_collate_without_padding(tmp_path, encoding, indices):
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    tokens, lengths, labels = pack(split, indices)
    assert tokens.dtype == lengths.dtype == labels.dtype == torch.int64
    assert lengths.tolist() == split.lengths[np.asarray(indices, dtype=int)].tolist()
    assert tokens.tolist() == [token for i in indices for token in split.row(i).tolist()]
    if len(indices):
        padded, *others = collate(split, indices)
        rows = [row[:length] for row, length in zip(padded, lengths, strict=True)]
        assert torch.equal(tokens, torch.cat(rows))
        assert [lengths.tolist(), labels.tolist()] == [other.tolist() for other in others]
