"""The report of a training run or an evaluation, from its numbers.

    write_report("out", "Hindi XNLI, seed 1", facts={"command": ...}, results={"xnli_hi": metrics})

leaves report.html (one file with everything inside, to open), report.md (to paste) and
figures/*.png and *.pdf (for a paper). Nothing in them depends on when or where they were written,
so the same numbers give the same files.
"""

from __future__ import annotations

import base64
import heapq
import html
import importlib.util
import itertools
import math
import os
import re
import shlex
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font

METRIC_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "macro_f2": "macro F2",
    "macro_recall": "macro recall",
    "loss": "loss (nats)",
    "ece": "ECE",
}
SCORES = ("accuracy", "macro_f1", "macro_f2", "macro_recall")
COMPARED = ("accuracy", "macro_f1", "loss")
MISSING = "–"
LEVEL = "95\N{NO-BREAK SPACE}%"
INTERVAL_NOTE = f"In brackets: {LEVEL} intervals, by bootstrap over premises."

LANGUAGES = "ar bg de el en es fr hi ru sw th tr ur vi zh".split()
LANGUAGE_NAMES = {"hindi": "hi", "urdu": "ur", "english": "en"}
RIGHT_TO_LEFT = ("ar", "ur")

# Installed fonts that draw Devanagari, where the package of FONT_PACKAGE is missing.
FONT_PACKAGE = "fontpkg_noto_sans_devanagari"
DEVANAGARI_FONTS = (
    "Noto Sans Devanagari",
    "Lohit Devanagari",
    "Mukta",
    "Hind",
    "Poppins",
    "Nirmala UI",
    "Kohinoor Devanagari",
    "Devanagari MT",
    "Mangal",
    "FreeSans",
)
# Of the Okabe-Ito palette, those that stand out from white by 3:1; told apart without colour by
# their line and marker.
BLUE, VERMILION, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#595959"
LINES = (
    {"color": BLUE, "linestyle": "-", "marker": "o"},
    {"color": VERMILION, "linestyle": "--", "marker": "s"},
    {"color": GREEN, "linestyle": "-.", "marker": "^"},
    {"color": GREY, "linestyle": ":", "marker": "D"},
)
SHARES = LinearSegmentedColormap.from_list("shares", ["#ffffff", "#00427a"])
# A column of a two-column paper is narrower, a phone's screen about as wide.
FIGURE_WIDTH = 4.8
CURVES_WITH_MARKERS = 40


@dataclass(frozen=True)
class Cell:
    """A text in a table that is more than plain English."""

    words: str
    language: str | None = None
    is_foreign: bool = False  # from the data: may be in any language and direction
    is_long: bool = False
    is_code: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first `text_columns` hold words, the others numbers.

    One that `stacks` has cells to be read in full: a narrow screen sets them below each other.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    text_columns: int = 1
    note: str = ""
    stacks: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure: what it is called, what it shows in words, and how it is drawn."""

    name: str
    caption: str
    alt: str
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Table | Picture]


@dataclass(frozen=True)
class Dot:
    """A line of a dot plot."""

    label: str
    value: float
    interval: Sequence[float] | None = None
    group: str = ""


def write_report(
    folder: str | Path,
    title: str,
    *,
    facts: Mapping[str, object],
    results: Mapping[str, Mapping],
    history: Iterable[Mapping] = (),
    best_step: int | None = None,
    predictions: Iterable[Mapping] = (),
    macro_average: Mapping | None = None,
    seeds: Mapping | None = None,
    comparison: Mapping | None = None,
    num_mistakes: int = 20,
) -> Path:
    """Write report.html, report.md and figures/ into `folder`; returns the path of report.html.

    `facts`: what was run, in order; a value is a text, a number, a list or a mapping, and None
    leaves its line out. `results`: metrics of every dataset, as evaluation.py makes them; what a
    dataset's metrics lack (intervals, slices, calibration, hypothesis_only, ...) is left out.
    `history`: lines of metrics.jsonl, with `best_step` marked. `predictions`: lines of
    predictions.jsonl, read once and not kept: of every dataset the `num_mistakes` wrong answers of
    the highest probability are shown.

    `macro_average`: metrics over datasets, with intervals; by itself their plain mean. `seeds`:
    {"datasets": {name: {metric: evaluation.over_seeds(...)}}}, and "macro_average" beside it where
    there is one. `comparison`: what evaluation.compare gives; with "names", what its first and its
    second side are called.

    An earlier report in `folder` is replaced, file by file; raises OSError where it can't be.
    """
    folder = Path(folder)
    mistakes = most_confident_mistakes(predictions, num_mistakes)
    names = _file_names({**results, **mistakes})
    sections = [
        _facts_section(facts),
        _results_section(results, macro_average),
        _seeds_section(seeds or {}),
        _comparison_section(comparison or {}),
        _training_section(list(history), best_step),
        *(
            _dataset_section(name, results.get(name, {}), mistakes.get(name, []), names[name])
            for name in names
        ),
    ]
    sections = [section for section in sections if section.blocks]
    drawings = {
        picture.name: _write_figure(picture, folder / "figures")
        for section in sections
        for picture in section.blocks
        if isinstance(picture, Picture)
    }
    _write_whole(folder / "report.md", _encoded(_as_markdown(title, sections)))
    path = folder / "report.html"
    _write_whole(path, _encoded(_as_html(title, sections, drawings)))
    return path


def _write_whole(path: Path, content: bytes) -> None:
    """A reader finds the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial_path.write_bytes(content)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


