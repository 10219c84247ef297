"""Two recipes on the same rows: a paired bootstrap over premises, Welch's t-test over seeds, and
McNemar's test of single models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from xnli_gpt.choices import RESAMPLES
from xnli_gpt.evaluation.intervals import CONFIDENCE, bootstrap_replicates, interval, within
from xnli_gpt.evaluation.metrics import METRICS
from xnli_gpt.evaluation.scored_split import SCORES, ScoredSplit, scores_of_models

# With fewer discordant pairs the chi-square approximation of McNemar's test is too rough.
FEW_DISCORDANT_PAIRS = 25


def compare(
    first: Mapping[str, ScoredSplit],
    second: Mapping[str, ScoredSplit],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """Compare two recipes on the same rows of the same datasets, by dataset and in macro average.

    Every difference is `first` minus `second`, each the mean over its models: which recipe gives
    the better model, not which makes the better ensemble. Its interval and p come from a paired
    bootstrap over premises, which tells what other premises would have changed; the p is twice
    the share of draws on the far side of zero (Efron and Tibshirani 1993, section 15.4), so it is
    below 0.05 where the interval leaves zero out. What other seeds would have changed is told by
    Welch's t-test over the models, where both sides have two or more.
    """
    by_set = {
        name: _comparison(
            bootstrap_replicates([[first[name], second[name]]], resamples, seed),
            [first[name]],
            [second[name]],
        )
        | {"mcnemar": _mcnemar_of(first[name], second[name])}
        for name in first
    }
    pairs = [[first[name], second[name]] for name in first]
    macro = _comparison(
        bootstrap_replicates(pairs, resamples, seed),
        list(first.values()),
        list(second.values()),
    )
    return {"datasets": by_set, "macro_average": macro}


def _comparison(
    replicates: Sequence[Sequence[Mapping[str, np.ndarray]]],
    first: Sequence[ScoredSplit],
    second: Sequence[ScoredSplit],
) -> dict:
    """Return the differences of the means over datasets, from replicates by dataset and system, and
    from both systems' rows by dataset."""
    constant = all(one.answers_one_class for one in (*first, *second))
    given = set.intersection(*(set(one.scores) for one in (*first, *second)))
    first, second = ([scores_of_models(one) for one in system] for system in (first, second))
    figures = {}
    for name in filter(given.__contains__, SCORES):
        of_first = np.mean([one[name] for one in first], axis=0)  # [models]
        of_second = np.mean([one[name] for one in second], axis=0)
        drawn = np.mean([a[name] - b[name] for a, b in replicates], axis=0)  # [B]
        figures[name] = {
            "first": float(of_first.mean()),
            "second": float(of_second.mean()),
            "difference": float(of_first.mean() - of_second.mean()),
            "interval": interval(drawn, constant),
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
    """Return Welch's t-test of two means of a metric; None where neither side varies."""
    import scipy.stats

    if first.std() == 0 and second.std() == 0:
        return None
    result = scipy.stats.ttest_ind(first, second, equal_var=False)
    low, high = map(float, result.confidence_interval(CONFIDENCE))
    highest = METRICS[metric].highest
    return {
        "interval": within(-highest, highest, low, high),
        "p": float(result.pvalue),
        "test": "Welch's t",
    }


def _mcnemar_of(first: ScoredSplit, second: ScoredSplit) -> dict:
    """Return McNemar's test, which compares two models and not recipes: of several models it is
    done for every pair.

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
    """Test by McNemar (1947) whether two classifiers are right equally often on the same rows.

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
