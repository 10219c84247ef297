"""Metrics of a classifier: from batches to logits, from logits to numbers with their intervals.

Rows that share a premise are no independent observations (in XNLI a premise stands three times),
so every bootstrap draws premises with all of their rows, and what is compared is compared on the
same draws.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.choices import RESAMPLES
from xnli_gpt.errors import EXIT_FAILED, XNLIError
from xnli_gpt.evaluation.metrics import METRICS, Counts, scores

# scipy and scikit-learn are imported where they are used: predicting needs neither.

# What intervals and comparisons are given for.
SCORES = scores()
CONFIDENCE = 0.95
CALIBRATION_BINS = 10
# Means of the same numbers, added up in another order, differ by less.
ROUNDING = 1e-12
# Counts of one chunk of bootstrap draws: a few tens of MB.
DRAWS_AT_ONCE = 1 << 22
# With fewer discordant pairs the chi-square approximation of McNemar's test is too rough.
FEW_DISCORDANT_PAIRS = 25


class EvaluationError(XNLIError, ValueError):
    """A model can't be scored; the message says what was seen and what to try."""

    exit_code = EXIT_FAILED


class PredictionsError(XNLIError, ValueError):
    """Predictions that can't be used, or are not of the data they are matched with."""


@torch.inference_mode()
def predict_logits(
    predict: Callable[[object], Tensor],
    batches: Iterable[tuple[np.ndarray, object]],
    num_rows: int,
    num_classes: int,
) -> Tensor:
    """Logits [num_rows, classes], float32 on the CPU, in the order of the rows.

    `batches` gives (positions of the rows, inputs) in any order and cut, and `predict(inputs)`
    their logits [B, classes].
    """
    logits = torch.full((num_rows, num_classes), torch.nan)
    for positions, inputs in batches:
        logits[torch.from_numpy(positions)] = predict(inputs).float().cpu()
    return logits


