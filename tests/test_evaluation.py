"""Metrics against numbers worked out by hand, and logits that come back in the order of rows."""

import math

import numpy as np
import pytest
import torch

from evaluation import METRICS, EvaluationError, classification_metrics, is_better, predict_logits

CLASSES = ("entailment", "neutral", "contradiction")


def logits_predicting(predictions: list[int], num_classes: int = 3) -> torch.Tensor:
    return 2.0 * torch.eye(num_classes)[torch.tensor(predictions)]


def test_metrics_equal_those_worked_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    metrics = classification_metrics(logits_predicting([0, 0, 1, 1, 2, 2]), labels, CLASSES)
    assert metrics["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    expected = {
        "entailment": dict(precision=1.0, recall=2 / 3, f1=0.8, support=3),
        "neutral": dict(precision=0.5, recall=0.5, f1=0.5, support=2),
        "contradiction": dict(precision=0.5, recall=1.0, f1=2 / 3, support=1),
    }
    assert list(metrics["per_class"]) == list(CLASSES)
    for name, figures in expected.items():
        assert metrics["per_class"][name] == pytest.approx(figures)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    log_sum = math.log(math.exp(2) + 2)
    assert metrics["loss"] == pytest.approx((4 * (log_sum - 2) + 2 * log_sum) / 6, rel=1e-6)
    assert metrics["examples"] == 6


def test_a_class_neither_there_nor_predicted_counts_as_zero_in_macro_f1():
    metrics = classification_metrics(logits_predicting([0, 1, 1]), np.array([0, 1, 1]), CLASSES)
    absent = dict(precision=0.0, recall=0.0, f1=0.0, support=0)
    assert metrics["per_class"]["contradiction"] == absent
    assert metrics["macro_f1"] == pytest.approx(2 / 3)
    assert metrics["accuracy"] == 1.0


def test_metrics_do_not_depend_on_the_order_of_rows():
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.standard_normal((50, 3)).astype(np.float32))
    labels = generator.integers(0, 3, 50)
    order = generator.permutation(50)
    shuffled = classification_metrics(logits[torch.from_numpy(order)], labels[order], CLASSES)
    straight = classification_metrics(logits, labels, CLASSES)
    assert shuffled.pop("loss") == pytest.approx(straight.pop("loss"), rel=1e-6)
    assert shuffled == straight


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_an_error_that_says_what_to_try(value):
    logits = logits_predicting([0, 1, 2])
    logits[1, 2] = value
    with pytest.raises(EvaluationError, match="--learning_rate"):
        classification_metrics(logits, np.array([0, 1, 2]), CLASSES)


@pytest.mark.parametrize(
    "groups", [[[0, 1, 2, 3, 4]], [[4], [2], [0], [1], [3]], [[3, 0], [4, 2, 1]]]
)
def test_predict_logits_returns_rows_in_their_own_order(groups):
    ids = torch.arange(5)[:, None] * 10 + torch.arange(3)  # row r holds 10r, 10r+1, 10r+2
    lengths = torch.tensor([3, 1, 2, 3, 1])

    def predict(inputs):
        assert not torch.is_grad_enabled()
        input_ids, lengths = inputs
        return torch.stack([input_ids[:, 0], lengths], dim=1).to(torch.bfloat16)

    batches = [(np.array(group), (ids[group], lengths[group])) for group in groups]
    logits = predict_logits(predict, batches, num_rows=5, num_classes=2)
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[0, 3], [10, 1], [20, 2], [30, 3], [40, 1]]


def test_a_row_that_no_batch_held_is_not_scored():
    batches = [(np.array([0]), torch.zeros(1, 1, dtype=torch.int64))]
    logits = predict_logits(lambda ids: torch.ones(1, 3), batches, 2, 3)
    with pytest.raises(EvaluationError):
        classification_metrics(logits, np.array([0, 0]), CLASSES)


@pytest.mark.parametrize("metric", METRICS)
def test_is_better_knows_the_direction_and_ties_are_not_better(metric):
    higher_wins = metric != "loss"
    assert is_better(metric, 0.6, 0.5) is higher_wins
    assert is_better(metric, 0.4, 0.5) is not higher_wins
    assert is_better(metric, 0.5, 0.5) is False
    assert is_better(metric, 0.0, None) is True
    assert is_better(metric, 0.5, 0.0) is higher_wins
