"""The first part of a report: the result in a sentence, a picture and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.report.content import Block, Picture, ReportContent, Section, Table
from xnli_gpt.report.figures import GREEN, GREY, LINES, Dot, Series, draw_result, draw_result_of_one
from xnli_gpt.report.verdict import (
    HYPOTHESIS_ONLY,
    MACRO_AVERAGE,
    MAJORITY,
    RANDOM_TRUNK,
    baselines_of,
    mean_metrics,
    result_sentence,
)
from xnli_gpt.report.wording import (
    LEVEL,
    METRIC_TITLES,
    MISSING,
    accuracy_beside,
    count,
    metric_text,
)

LOOKS = {
    MAJORITY: {"color": GREY, "linestyle": "-", "marker": "d"},
    HYPOTHESIS_ONLY: {"color": GREY, "linestyle": "-", "marker": "s"},
    RANDOM_TRUNK: {"color": GREEN, "linestyle": "-", "marker": "^"},
}
NOTES = {
    MAJORITY: "Majority class: accuracy of always answering the most frequent class.",
    HYPOTHESIS_ONLY: "Hypothesis only: accuracy of a classifier that sees no premise.",
    RANDOM_TRUNK: "Random trunk: accuracy of the same network, fine-tuned from random weights.",
    **{m.title: f"{m.title}: {m.long_title}." for m in METRICS.values() if m.long_title},
}


def result_section(content: ReportContent) -> Section:
    """Return the part that tells the result."""
    mean = mean_metrics(content.results, content.macro_average)
    if mean is not None:
        blocks = _blocks_on_several(content, mean)
    elif len(content.results) == 1:
        blocks = _blocks_on_one(content)
    else:
        lines = dict(content.results)
        blocks = _tables_by_dataset(content, lines) if lines else []
    return Section("Result", blocks)


def _blocks_on_one(content: ReportContent) -> list[Block]:
    ((name, metrics),) = content.results.items()
    sentence = result_sentence(content)
    blocks: list[Block] = [] if sentence is None else [sentence]
    if metrics.get("accuracy") is not None:
        blocks.append(_picture_of_one(content, name, metrics))
    return [*blocks, _table_of_one(content, name, metrics)]


def _second_side(content: ReportContent) -> tuple[str, dict[str, float]] | None:
    """Return the name and the accuracies of what the result is compared with; None where that is
    the random trunk, which stands among the baselines."""
    if not content.comparison or content.random_trunk:
        return None
    accuracies = {
        name: figures["accuracy"]["second"]
        for name, figures in content.comparison.get("datasets", {}).items()
        if "accuracy" in figures
    }
    return content.comparison.get("names", ("first", "second"))[1], accuracies


def _own_name(content: ReportContent) -> str:
    has_names = bool(content.comparison and "names" in content.comparison)
    return content.comparison["names"][0] if has_names else "this model"


def _picture_of_one(content: ReportContent, name: str, metrics: Mapping) -> Picture:
    interval = metrics.get("intervals", {}).get("accuracy")

    def dot(label: str, accuracy: float, interval: Sequence[float] | None = None) -> Dot:
        return Dot(label, accuracy, interval, text=accuracy_beside(accuracy, metrics))

    dots = [dot(_own_name(content), metrics["accuracy"], interval)]
    looks: list[Mapping] = [LINES[0]]
    second = _second_side(content)
    if second is not None and name in second[1]:
        dots.append(dot(second[0], second[1][name]))
        looks.append(LINES[1])
    for baseline in reversed(baselines_of(content)):
        dots.append(dot(baseline.name, baseline.by_dataset[name]))
        looks.append(LOOKS[baseline.name])
    said = [f"{one.label} {one.text}" for one in dots[1:]]
    own = f"{dots[0].label} {metric_text('accuracy', metrics)}"
    return Picture(
        "result",
        f"Accuracy on {name}{f' with its {LEVEL} interval' if interval else ''}.",
        f"Bar plot of accuracy on {name}. {'; '.join([own, *said])}.",
        partial(draw_result_of_one, dots, looks),
    )


def _table_of_one(content: ReportContent, name: str, metrics: Mapping) -> Table:
    """Return the metrics of the only dataset, one below the other."""
    values = {title: metric_text(key, metrics) for key, title in METRIC_TITLES.items()}
    values |= {b.name: accuracy_beside(b.by_dataset[name], metrics) for b in baselines_of(content)}
    values["examples"] = count(metrics.get("examples"))
    rows = [[title, text] for title, text in values.items() if text != MISSING]
    return Table("Metrics", ["metric", name], rows, note=_note(dict(rows)))


def _note(texts: Mapping[str, object]) -> str:
    """Return what explains a table's columns, or rows, by their titles."""
    has_intervals = any("[" in str(text) for text in texts.values())
    said = [f"In brackets: {LEVEL} intervals, by bootstrap over premises."] if has_intervals else []
    return " ".join([*said, *(note for title, note in NOTES.items() if title in texts)])


