"""Metrics of a model on the splits of one dataset or several, while it is trained and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.evaluation.logits import Inference, evaluate_split
from xnli_gpt.evaluation.metrics import METRICS, figures_in_words, main_metrics


@dataclass(frozen=True)
class Validation:
    """The validation splits by dataset, and the metric that picks the best model."""

    splits: Mapping[str, EncodedSplit]
    classes: Sequence[str]
    best_metric: str
    inference: Inference

    def evaluate(self, model: nn.Module, max_batches: int | None = None) -> dict | None:
        """Return the metrics of a model, or of every rank's first batches of the longest rows.

        None where a noted signal broke it off on some rank.
        """
        return evaluate_datasets(model, self.splits, self.classes, self.inference, max_batches)

    def is_better(self, metrics: Mapping, best: Mapping | None) -> bool:
        """Return whether metrics are better than the best so far."""
        name = self.best_metric
        return METRICS[name].is_better(metrics[name], best and best[name])

    def in_words(self, metrics: dict) -> str:
        """Return what a line on the screen says of metrics."""
        return figures_in_words(metrics)


def evaluate_datasets(
    model: nn.Module,
    splits: Mapping[str, EncodedSplit],
    classes: Sequence[str],
    inference: Inference,
    max_batches: int | None = None,
) -> dict | None:
    """Return the metrics on a split; on those of several datasets the mean of each metric, with
    the metrics per dataset under "sets". None as of `evaluate_split`."""
    of_sets = {}
    for name, split in splits.items():
        of_sets[name] = evaluate_split(model, split, classes, inference, max_batches)
        if of_sets[name] is None:
            return None
    if len(of_sets) == 1:
        return of_sets.popitem()[1]
    means = {m: float(np.mean([one[m] for one in of_sets.values()])) for m in main_metrics()}
    return means | {"examples": sum(map(len, splits.values())), "sets": of_sets}


def score(
    model: nn.Module,
    splits: Mapping[str, EncodedSplit],
    classes: Sequence[str],
    inference: Inference,
    title: str,
) -> dict:
    """Return the metrics of a model on a split of every dataset, with the share of the majority
    class, and print them under `title`."""
    metrics = evaluate_datasets(model, splits, classes, inference)
    for name, split in splits.items():
        of_set = metrics.get("sets", {name: metrics})[name]
        majority = np.bincount(split.labels).max() / len(split)
        of_set["majority_accuracy"] = float(majority)
        _print_scores(f"{title}, {name}" if "sets" in metrics else title, of_set)
    if "sets" in metrics:
        _print_scores(f"{title}, mean of {len(splits)} sets", metrics)
    return metrics


def _print_scores(title: str, metrics: dict) -> None:
    majority = metrics.get("majority_accuracy")
    beside = "" if majority is None else f" (majority class {majority:.4f})"
    print(f"{title}: {figures_in_words(metrics)}{beside}")
