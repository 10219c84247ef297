"""Metrics against numbers worked out by hand and scikit-learn's, intervals against simulations."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.metrics import f1_score, fbeta_score, recall_score

from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.errors import EvaluationError, PredictionsError
from xnli_gpt.evaluation.baseline import hypothesis_only
from xnli_gpt.evaluation.comparison import compare, mcnemar
from xnli_gpt.evaluation.intervals import over_seeds
from xnli_gpt.evaluation.logits import Inference, logits_of_batches, split_logits
from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.evaluation.predictions import logits_in_order, prediction_lines, read_predictions
from xnli_gpt.evaluation.scored_split import SCORES, ScoredSplit, scores_of_models
from xnli_gpt.evaluation.scores import (
    calibration_bins,
    classification_metrics,
    expected_calibration_error,
    macro_average,
    split_metrics,
)
from xnli_gpt.evaluation.slices import (
    NEGATIONS,
    is_negated,
    language_of,
    slices_of,
    word_overlap,
    words_of,
)
from xnli_gpt.training.signals import StopSignals

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
    with pytest.raises(EvaluationError, match="`learning_rate`"):
        classification_metrics(logits, np.array([0, 1, 2]), CLASSES)


class FirstTokens(torch.nn.Module):
    """Answers with the first token and the length of every row."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    shares_beginnings = False

    def forward(self, row):
        assert not torch.is_grad_enabled() and not self.training
        lengths = torch.tensor(row.lengths[: len(row.last)])
        firsts = row.input_ids[row.last - (lengths - 1)]
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
        lengths = torch.tensor(row.lengths)
        firsts = row.input_ids[places[lengths.cumsum(0) - lengths]]
        self.given.append(len(row.input_ids))
        self.attended.append(int(lengths.sum()))
        # The filler of a row that shares nothing is no example.
        return torch.stack([firsts, lengths], dim=1)[: len(row.last)].float()


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


@pytest.mark.parametrize("metric", main_metrics())
def test_is_better_knows_the_direction_and_ties_are_not_better(metric):
    higher_wins = metric != "loss"
    assert METRICS[metric].is_better(0.6, 0.5) is higher_wins
    assert METRICS[metric].is_better(0.4, 0.5) is not higher_wins
    assert METRICS[metric].is_better(0.5, 0.5) is False
    assert METRICS[metric].is_better(0.0, None) is True
    assert METRICS[metric].is_better(0.5, 0.0) is higher_wins


def scored_at_random(
    seed: int, num_premises: int = 100, models: int = 1, skill: float = 1.0
) -> ScoredSplit:
    """Three rows a premise, predicted better than by chance."""
    generator = np.random.default_rng(seed)
    rows = 3 * num_premises
    labels = np.tile([0, 1, 2], num_premises)
    logits = generator.standard_normal((models, rows, 3)) + skill * np.eye(3)[labels]
    return ScoredSplit(
        ids=range(rows),
        premises=[f"premise {i // 3}" for i in range(rows)],
        hypotheses=[f"hypothesis {i}" for i in range(rows)],
        labels=labels,
        logits=logits.astype(np.float32),
        classes=CLASSES,
        language="en",
    )


def scored_by_hand(
    premises: list[str], right: list[bool], hypotheses: list[str] | None = None
) -> ScoredSplit:
    """Rows of class 0, predicted as that or as class 1."""
    logits = logits_predicting([0 if good else 1 for good in right]).numpy()[None]
    return ScoredSplit(
        ids=range(len(right)),
        premises=premises,
        hypotheses=hypotheses or ["hypothesis"] * len(right),
        labels=np.zeros(len(right), dtype=np.int64),
        logits=logits,
        classes=CLASSES,
        language="en",
    )


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


def test_words_are_without_case_and_punctuation():
    assert words_of("The “Cat” sat, DIDN’T it?") == ["the", "cat", "sat", "didn't", "it"]
    assert words_of("वह घर नहीं गया।") == ["वह", "घर", "नहीं", "गया"]
    assert words_of("我不 知道。", "zh") == ["我", "不", "知", "道"]