def classification_metrics(logits: Tensor, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Return all of METRICS, figures of every class, and the confusion matrix.

    `logits` [N, classes], `labels` [N]. A macro figure is the mean over all classes, 0 for one
    that is neither there nor predicted. Raises EvaluationError for logits that are not finite.
    """
    import scipy.special
    from sklearn.metrics import precision_recall_fscore_support

    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            "logits are not finite: lower --learning_rate, or use --dtype float32"
        )
    labels = np.asarray(labels)
    predictions = logits.argmax(dim=-1).numpy()
    figures = precision_recall_fscore_support(
        labels, predictions, labels=list(range(len(classes))), zero_division=0
    )
    bins = calibration_bins(scipy.special.softmax(logits.double().numpy(), axis=-1), labels)
    counts = _counts_of(_sums_of_rows(logits.numpy()[None], labels).sum(axis=0), len(classes))
    # Of the only model.
    values = {name: float(METRICS[name].of_counts(counts)[0]) for name in SCORES}
    return {
        **(values | {"ece": expected_calibration_error(bins)}),
        "examples": len(labels),
        "per_class": {
            name: {
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for name, precision, recall, f1, support in zip(classes, *figures, strict=True)
        },
        "confusion": counts.confusion[0].astype(int).tolist(),
    }


def calibration_bins(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> list[dict]:
    """A reliability diagram: rows by the probability of their predicted class, in bins of one
    width ((m - 1) / M, m / M], with each bin's mean probability and accuracy.

    `probabilities` [N, classes], `labels` [N]. Bins that hold no row are left out.
    """
    confidence = probabilities.max(axis=-1)  # [N]
    right = probabilities.argmax(axis=-1) == labels  # [N]
    number = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)  # [N]
    return [
        {
            "from": m / num_bins,
            "to": (m + 1) / num_bins,
            "count": int((number == m).sum()),
            "confidence": float(confidence[number == m].mean()),
            "accuracy": float(right[number == m].mean()),
        }
        for m in np.unique(number).tolist()
    ]


def expected_calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """The sum over bins of count / N · |accuracy - mean probability|.

    Naeini, Cooper and Hauskrecht 2015 (AAAI), as used by Guo, Pleiss, Sun and Weinberger 2017
    (ICML), with bins of one width.
    """
    gaps = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return float(gaps / sum(b["count"] for b in bins))


@dataclass(frozen=True)
class ScoredSplit:
    """The rows of one dataset's split with the logits of one model, or of several models of one
    recipe (seeds) on the same rows."""

    ids: Sequence[int]  # [N] places in the split
    premises: Sequence[str]  # [N]
    hypotheses: Sequence[str]  # [N]
    labels: np.ndarray  # [N] int64
    logits: np.ndarray  # [models, N, classes] float32
    classes: tuple[str, ...]
    language: str | None = None  # None: by the words that are found

    def of_model(self, number: int) -> ScoredSplit:
        """The same rows with the logits of one model."""
        return replace(self, logits=self.logits[number : number + 1])

    @property
    def answers_one_class(self) -> bool:
        """Whether every model gives all rows the same answer."""
        answers = self.logits.argmax(axis=-1)  # [models, N]
        return bool((answers == answers[:, :1]).all())

    @property
    def probabilities(self) -> np.ndarray:
        """[models, N, classes] float64."""
        import scipy.special

        return scipy.special.softmax(self.logits.astype(np.float64), axis=-1)


def split_metrics(scored: ScoredSplit, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """All metrics of a split, with intervals, reliability diagram and slices.

    Of several models every figure is the mean of theirs, counts in the confusion matrix included.
    Intervals are those of 95 % by the percentile bootstrap (Efron and Tibshirani 1993, ch. 13)
    over premises, None where a figure rests on one premise only, or where all draws agree because
    the model answers one class alone: there, they tell how the data was made, not how sure the
    figure is. Raises EvaluationError for logits that are not finite.
    """
    of_models = [
        classification_metrics(torch.from_numpy(logits), scored.labels, scored.classes)
        for logits in scored.logits
    ]
    metrics = _mean_of(of_models)
    metrics["majority_accuracy"] = float(np.bincount(scored.labels).max() / len(scored.labels))
    slices = slices_of(scored.premises, scored.hypotheses, scored.language)
    masks = [mask for cuts in slices.values() for mask in cuts.values()]
    drawn = _resampled_sums(
        np.hstack([_score_columns(scored), _slice_columns(scored, masks)]),
        premise_groups(scored.premises),
        resamples,
        seed,
    )
    own, of_slices = drawn[:, : -2 * len(masks)], drawn[:, -2 * len(masks) :]
    replicates = _scores_of_sums(own, len(scored.classes))
    constant = scored.answers_one_class
    metrics["intervals"] = {name: _interval(replicates[name], constant) for name in SCORES}
    metrics["calibration"] = _calibration_of(scored)
    metrics["slices"] = _slice_figures(scored, slices, of_slices)
    return metrics


def _mean_of(values: list) -> object:
    """The mean of numbers, or of what stands at the same place in lists and dicts."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, dict):
        return {key: _mean_of([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean_of(list(at_place)) for at_place in zip(*values, strict=True)]
    return first if all(value == first for value in values) else float(np.mean(values))


def _calibration_of(scored: ScoredSplit) -> list[dict]:
    """The bins of all models' rows together, with the count of one model."""
    bins = calibration_bins(
        scored.probabilities.reshape(-1, len(scored.classes)),
        np.tile(scored.labels, len(scored.logits)),
    )
    if len(scored.logits) == 1:
        return bins
    return [b | {"count": b["count"] / len(scored.logits)} for b in bins]


def premise_groups(premises: Sequence[str]) -> np.ndarray:
    """[N] numbers from 0 upwards, the same for rows with the same premise."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(premise, len(numbers)) for premise in premises])


def _score_columns(scored: ScoredSplit) -> np.ndarray:
    """[N, models · (classes² + 1)], see `_sums_of_rows`."""
    return _sums_of_rows(scored.logits, scored.labels)


def _sums_of_rows(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[N, models · (classes² + 1)] from logits [models, N, classes]: sums of rows of this are all
    that the scores need, for each model the cells of its confusion matrix and its loss."""
    import scipy.special

    num_classes = logits.shape[-1]
    cells = labels * num_classes + logits.argmax(axis=-1)  # [models, N]
    confusion = np.eye(num_classes**2)[cells]  # [models, N, classes²]
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=-1)
    losses = -log_probabilities[:, np.arange(len(labels)), labels]  # [models, N]
    columns = np.concatenate([confusion, losses[..., None]], axis=-1)
    return columns.transpose(1, 0, 2).reshape(len(labels), -1)


def _counts_of(sums: np.ndarray, num_classes: int) -> Counts:
    """The counts [..., models] that sums of `_score_columns` [..., columns] stand for."""
    sums = sums.reshape(*sums.shape[:-1], -1, num_classes**2 + 1)  # [..., models, classes² + 1]
    confusion = sums[..., :-1].reshape(*sums.shape[:-1], num_classes, num_classes)
    return Counts(confusion, sums[..., -1])


def _scores_of_sums(sums: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Every one of SCORES [B], the mean over models, from sums of `_score_columns` [B, columns]."""
    counts = _counts_of(sums, num_classes)  # [B, models]
    return {name: METRICS[name].of_counts(counts).mean(axis=-1) for name in SCORES}


def _resampled_sums(
    columns: np.ndarray, groups: np.ndarray, resamples: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Sums [resamples, K] of `columns` [N, K] over rows of groups drawn with replacement, as many
    groups as there are; `groups` [N] numbers the group of every row from 0 upwards. One group
    tells nothing of others: nan."""
    num_groups = int(groups.max()) + 1
    if num_groups == 1:
        return np.full((resamples, columns.shape[1]), np.nan)
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(num_groups))
    group_sums = np.add.reduceat(columns[order], starts, axis=0)  # [G, K]
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // num_groups)
    parts = []
    for first in range(0, resamples, at_once):
        count = min(at_once, resamples - first)
        draws = generator.integers(0, num_groups, size=(count, num_groups))
        draws += num_groups * np.arange(count)[:, None]
        times = np.bincount(draws.ravel(), minlength=count * num_groups)
        parts.append(times.reshape(count, num_groups).astype(np.float64) @ group_sums)
    return np.concatenate(parts)


def _interval(replicates: np.ndarray, constant: bool = False) -> list[float] | None:
    """The central 95 % of those replicates [B] that exist; None where there are none, and where
    those of a model with a `constant` answer are all the same."""
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates) or (constant and np.ptp(replicates) < ROUNDING):
        return None
    outside = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(replicates, [outside, 100 - outside]).tolist()


def macro_average(
    metrics: Mapping[str, Mapping],
    scored: Mapping[str, ScoredSplit],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """The mean over datasets of their `split_metrics`, with intervals.

    Parallel datasets (the languages of XNLI: row i says the same in all) are drawn together, as a
    hard premise is hard in every language; others independently.
    """
    average = {
        name: float(np.mean([of_set[name] for of_set in metrics.values()])) for name in METRICS
    }
    replicates = _replicates([[one] for one in scored.values()], resamples, seed)
    constant = all(one.answers_one_class for one in scored.values())
    intervals = {
        name: _interval(np.mean([of_set[0][name] for of_set in replicates], axis=0), constant)
        for name in SCORES
    }
    return average | {"intervals": intervals}


def _replicates(
    datasets: Sequence[Sequence[ScoredSplit]], resamples: int, seed: int
) -> list[list[dict[str, np.ndarray]]]:
    """Bootstrap replicates of SCORES [resamples] by dataset and system. Systems on one dataset
    have the same rows and the same draws; so have datasets that are parallel."""
    if not _are_parallel([systems[0] for systems in datasets]):
        return [
            _replicates([systems], resamples, [seed, number])[0]
            for number, systems in enumerate(datasets)
        ]
    blocks = [_score_columns(system) for systems in datasets for system in systems]
    groups = _joint_groups([premise_groups(systems[0].premises) for systems in datasets])
    drawn = _resampled_sums(np.hstack(blocks), groups, resamples, seed)
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    parts = iter(np.split(drawn, ends, axis=1))
    return [
        [_scores_of_sums(next(parts), len(system.classes)) for system in systems]
        for systems in datasets
    ]


def _are_parallel(datasets: Sequence[ScoredSplit]) -> bool:
    first = datasets[0]
    return all(
        list(one.ids) == list(first.ids) and np.array_equal(one.labels, first.labels)
        for one in datasets
    )


def _joint_groups(groupings: Sequence[np.ndarray]) -> np.ndarray:
    """[N] numbers, the same for rows that any of the groupings [N] puts together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(groupings) == 1:
        return groupings[0]
    rows = np.arange(len(groupings[0]))
    first_node = len(rows) + np.cumsum([0, *(grouping.max() + 1 for grouping in groupings)])
    nodes = np.concatenate(
        [first + grouping for first, grouping in zip(first_node, groupings, strict=False)]
    )
    edges = (np.ones(len(nodes)), (np.tile(rows, len(groupings)), nodes))
    _, component = connected_components(coo_array(edges, shape=(first_node[-1],) * 2), False)
    return component[: len(rows)]


def over_seeds(values: Sequence[float], metric: str = "accuracy") -> dict:
    """Mean, standard deviation (n - 1) and 95 % t interval of one figure of two seeds or more.

    The interval stays within what `metric` can be; None where all seeds have the same value.
    """
    import scipy.stats

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    factor = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    half = float(factor * deviation / math.sqrt(len(values)))
    return {
        "mean": mean,
        "std": deviation,
        "interval": _within(0.0, METRICS[metric].highest, mean - half, mean + half)
        if half > ROUNDING
        else None,
        "values": list(values),
    }


def _within(lowest: float, highest: float, low: float, high: float) -> list[float]:
    """The part of the interval from `low` to `high` that a figure can reach."""
    return [max(lowest, low), min(highest, high)]


def compare(
    first: Mapping[str, ScoredSplit],
    second: Mapping[str, ScoredSplit],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """Two recipes on the same rows of the same datasets, by dataset and in macro average.

    Every difference is `first` minus `second`, each the mean over its models: which recipe gives
    the better model, not which makes the better ensemble. Its interval and p come from a paired
    bootstrap over premises, which tells what other premises would have changed; the p is twice
    the share of draws on the far side of zero (Efron and Tibshirani 1993, section 15.4), so it is
    below 0.05 where the interval leaves zero out. What other seeds would have changed is told by
    Welch's t-test over the models, where both sides have two or more.
    """
    by_set = {
        name: _comparison(
            _replicates([[first[name], second[name]]], resamples, seed),
            [first[name]],
            [second[name]],
        )
        | {"mcnemar": _mcnemar_of(first[name], second[name])}
        for name in first
    }
    pairs = [[first[name], second[name]] for name in first]
    macro = _comparison(
        _replicates(pairs, resamples, seed),
        list(first.values()),
        list(second.values()),
    )
    return {"datasets": by_set, "macro_average": macro}


def scores_of_models(scored: ScoredSplit) -> dict[str, np.ndarray]:
    """Every one of SCORES [models], model by model."""
    of_models = [
        _scores_of_sums(_score_columns(scored.of_model(i)).sum(axis=0)[None], len(scored.classes))
        for i in range(len(scored.logits))
    ]
    return {name: np.concatenate([one[name] for one in of_models]) for name in SCORES}


def _comparison(
    replicates: Sequence[Sequence[Mapping[str, np.ndarray]]],
    first: Sequence[ScoredSplit],
    second: Sequence[ScoredSplit],
) -> dict:
    """The differences of the means over datasets, from replicates by dataset and system, and from
    both systems' rows by dataset."""
    constant = all(one.answers_one_class for one in (*first, *second))
    first, second = ([scores_of_models(one) for one in system] for system in (first, second))
    figures = {}
    for name in SCORES:
        of_first = np.mean([one[name] for one in first], axis=0)  # [models]
        of_second = np.mean([one[name] for one in second], axis=0)
        drawn = np.mean([a[name] - b[name] for a, b in replicates], axis=0)  # [B]
        figures[name] = {
            "first": float(of_first.mean()),
            "second": float(of_second.mean()),
            "difference": float(of_first.mean() - of_second.mean()),
            "interval": _interval(drawn, constant),
            "p": _two_sided_p(drawn),
        }
        if min(len(of_first), len(of_second)) > 1:
            figures[name]["over_seeds"] = _welch(of_first, of_second, name)
    return figures


def _two_sided_p(differences: np.ndarray) -> float | None:
    """Never 0: the observed difference counts as a draw (Davison and Hinkley 1997, 4.2)."""
    if not np.isfinite(differences).all():
        return None
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (beyond + 1) / (len(differences) + 1)))


