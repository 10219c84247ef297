"""How sure a figure is: the bootstrap over premises, and the t interval over seeds.

Rows that share a premise are no independent observations (in XNLI a premise stands three times),
so every bootstrap draws premises with all of their rows, and what is compared is compared on the
same draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xnli_gpt.evaluation.metrics import METRICS
from xnli_gpt.evaluation.scored_split import ScoredSplit, score_columns, scores_of_sums

CONFIDENCE = 0.95
# Means of the same numbers, added up in another order, differ by less.
ROUNDING = 1e-12
# Counts of one chunk of bootstrap draws: a few tens of MB.
DRAWS_AT_ONCE = 1 << 22


def premise_groups(premises: Sequence[str]) -> np.ndarray:
    """Return [N] numbers from 0 upwards, the same for rows with the same premise."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(premise, len(numbers)) for premise in premises])


def resampled_sums(
    columns: np.ndarray, groups: np.ndarray, resamples: int, seed: int | Sequence[int]
) -> np.ndarray:
    """Return sums [resamples, K] of `columns` [N, K] over rows of groups drawn with replacement, as
    many groups as there are; `groups` [N] numbers the group of every row from 0 upwards. One group
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


def interval(replicates: np.ndarray, constant: bool = False) -> list[float] | None:
    """Return the central 95 % of those replicates [B] that exist; None where there are none, and
    where those of a model with a `constant` answer are all the same."""
    replicates = replicates[np.isfinite(replicates)]
    if not len(replicates) or (constant and np.ptp(replicates) < ROUNDING):
        return None
    outside = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(replicates, [outside, 100 - outside]).tolist()


def bootstrap_replicates(
    datasets: Sequence[Sequence[ScoredSplit]], resamples: int, seed: int
) -> list[list[dict[str, np.ndarray]]]:
    """Return bootstrap replicates of SCORES [resamples] by dataset and system. Systems on one
    dataset have the same rows and the same draws; so have datasets that are parallel."""
    if not _are_parallel([systems[0] for systems in datasets]):
        return [
            bootstrap_replicates([systems], resamples, [seed, number])[0]
            for number, systems in enumerate(datasets)
        ]
    blocks = [score_columns(system) for systems in datasets for system in systems]
    groups = _joint_groups([premise_groups(systems[0].premises) for systems in datasets])
    drawn = resampled_sums(np.hstack(blocks), groups, resamples, seed)
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    parts = iter(np.split(drawn, ends, axis=1))
    return [
        [scores_of_sums(next(parts), len(system.classes)) for system in systems]
        for systems in datasets
    ]


def _are_parallel(datasets: Sequence[ScoredSplit]) -> bool:
    first = datasets[0]
    return all(
        list(one.ids) == list(first.ids) and np.array_equal(one.labels, first.labels)
        for one in datasets
    )


def _joint_groups(groupings: Sequence[np.ndarray]) -> np.ndarray:
    """Return [N] numbers, the same for rows that any of the groupings [N] puts together."""
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
    """Return mean, standard deviation (n - 1) and 95 % t interval of one figure of two seeds or
    more.

    The interval stays within what `metric` can be; None where all seeds have the same value.
    """
    import scipy.stats

    mean, deviation = float(np.mean(values)), float(np.std(values, ddof=1))
    factor = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    half = float(factor * deviation / math.sqrt(len(values)))
    return {
        "mean": mean,
        "std": deviation,
        "interval": within(0.0, METRICS[metric].highest, mean - half, mean + half)
        if half > ROUNDING
        else None,
        "values": list(values),
    }


def within(lowest: float, highest: float, low: float, high: float) -> list[float]:
    """Return the part of the interval from `low` to `high` that a figure can reach."""
    return [max(lowest, low), min(highest, high)]