def _blocks_on_several(content: ReportContent, mean: Mapping) -> list[Block]:
    lines = {MACRO_AVERAGE: mean, **content.results}
    sentence = result_sentence(content)
    first, *more = _tables_by_dataset(content, lines)
    return [sentence, _picture_of_several(content, lines), first, *more]


def _picture_of_several(content: ReportContent, lines: Mapping[str, Mapping]) -> Picture:
    datasets = list(content.results)
    rows = list(lines)
    own = [lines[name]["accuracy"] for name in rows]
    intervals = [(lines[name].get("intervals") or {}).get("accuracy") for name in rows]
    series = [Series(_own_name(content), own, intervals, LINES[0] | {"markersize": 6})]
    second = _second_side(content)
    if second is not None:
        accuracies = [second[1].get(name) for name in datasets]
        means = content.comparison.get("macro_average", {}).get("accuracy", {})
        series.append(Series(second[0], [means.get("second"), *accuracies], look=LINES[1]))
    for baseline in reversed(baselines_of(content)):
        values = [baseline.mean(datasets), *(baseline.by_dataset.get(name) for name in datasets)]
        series.append(Series(baseline.name, values, look=LOOKS[baseline.name]))
    said = "; ".join(f"{name} {metric_text('accuracy', lines[name])}" for name in rows)
    return Picture(
        "result",
        f"Accuracy by dataset{f' with {LEVEL} intervals' if any(intervals) else ''}, and in the "
        "mean over them.",
        f"Dot plot of accuracy by dataset. {said}.",
        partial(draw_result, rows, series),
    )


def _tables_by_dataset(content: ReportContent, lines: Mapping[str, Mapping]) -> list[Table]:
    """Return a table of the main metrics and one of the others; a line a dataset, without columns
    that no dataset fills."""
    main = {METRIC_TITLES[key]: partial(metric_text, key) for key in main_metrics()}
    others = {
        title: partial(metric_text, key)
        for key, title in METRIC_TITLES.items()
        if key not in main_metrics()
    }
    others = {"examples": lambda m: count(m.get("examples"))} | others
    tables = []
    for caption, getters in (("Metrics by dataset", main), ("More metrics by dataset", others)):
        columns = {title: [get(m) for m in lines.values()] for title, get in getters.items()}
        if getters is others:
            columns |= _baseline_columns(content, lines)
        columns = {title: column for title, column in columns.items() if set(column) != {MISSING}}
        rows = [list(row) for row in zip(lines, *columns.values(), strict=True)]
        table = Table(caption, ["dataset", *columns], rows, note=_note(columns))
        tables.append(replace(table, fits_column=getters is main))
    return [table for table in tables if len(table.columns) > 1]


def _baseline_columns(content: ReportContent, lines: Mapping[str, Mapping]) -> dict[str, list[str]]:
    columns = {}
    for baseline in baselines_of(content):
        values = {MACRO_AVERAGE: baseline.mean(content.results), **baseline.by_dataset}
        columns[baseline.name] = [accuracy_beside(values.get(name), m) for name, m in lines.items()]
    return columns