def _welch(first: np.ndarray, second: np.ndarray, metric: str) -> dict | None:
    """Welch's t-test of two means of a metric; None where neither side varies."""
    import scipy.stats

    if first.std() == 0 and second.std() == 0:
        return None
    result = scipy.stats.ttest_ind(first, second, equal_var=False)
    low, high = map(float, result.confidence_interval(CONFIDENCE))
    highest = METRICS[metric].highest
    return {
        "interval": _within(-highest, highest, low, high),
        "p": float(result.pvalue),
        "test": "Welch's t",
    }


def _mcnemar_of(first: ScoredSplit, second: ScoredSplit) -> dict:
    """McNemar's test compares two models, not recipes: of several models it is done for every pair.

    Neither the rows of all seeds together would do (one row would count as several observations)
    nor the mean probabilities (an ensemble of more seeds wins by being one). The common p is
    twice the median of the pairs', valid however they depend on each other (Rüger 1978; Vovk and
    Wang 2020).
    """
    rights = [one.logits.argmax(axis=-1) == one.labels for one in (first, second)]
    pairs = [mcnemar(of_first, of_second) for of_first in rights[0] for of_second in rights[1]]
    if len(pairs) == 1:
        return pairs[0]
    p = min(1.0, 2 * float(np.median([pair["p"] for pair in pairs])))
    return {"p": p, "variant": "twice the median p of all pairs of models", "pairs": pairs}


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> dict:
    """McNemar's test (1947) whether two classifiers are right equally often on the same rows.

    Both [N] bool. With fewer than 25 discordant pairs the exact binomial test, else chi-square
    with Edwards' (1948) continuity correction: (|b - c| - 1)² / (b + c). It takes rows for
    independent, which rows of one premise are not: the bootstrap over premises is the safer one.
    """
    import scipy.stats

    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    discordant = only_first + only_second
    figures = {"only_first_right": only_first, "only_second_right": only_second}
    if discordant < FEW_DISCORDANT_PAIRS:
        p = scipy.stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
        return figures | {"p": float(p), "variant": "exact binomial"}
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / discordant
    return figures | {
        "statistic": float(statistic),
        "p": float(scipy.stats.chi2.sf(statistic, df=1)),
        "variant": "chi-square with continuity correction",
    }


