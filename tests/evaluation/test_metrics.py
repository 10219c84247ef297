"""Metrics against numbers worked out by hand and scikit-learn's."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scored_parts import CLASSES, logits_predicting, scored_at_random
from sklearn.metrics import f1_score, fbeta_score, recall_score

from xnli_gpt.errors import EvaluationError
from xnli_gpt.evaluation.metrics import (
    METRICS,
    Metric,
    expected_calibration_error,
    figures_in_words,
    main_metrics,
)
from xnli_gpt.evaluation.scored_split import SCORES, scores_of_models
from xnli_gpt.evaluation.scores import (
    calibration_bins,
    classification_metrics,
    split_metrics,
)


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
    with pytest.raises(EvaluationError, match="`learning_rate`"):
        classification_metrics(logits, np.array([0, 1, 2]), CLASSES)


@pytest.mark.parametrize("metric", main_metrics())
def test_is_better_knows_the_direction_and_ties_are_not_better(metric):
    higher_wins = metric != "loss"
    assert METRICS[metric].is_better(0.6, 0.5) is higher_wins
    assert METRICS[metric].is_better(0.4, 0.5) is not higher_wins
    assert METRICS[metric].is_better(0.5, 0.5) is False
    assert METRICS[metric].is_better(0.0, None) is True
    assert METRICS[metric].is_better(0.5, 0.0) is higher_wins


def test_f2_recall_and_calibration_error_equal_those_worked_out_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2])
    metrics = classification_metrics(logits_predicting([0, 0, 1, 1, 2, 2]), labels, CLASSES)
    # Of each class 5 right / (4 there + predicted): 10 / 14, 5 / 10, 5 / 6.
    assert metrics["macro_f2"] == pytest.approx((10 / 14 + 5 / 10 + 5 / 6) / 3)
    assert metrics["macro_recall"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    confidence = math.exp(2) / (math.exp(2) + 2)
    assert metrics["ece"] == pytest.approx(confidence - 4 / 6, rel=1e-6)


def test_calibration_bins_are_closed_above_and_hold_only_what_is_there():
    probabilities = np.array([[0.5, 0.5], [0.45, 0.55], [0.6, 0.4], [0.0, 1.0]])
    bins = calibration_bins(probabilities, np.array([0, 0, 0, 1]))
    assert [(b["from"], b["to"], b["count"]) for b in bins] == [
        (0.4, 0.5, 1),
        (0.5, 0.6, 2),
        (0.9, 1.0, 1),
    ]
    assert [b["accuracy"] for b in bins] == [1.0, 0.5, 1.0]
    assert [b["confidence"] for b in bins] == pytest.approx([0.5, 0.575, 1.0])
    assert expected_calibration_error(bins) == pytest.approx((0.5 + 2 * 0.075 + 0) / 4)


@pytest.mark.parametrize("absent", [None, 2])
def test_scores_from_sums_equal_those_of_scikit_learn(absent):
    scored = scored_at_random(5)
    labels = np.where(scored.labels == absent, 0, scored.labels)
    scored = replace(scored, labels=labels)
    predictions = scored.logits[0].argmax(axis=-1)
    among = dict(labels=[0, 1, 2], average="macro", zero_division=0)
    scores = scores_of_models(scored)
    assert scores["accuracy"] == pytest.approx([(predictions == labels).mean()])
    assert scores["macro_f1"] == pytest.approx([f1_score(labels, predictions, **among)])
    assert scores["macro_f2"] == pytest.approx([fbeta_score(labels, predictions, beta=2, **among)])
    assert scores["macro_recall"] == pytest.approx([recall_score(labels, predictions, **among)])
    metrics = classification_metrics(torch.from_numpy(scored.logits[0]), labels, CLASSES)
    for name in SCORES:
        assert scores[name] == pytest.approx([metrics[name]], rel=1e-5)


def test_every_figure_of_several_models_is_the_mean_of_theirs():
    scored = scored_at_random(1, models=3)
    together = split_metrics(scored, resamples=100)
    single = [split_metrics(scored.of_model(i), resamples=100) for i in range(3)]
    for name in (*SCORES, "ece"):
        assert together[name] == pytest.approx(np.mean([one[name] for one in single]))
    assert together["examples"] == 300
    assert np.allclose(together["confusion"], np.mean([one["confusion"] for one in single], axis=0))
    assert sum(b["count"] for b in together["calibration"]) == pytest.approx(300)
    ends = [one["intervals"]["accuracy"] for one in single]
    low, high = together["intervals"]["accuracy"]
    # Averaging models takes away what is by chance in each of them.
    assert high - low < min(end[1] - end[0] for end in ends)


def test_metrics_of_a_split_can_be_written_as_json():
    metrics = split_metrics(scored_at_random(1, num_premises=2), resamples=100)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_a_metric_needs_one_way_to_compute_it():
    with pytest.raises(AssertionError):
        Metric("none")


def test_a_metric_that_earlier_scores_lack_is_left_out_of_their_words(monkeypatch):
    earlier = {name: 0.5 for name in main_metrics()}
    monkeypatch.setitem(METRICS, "newer", Metric("newer", lambda c: c.loss, is_main=True))
    assert "newer" in main_metrics() and "newer" not in figures_in_words(earlier)
    assert "accuracy 0.5000" in figures_in_words(earlier)


def test_a_second_metric_of_a_reliability_diagram_is_a_row_alone(monkeypatch):
    largest = Metric("MCE", of_bins=lambda bins: max(b["count"] for b in bins))
    monkeypatch.setitem(METRICS, "mce", largest)
    metrics = split_metrics(scored_at_random(30), resamples=10)
    assert metrics["mce"] == max(b["count"] for b in metrics["calibration"])
