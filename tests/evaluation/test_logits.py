"""The logits of a split: in the order of its rows, and each text computed once."""

import numpy as np
import pytest
import torch
from scored_parts import CLASSES

from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.errors import EvaluationError
from xnli_gpt.evaluation.logits import Inference, logits_of_batches, split_logits
from xnli_gpt.evaluation.scores import (
    classification_metrics,
)
from xnli_gpt.training.signals import StopSignals


class FirstTokens(torch.nn.Module):
    """Answers with the first token and the length of every row."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    shares_beginnings = False

    def forward(self, row):
        assert not torch.is_grad_enabled() and not self.training
        lengths = torch.tensor(row.seq_lens[: len(row.last_token_idx)])
        firsts = row.input_ids[row.last_token_idx - (lengths - 1)]
        return torch.stack([firsts, lengths], dim=1).to(torch.bfloat16)


def split_of_lengths(lengths) -> EncodedSplit:
    """Row r holds 10r, 10r+1, and so on."""
    tokens = np.concatenate([10 * row + np.arange(n) for row, n in enumerate(lengths)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = np.zeros(len(lengths), dtype=np.int64)
    return EncodedSplit(tokens, offsets, np.zeros((len(lengths), 2), dtype=np.int32), labels)


@pytest.mark.parametrize("max_tokens", [1, 4, 100])
def test_logits_of_a_split_are_those_of_its_rows_in_their_order(max_tokens):
    split = split_of_lengths([3, 1, 2, 3, 1])
    logits, rows = split_logits(FirstTokens(), split, 2, Inference(torch.float32, max_tokens))
    assert logits.dtype == torch.float32 and rows.tolist() == list(range(5))
    assert logits.tolist() == [[0, 3], [10, 1], [20, 2], [30, 3], [40, 1]]


@pytest.mark.parametrize(
    "batches", [[[0, 1, 2, 3, 4]], [[4], [2], [0], [1], [3]], [[3, 0], [4, 2, 1]]]
)
def test_logits_of_batches_are_in_the_order_of_the_batches(batches):
    split = split_of_lengths([3, 1, 2, 3, 1])
    groups = [np.array(batch) for batch in batches]
    logits = logits_of_batches(FirstTokens(), split, groups, 2, Inference(torch.float32))
    order = np.concatenate(groups)
    assert logits.tolist() == [[10 * row, split.lengths[row]] for row in order]


class SharingTokens(FirstTokens):
    """Counts the tokens that it is given, and those of all examples."""

    shares_beginnings = True

    def __init__(self):
        super().__init__()
        self.given, self.attended = [], []

    def forward(self, row):
        places = torch.arange(len(row.input_ids)) if row.places is None else row.places
        lengths = torch.tensor(row.seq_lens)
        firsts = row.input_ids[places[lengths.cumsum(0) - lengths]]
        self.given.append(len(row.input_ids))
        self.attended.append(int(lengths.sum()))
        # The filler of a row that shares nothing is no example.
        return torch.stack([firsts, lengths], dim=1)[: len(row.last_token_idx)].float()


def split_of_premises(premises: list[int], each: int) -> EncodedSplit:
    """Rows of 1, a premise of its number's tokens, 1, and an own token; as people shuffle them."""
    order = np.random.default_rng(0).permutation(len(premises) * each)
    rows = [[1, *[2 + n] * n, 1, 100 + i] for n in premises for i in range(each)]
    rows = [rows[i] for i in order]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    spans = np.array([[1, len(row) - 3] for row in rows], dtype=np.int32)
    labels = np.zeros(len(rows), dtype=np.int64)
    return EncodedSplit(np.concatenate(rows), offsets, spans, labels)


@pytest.mark.parametrize("max_tokens", [1, 30, 64, 10_000])
def test_a_premise_of_several_rows_is_computed_once(max_tokens):
    split = split_of_premises([4, 9, 20, 7], each=3)
    model = SharingTokens()
    logits, _ = split_logits(model, split, 2, Inference(torch.float32, max_tokens))
    assert logits[:, 1].tolist() == split.lengths.tolist() and bool((logits[:, 0] == 1).all())
    for given, attended in zip(model.given, model.attended, strict=True):
        assert given <= max(max_tokens, 23) and attended <= max(2 * max_tokens, 23)
    if max_tokens == 10_000:
        assert sum(model.given) == 4 * (1 + 3 * 2) + 40


def test_one_text_of_hundreds_of_rows_is_computed_once_in_a_batch():
    split = split_of_premises([500], each=300)
    model = SharingTokens()
    split_logits(model, split, 2, Inference(torch.float32, 2000))
    assert max(model.given) <= 2000 and max(model.attended) <= 4000
    assert sum(model.given) < int(split.lengths.sum()) / 5


def test_rows_of_other_premises_are_cut_as_they_were():
    split = split_of_premises([4, 9, 20, 7], each=1)
    model = SharingTokens()
    split_logits(model, split, 2, Inference(torch.float32, 30))
    assert model.given == [23, 29]


def test_a_row_that_was_left_out_is_not_scored():
    stop = StopSignals()
    stop.received = "SIGTERM"
    groups = [np.array([0]), np.array([1])]
    inference = Inference(torch.float32, stop=stop)
    logits = logits_of_batches(FirstTokens(), split_of_lengths([1, 1]), groups, 3, inference)
    with pytest.raises(EvaluationError):
        classification_metrics(logits, np.array([0, 0]), CLASSES)