# Thai and Chinese are written without spaces: there, characters and pairs of them stand for words.
UNSPACED_LANGUAGES = ("th", "zh")
LONGEST_PREMISES = {"words": (10, 20, 30), "characters": (20, 40, 80)}
OVERLAPS = (0.25, 0.5, 0.75, 1.0)
PUNCTUATION = (
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~।॥۔،؟؛٪“”„‘’«»‹›…–—¿¡·。，、？！：；「」『』（）《》"
)
# Words that negate. Turkish and Swahili mostly negate inside of the verb, which no list of words
# finds; words with another common meaning (French plus, Urdu بنا) are left out.
NEGATIONS = {
    language: frozenset(unicodedata.normalize("NFC", words).casefold().split())
    for language, words in {
        "hi": "नहीं नही न ना मत बिना",
        "en": "not no never none nobody nothing nowhere neither nor cannot without",
        "ur": "نہیں نہيں نهیں نہ مت بغیر",
        "ar": "لا لم لن ليس ليست ليسوا لست لسنا ولا ولم ولن وليس فلا فلم بلا بدون غير أبدا أبداً",
        "bg": "не няма нямат нямам нямаше нямаха нито никога нищо никой никаква никакво без",
        "de": "nicht kein keine keinen keinem keiner keines nie niemals nichts niemand ohne weder",
        "el": "δεν δε μη μην όχι ποτέ χωρίς κανένας καμία κανένα τίποτα ούτε",
        "es": "no nunca jamás nada nadie ningún ninguno ninguna tampoco sin ni",
        "fr": "ne pas non jamais rien aucun aucune sans ni",
        "ru": "не нет ни никогда ничего никто никого нельзя без никакой никакая никаких",
        "vi": "không chưa chẳng đừng chả",
        "zh": "不 没 沒 无 無",
        "th": "ไม่ ปราศจาก",
    }.items()
}
# Where a word is negated by a part of it: can't, n'est.
NEGATED_WORDS = {"en": re.compile(r".+n't"), "fr": re.compile(r"n'.+")}
# Fewer hypotheses with a language's negations than this are chance likeness of words.
SHARE_NEGATED = 0.02


