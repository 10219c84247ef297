"""The result in one sentence: the accuracy with its interval, and what it is held against."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from xnli_gpt.evaluation.answers import only_answer
from xnli_gpt.report.content import ReportContent, Sentence
from xnli_gpt.report.wording import (
    METRIC_TITLES,
    accuracy_beside,
    count,
    listed,
    metric_text,
    p_equals,
    rate_text,
    with_interval,
)

MACRO_AVERAGE = "macro average"
# What a row of the picture and a column of the table are called.
MAJORITY, HYPOTHESIS_ONLY, RANDOM_TRUNK = "majority class", "hypothesis only", "random trunk"
IN_A_SENTENCE = {
    MAJORITY: "the majority class",
    HYPOTHESIS_ONLY: "a classifier that sees the hypothesis only",
    RANDOM_TRUNK: "the same network from random weights",
}


@dataclass(frozen=True)
class Baseline:
    """What a result is held against: a name and its accuracy by dataset."""

    name: str
    by_dataset: Mapping[str, float]

    def mean(self, datasets: Iterable[str]) -> float | None:
        """Return the mean over the datasets; None where it is not known of all of them."""
        values = [self.by_dataset.get(name) for name in datasets]
        return None if None in values else float(np.mean(values))


def baselines_of(content: ReportContent) -> list[Baseline]:
    """Return the baselines that are known of any dataset, the weakest first."""
    results = content.results
    found = {
        MAJORITY: {name: m.get("majority_accuracy") for name, m in results.items()},
        HYPOTHESIS_ONLY: {
            name: (m.get("hypothesis_only") or {}).get("accuracy") for name, m in results.items()
        },
        RANDOM_TRUNK: {name: content.random_trunk.get(name) for name in results},
    }
    known = {
        title: {name: value for name, value in by_dataset.items() if value is not None}
        for title, by_dataset in found.items()
    }
    return [Baseline(title, by_dataset) for title, by_dataset in known.items() if by_dataset]


def mean_metrics(results: Mapping[str, Mapping], macro_average: Mapping | None) -> dict | None:
    """Return the metrics over datasets, None for what not all of them have; None altogether where
    there is one dataset, or no accuracy."""

    def mean(values: Iterable[float | None]) -> float | None:
        values = list(values)
        return None if None in values else float(np.mean(values))

    if len(results) < 2:
        return None
    means = {name: mean(m.get(name) for m in results.values()) for name in METRIC_TITLES}
    means["examples"] = sum(m.get("examples", 0) for m in results.values()) or None
    means |= macro_average or {}
    return None if means["accuracy"] is None else means


def result_sentence(content: ReportContent) -> Sentence | None:
    """Return the result in a sentence; None where there is no accuracy."""
    mean = mean_metrics(content.results, content.macro_average)
    if mean is not None:
        return _sentence_on_several(content, mean)
    if len(content.results) != 1:
        return None
    ((name, metrics),) = content.results.items()
    if metrics.get("accuracy") is None:
        return None
    examples = metrics.get("examples")
    where = f"{count(examples) + ' ' if examples else ''}{content.split} examples of {name}"
    answer = only_answer(metrics)
    against = _against(content, metrics, [name])
    if answer is not None:
        accuracy = metric_text("accuracy", metrics)
        return Sentence(
            "One class alone:",
            f" the model answers {answer} to all {where}, so that its accuracy, {accuracy}, is "
            f"only the share of that class{against}{_comparison_clause(content)}.",
        )
    return Sentence(
        f"Accuracy {metric_text('accuracy', metrics)}",
        f" on the {where}{against}{_comparison_clause(content)}.",
    )


def _sentence_on_several(content: ReportContent, mean: Mapping) -> Sentence:
    results = content.results
    against = _against(content, mean, list(results))
    by_accuracy = sorted(results, key=lambda name: results[name]["accuracy"])
    lowest, highest = (
        f"{rate_text(results[name]['accuracy'], results[name])} ({name})"
        for name in (by_accuracy[0], by_accuracy[-1])
    )
    alone = [name for name in results if only_answer(results[name]) is not None]
    of_alone = f"; it answers one class alone on {_named(alone)}" if alone else ""
    return Sentence(
        f"Accuracy {metric_text('accuracy', mean)}",
        f" in the mean over {len(results)} datasets ({content.split}), from {lowest} to {highest}"
        f"{against}{of_alone}{_comparison_clause(content)}.",
    )


def _named(names: Sequence[str], longest: int = 5) -> str:
    more = len(names) - longest
    return listed(names) if more <= 0 else f"{', '.join(names[:longest])} and {more} more"


def _against(content: ReportContent, metrics: Mapping, datasets: Sequence[str]) -> str:
    """Say which baselines the interval lies above, which below, and which it holds."""
    by_relation: dict[str, list[str]] = {}
    interval = metrics.get("intervals", {}).get("accuracy")
    for baseline in baselines_of(content):
        value = baseline.mean(datasets)
        if value is not None:
            said = f"{IN_A_SENTENCE[baseline.name]} ({accuracy_beside(value, metrics)})"
            by_relation.setdefault(_relation(value, interval), []).append(said)
    parts = [f"{relation} {listed(names)}" for relation, names in by_relation.items()]
    return f", {', '.join(parts)}" if parts else ""


def _relation(value: float, interval: Sequence[float] | None) -> str:
    if interval is None:
        return "against"
    low, high = interval
    if low > value:
        return "above"
    return "below" if high < value else "not told apart from"


def _comparison_clause(content: ReportContent) -> str:
    """Say the difference to what the result is compared with; the random trunk, if that is it, is
    named before."""
    comparison = content.comparison
    if not comparison:
        return ""
    datasets = comparison.get("datasets", {})
    several = len(datasets) > 1 and comparison.get("macro_average")
    figures = comparison["macro_average"] if several else next(iter(datasets.values()), {})
    figure = figures.get("accuracy")
    if figure is None:
        return ""
    first, second = comparison.get("names", ("first", "second"))
    difference = with_interval(figure["difference"], figure["interval"], sign="+")
    p = "" if figure["p"] is None else f", {p_equals(figure['p'])}"
    return f"; {first} minus {second}: {difference}{p}"