@pytest.mark.parametrize(
    ("language", "negated", "plain"),
    [
        ("hi", "वह घर नहीं गया।", "वह घर गया।"),
        ("hi", "बिना पानी के", "नानी के पानी"),
        ("en", "He can't go", "He cants a note"),
        ("en", "Nobody knows.", "Somebody knows nota bene."),
        ("ur", "وہ گھر نہیں گیا۔", "وہ گھر گیا۔"),
        ("fr", "Il n'est là", "Il est là"),
        ("de", "Das ist kein Hund.", "Das ist ein Hund."),
        ("ru", "Он не пришёл", "Он пришёл домой"),
        ("el", "Δεν ξέρω τίποτα", "Ξέρω κάτι"),
        ("es", "Nunca jamás", "Siempre"),
        ("zh", "他不知道", "他知道"),
        ("th", "เขาไม่ไป", "เขาไป"),
        ("vi", "Tôi không biết", "Tôi biết"),
        ("ar", "لم يذهب", "ذهب"),
        ("bg", "Той няма куче", "Той има куче"),
    ],
)
def test_negation_is_found_by_whole_words(language, negated, plain):
    assert is_negated(negated, language)
    assert not is_negated(plain, language)


def test_the_language_is_told_by_the_datasets_name_or_by_its_words():
    assert language_of("xnli_sw", ["He did not go"]) == "sw"
    assert language_of("hindi_xnli", []) == "hi"
    english = ["He did not go"] * 2 + ["He went without sin"] * 20
    assert language_of("pairs", english) == "en"
    assert language_of("pairs", ["वह घर नहीं गया", "वह गया"]) == "hi"
    assert language_of("pairs", ["He went"] * 100 + ["Pas de deux"]) is None
    assert set(NEGATIONS) <= set("ar bg de el en es fr hi ru sw th tr ur vi zh".split())


def test_word_overlap_is_the_share_of_the_hypothesis_words_in_the_premise():
    assert word_overlap("राम घर गया।", "राम गया") == 1.0
    assert word_overlap("The cat sat", "the the dog sat") == pytest.approx(2 / 3)
    assert word_overlap("我知道", "我知道不", "zh") == pytest.approx(2 / 3)
    assert word_overlap("word", "।") == 0.0


def test_slices_hold_every_row_once():
    premises = ["w " * count for count in (1, 10, 11, 20, 21, 31)]
    hypotheses = ["w", "w a", "w a b", "w a b c", "not w", "w a b c d"]
    slices = slices_of(premises, hypotheses, "en")
    assert {name: mask.tolist() for name, mask in slices["premise_length"].items()} == {
        "up to 10 words": [True, True, False, False, False, False],
        "11 to 20 words": [False, False, True, True, False, False],
        "21 to 30 words": [False, False, False, False, True, False],
        "more than 30 words": [False, False, False, False, False, True],
    }
    assert slices["word_overlap"]["all words"].tolist() == [True] + [False] * 5
    assert slices["negation"]["with negation"].tolist() == [False] * 4 + [True, False]
    for cuts in slices.values():
        assert (sum(mask.astype(int) for mask in cuts.values()) == 1).all()


def test_slices_are_scored_with_their_own_rows():
    scored = scored_by_hand(
        ["a", "a", "b", "b", "c", "c"],
        [True, False, False, True, False, True],
        ["not so", "so", "so", "not so", "so", "so"],
    )
    slices = split_metrics(scored, resamples=1000)["slices"]["negation"]
    assert [(cut["slice"], cut["examples"], cut["accuracy"]) for cut in slices] == [
        ("with negation", 2, 1.0),
        ("without negation", 4, 0.25),
    ]
    assert slices[0]["interval"] == [1.0, 1.0]
    low, high = slices[1]["interval"]
    assert low == 0 and 0.25 < high <= 0.5


def test_a_language_that_negates_inside_of_words_has_no_such_slices():
    assert slices_of(["a"], ["Gelmedi"], "tr")["negation"] == {}


def test_the_hypothesis_only_baseline_sees_what_is_mostly_denied():
    """One topic is true when denied, the other when not: neither word alone tells anything."""
    texts = [f"{topic} की ख़बर यहाँ {ending}" for topic in ("खेल", "देश") for ending in ("है", "नहीं है")]
    labels = np.array([0, 1, 1, 0])
    found = hypothesis_only(texts * 30, np.tile(labels, 30), texts, labels, "hi")
    assert found["accuracy"] == 1.0
    blind = hypothesis_only(texts * 30, np.tile(labels, 30), texts, labels, "tr")
    assert blind["accuracy"] <= 0.75


def test_the_hypothesis_only_baseline_finds_what_the_hypothesis_gives_away():
    generator = np.random.default_rng(0)
    words = generator.integers(0, 50, size=(300, 3))
    labels = generator.integers(0, 2, size=300)
    told = [
        f"w{a} w{b} {'नहीं' if label else 'है'} w{c}"
        for (a, b, c), label in zip(words, labels, strict=True)
    ]
    untold = [f"w{a} w{b} w{c}" for a, b, c in words]

    def accuracy(texts):
        return hypothesis_only(texts[:200], labels[:200], texts[200:], labels[200:])["accuracy"]

    assert accuracy(told) >= 0.98
    assert accuracy(untold) == pytest.approx(0.5, abs=0.15)