def words_of(text: str, language: str | None = None) -> list[str]:
    """The words of a text without case and punctuation; of a language that is written without
    spaces its characters."""
    text = unicodedata.normalize("NFC", text).casefold().replace("’", "'")
    words = [word for part in text.split() if (word := part.strip(PUNCTUATION))]
    return list("".join(words)) if language in UNSPACED_LANGUAGES else words


def is_negated(text: str, language: str) -> bool:
    """Whether a word of NEGATIONS[language] stands in the text."""
    negations = NEGATIONS[language]
    words = words_of(text, language)
    if language in UNSPACED_LANGUAGES:
        return any(negation in "".join(words) for negation in negations)
    part = NEGATED_WORDS.get(language)
    return any(word in negations or (part and part.fullmatch(word)) for word in words)


def language_of(dataset: str, hypotheses: Sequence[str]) -> str | None:
    """The language of a dataset by its name (xnli_LANG, hindi_xnli, demo), else that whose
    negations most hypotheses hold; None where hardly any holds one."""
    match = re.fullmatch(r"xnli_([a-z]{2})", dataset)
    if match or dataset in ("hindi_xnli", "demo"):
        return match[1] if match else "hi"
    found = {
        language: sum(is_negated(hypothesis, language) for hypothesis in hypotheses)
        for language in NEGATIONS
    }
    likeliest = max(found, key=found.__getitem__)
    return likeliest if found[likeliest] > SHARE_NEGATED * len(hypotheses) else None


def word_overlap(premise: str, hypothesis: str, language: str | None = None) -> float:
    """The share of the hypothesis' different words that stand in the premise, too; of a language
    that is written without spaces, of its pairs of characters."""
    in_premise, in_hypothesis = (set(_units(text, language)) for text in (premise, hypothesis))
    return len(in_hypothesis & in_premise) / len(in_hypothesis) if in_hypothesis else 0.0


def _units(text: str, language: str | None) -> Iterable[object]:
    words = words_of(text, language)
    return pairwise(words) if language in UNSPACED_LANGUAGES else words