def _encoded(text: str) -> bytes:
    # JSON may hold half of a surrogate pair, which UTF-8 has no bytes for.
    return text.encode("utf-8", "replace")


def _file_names(datasets: Iterable[str]) -> dict[str, str]:
    """A file name for every dataset; two that would share one are numbered."""
    names: dict[str, str] = {}
    for dataset in datasets:
        name = re.sub(r"[^\w.-]+", "-", dataset).strip("-.")[:60] or "dataset"
        taken = set(names.values())
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names[dataset] = next(n for n in itertools.chain([name], numbered) if n not in taken)
    return names


def _decimals(half_width: float) -> int:
    """Digits after the point that show the two leading digits of an uncertainty.

    Two digits are what the Guide to the expression of uncertainty in measurement (7.2.6) allows.
    """
    if not (math.isfinite(half_width) and half_width > 0):
        return 3
    return min(4, max(2, 1 - math.floor(math.log10(half_width))))


def _decimals_of_rate(examples: float | None) -> int:
    """The same for a share of `examples`, whose 95 % interval is at most so wide."""
    return _decimals(1 / math.sqrt(examples)) if examples else 3


def _number(value: float | None, decimals: int, sign: str = "") -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    # Adding zero turns a rounded -0.0 into 0.0.
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}".replace("-", "−")


def _with_interval(
    value: float | None,
    interval: Sequence[float] | None,
    examples: float | None = None,
    sign: str = "",
) -> str:
    """0.731 [0.718, 0.744], or 0.731 where there is no interval."""
    if interval is None:
        return _number(value, _decimals_of_rate(examples), sign)
    low, high = interval
    decimals = _decimals((high - low) / 2)
    bounds = f"{_number(low, decimals)}, {_number(high, decimals)}"
    return f"{_number(value, decimals, sign)} [{bounds}]"


def _count(number: float | None) -> str:
    """A count, which over several models is a mean."""
    if number is None:
        return MISSING
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def _p_value(p: float | None) -> str:
    if p is None:
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _probability(p: float) -> str:
    # Rounding must not make a probability certain.
    return "> 0.999" if 0.9995 <= p < 1 else f"{p:.3f}"


