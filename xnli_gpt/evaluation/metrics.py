"""The metrics of a classifier: what each is called, which way is better, how it is computed.

A new metric is a new row of `METRICS`: from there scores and their intervals, what may pick the
best model, results, report, model card, sweep and comparison take it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

# Flags read the names of this table before any library is imported.
if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Counts:
    """What a split's metrics are computed from, for any number of draws and models at once."""

    confusion: np.ndarray  # [..., classes, classes], rows by class, columns by answer
    loss: np.ndarray  # [...], the summed cross-entropy in nats

    @property
    def right(self) -> np.ndarray:
        """Return how many examples of each class are answered right [..., classes]."""
        return self.confusion.diagonal(axis1=-2, axis2=-1)

    @property
    def there(self) -> np.ndarray:
        """Return [..., classes], examples of each class."""
        return self.confusion.sum(axis=-1)

    @property
    def predicted(self) -> np.ndarray:
        """Return [..., classes], answers of each class."""
        return self.confusion.sum(axis=-2)

    @property
    def examples(self) -> np.ndarray:
        """Return how many examples there are [...]."""
        return self.there.sum(axis=-1)


@dataclass(frozen=True)
class Metric:
    """A figure of a model on a split.

    One function computes it: `of_counts`, which gives it intervals too, or `of_bins`, from the bins
    of a reliability diagram. `is_main` ones may pick the best model, and stand first wherever not
    all have room.
    """

    title: str
    of_counts: Callable[[Counts], np.ndarray] | None = None
    of_bins: Callable[[Sequence[Mapping[str, float]]], float] | None = None
    is_main: bool = False
    lower_is_better: bool = False
    highest: float = 1.0
    unit: str | None = None
    needs_probabilities: bool = False
    long_title: str | None = None

    def __post_init__(self):
        assert (self.of_counts is None) != (self.of_bins is None), self.title

    def value(self, counts: Counts, bins: Sequence[Mapping[str, float]]) -> float:
        """Return it from the counts of one model [1] or from its reliability diagram."""
        return self.of_bins(bins) if self.of_bins else float(self.of_counts(counts)[0])

    @property
    def title_with_unit(self) -> str:
        return self.title if self.unit is None else f"{self.title} ({self.unit})"

    @property
    def is_share(self) -> bool:
        """Return whether it goes from 0 to 1, and more is better."""
        return self.highest == 1.0 and not self.lower_is_better

    def is_better(self, new: float, best: float | None) -> bool:
        """Return whether `new` beats `best` (None: nothing yet); a tie is not better."""
        if best is None:
            return True
        return new < best if self.lower_is_better else new > best


def _mean_over_classes(
    part: Callable[[Counts], np.ndarray], whole: Callable[[Counts], np.ndarray]
) -> Callable[[Counts], np.ndarray]:
    """Return the mean over classes of part / whole, 0 for a class whose whole is 0."""

    def of_counts(counts: Counts) -> np.ndarray:
        import numpy as np

        above, below = part(counts), whole(counts)
        quotients = np.zeros(np.shape(above))
        return np.divide(above, below, out=quotients, where=below != 0).mean(axis=-1)

    return of_counts


def expected_calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Return the sum over bins of count / N · |accuracy - mean probability|.

    Naeini, Cooper and Hauskrecht 2015 (AAAI), as used by Guo, Pleiss, Sun and Weinberger 2017
    (ICML), with bins of one width.
    """
    gaps = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins)
    return float(gaps / sum(b["count"] for b in bins))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", lambda c: c.right.sum(axis=-1) / c.examples, is_main=True),
    # F_beta = (1 + beta²) right / (beta² there + predicted), van Rijsbergen 1979.
    "macro_f1": Metric(
        "macro F1",
        _mean_over_classes(lambda c: 2 * c.right, lambda c: c.there + c.predicted),
        is_main=True,
    ),
    "macro_f2": Metric(
        "macro F2", _mean_over_classes(lambda c: 5 * c.right, lambda c: 4 * c.there + c.predicted)
    ),
    "macro_recall": Metric(
        "macro recall", _mean_over_classes(lambda c: c.right, lambda c: c.there)
    ),
    "loss": Metric(
        "loss",
        lambda c: c.loss / c.examples,
        is_main=True,
        lower_is_better=True,
        highest=math.inf,
        unit="nats",
        needs_probabilities=True,
    ),
    "ece": Metric(
        "ECE",
        of_bins=expected_calibration_error,
        lower_is_better=True,
        needs_probabilities=True,
        long_title="expected calibration error",
    ),
}


def main_metrics() -> tuple[str, ...]:
    """Return the names of those that may pick the best model."""
    return tuple(name for name, metric in METRICS.items() if metric.is_main)


def scores() -> tuple[str, ...]:
    """Return the names of those that intervals and comparisons are given for."""
    return tuple(name for name, metric in METRICS.items() if metric.of_counts is not None)


def figures_in_words(metrics: dict) -> str:
    """Return the main metrics of a split as a line of a log tells them.

    One that is not in `metrics` is left out: a save may be older than a row of the table.
    """
    there = (name for name in main_metrics() if name in metrics)
    return ", ".join(f"{METRICS[name].title} {metrics[name]:.4f}" for name in there)