def slices_of(
    premises: Sequence[str], hypotheses: Sequence[str], language: str | None
) -> dict[str, dict[str, np.ndarray]]:
    """Rows by length of the premise, by the hypothesis' word overlap with it and by negation in
    the hypothesis: for each the masks [N] of its slices by name, without empty ones.

    "negation" has none where the language is unknown or NEGATIONS doesn't hold it.
    """
    unit = "characters" if language in UNSPACED_LANGUAGES else "words"
    lengths = np.array([len(words_of(premise, language)) for premise in premises])
    pairs = zip(premises, hypotheses, strict=True)
    overlaps = np.array(
        [word_overlap(premise, hypothesis, language) for premise, hypothesis in pairs]
    )
    slices = {
        "premise_length": _cut_by_length(lengths, LONGEST_PREMISES[unit], unit),
        "word_overlap": _cut_by_overlap(overlaps),
        "negation": {},
    }
    if language in NEGATIONS:
        negated = np.array([is_negated(hypothesis, language) for hypothesis in hypotheses])
        slices["negation"] = {"with negation": negated, "without negation": ~negated}
    return {
        kind: {name: mask for name, mask in cuts.items() if mask.any()}
        for kind, cuts in slices.items()
    }


def _cut_by_length(lengths: np.ndarray, longest: Sequence[int], unit: str) -> dict[str, np.ndarray]:
    cuts = {f"up to {longest[0]} {unit}": lengths <= longest[0]}
    for below, up_to in pairwise(longest):
        cuts[f"{below + 1} to {up_to} {unit}"] = (below < lengths) & (lengths <= up_to)
    return cuts | {f"more than {longest[-1]} {unit}": lengths > longest[-1]}


def _cut_by_overlap(overlaps: np.ndarray) -> dict[str, np.ndarray]:
    """The last one is McCoy, Pavlick and Linzen's (2019) lexical overlap: a model that takes
    overlap for entailment is right there on entailed hypotheses only."""
    cuts = {}
    for low, high in pairwise((0.0, *OVERLAPS)):
        cuts[f"{low:.0%} to under {high:.0%}"] = (low <= overlaps) & (overlaps < high)
    return cuts | {"all words": overlaps == 1}


def _slice_columns(scored: ScoredSplit, masks: Sequence[np.ndarray]) -> np.ndarray:
    """[N, 2 · masks]: of every mask the share of models that are right, and the count."""
    right = (scored.logits.argmax(axis=-1) == scored.labels).mean(axis=0)  # [N]
    return np.stack([column for mask in masks for column in (right * mask, mask)], axis=1)


def _slice_figures(
    scored: ScoredSplit, slices: Mapping[str, Mapping[str, np.ndarray]], drawn: np.ndarray
) -> dict[str, list[dict]]:
    """Accuracy of every slice; `drawn` [B, 2 · slices] are resampled sums of `_slice_columns`."""
    groups = premise_groups(scored.premises)
    right = (scored.logits.argmax(axis=-1) == scored.labels).mean(axis=0)  # [N]
    sums = iter(drawn.T.reshape(-1, 2, len(drawn)))
    figures: dict[str, list[dict]] = {}
    for kind, cuts in slices.items():
        figures[kind] = []
        for name, mask in cuts.items():
            right_sum, count = next(sums)
            accuracies = np.full(len(drawn), np.nan)
            # Another draw may hold no row of a small slice.
            np.divide(right_sum, count, out=accuracies, where=count > 0)
            figures[kind].append(
                {
                    "slice": name,
                    "examples": int(mask.sum()),
                    "accuracy": float(right[mask].mean()),
                    "interval": _interval(accuracies, scored.answers_one_class)
                    if len({*groups[mask]}) > 1
                    else None,
                }
            )
    return figures