def most_confident_mistakes(predictions: Iterable[Mapping], count: int) -> dict[str, list[Mapping]]:
    """By dataset, the `count` lines whose wrong answer has the highest probability, highest first.

    Of equal ones the earlier stands first. Lines without a label are no mistakes; of several
    models' lines those of the first model count, as one row's would fill the table.
    """
    highest: dict[str, list[tuple[float, int, Mapping]]] = {}
    for position, line in enumerate(predictions):
        if line.get("label") in (None, line["prediction"]) or line.get("run", 1) != 1:
            continue
        heap = highest.setdefault(line["dataset"], [])
        # Positions differ, so that two lines themselves are never compared.
        heapq.heappush(heap, (line["probabilities"][line["prediction"]], -position, line))
        if len(heap) > count:
            heapq.heappop(heap)
    return {
        dataset: [line for _, _, line in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
        for dataset, heap in highest.items()
    }


def _language_of(dataset: str, text: str) -> str | None:
    """The language of a dataset's texts by its name; else what the letters tell."""
    last = re.split(r"[_\W]", dataset.lower())[-1]
    for word in (last, *re.split(r"[_\W]", dataset.lower())):
        if word in LANGUAGE_NAMES:
            return LANGUAGE_NAMES[word]
    if last in LANGUAGES:
        return last
    return "hi" if re.search(r"[\u0900-\u097f]", text) else None


def _facts_section(facts: Mapping[str, object]) -> Section:
    rows = [
        [name, _command(value) if name == "command" else Cell(_fact(value))]
        for name, value in facts.items()
        if value is not None
    ]
    table = Table("Facts of the run", ["fact", "value"], rows, text_columns=2)
    return Section("What was run", [table] if rows else [])


def _command(words: str | Sequence[str]) -> Cell:
    return Cell(words if isinstance(words, str) else shlex.join(words), is_code=True)


def _fact(value: object) -> str:
    """A fact in words; the parts of a mapping in lines."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "\n".join(f"{key}: {_fact(part)}" for key, part in value.items() if part is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return str(value)


def _results_section(
    results: Mapping[str, Mapping], macro_average: Mapping | None = None
) -> Section:
    if not results:
        return Section("Results", [])
    mean = {**_mean_metrics(results), **(macro_average or {})}
    if len(results) == 1 or mean["accuracy"] is None:
        mean = None
    blocks: list[Table | Picture] = [_results_table(results, mean)]
    if mean is not None:
        blocks.append(_datasets_picture(results, mean))
    return Section("Results", blocks)


def _results_table(results: Mapping[str, Mapping], mean: Mapping | None) -> Table:
    """A line a dataset, and their mean; columns that no dataset fills are left out."""
    getters = {"examples": lambda m: _count(m.get("examples"))}
    getters |= {title: partial(_metric_text, name) for name, title in METRIC_TITLES.items()}
    getters |= {
        "majority class": lambda m: _rate_text(m.get("majority_accuracy"), m),
        "hypothesis only": lambda m: _rate_text(m.get("hypothesis_only", {}).get("accuracy"), m),
    }
    lines = dict(results) if mean is None else {**results, "macro average": mean}
    columns = {title: [get(m) for m in lines.values()] for title, get in getters.items()}
    columns = {title: column for title, column in columns.items() if set(column) != {MISSING}}
    rows = [list(row) for row in zip(lines, *columns.values(), strict=True)]
    notes = {
        "majority class": "Majority class: accuracy of always answering the most frequent class.",
        "hypothesis only": "Hypothesis only: accuracy of a classifier that sees no premise.",
        "ECE": "ECE: expected calibration error.",
    }
    said = [INTERVAL_NOTE] if any(m.get("intervals") for m in lines.values()) else []
    said += [note for title, note in notes.items() if title in columns]
    return Table("Metrics", ["dataset", *columns], rows, note=" ".join(said))


def _metric_text(name: str, metrics: Mapping) -> str:
    interval = metrics.get("intervals", {}).get(name)
    return _with_interval(metrics.get(name), interval, metrics.get("examples"))


def _rate_text(rate: float | None, metrics: Mapping) -> str:
    return _number(rate, _decimals_of_rate(metrics.get("examples")))


def _mean_metrics(results: Mapping[str, Mapping]) -> dict:
    """The means over datasets, None for what not all of them have."""

    def mean(values: Iterable[float | None]) -> float | None:
        values = list(values)
        return None if None in values else float(np.mean(values))

    names = (*METRIC_TITLES, "majority_accuracy")
    means = {name: mean(m.get(name) for m in results.values()) for name in names}
    answers = mean(m.get("hypothesis_only", {}).get("accuracy") for m in results.values())
    total = sum(m.get("examples", 0) for m in results.values())
    return means | {"hypothesis_only": {"accuracy": answers}, "examples": total or None}


def _datasets_picture(results: Mapping[str, Mapping], mean: Mapping) -> Picture:
    dots = [
        Dot(name, metrics["accuracy"], metrics.get("intervals", {}).get("accuracy"))
        for name, metrics in results.items()
    ]
    said = "; ".join(
        f"{name} {_metric_text('accuracy', metrics)}" for name, metrics in results.items()
    )
    return Picture(
        "datasets",
        f"Accuracy by dataset{_of_intervals(dots)}; dashed: their mean, "
        f"{_rate_text(mean['accuracy'], mean)}.",
        f"Dot plot of accuracy by dataset. {said}.",
        partial(_draw_dots, dots, "accuracy", [mean["accuracy"]]),
    )


def _of_intervals(dots: Sequence[Dot]) -> str:
    return f" with {LEVEL} intervals" if any(dot.interval for dot in dots) else ""


def _by_dataset(figures: Mapping) -> dict[str, Mapping]:
    """What stands under "datasets", and their macro average where there are several."""
    datasets = dict(figures.get("datasets", {}))
    if len(datasets) > 1 and figures.get("macro_average"):
        datasets["macro average"] = figures["macro_average"]
    return datasets


def _seeds_section(seeds: Mapping) -> Section:
    table = _seeds_table(seeds, "Several checkpoints of one recipe")
    return Section("Seeds", [table] if table.rows else [])


def _seeds_table(seeds: Mapping, caption: str) -> Table:
    rows, num_values = [], set()
    for dataset, metrics in _by_dataset(seeds).items():
        for name, title in METRIC_TITLES.items():
            if name not in metrics:
                continue
            figure = metrics[name]
            decimals = _decimals(figure["std"])
            each = ", ".join(_number(value, decimals) for value in figure["values"])
            mean = _with_interval(figure["mean"], figure["interval"])
            rows.append([dataset, title, mean, _number(figure["std"], decimals), each])
            num_values.add(len(figure["values"]))
    counts = " or ".join(map(str, sorted(num_values)))
    return Table(
        caption,
        ["dataset", "metric", "mean", "standard deviation", "each"],
        rows,
        text_columns=2,
        note=f"In brackets: {LEVEL} t intervals of the mean over {counts} checkpoints.",
    )


def _comparison_section(comparison: Mapping) -> Section:
    by_dataset = _by_dataset(comparison)
    if not by_dataset:
        return Section("Comparison", [])
    first, second = comparison.get("names", ("first", "second"))
    blocks = [_differences_table(by_dataset, first, second)]
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
        for name in COMPARED:
            if name not in metrics:
                continue
            figure = metrics[name]
            interval = figure["interval"]
            decimals = _decimals((interval[1] - interval[0]) / 2) if interval else 3
            rows.append(
                [
                    dataset,
                    METRIC_TITLES[name],
                    _number(figure["first"], decimals),
                    _number(figure["second"], decimals),
                    _with_interval(figure["difference"], interval, sign="+"),
                    _p_value(figure["p"]),
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
    return Table(f"{first} against {second}", columns, rows, text_columns=2, note=note)


def _over_seeds_text(test: Mapping | None, decimals: int) -> str:
    if test is None:
        return MISSING
    low, high = test["interval"]
    p = _p_value(test["p"])
    equals = "p" if p.startswith("<") else "p ="
    return f"[{_number(low, decimals)}, {_number(high, decimals)}], {equals} {p}"


def _differences_picture(
    by_dataset: Mapping[str, Mapping], first: str, second: str
) -> Picture | None:
    """Of several datasets the differences in accuracy, of one those in every score."""
    names = ("accuracy",) if len(by_dataset) > 1 else SCORES
    found = [
        (dataset if len(by_dataset) > 1 else METRIC_TITLES[name], metrics[name])
        for dataset, metrics in by_dataset.items()
        for name in names
        if name in metrics
    ]
    if not found:
        return None
    dots = [Dot(label, figure["difference"], figure["interval"]) for label, figure in found]
    said = "; ".join(
        f"{dot.label} {_with_interval(dot.value, dot.interval, sign='+')}" for dot in dots
    )
    what = "accuracy" if len(by_dataset) > 1 else "scores"
    return Picture(
        "comparison",
        f"Difference in {what}, {first} minus {second}{_of_intervals(dots)}; dashed: no "
        f"difference; to its right {first} is better.",
        f"Dot plot of the difference in {what}. {said}.",
        partial(_draw_dots, dots, f"difference in {what}", [0.0]),
    )


def _mcnemar_table(tests: Mapping[str, Mapping], first: str, second: str) -> Table:
    """Of several models the counts are means over their pairs."""

    def right(test: Mapping, side: str) -> str:
        pairs = test.get("pairs", [test])
        return _count(float(np.mean([pair[f"only_{side}_right"] for pair in pairs])))

    rows = [
        [dataset, right(test, "first"), right(test, "second"), _p_value(test["p"])]
        for dataset, test in tests.items()
    ]
    columns = ["dataset", f"only {first} right", f"only {second} right", "p"]
    variants = " or ".join(sorted({test["variant"] for test in tests.values()}))
    note = (
        f"Rows that one side alone answers right; p: {variants}. This test takes rows for "
        "independent, which those of one premise are not: the bootstrap is the safer one."
    )
    return Table("McNemar's test", columns, rows, note=note)


def _training_section(history: Sequence[Mapping], best_step: int | None) -> Section:
    # One evaluation is no curve.
    if len({line["step"] for line in history}) < 2:
        return Section("Training", [])
    last = history[-1]
    best = next((line for line in history if line["step"] == best_step), None)
    said = [f"{len(history)} evaluations up to step {last['step']:,}."]
    if best is not None:
        said.append(f"Best at step {best_step:,}: {_validation_sentence(best)}.")
    said.append(f"At the last: {_validation_sentence(last)}.")
    picture = Picture(
        "learning-curves",
        "Loss in training (mean since the evaluation before) and on validation; validation "
        "metrics" + (f"; dotted: the best step, {best_step:,}." if best is not None else "."),
        "Learning curves. " + " ".join(said),
        partial(_draw_learning_curves, history, best_step if best is not None else None),
    )
    blocks = [picture]
    if any(_of_sets(line) for line in history):
        blocks.append(_curves_by_dataset_picture(history))
    return Section("Training", blocks)


def _of_sets(line: Mapping) -> Mapping[str, Mapping]:
    """Validation metrics by dataset, where a run has several; the others are then their means."""
    return line["validation"].get("sets", {})


def _curves_by_dataset_picture(history: Sequence[Mapping]) -> Picture:
    last = {
        name: metrics["accuracy"] for line in history for name, metrics in _of_sets(line).items()
    }
    said = "; ".join(f"{name} {accuracy:.3f}" for name, accuracy in last.items())
    return Picture(
        "learning-curves-by-dataset",
        "Validation accuracy by dataset; above, metrics are means over datasets.",
        f"Learning curves by dataset. Accuracy at the last evaluation: {said}.",
        partial(_draw_curves_by_dataset, history, list(last)),
    )


def _validation_sentence(line: Mapping) -> str:
    parts = []
    if line.get("train_loss") is not None:
        parts.append(f"training loss {line['train_loss']:.3f}")
    for name in ("loss", *SCORES):
        value = line["validation"].get(name)
        if value is not None:
            parts.append(f"validation {METRIC_TITLES[name]} {value:.3f}")
    return ", ".join(parts)


def _dataset_section(
    name: str, metrics: Mapping, mistakes: Sequence[Mapping], file_name: str
) -> Section:
    blocks: list[Table | Picture] = []
    if metrics.get("per_class"):
        blocks.append(_classes_table(metrics["per_class"]))
    if metrics.get("confusion") and metrics.get("per_class"):
        blocks.append(_confusion_picture(metrics, f"confusion-{file_name}"))
    if any(bin["count"] for bin in metrics.get("calibration", [])):
        blocks.append(_reliability_picture(metrics, f"reliability-{file_name}"))
    if any(metrics.get("slices", {}).values()):
        blocks += _slice_blocks(metrics, f"slices-{file_name}")
    if mistakes:
        blocks.append(_mistakes_table(name, mistakes))
    return Section(f"Dataset {name}", blocks)


def _classes_table(per_class: Mapping[str, Mapping]) -> Table:
    rows = []
    for name, figures in per_class.items():
        decimals = _decimals_of_rate(figures["support"])
        rates = [_number(figures[key], decimals) for key in ("precision", "recall", "f1")]
        rows.append([Cell(name, is_foreign=True), *rates, _count(figures["support"])])
    return Table("Every class", ["class", "precision", "recall", "F1", "examples"], rows)


def _confusion_picture(metrics: Mapping, name: str) -> Picture:
    classes, counts = list(metrics["per_class"]), np.asarray(metrics["confusion"])  # [C, C]
    said = "; ".join(
        f"of {_count(row.sum())} {label}: "
        + ", ".join(f"{_count(n)} as {other}" for other, n in zip(classes, row, strict=True))
        for label, row in zip(classes, counts, strict=True)
    )
    return Picture(
        name,
        "Confusion matrix: counts, and percentages of the true class.",
        f"Confusion matrix. Predicted {said}.",
        partial(_draw_confusion, counts, classes),
    )


def _reliability_picture(metrics: Mapping, name: str) -> Picture:
    bins = [bin for bin in metrics["calibration"] if bin["count"]]
    said = "; ".join(
        f"{bin['from']:.2g} to {bin['to']:.2g}: confidence {bin['confidence']:.2f}, "
        f"accuracy {bin['accuracy']:.2f}, {_count(bin['count'])} examples"
        for bin in bins
    )
    ece = metrics.get("ece")
    of_error = "" if ece is None else f"; expected calibration error {_number(ece, 3)}"
    return Picture(
        name,
        "Reliability: accuracy by the probability of the answer (dashed: a perfectly calibrated "
        f"model), and numbers of examples{of_error}.",
        f"Reliability diagram. {said}.",
        partial(_draw_reliability, bins),
    )


def _slice_blocks(metrics: Mapping, name: str) -> list[Table | Picture]:
    kinds = {kind.replace("_", " "): slices for kind, slices in metrics["slices"].items() if slices}
    rows, dots = [], []
    for kind, slices in kinds.items():
        for entry in slices:
            interval, examples = entry.get("interval"), entry["examples"]
            accuracy = _with_interval(entry["accuracy"], interval, examples)
            rows.append([kind, entry["slice"], accuracy, _count(examples)])
            if entry["accuracy"] is not None:
                label = f"{entry['slice']} (n = {_count(examples)})"
                dots.append(Dot(label, entry["accuracy"], interval, kind))
    lines = [metrics["accuracy"]] if metrics.get("accuracy") is not None else []
    overall = "; dashed: all examples" if lines else ""
    return [
        Picture(
            name,
            f"Accuracy of slices{_of_intervals(dots)}{overall}.",
            "Dot plot of accuracy by " + ", ".join(kinds) + ". The table below has its numbers.",
            partial(_draw_dots, dots, "accuracy", lines),
        ),
        Table("Accuracy of slices", ["by", "slice", "accuracy", "examples"], rows, text_columns=2),
    ]


def _mistakes_table(dataset: str, mistakes: Sequence[Mapping]) -> Table:
    rows = []
    for line in mistakes:
        texts = [" ".join(line[part].split()) for part in ("premise", "hypothesis")]
        language = _language_of(dataset, texts[0])
        rows.append(
            [
                str(line.get("id", MISSING)),
                *(Cell(text, language, is_foreign=True, is_long=True) for text in texts),
                Cell(line["label"], is_foreign=True),
                Cell(line["prediction"], is_foreign=True),
                _probability(line["probabilities"][line["prediction"]]),
            ]
        )
    of_first = " Of the first checkpoint." if any("run" in line for line in mistakes) else ""
    return Table(
        "The most confident mistakes",
        ["row", "premise", "hypothesis", "label", "prediction", "probability"],
        rows,
        text_columns=5,
        stacks=True,
        note="Probability: the model's, of its wrong answer. Row: counted from 0 in the split."
        + of_first,
    )


CSS = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #555; --paper: #fff; --line: #c8c8c8;
  --shade: #f3f4f6; --link: #0b57a4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --soft: #b4b4b4; --paper: #17181a; --line: #4a4c50; --shade: #232528;
    --link: #8ab8ff; }
  /* Dark on light becomes light on dark, and every hue stays what it was. */
  figure img { filter: invert(0.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 84rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, "Noto Sans", sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; padding: 0; list-style: none; }
.scroll { overflow-x: auto; margin: 1rem 0 0.25rem; }
table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: normal; }
caption { text-align: start; font-weight: 600; padding-bottom: 0.25rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: start;
  vertical-align: top; }
thead th { background: var(--shade); vertical-align: bottom; }
tbody th { font-weight: 500; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
.text { min-width: 15rem; line-height: 1.7; }
.text:lang(ur) { line-height: 2.1; }
code { font: 0.85rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
code span { display: inline-block; }
.facts table { width: 100%; }
.facts thead th:first-child { width: 8rem; }
.facts td { overflow-wrap: anywhere; }
.note, figcaption { color: var(--soft); font-size: 0.85rem; margin: 0.25rem 0 1rem; }
figure { margin: 1.5rem 0; }
figure img { display: block; width: 100%; max-width: 36rem; height: auto; }
@media (max-width: 40rem) {
  table { font-size: 0.85rem; }
  th, td { padding: 0.3rem 0.4rem; }
  .stacks :is(table, caption, tbody, tr) { display: block; }
  .stacks thead { display: none; }
  .stacks tr { padding: 0.4rem 0; border-bottom: 1px solid var(--line); }
  .stacks :is(th, td) { display: inline-block; padding: 0 1rem 0 0; border: 0; }
  .stacks .text { display: block; padding: 0.2rem 0; }
  .stacks :is(th, td)::before { content: attr(data-column) " "; color: var(--soft); }
}
@media print { .scroll { overflow: visible; } }
"""

# The page may show its own pictures, and nothing else: not even a script that slipped in runs.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def _as_html(title: str, sections: Sequence[Section], drawings: Mapping[str, bytes]) -> str:
    links = "".join(
        f'<li><a href="#part-{i}">{_escaped(section.title)}</a></li>'
        for i, section in enumerate(sections)
    )
    parts = "\n".join(
        f'<section aria-labelledby="part-{i}">\n<h2 id="part-{i}">{_escaped(section.title)}</h2>\n'
        + "\n".join(_block_as_html(block, drawings) for block in section.blocks)
        + "\n</section>"
        for i, section in enumerate(sections)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{_escaped(title)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{_escaped(title)}</h1>
<nav aria-label="Sections"><ul>{links}</ul></nav>
<main>
{parts}
</main>
</body>
</html>
"""


def _escaped(text: str) -> str:
    # HTML has no way to write control characters.
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text))


def _block_as_html(block: Table | Picture, drawings: Mapping[str, bytes]) -> str:
    if isinstance(block, Table):
        return _table_as_html(block)
    source = "data:image/svg+xml;base64," + base64.b64encode(drawings[block.name]).decode()
    return (
        f'<figure><img src="{source}" alt="{_escaped(block.alt)}">'
        f"<figcaption>{_escaped(block.caption)}</figcaption></figure>"
    )


def _table_as_html(table: Table) -> str:
    numeric = [i >= table.text_columns for i in range(len(table.columns))]
    head = "".join(
        _element("th", _escaped(column), {"scope": "col", "class": "number" if number else None})
        for column, number in zip(table.columns, numeric, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(
            _cell_as_html(cell, number, i == 0, column if table.stacks else None)
            for i, (cell, number, column) in enumerate(
                zip(row, numeric, table.columns, strict=True)
            )
        )
        + "</tr>"
        for row in table.rows
    )
    look = " facts" if not any(numeric) else " stacks" if table.stacks else ""
    note = f'\n<p class="note">{_escaped(table.note)}</p>' if table.note else ""
    # Focusable, so that the keyboard can scroll it.
    return (
        f'<div class="scroll{look}" tabindex="0" role="region" '
        f'aria-label="{_escaped(table.caption)}"><table>\n'
        f"<caption>{_escaped(table.caption)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>{note}"
    )


def _element(tag: str, content: str, attributes: Mapping[str, str | None]) -> str:
    """An element around HTML; attributes that are None are left out."""
    words = [f' {name}="{_escaped(v)}"' for name, v in attributes.items() if v is not None]
    return f"<{tag}{''.join(words)}>{content}</{tag}>"


def _cell_as_html(
    cell: str | Cell, is_number: bool, heads_row: bool, label: str | None = None
) -> str:
    """`label` is shown before the cell where cells stand below each other."""
    cell = Cell(cell) if isinstance(cell, str) else cell
    attributes = {
        "scope": "row" if heads_row else None,
        "class": "number" if is_number else "text" if cell.is_long else None,
        "lang": cell.language,
        "dir": _direction(cell) if cell.is_foreign else None,
        "data-column": label,
    }
    return _element("th" if heads_row else "td", _words_as_html(cell), attributes)


def _words_as_html(cell: Cell) -> str:
    if cell.is_code:
        # Lines are broken between words, not after the dashes of a flag.
        words = " ".join(f"<span>{_escaped(word)}</span>" for word in cell.words.split())
        return f"<code>{words}</code>"
    return "<br>".join(map(_escaped, cell.words.split("\n")))


def _direction(cell: Cell) -> str:
    if cell.language is None:
        return "auto"
    return "rtl" if cell.language in RIGHT_TO_LEFT else "ltr"


def _as_markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {_in_markdown(title)}"]
    for section in sections:
        parts.append(f"## {_in_markdown(section.title)}")
        parts += [
            _table_as_markdown(block)
            if isinstance(block, Table)
            else f"[Figure](figures/{block.name}.png): {_in_markdown(block.caption)}"
            for block in section.blocks
        ]
    return "\n\n".join(parts) + "\n"


def _in_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in a line."""
    text = re.sub(r"([\\`*\[\]<>|~&#$]|(?<!\w)_|_(?!\w))", r"\\\1", text.replace("\n", "; "))
    # A mark that turns the direction would turn the rest of the line, too.
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", " ", text)


def _table_as_markdown(table: Table) -> str:
    rules = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    rows = [
        [_in_markdown(cell.words if isinstance(cell, Cell) else cell) for cell in row]
        for row in [table.columns, *table.rows]
    ]
    lines = ["| " + " | ".join(row) + " |" for row in [rows[0], rules, *rows[1:]]]
    note = f"\n\n{_in_markdown(table.note)}" if table.note else ""
    return f"**{_in_markdown(table.caption)}**\n\n" + "\n".join(lines) + note


def _write_figure(picture: Picture, folder: Path) -> bytes:
    """Write the figure as PNG and PDF; returns it as SVG."""
    with matplotlib.rc_context(_style()):
        figure = picture.draw()
        # Laid out once for the three files.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for kind, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None})):
            _write_whole(folder / f"{picture.name}.{kind}", _saved(figure, kind, metadata))
        return _saved(figure, "svg", {"Date": None}, transparent=True)


def _saved(figure: Figure, kind: str, metadata: Mapping, transparent: bool = False) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, metadata=metadata, transparent=transparent, dpi=300)
    return buffer.getvalue()


def _style() -> dict[str, object]:
    return {
        "font.family": list(_font_families()),
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        # A class may be called $x$.
        "text.parse_math": False,
        # Outlines, so that the page looks the same everywhere; without the salt, ids are random.
        "svg.fonttype": "path",
        "svg.hashsalt": "report",
        # Publishers refuse type 3.
        "pdf.fonttype": 42,
    }


@cache
def _font_families() -> tuple[str, ...]:
    """matplotlib's own font, and where there is one, a font with Devanagari to fall back on."""
    package = importlib.util.find_spec(FONT_PACKAGE)
    if package is not None:
        for path in sorted(Path(package.origin).parent.glob("files/*.ttf")):
            fontManager.addfont(path)
    installed = set(fontManager.get_font_names())
    found = next((name for name in DEVANAGARI_FONTS if name in installed), None)
    return ("DejaVu Sans",) if found is None else ("DejaVu Sans", found)


def _can_draw(text: str) -> bool:
    """Whether the fonts at hand have a sign for every character."""
    # Joiners and direction marks have no sign of their own.
    return all(ord(c) in _drawable_characters() or not c.isprintable() for c in text)


@cache
def _drawable_characters() -> frozenset[int]:
    fonts = [get_font(fontManager.findfont(name)) for name in _font_families()]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def _drawable(names: Sequence[str], kind: str, width: int) -> tuple[list[str], str]:
    """The names as a figure can show them, in lines of `width` characters, and a note where
    numbers stand for them."""
    if all(map(_can_draw, names)):
        return [textwrap.fill(name, width) for name in names], ""
    numbers = [f"{kind} {number}" for number in range(1, len(names) + 1)]
    return numbers, "Numbered as in the table: no font here has the letters of the names."


def _draw_learning_curves(history: Sequence[Mapping], best_step: int | None) -> Figure:
    figure = Figure(figsize=(FIGURE_WIDTH, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    _draw_curve(upper, history, "training", lambda line: line.get("train_loss"), LINES[1])
    _draw_curve(upper, history, "validation", lambda line: line["validation"].get("loss"), LINES[0])
    for name, line in zip(SCORES, LINES, strict=True):
        _draw_curve(lower, history, METRIC_TITLES[name], _validation_getter(name), line)
    upper.set_ylabel("loss (nats)")
    lower.set_ylabel("validation metric")
    lower.set_xlabel("optimizer steps")
    for axes in (upper, lower):
        if best_step is not None:
            axes.axvline(best_step, color="black", linestyle=":", linewidth=1, label="best step")
        axes.legend()
    return figure


def _draw_curves_by_dataset(history: Sequence[Mapping], datasets: Sequence[str]) -> Figure:
    legend_lines = math.ceil(len(datasets) / 4)
    figure = Figure(figsize=(FIGURE_WIDTH, 2.8 + 0.2 * legend_lines), layout="constrained")
    axes = figure.subplots()
    names, note = _drawable(datasets, "dataset", width=16)
    for number, (dataset, name) in enumerate(zip(datasets, names, strict=True)):
        # Sixteen pairs of a colour and a line tell fifteen languages apart.
        line = LINES[number // len(LINES) % len(LINES)] | {
            "color": LINES[number % len(LINES)]["color"]
        }
        _draw_curve(axes, history, name, _accuracy_getter(dataset), line)
    axes.set(xlabel="optimizer steps", ylabel="validation accuracy", title=note)
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _accuracy_getter(dataset: str) -> Callable[[Mapping], float | None]:
    return lambda line: _of_sets(line).get(dataset, {}).get("accuracy")


def _validation_getter(name: str) -> Callable[[Mapping], float | None]:
    return lambda line: line["validation"].get(name)


def _draw_curve(
    axes: Axes,
    history: Sequence[Mapping],
    label: str,
    get: Callable[[Mapping], float | None],
    line: Mapping,
) -> None:
    points = [(entry["step"], get(entry)) for entry in history if get(entry) is not None]
    if points:
        look = dict(line) if len(points) <= CURVES_WITH_MARKERS else dict(line) | {"marker": ""}
        axes.plot(*zip(*points, strict=True), label=label, **look)


def _draw_confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """`counts` [C, C], rows the true classes."""
    names, note = _drawable(classes, "class", width=16)
    side = max(3.6, 0.55 * len(names) + 1.2)
    figure = Figure(figsize=(max(FIGURE_WIDTH, side + 1.2), side), layout="constrained")
    axes = figure.subplots()
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    axes.imshow(shares, cmap=SHARES, vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(counts.shape):
        share = f"\n{100 * shares[i, j]:.0f} %" if totals[i, 0] else ""
        color = _readable_on(SHARES(shares[i, j]))
        axes.text(j, i, _count(counts[i, j]) + share, ha="center", va="center", color=color)
    many = len(names) > 4
    axes.set_xticks(range(len(names)), names, rotation=45 if many else 0)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.grid(False)
    if note:
        axes.set_title(note)
    return figure


def _readable_on(color: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast by WCAG 2.2: black, from a relative
    luminance of 0.179 upwards."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return "black" if np.dot(linear, [0.2126, 0.7152, 0.0722]) > 0.179 else "white"


def _draw_reliability(bins: Sequence[Mapping]) -> Figure:
    figure = Figure(figsize=(FIGURE_WIDTH, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    confidences, accuracies = ([bin[key] for bin in bins] for key in ("confidence", "accuracy"))
    upper.plot(confidences, accuracies, label="model", clip_on=False, **LINES[0])
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    bars = lower.bar(
        [bin["from"] for bin in bins],
        [bin["count"] for bin in bins],
        [bin["to"] - bin["from"] for bin in bins],
        align="edge",
        color=BLUE,
        edgecolor="white",
    )
    lower.bar_label(bars, [_count(bin["count"]) for bin in bins], fontsize=7, padding=1)
    lower.margins(y=0.25)
    lower.set(xlabel="probability of the answer", ylabel="examples")
    return figure


def _draw_dots(dots: Sequence[Dot], axis: str, lines: Sequence[float]) -> Figure:
    """Values with their intervals, one above the other; at `lines` a dashed one across them."""
    rows = _rows_of_dots(dots)
    names, note = _drawable([label for label, _ in rows], "row", width=32)
    figure = Figure(figsize=(FIGURE_WIDTH, 0.8 + 0.24 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for value in lines:
        axes.axvline(value, color=GREY, linestyle="--", linewidth=1)
    for height, (_, dot) in enumerate(rows):
        if dot is None:
            continue
        if dot.interval is not None:
            axes.plot(dot.interval, [height, height], color=BLUE, marker="|")
        axes.plot(dot.value, height, color=BLUE, marker="o", markersize=5)
    axes.set_yticks(range(len(rows)), names)
    for label, (_, dot) in zip(axes.get_yticklabels(), rows, strict=True):
        if dot is None:
            label.set(fontweight="bold", fontfamily="DejaVu Sans")
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(axis)
    if note:
        axes.set_title(note)
    return figure


def _rows_of_dots(dots: Sequence[Dot]) -> list[tuple[str, Dot | None]]:
    """Every dot with its label, under the title of its group, which has no dot."""
    rows: list[tuple[str, Dot | None]] = []
    for group, members in itertools.groupby(dots, key=lambda dot: dot.group):
        rows += [(f"by {group}", None)] if group else []
        rows += [(dot.label, dot) for dot in members]
    return rows
