"""The part of a report about one dataset: confusion, calibration, classes, slices, mistakes."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from xnli_gpt.evaluation.answers import only_answer
from xnli_gpt.report.content import Block, Cell, Mistake, Mistakes, Picture, Section, Stack, Table
from xnli_gpt.report.figures import Dot, draw_confusion, draw_dots, draw_reliability
from xnli_gpt.report.wording import (
    LEVEL,
    MISSING,
    count,
    decimals_of_rate,
    language_of,
    metric_text,
    number,
    probability,
    with_interval,
)


def most_confident_mistakes(
    predictions: Iterable[Mapping], how_many: int
) -> dict[str, list[Mapping]]:
    """Return by dataset the lines whose wrong answer has the highest probability, highest first.

    Of equal ones the earlier stands first. Lines without a label are no mistakes; of several
    models' lines those of the first model count, as one row's would fill the table.
    """
    highest: dict[str, list[tuple[float, int, Mapping]]] = {}
    for position, line in enumerate(predictions):
        if line.get("label") in (None, line["prediction"]) or line.get("run", 1) != 1:
            continue
        # Predictions of other tools may have neither texts nor probabilities.
        if "probabilities" not in line:
            continue
        heap = highest.setdefault(line["dataset"], [])
        # Positions differ, so that two lines themselves are never compared.
        heapq.heappush(heap, (line["probabilities"][line["prediction"]], -position, line))
        if len(heap) > how_many:
            heapq.heappop(heap)
    return {
        dataset: [line for _, _, line in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
        for dataset, heap in highest.items()
    }


def dataset_section(
    name: str, metrics: Mapping, mistakes: Sequence[Mapping], file_name: str, folded: bool
) -> Section:
    """Return the part about one dataset; its figures are called after `file_name`."""
    blocks: list[Block] = []
    tables: list[Table] = []
    if metrics.get("confusion") and metrics.get("per_class"):
        blocks.append(_confusion_picture(metrics, f"confusion-{file_name}"))
    if any(bin["count"] for bin in metrics.get("calibration", [])):
        blocks.append(_reliability_picture(metrics, f"reliability-{file_name}"))
    if any(metrics.get("slices", {}).values()):
        blocks.append(_slices_picture(metrics, f"slices-{file_name}"))
        tables.append(_slices_table(metrics))
    if metrics.get("per_class"):
        tables.append(_classes_table(metrics["per_class"]))
    if tables:
        blocks.append(Stack(tables))
    if mistakes:
        blocks.append(_mistakes(name, mistakes))
    summary = _summary(metrics) if folded else ""
    return Section(f"Dataset {name}", blocks, summary, folded, short_title=name)


def _summary(metrics: Mapping) -> str:
    if metrics.get("accuracy") is None:
        return ""
    answer = only_answer(metrics)
    alone = "" if answer is None else f"; one class alone: {answer}"
    return f"accuracy {metric_text('accuracy', metrics)}{alone}"


def _classes_table(per_class: Mapping[str, Mapping]) -> Table:
    rows = []
    for name, figures in per_class.items():
        decimals = decimals_of_rate(figures["support"])
        rates = [number(figures[key], decimals) for key in ("precision", "recall", "f1")]
        rows.append([Cell(name, is_foreign=True), *rates, count(figures["support"])])
    return Table("Every class", ["class", "precision", "recall", "F1", "examples"], rows)


def _confusion_picture(metrics: Mapping, name: str) -> Picture:
    classes, counts = list(metrics["per_class"]), np.asarray(metrics["confusion"])  # [C, C]
    said = "; ".join(
        f"of {count(row.sum())} {label}: "
        + ", ".join(f"{count(n)} as {other}" for other, n in zip(classes, row, strict=True))
        for label, row in zip(classes, counts, strict=True)
    )
    answer = only_answer(metrics)
    alone = "" if answer is None else f" The model answers {answer} to every example."
    return Picture(
        name,
        f"Confusion matrix: counts, and percentages of the true class.{alone}",
        f"Confusion matrix. Predicted {said}.",
        partial(draw_confusion, counts, classes),
    )


def _reliability_picture(metrics: Mapping, name: str) -> Picture:
    bins = [bin for bin in metrics["calibration"] if bin["count"]]
    said = "; ".join(
        f"{bin['from']:.2g} to {bin['to']:.2g}: confidence {bin['confidence']:.2f}, "
        f"accuracy {bin['accuracy']:.2f}, {count(bin['count'])} examples"
        for bin in bins
    )
    ece = metrics.get("ece")
    of_error = "" if ece is None else f"; expected calibration error {number(ece, 3)}"
    return Picture(
        name,
        "Calibration: accuracy by the probability of the answer (dashed: a perfectly calibrated "
        f"model), and numbers of examples{of_error}.",
        f"Reliability diagram. {said}.",
        partial(draw_reliability, bins, len(metrics["per_class"]) if "per_class" in metrics else 0),
    )


def _slices_picture(metrics: Mapping, name: str) -> Picture:
    kinds = _kinds_of_slices(metrics)
    dots = [
        Dot(
            f"{entry['slice']} (n = {count(entry['examples'])})",
            entry["accuracy"],
            entry.get("interval"),
            kind,
        )
        for kind, slices in kinds.items()
        for entry in slices
        if entry["accuracy"] is not None
    ]
    lines = [metrics["accuracy"]] if metrics.get("accuracy") is not None else []
    overall = "; dashed: all examples" if lines else ""
    of_intervals = f" with {LEVEL} intervals" if any(dot.interval for dot in dots) else ""
    return Picture(
        name,
        f"Accuracy of slices{of_intervals}{overall}.",
        f"Dot plot of accuracy by {', '.join(kinds)}. The table beside it has its numbers.",
        partial(draw_dots, dots, "accuracy", lines),
    )


def _slices_table(metrics: Mapping) -> Table:
    rows = [
        [
            kind,
            entry["slice"],
            with_interval(entry["accuracy"], entry.get("interval"), entry["examples"]),
            count(entry["examples"]),
        ]
        for kind, slices in _kinds_of_slices(metrics).items()
        for entry in slices
    ]
    columns = ["by", "slice", "accuracy", "examples"]
    return Table("Accuracy of slices", columns, rows, text_columns=2)


def _kinds_of_slices(metrics: Mapping) -> dict[str, Sequence[Mapping]]:
    return {kind.replace("_", " "): slices for kind, slices in metrics["slices"].items() if slices}


def _mistakes(dataset: str, lines: Sequence[Mapping]) -> Mistakes:
    entries = []
    for line in lines:
        parts = (line.get(part, MISSING) for part in ("premise", "hypothesis"))
        texts = [" ".join(part.split()) for part in parts]
        language = language_of(dataset, texts[0])
        premise, hypothesis = (Cell(text, language, is_foreign=True) for text in texts)
        entries.append(
            Mistake(
                str(line.get("id", MISSING)),
                premise,
                hypothesis,
                Cell(line["label"], is_foreign=True),
                Cell(line["prediction"], is_foreign=True),
                probability(line["probabilities"][line["prediction"]]),
            )
        )
    of_first = " Of the first checkpoint." if any("run" in line for line in lines) else ""
    note = "The probability is the model's, of its wrong answer; rows are counted from 0."
    return Mistakes("The most confident mistakes", entries, note + of_first)