def hypothesis_only(
    train_hypotheses: Sequence[str],
    train_labels: np.ndarray,
    hypotheses: Sequence[str],
    labels: np.ndarray,
    language: str | None = None,
) -> dict:
    """Accuracy and macro F1 of a classifier that never sees a premise (Poliak et al. 2018;
    Gururangan et al. 2018): TF-IDF of the hypothesis' words and pairs of words, each word of a
    negated hypothesis once more as such, and logistic regression. What it gets right, the data
    gives away without inference.

    The mean of macro F1 is over the classes of train, two or more.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    vectorizer = TfidfVectorizer(
        analyzer=lambda text: _hypothesis_features(text, language), dtype=np.float32
    )
    classifier = LogisticRegression(max_iter=1000)
    classifier.fit(vectorizer.fit_transform(train_hypotheses), train_labels)
    predictions = classifier.predict(vectorizer.transform(hypotheses))
    f1 = f1_score(labels, predictions, labels=classifier.classes_, average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(labels, predictions)), "macro_f1": float(f1)}


def _hypothesis_features(text: str, language: str | None) -> list[str]:
    words = words_of(text, language)
    pairs = [f"{word} {following}" for word, following in pairwise(words)]
    # A topic that is mostly denied, or mostly not, is an artefact that no single word shows.
    negated = language in NEGATIONS and is_negated(text, language)
    return [*words, *pairs, *(f"!{word}" for word in words if negated)]


@dataclass(frozen=True)
class PredictedRows:
    """Rows of one split of one dataset in a predictions.jsonl, in its order."""

    where: str  # the file, for messages
    classes: tuple[str, ...]
    ids: list[int]
    premises: list[str]
    hypotheses: list[str]
    labels: list[str | None]
    logits: np.ndarray  # [N, classes] float32


def prediction_lines(dataset: str, split: str, scored: ScoredSplit) -> Iterator[dict]:
    """The lines of predictions.jsonl for the first model of `scored`."""
    probabilities = scored.probabilities[0]
    for row, logits in enumerate(scored.logits[0]):
        yield {
            "dataset": dataset,
            "split": split,
            "id": int(scored.ids[row]),
            "premise": scored.premises[row],
            "hypothesis": scored.hypotheses[row],
            "label": scored.classes[scored.labels[row]],
            "prediction": scored.classes[logits.argmax()],
            "probabilities": dict(zip(scored.classes, probabilities[row].tolist(), strict=True)),
            "logits": logits.tolist(),
        }


def write_predictions(path: Path, split: str, scored: Mapping[str, ScoredSplit]) -> None:
    """predictions.jsonl; of several models with the number of each as "run", model by model."""
    num_models = len(next(iter(scored.values())).logits)
    with open(path, "w", encoding="utf-8") as file:
        for model in range(num_models):
            run = {"run": model + 1} if num_models > 1 else {}
            for name, one in scored.items():
                for line in prediction_lines(name, split, one.of_model(model)):
                    file.write(json.dumps(line | run, ensure_ascii=False) + "\n")


def read_predictions(path: Path, split: str) -> list[dict[str, PredictedRows]]:
    """The rows of a split in a predictions.jsonl: by run of several in one file ("run"), and by
    dataset.

    Of a line "logits" may be missing, then they are the logarithms of "probabilities"; "label"
    may, where the data is at hand. Raises PredictionsError that names the line.
    """
    found: dict[tuple[int, str], list[dict]] = {}
    classes: tuple[str, ...] | None = None
    other_splits = set()
    with _said_as_predictions_error(path), open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            where = f"{path}: line {number}"
            line = _checked_line(text, where)
            classes = classes or tuple(line["probabilities"])
            if set(line["probabilities"]) != set(classes):
                raise PredictionsError(
                    f"{where}: classes {', '.join(line['probabilities'])}, but "
                    f"{', '.join(classes)} above"
                )
            if line["split"] != split:
                other_splits.add(line["split"])
                continue
            key = (line.get("run", 1), line["dataset"])
            found.setdefault(key, []).append(_without_probabilities(line, classes, where))
    if not found:
        seen = ", ".join(sorted(other_splits)) or "nothing"
        raise PredictionsError(
            f"{path}: no predictions of split {split} (found {seen}); see --split"
        )
    runs: dict[int, dict[str, PredictedRows]] = {}
    for (run, dataset), lines in found.items():
        runs.setdefault(run, {})[dataset] = _predicted_rows(lines, classes, f"{path}, {dataset}")
    return [runs[run] for run in sorted(runs)]


class _said_as_predictions_error:
    """Turns what reading a file raises into a PredictionsError that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise PredictionsError(f"{self.path}: not UTF-8 ({error.reason})") from error
        if isinstance(error, OSError):
            raise PredictionsError(
                f"{self.path}: can't be read ({error.strerror}); expected the predictions.jsonl "
                "of an evaluation, or its folder"
            ) from error


# What every line must have, and of which kind.
LINE_FIELDS = {
    "dataset": str,
    "split": str,
    "id": int,
    "premise": str,
    "hypothesis": str,
    "prediction": str,
    "probabilities": dict,
}


def _checked_line(text: str, where: str) -> dict:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PredictionsError(f"{where}: not JSON ({error})") from error
    if not isinstance(line, dict):
        raise PredictionsError(f"{where}: no object, expected one a line")
    missing = [name for name in LINE_FIELDS if name not in line]
    if missing:
        raise PredictionsError(
            f"{where}: no {', '.join(missing)} (found {', '.join(line) or 'nothing'})"
        )
    expected = LINE_FIELDS | {"run": int, "label": str | None, "logits": list}
    for name, kind in expected.items():
        value = line.get(name)
        if name in line and (not isinstance(value, kind) or isinstance(value, bool)):
            raise PredictionsError(f"{where}: {name} {value!r} is no {_kind_name(kind)}")
    return line