def write_lines(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def lines_of(scored: ScoredSplit) -> list[dict]:
    return list(prediction_lines("pairs", "test", scored))


def read_back(path, scored: ScoredSplit, classes=CLASSES) -> np.ndarray:
    ((predicted,),) = [run.values() for run in read_predictions(path, "test")]
    labels = [scored.classes[label] for label in scored.labels]
    return logits_in_order(
        predicted, scored.ids, scored.premises, scored.hypotheses, labels, classes
    )


def test_predictions_come_back_in_the_order_of_the_data(tmp_path):
    scored = scored_at_random(4, num_premises=5)
    lines = lines_of(scored)
    assert lines[7]["label"] == "neutral" and lines[7]["id"] == 7
    assert sum(lines[7]["probabilities"].values()) == pytest.approx(1)
    path = tmp_path / "predictions.jsonl"
    write_lines(path, lines[::-1])
    assert (read_back(path, scored) == scored.logits[0]).all()
    swapped = ("neutral", "entailment", "contradiction")
    assert (read_back(path, scored, swapped) == scored.logits[0][:, [1, 0, 2]]).all()


def test_predictions_may_lack_logits_and_labels(tmp_path):
    scored = scored_at_random(4, num_premises=5)
    lines = lines_of(scored)
    for line in lines:
        del line["logits"], line["label"]
    write_lines(tmp_path / "mine.jsonl", lines)
    back = replace(scored, logits=read_back(tmp_path / "mine.jsonl", scored)[None])
    assert np.allclose(back.probabilities, scored.probabilities)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: lines.pop(), "no prediction for 1 of the data's 15 rows, .* id 14"),
        (lambda lines: lines.append(lines[0] | {"id": 99}), "1 predictions for rows .* id 99"),
        (lambda lines: lines.append(lines[3]), "id 3 stands twice"),
        (lambda lines: lines[2].update(premise="other"), "premise of id 2 is 'other', but"),
        (lambda lines: lines[2].update(hypothesis="other"), "hypothesis of id 2 is 'other', but"),
        (lambda lines: lines[2].update(label="neutral"), "label of id 2 is 'neutral', but"),
        (lambda lines: lines[2].pop("id"), "line 3: no id"),
        (lambda lines: lines[2].update(id="2"), "line 3: id '2' is no whole number"),
        (lambda lines: lines[2].update(premise=None), "line 3: premise None is no text"),
        (lambda lines: lines[2].update(logits=[0.1, 0.2]), "line 3: logits .* not 3 numbers"),
        (lambda lines: lines[2].update(logits=[9, 0, 0]), "line 3: logits .* don't give"),
        (lambda lines: lines[2].update(prediction="maybe"), "line 3: prediction maybe is not"),
        (
            lambda lines: lines[2].update(probabilities={"yes": 0.5, "no": 0.5}),
            "line 3: classes yes, no, but entailment, neutral, contradiction above",
        ),
        (
            lambda lines: lines[2].update(probabilities=dict.fromkeys(CLASSES, 0.5)),
            "line 3: probabilities .* are no shares of 1",
        ),
        (
            lambda lines: [line.update(split="validation") for line in lines],
            r"no predictions of split test \(found validation\); see `split`",
        ),
    ],
)
def test_predictions_that_do_not_match_the_data_are_refused(change, told, tmp_path):
    scored = scored_at_random(4, num_premises=5)
    lines = lines_of(scored)
    change(lines)
    write_lines(tmp_path / "predictions.jsonl", lines)
    with pytest.raises(PredictionsError, match=told) as caught:
        read_back(tmp_path / "predictions.jsonl", scored)
    assert "\n" not in str(caught.value) and "predictions.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "found nothing"),
        (b"{\n", "line 1: not JSON"),
        (b"[]\n", "line 1: no object"),
        (b"\xff\n", "not UTF-8"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_holds_no_predictions_is_refused(content, told, tmp_path):
    if content is not None:
        (tmp_path / "predictions.jsonl").write_bytes(content)
    with pytest.raises(PredictionsError, match=told):
        read_predictions(tmp_path / "predictions.jsonl", "test")


def test_predictions_of_other_classes_are_refused(tmp_path):
    scored = scored_at_random(4, num_premises=5)
    write_lines(tmp_path / "predictions.jsonl", lines_of(scored))
    with pytest.raises(PredictionsError, match="data's classes are no, yes"):
        read_back(tmp_path / "predictions.jsonl", scored, ("no", "yes"))
