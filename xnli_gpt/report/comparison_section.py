"""The parts of a report about seeds of one recipe, and about two recipes on the same rows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.report.content import Block, Picture, Section, Table
from xnli_gpt.report.figures import Dot, draw_dots
from xnli_gpt.report.verdict import MACRO_AVERAGE
from xnli_gpt.report.wording import (
    LEVEL,
    METRIC_TITLES,
    MISSING,
    count,
    decimals_for,
    number,
    p_equals,
    p_value,
    with_interval,
)


def _by_dataset(figures: Mapping) -> dict[str, Mapping]:
    """Return what stands under "datasets", and their macro average where there are several."""
    datasets = dict(figures.get("datasets", {}))
    if len(datasets) > 1 and figures.get("macro_average"):
        datasets[MACRO_AVERAGE] = figures["macro_average"]
    return datasets


def seeds_section(seeds: Mapping) -> Section:
    """Return the part about several checkpoints of one recipe."""
    table = _seeds_table(seeds, "Several checkpoints of one recipe")
    return Section("Seeds", [table] if table.rows else [])


def _seeds_table(seeds: Mapping, caption: str) -> Table:
    rows, num_values = [], set()
    for dataset, metrics in _by_dataset(seeds).items():
        for name, title in METRIC_TITLES.items():
            if name not in metrics:
                continue
            figure = metrics[name]
            decimals = decimals_for(figure["std"])
            each = ", ".join(number(value, decimals) for value in figure["values"])
            mean = with_interval(figure["mean"], figure["interval"])
            rows.append([dataset, title, mean, number(figure["std"], decimals), each])
            num_values.add(len(figure["values"]))
    counts = " or ".join(map(str, sorted(num_values)))
    return Table(
        caption,
        ["dataset", "metric", "mean", "standard deviation", "each"],
        rows,
        text_columns=2,
        note=f"In brackets: {LEVEL} t intervals of the mean over {counts} checkpoints.",
        fits_column=False,
    )


def comparison_section(comparison: Mapping) -> Section:
    """Return the part about two recipes on the same rows."""
    by_dataset = _by_dataset(comparison)
    if not by_dataset:
        return Section("Comparison", [])
    first, second = comparison.get("names", ("first", "second"))
    blocks: list[Block] = [_differences_table(by_dataset, first, second)]
    picture = _differences_picture(by_dataset, first, second)
    if picture is not None:
        blocks.append(picture)
    tests = {
        name: figures["mcnemar"] for name, figures in by_dataset.items() if "mcnemar" in figures
    }
    if tests:
        blocks.append(_mcnemar_table(tests, first, second))
    if "seeds" in comparison:
        blocks.append(_seeds_table(comparison["seeds"], f"Several checkpoints of {second}"))
    return Section("Comparison", blocks)


def _differences_table(by_dataset: Mapping[str, Mapping], first: str, second: str) -> Table:
    rows, over_seeds = [], []
    for dataset, metrics in by_dataset.items():
        for name in main_metrics():
            if name not in metrics:
                continue
            figure = metrics[name]
            interval = figure["interval"]
            decimals = decimals_for((interval[1] - interval[0]) / 2) if interval else 3
            rows.append(
                [
                    dataset,
                    METRIC_TITLES[name],
                    number(figure["first"], decimals),
                    number(figure["second"], decimals),
                    with_interval(figure["difference"], interval, sign="+"),
                    p_value(figure["p"]),
                ]
            )
            over_seeds.append(_over_seeds_text(figure.get("over_seeds"), decimals))
    columns = ["dataset", "metric", first, second, "difference", "p"]
    note = (
        f"Difference: {first} minus {second}, on the same rows, with its {LEVEL} interval and p by "
        "paired bootstrap over premises."
    )
    if any(text != MISSING for text in over_seeds):
        columns.append("over seeds")
        rows = [[*row, text] for row, text in zip(rows, over_seeds, strict=True)]
        note += f" Over seeds: {LEVEL} interval of the difference and p by Welch's t-test."
    caption = f"{first} against {second}"
    return Table(caption, columns, rows, text_columns=2, note=note, fits_column=False)


def _over_seeds_text(test: Mapping | None, decimals: int) -> str:
    if test is None:
        return MISSING
    low, high = test["interval"]
    return f"[{number(low, decimals)}, {number(high, decimals)}], {p_equals(test['p'])}"


def _differences_picture(
    by_dataset: Mapping[str, Mapping], first: str, second: str
) -> Picture | None:
    """Return, of several datasets, the differences in accuracy, of one those in every score."""
    several = len(by_dataset) > 1
    shares = [name for name, metric in METRICS.items() if metric.is_share]
    found = [
        (dataset if several else METRIC_TITLES[name], metrics[name])
        for dataset, metrics in by_dataset.items()
        for name in (("accuracy",) if several else shares)
        if name in metrics
    ]
    if not found:
        return None
    dots = [Dot(label, figure["difference"], figure["interval"]) for label, figure in found]
    said = "; ".join(
        f"{dot.label} {with_interval(dot.value, dot.interval, sign='+')}" for dot in dots
    )
    what = "accuracy" if several else "scores"
    of_intervals = f" with {LEVEL} intervals" if any(dot.interval for dot in dots) else ""
    return Picture(
        "comparison",
        f"Difference in {what}, {first} minus {second}{of_intervals}; dashed: no "
        f"difference; to its right {first} is better.",
        f"Dot plot of the difference in {what}. {said}.",
        partial(draw_dots, dots, f"difference in {what}", [0.0]),
    )


def _mcnemar_table(tests: Mapping[str, Mapping], first: str, second: str) -> Table:
    """Return the tests by dataset; of several models the counts are means over their pairs."""

    def right(test: Mapping, side: str) -> str:
        pairs = test.get("pairs", [test])
        return count(float(np.mean([pair[f"only_{side}_right"] for pair in pairs])))

    rows = [
        [dataset, right(test, "first"), right(test, "second"), p_value(test["p"])]
        for dataset, test in tests.items()
    ]
    columns = ["dataset", f"only {first} right", f"only {second} right", "p"]
    variants = " or ".join(sorted({test["variant"] for test in tests.values()}))
    note = (
        f"Rows that one side alone answers right; p: {variants}. This test takes rows for "
        "independent, which those of one premise are not: the bootstrap is the safer one."
    )
    return Table("McNemar's test", columns, rows, note=note)