def _kind_name(kind: object) -> str:
    return {str: "text", int: "whole number", dict: "object", list: "list"}.get(kind, "text")


def _without_probabilities(line: dict, classes: tuple[str, ...], where: str) -> dict:
    """The line with its logits in the order of `classes`, once they and its prediction agree."""
    probabilities = [line["probabilities"][name] for name in classes]
    if not _are_numbers(probabilities) or abs(sum(probabilities) - 1) > 1e-3:
        raise PredictionsError(f"{where}: probabilities {probabilities} are no shares of 1")
    # An own line's logits stand in the order of its own probabilities.
    by_class = dict(zip(line["probabilities"], line.get("logits", ()), strict=False))
    logits = [by_class.get(name) for name in classes]
    if "logits" not in line:
        logits = [math.log(max(p, 1e-12)) for p in probabilities]
    elif len(line["logits"]) != len(classes) or not _are_numbers(logits):
        raise PredictionsError(f"{where}: logits {line['logits']} are not {len(classes)} numbers")
    elif not _give(logits, probabilities):
        raise PredictionsError(f"{where}: logits {logits} don't give probabilities {probabilities}")
    prediction = line["prediction"]
    if prediction not in classes or logits[classes.index(prediction)] < max(logits):
        raise PredictionsError(f"{where}: prediction {prediction} is not the likeliest class")
    del line["probabilities"]
    return line | {"logits": logits}


def _give(logits: Sequence[float], probabilities: Sequence[float]) -> bool:
    """Whether the softmax of one row's logits is this. In plain Python: a line at a time, numpy
    would take most of a file's reading."""
    weights = [math.exp(logit - max(logits)) for logit in logits]
    shares = (weight / sum(weights) for weight in weights)
    return all(abs(a - b) < 1e-3 for a, b in zip(shares, probabilities, strict=True))


def _are_numbers(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _predicted_rows(lines: list[dict], classes: tuple[str, ...], where: str) -> PredictedRows:
    return PredictedRows(
        where,
        classes,
        ids=[line["id"] for line in lines],
        premises=[line["premise"] for line in lines],
        hypotheses=[line["hypothesis"] for line in lines],
        labels=[line.get("label") for line in lines],
        logits=np.array([line["logits"] for line in lines], dtype=np.float32),
    )


def logits_in_order(
    predicted: PredictedRows,
    ids: Sequence[int],
    premises: Sequence[str],
    hypotheses: Sequence[str],
    labels: Sequence[str],
    classes: tuple[str, ...],
) -> np.ndarray:
    """The predicted rows' logits [N, classes] in the order of the data's rows.

    Raises PredictionsError where the two are not the same rows with the same texts and labels, or
    not of the same classes.
    """
    if set(predicted.classes) != set(classes):
        raise PredictionsError(
            f"{predicted.where}: predictions of {', '.join(predicted.classes)}, but the data's "
            f"classes are {', '.join(classes)}"
        )
    place = _places_by_id(predicted)
    _require_same_ids(predicted, place, ids)
    at = [place[i] for i in ids]
    theirs = (predicted.premises, predicted.hypotheses, predicted.labels)
    for name, found, expected in zip(
        ("premise", "hypothesis", "label"), theirs, (premises, hypotheses, labels), strict=True
    ):
        for row, value in zip(at, expected, strict=True):
            if found[row] != value and (name != "label" or found[row] is not None):
                raise PredictionsError(
                    f"{predicted.where}: {name} of id {predicted.ids[row]} is {found[row]!r}, but "
                    f"{value!r} in the data: predictions of other data"
                )
    order = [predicted.classes.index(name) for name in classes]
    return predicted.logits[at][:, order]


def _places_by_id(predicted: PredictedRows) -> dict[int, int]:
    place: dict[int, int] = {}
    for row, number in enumerate(predicted.ids):
        if number in place:
            raise PredictionsError(f"{predicted.where}: id {number} stands twice")
        place[number] = row
    return place


def _require_same_ids(
    predicted: PredictedRows, place: Mapping[int, int], ids: Sequence[int]
) -> None:
    unpredicted = [number for number in ids if number not in place]
    unknown = sorted(place.keys() - set(ids))
    if unpredicted:
        raise PredictionsError(
            f"{predicted.where}: no prediction for {len(unpredicted)} of the data's {len(ids)} "
            f"rows, the first of them id {unpredicted[0]}"
        )
    if unknown:
        raise PredictionsError(
            f"{predicted.where}: {len(unknown)} predictions for rows that the data's {len(ids)} "
            f"don't have, the first of them id {unknown[0]}"
        )
