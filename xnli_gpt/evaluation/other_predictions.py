"""Predictions of other tools: a file of rows with the prediction and mostly the label, with
probabilities or without, or one label a line beside a data file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xnli_gpt.data.labels import NLI_CLASSES, label_name
from xnli_gpt.data.row_files import TEXT_KINDS, FileRow, kind_of, opened_rows
from xnli_gpt.data.selection import KNOWN_LABEL_COLUMNS, KNOWN_TEXT_COLUMNS
from xnli_gpt.errors import DataError, PredictionsError
from xnli_gpt.evaluation.predictions import PredictedRows
from xnli_gpt.messages import listed, shown

PREDICTION_COLUMNS = ("prediction", "pred", "predicted", "predicted_label", "y_pred", "answer")
GOLD_COLUMNS = (*KNOWN_LABEL_COLUMNS, "gold", "true", "true_label", "y_true", "target", "reference")
PROBABILITY_PREFIXES = ("probability_", "prob_", "p_")
# What a class gets that another tool did not choose, where it gives no probabilities.
LEAST_PROBABILITY = 1e-6


def is_of_another_tool(path: Path) -> bool:
    """Return whether a file holds the predictions of another tool than this: whether its first row
    does not say of which dataset and split it is, or has nothing but an answer."""
    if kind_of(path) != "jsonl":
        return True
    with opened_rows(path) as file:
        first = next(file.rows, None)
    if first is None or first.problem:
        return False
    fields = set(first.fields)
    return not {"dataset", "split"} & fields or not {"probabilities", "logits"} & fields


def read_other_predictions(path: Path, label_names: Sequence[str] | None) -> PredictedRows:
    """Return the rows of another tool's file; its numbers of labels mean `label_names`, or where
    there are none what they mean in XNLI.

    Raises PredictionsError for a file that is none.
    """
    names = tuple(label_names or NLI_CLASSES)
    if kind_of(path) not in TEXT_KINDS:
        return _predicted(path, [{"prediction": line} for line in _lines(path)], names)
    try:
        with opened_rows(path) as file:
            rows = [_fields(path, row) for row in file.rows]
    except DataError as error:
        raise PredictionsError(str(error)) from error
    if not rows:
        raise PredictionsError(f"{path}: no predictions")
    return _predicted(path, rows, names)


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PredictionsError(f"{path}: can't be read ({error})") from error
    empty = [number for number, line in enumerate(lines, start=1) if not line.strip()]
    if empty:
        raise PredictionsError(f"{path}: line {empty[0]} is empty, expected a label on every line")
    return lines


def _fields(path: Path, row: FileRow) -> dict[str, object]:
    if row.problem:
        raise PredictionsError(f"{path}: {row} {row.problem}")
    return row.fields


def _predicted(
    path: Path, rows: Sequence[Mapping[str, object]], names: tuple[str, ...]
) -> PredictedRows:
    there = list(rows[0])
    prediction = _column(there, PREDICTION_COLUMNS)
    if prediction is None:
        raise PredictionsError(
            f"{path}: no column of predictions ({', '.join(PREDICTION_COLUMNS)}; found "
            f"{listed(there)})"
        )
    gold = _column(there, GOLD_COLUMNS)
    answers = [_label(path, number, row.get(prediction), names) for number, row in _numbered(rows)]
    labels: list[str | None] = [None] * len(rows)
    if gold is not None:
        labels = [_label(path, number, row.get(gold), names) for number, row in _numbered(rows)]
    found = {*answers, *filter(None, labels)}
    classes = NLI_CLASSES if found <= set(NLI_CLASSES) else tuple(sorted(found))
    probabilities = [_probabilities(row, classes, names) for row in rows]
    has_probabilities = all(probabilities)
    logits = [
        [math.log(max(p, LEAST_PROBABILITY)) for p in of_row]
        if has_probabilities
        else [0.0 if name == answer else math.log(LEAST_PROBABILITY) for name in classes]
        for of_row, answer in zip(probabilities, answers, strict=True)
    ]
    texts = next((pair for pair in KNOWN_TEXT_COLUMNS if set(pair) <= set(there)), None)
    premises, hypotheses = (
        [[str(row.get(name, "")) for row in rows] for name in texts] if texts else (None, None)
    )
    said = ", ".join(filter(None, (prediction, gold, *(texts or ()))))
    without = "" if has_probabilities else "; without probabilities, so without loss and ECE"
    print(f"note: {path}: predictions of another tool, read from {said}{without}")
    return PredictedRows(
        str(path),
        classes,
        _ids(rows),
        premises,
        hypotheses,
        labels,
        np.array(logits, dtype=np.float32),
        has_probabilities,
    )


def _numbered(rows: Sequence[Mapping[str, object]]) -> enumerate:
    return enumerate(rows, start=1)


def _column(there: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in there), None)


def _label(path: Path, number: int, value: object, names: Sequence[str]) -> str:
    label = label_name(value, names)
    if not isinstance(label, str):
        raise PredictionsError(f"{path}: row {number} has {shown(value)}, expected a label")
    return label


def _probabilities(
    row: Mapping[str, object], classes: Sequence[str], names: Sequence[str]
) -> list[float] | None:
    """Return a row's probabilities in the order of the classes, or None where it has none."""
    found = row.get("probabilities")
    if not isinstance(found, Mapping):
        found = {
            name.removeprefix(prefix): value
            for prefix in PROBABILITY_PREFIXES
            for name, value in row.items()
            if name.startswith(prefix)
        }
    try:
        by_class = {label_name(name, names): float(value) for name, value in found.items()}
        shares = [by_class[name] for name in classes]
    except (KeyError, TypeError, ValueError):
        return None
    return shares if abs(sum(shares) - 1) < 0.01 and min(shares) >= 0 else None


def _ids(rows: Sequence[Mapping[str, object]]) -> list[int]:
    """Return the rows' own numbers where they are such, else their places."""
    ids = [row.get("id") for row in rows]
    texts = [str(i) for i in ids]
    if all(text.isdecimal() for text in texts) and len(set(texts)) == len(texts):
        return [int(text) for text in texts]
    return list(range(len(rows)))
