"""From logits to all metrics of a split and to means over datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xnli_gpt.choices import RESAMPLES
from xnli_gpt.errors import EvaluationError
from xnli_gpt.evaluation.intervals import (
    bootstrap_replicates,
    interval,
    premise_groups,
    resampled_sums,
)
from xnli_gpt.evaluation.metrics import METRICS
from xnli_gpt.evaluation.scored_split import (
    SCORES,
    ScoredSplit,
    counts_of,
    score_columns,
    scores_of_sums,
    sums_of_rows,
)
from xnli_gpt.evaluation.slices import slice_columns, slice_figures, slices_by_columns, slices_of

# scipy and scikit-learn are imported where they are used: predicting needs neither.

CALIBRATION_BINS = 10


def classification_metrics(logits: Tensor, labels: np.ndarray, classes: Sequence[str]) -> dict:
    """Return all of METRICS, figures of every class, and the confusion matrix.

    `logits` [N, classes], `labels` [N]. A macro figure is the mean over all classes, 0 for one
    that is neither there nor predicted. Raises EvaluationError for logits that are not finite.
    """
    import scipy.special
    from sklearn.metrics import precision_recall_fscore_support

    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(
            "logits are not finite: lower `learning_rate`, or use `dtype` float32"
        )
    labels = np.asarray(labels)
    predictions = logits.argmax(dim=-1).numpy()
    figures = precision_recall_fscore_support(
        labels, predictions, labels=list(range(len(classes))), zero_division=0
    )
    bins = calibration_bins(scipy.special.softmax(logits.double().numpy(), axis=-1), labels)
    counts = counts_of(sums_of_rows(logits.numpy()[None], labels).sum(axis=0), len(classes))
    return {
        **{name: metric.value(counts, bins) for name, metric in METRICS.items()},
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
    """Return a reliability diagram: rows by the probability of their predicted class, in bins of
    one width ((m - 1) / M, m / M], with each bin's mean probability and accuracy.

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


def split_metrics(scored: ScoredSplit, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Return all metrics of a split, with intervals, reliability diagram and slices.

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
    slices = slices_by_columns(scored.carried)
    if scored.has_texts:
        slices = slices_of(scored.premises, scored.hypotheses, scored.language) | slices
    masks = [mask for cuts in slices.values() for mask in cuts.values()]
    of_scores = score_columns(scored)
    drawn = resampled_sums(
        np.hstack([of_scores, slice_columns(scored, masks)]),
        premise_groups(scored.premises),
        resamples,
        seed,
    )
    own, of_slices = np.split(drawn, [of_scores.shape[1]], axis=1)
    replicates = scores_of_sums(own, len(scored.classes))
    constant = scored.answers_one_class
    metrics["intervals"] = {name: interval(replicates[name], constant) for name in SCORES}
    metrics["calibration"] = _calibration_of(scored)
    metrics["slices"] = slice_figures(scored, slices, of_slices)
    return metrics if scored.has_probabilities else _without_probabilities(metrics)


def _without_probabilities(metrics: dict) -> dict:
    """Return metrics with None for what an answer alone does not give."""
    for name, metric in METRICS.items():
        if metric.needs_probabilities:
            metrics[name] = metrics["intervals"][name] = None
    return metrics | {"calibration": []}


def _mean_of(values: list) -> object:
    """Return the mean of numbers, or of what stands at the same place in lists and dicts."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, dict):
        return {key: _mean_of([value[key] for value in values]) for key in first}
    if isinstance(first, list):
        return [_mean_of(list(at_place)) for at_place in zip(*values, strict=True)]
    return first if all(value == first for value in values) else float(np.mean(values))


def _calibration_of(scored: ScoredSplit) -> list[dict]:
    """Return the bins of all models' rows together, with the count of one model."""
    bins = calibration_bins(
        scored.probabilities.reshape(-1, len(scored.classes)),
        np.tile(scored.labels, len(scored.logits)),
    )
    if len(scored.logits) == 1:
        return bins
    return [b | {"count": b["count"] / len(scored.logits)} for b in bins]


def macro_average(
    metrics: Mapping[str, Mapping],
    scored: Mapping[str, ScoredSplit],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """Return the mean over datasets of their `split_metrics`, with intervals.

    Parallel datasets (the languages of XNLI: row i says the same in all) are drawn together, as a
    hard premise is hard in every language; others independently.
    """
    figures = {name: [of_set[name] for of_set in metrics.values()] for name in METRICS}
    average = {n: None if None in of else float(np.mean(of)) for n, of in figures.items()}
    replicates = bootstrap_replicates([[one] for one in scored.values()], resamples, seed)
    constant = all(one.answers_one_class for one in scored.values())
    intervals = {
        name: interval(np.mean([of_set[0][name] for of_set in replicates], axis=0), constant)
        for name in SCORES
        if average[name] is not None
    }
    return average | {"intervals": intervals}
