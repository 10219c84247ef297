"""Intervals against plain loops and simulations, and figures over seeds and datasets."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scored_parts import logits_predicting, scored_at_random, scored_by_hand

from xnli_gpt.evaluation.comparison import compare
from xnli_gpt.evaluation.intervals import over_seeds
from xnli_gpt.evaluation.scored_split import SCORES, ScoredSplit
from xnli_gpt.evaluation.scores import (
    macro_average,
    split_metrics,
)


def test_intervals_are_those_of_a_bootstrap_in_plain_loops():
    scored = scored_at_random(2, num_premises=40)
    right = scored.logits[0].argmax(axis=-1) == scored.labels
    of_premise = right.reshape(40, 3)
    generator = np.random.default_rng(9)
    drawn = [of_premise[generator.integers(0, 40, 40)].mean() for _ in range(20_000)]
    low, high = split_metrics(scored, resamples=20_000)["intervals"]["accuracy"]
    assert [low, high] == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.009)


def test_intervals_repeat_with_their_seed_and_change_with_it():
    scored = scored_at_random(2)
    intervals = [split_metrics(scored, 200, seed)["intervals"] for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_rows_of_one_premise_are_drawn_together():
    """All rows of a premise right or all wrong: three times the rows tell nothing more."""
    fates = [i % 3 > 0 for i in range(60)]
    once = scored_by_hand([str(i) for i in range(60)], fates)
    thrice = scored_by_hand(
        [str(i) for i in range(60) for _ in range(3)], [f for f in fates for _ in range(3)]
    )
    apart = scored_by_hand([str(i) for i in range(180)], [f for f in fates for _ in range(3)])

    def width(scored):
        low, high = split_metrics(scored, resamples=4000)["intervals"]["accuracy"]
        return high - low

    assert width(thrice) == pytest.approx(width(once), rel=0.1)
    assert width(apart) == pytest.approx(width(once) / math.sqrt(3), rel=0.1)


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Premises of their own difficulty: P(right) ~ Beta(0.4, 0.2), the same for three rows."""
    generator = np.random.default_rng(0)
    covered, rounds = 0, 200
    for _ in range(rounds):
        chances = np.repeat(generator.beta(0.4, 0.2, size=80), 3)
        right = (generator.random(240) < chances).tolist()
        scored = scored_by_hand([str(i // 3) for i in range(240)], right)
        low, high = split_metrics(scored, resamples=300)["intervals"]["accuracy"]
        covered += low <= 2 / 3 <= high
    # Three standard errors of a coverage of 0.95 are 0.046; drawn by rows it is 0.80.
    assert 0.90 <= covered / rounds <= 0.99


def test_one_premise_gives_no_interval():
    scored = scored_by_hand(["the same"] * 3, [True, True, False])
    metrics = split_metrics(scored, resamples=100)
    assert set(metrics["intervals"].values()) == {None}
    assert {cut["interval"] for cuts in metrics["slices"].values() for cut in cuts} == {None}
    average = macro_average({"a": metrics}, {"a": scored}, resamples=100)
    assert set(average["intervals"].values()) == {None}
    comparison = compare({"a": scored}, {"a": scored}, resamples=100)["datasets"]["a"]
    assert comparison["accuracy"]["interval"] is None and comparison["accuracy"]["p"] is None


def scored_alike(answers: list[int], num_premises: int = 20) -> ScoredSplit:
    """Three rows a premise, one of each class; every model gives all of them its own answer."""
    scored = scored_at_random(1, num_premises, models=len(answers))
    logits = np.stack([logits_predicting([answer] * (3 * num_premises)) for answer in answers])
    # What is no answer may vary.
    noise = np.random.default_rng(0).uniform(0, 0.1, logits.shape)
    return replace(scored, logits=(logits + noise).astype(np.float32))


@pytest.mark.parametrize("answers", [[1], [0, 1, 2]])
def test_a_model_that_answers_one_class_alone_gets_no_interval_of_zero_width(answers):
    scored = scored_alike(answers)
    metrics = split_metrics(scored, resamples=100)
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["intervals"]["accuracy"] is None and metrics["intervals"]["macro_f1"] is None
    assert {cut["interval"] for cut in metrics["slices"]["premise_length"]} == {None}
    # The loss differs from row to row, and so do draws of premises.
    low, high = metrics["intervals"]["loss"]
    assert low < metrics["loss"] < high
    sets = {"a": scored, "b": scored}
    average = macro_average(dict.fromkeys(sets, metrics), sets, resamples=100)
    assert average["intervals"]["accuracy"] is None
    other = {"a": scored_alike([2])}
    comparison = compare({"a": scored}, other, resamples=100)["datasets"]["a"]
    assert comparison["accuracy"]["interval"] is None
    assert comparison["accuracy"]["difference"] == pytest.approx(0)


def test_one_class_alone_on_rows_of_unequal_labels_keeps_its_interval():
    scored = scored_by_hand([str(i) for i in range(30)], [True] * 30)
    labels = np.array([0, 0, 1] * 10)
    low, high = split_metrics(replace(scored, labels=labels), 200)["intervals"]["accuracy"]
    assert low < 2 / 3 < high


def test_the_macro_average_is_the_mean_of_datasets():
    sets = {"a": scored_at_random(1), "b": scored_at_random(2, skill=2.0)}
    metrics = {name: split_metrics(one, resamples=100) for name, one in sets.items()}
    average = macro_average(metrics, sets, resamples=2000)
    for name in (*SCORES, "ece"):
        assert average[name] == pytest.approx((metrics["a"][name] + metrics["b"][name]) / 2)
    low, high = average["intervals"]["accuracy"]
    assert low < average["accuracy"] < high


def test_parallel_datasets_are_drawn_together_and_others_apart():
    """The same model on a translation that changes nothing has learned nothing new."""
    scored = scored_at_random(1)
    metrics = split_metrics(scored, resamples=4000)

    def width(other):
        sets = {"a": scored, "b": other}
        average = macro_average({name: metrics for name in sets}, sets, resamples=4000)
        low, high = average["intervals"]["accuracy"]
        return high - low

    low, high = metrics["intervals"]["accuracy"]
    assert width(scored) == pytest.approx(high - low)
    elsewhere = replace(scored, ids=range(1000, 1300))
    assert width(elsewhere) == pytest.approx((high - low) / math.sqrt(2), rel=0.1)
    # Rows that one of the two languages puts together stay together in both.
    merged = replace(scored, premises=[f"premise {i // 30}" for i in range(300)])
    low, high = split_metrics(merged, resamples=4000)["intervals"]["accuracy"]
    assert width(merged) == pytest.approx(high - low)


def test_figures_over_seeds_equal_those_worked_out_by_hand():
    figures = over_seeds([0.70, 0.72, 0.77])
    assert figures["mean"] == pytest.approx(0.73)
    assert figures["std"] == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    # t(0.975, 2 degrees of freedom) = 4.302653
    half = 4.302653 * figures["std"] / math.sqrt(3)
    assert figures["interval"] == pytest.approx([0.73 - half, 0.73 + half], rel=1e-6)


@pytest.mark.parametrize(
    "metric, values, expected",
    [
        ("accuracy", [0.90, 0.99], [None, 1.0]),
        ("macro_f1", [0.02, 0.10], [0.0, None]),
        ("loss", [0.1, 1.9], [0.0, None]),
    ],
)
def test_intervals_over_seeds_stay_within_what_a_metric_can_be(metric, values, expected):
    low, high = over_seeds(values, metric)["interval"]
    assert expected[0] is None or low == expected[0]
    assert expected[1] is None or high == expected[1]
    assert low < np.mean(values) < high
    assert metric != "loss" or high > 1


def test_seeds_of_the_same_value_give_no_interval():
    assert over_seeds([0.4, 0.4, 0.4])["interval"] is None


def test_a_difference_over_seeds_stays_within_what_it_can_be():
    """Two seeds a side, of which one answers as the labels are and one the contrary."""
    good, bad = (scored_at_random(3, skill=skill) for skill in (9.0, -9.0))
    mixed = replace(good, logits=np.concatenate([good.logits, bad.logits]))
    second = scored_at_random(4, models=2)
    figures = compare({"a": mixed}, {"a": second}, resamples=100)["datasets"]["a"]
    assert figures["accuracy"]["over_seeds"]["interval"] == [-1.0, 1.0]
    assert max(figures["loss"]["over_seeds"]["interval"]) > 1
