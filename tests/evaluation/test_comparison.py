"""Comparisons of two recipes: paired, over seeds, and how often they find what is not there."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from scored_parts import scored_at_random

from xnli_gpt.evaluation.comparison import compare, mcnemar
from xnli_gpt.evaluation.scored_split import scores_of_models


def test_mcnemar_of_few_discordant_pairs_is_the_exact_binomial_test():
    first = np.array([True] * 9 + [False] * 2 + [True] * 5 + [False] * 5)
    second = np.array([False] * 9 + [True] * 2 + [True] * 5 + [False] * 5)
    result = mcnemar(first, second)
    assert (result["only_first_right"], result["only_second_right"]) == (9, 2)
    tail = sum(math.comb(11, k) for k in (0, 1, 2)) / 2**11
    assert result["p"] == pytest.approx(2 * tail)
    assert result["variant"] == "exact binomial"


def test_mcnemar_of_many_discordant_pairs_is_chi_square_with_continuity_correction():
    first = np.array([True] * 40 + [False] * 20)
    result = mcnemar(first, ~first)
    assert result["statistic"] == pytest.approx(19**2 / 60)
    assert result["p"] == pytest.approx(math.erfc(math.sqrt(19**2 / 60 / 2)))
    assert result["variant"] == "chi-square with continuity correction"


def test_mcnemar_of_classifiers_that_agree_finds_nothing():
    right = np.array([True, False, True])
    assert mcnemar(right, right)["p"] == 1.0
    balanced = np.array([True] * 20 + [False] * 20)
    assert mcnemar(balanced, ~balanced)["statistic"] == 0


def test_a_comparison_is_paired():
    """Two models that differ in few rows: far surer than their intervals say."""
    first = scored_at_random(3, num_premises=200)
    logits = first.logits.copy()
    wrong = np.flatnonzero(logits[0].argmax(axis=-1) != first.labels)[:20]
    logits[0, wrong, first.labels[wrong]] += 10
    second = replace(first, logits=logits)
    figures = compare({"a": second}, {"a": first}, resamples=2000)["datasets"]["a"]
    accuracy = figures["accuracy"]
    assert accuracy["difference"] == pytest.approx(20 / 600)
    assert accuracy["first"] - accuracy["second"] == pytest.approx(accuracy["difference"])
    low, high = accuracy["interval"]
    assert 0 < low < 20 / 600 < high < 0.06
    assert accuracy["p"] < 0.002
    assert figures["mcnemar"]["p"] == pytest.approx(2 * 0.5**20)
    assert figures["mcnemar"]["variant"] == "exact binomial"
    opposite = compare({"a": first}, {"a": second}, resamples=2000)["datasets"]["a"]["accuracy"]
    assert opposite["interval"] == pytest.approx([-high, -low])


def test_a_model_compared_with_itself_does_not_differ():
    scored = {"a": scored_at_random(3)}
    comparison = compare(scored, scored, resamples=200)
    for figures in (comparison["datasets"]["a"], comparison["macro_average"]):
        assert figures["macro_f1"]["difference"] == 0 and figures["macro_f1"]["p"] == 1.0
        assert figures["macro_f1"]["interval"] == [0, 0]


def test_p_is_rarely_small_where_recipes_do_not_differ():
    small = 0
    for seed in range(100):
        first, second = (scored_at_random(2 * seed + i, num_premises=60) for i in (0, 1))
        figures = compare({"a": first}, {"a": second}, resamples=200)["datasets"]["a"]
        small += figures["accuracy"]["p"] < 0.05
    assert small <= 13


def test_p_is_below_5_percent_where_the_interval_leaves_zero_out():
    agreements, clear = [], 0
    for seed in range(40):
        first = scored_at_random(2 * seed, num_premises=60, skill=1.5)
        second = scored_at_random(2 * seed + 1, num_premises=60)
        figures = compare({"a": first}, {"a": second}, resamples=1000)["datasets"]["a"]["accuracy"]
        low, high = figures["interval"]
        clear += not low <= 0 <= high
        if abs(figures["p"] - 0.05) > 0.01:
            agreements.append((figures["p"] < 0.05) == (not low <= 0 <= high))
    assert all(agreements) and 10 < clear < 35


def test_seeds_are_compared_by_their_means_not_as_an_ensemble():
    """Three models of the same skill make a better ensemble than one, but no better recipe."""
    one = scored_at_random(1, num_premises=300)
    three = scored_at_random(2, num_premises=300, models=3)
    figures = compare({"a": three}, {"a": one}, resamples=2000)["datasets"]["a"]
    means = [scores_of_models(scored)["accuracy"].mean() for scored in (three, one)]
    assert figures["accuracy"]["difference"] == pytest.approx(means[0] - means[1])
    assert "over_seeds" not in figures["accuracy"]
    assert len(figures["mcnemar"]["pairs"]) == 3
    single = compare({"a": three.of_model(0)}, {"a": one}, resamples=200)["datasets"]["a"]
    assert figures["mcnemar"]["pairs"][0] == single["mcnemar"]
    p = sorted(pair["p"] for pair in figures["mcnemar"]["pairs"])[1]
    assert figures["mcnemar"]["p"] == pytest.approx(min(1, 2 * p))


def test_seeds_of_both_recipes_are_compared_by_welchs_test():
    first, second = scored_at_random(1, models=3), scored_at_random(2, models=4, skill=1.3)
    figures = compare({"a": first}, {"a": second}, resamples=200)["datasets"]["a"]["accuracy"]
    values = [scores_of_models(one)["accuracy"] for one in (first, second)]
    variances = [of.var(ddof=1) / len(of) for of in values]
    t = (values[0].mean() - values[1].mean()) / math.sqrt(sum(variances))
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 3)
    assert figures["over_seeds"]["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(t), freedom))
