"""Predictions as lines: of JSON, of csv and tsv, and of plain texts."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TextIO

from xnli_gpt.data.row_files import SEPARATORS
from xnli_gpt.prediction.pairs import Row

OUTPUT_KINDS = ("jsonl", *SEPARATORS)


class Predicted(Protocol):
    """A prediction of one pair."""

    label: str
    probabilities: Mapping[str, float]
    logits: Mapping[str, float]


WriteRow = Callable[[Row, Predicted], None]


def row_writer(kind: str, file: TextIO, columns: Sequence[str], classes: Sequence[str]) -> WriteRow:
    """Return a function that writes a row and its prediction to `file`, after the header, if any.

    jsonl keeps all that the input has; csv and tsv keep `columns`; "lines" are the two texts.
    """
    if kind in ("jsonl", "json"):
        return lambda row, prediction: file.write(json_line(row.fields, prediction))
    if kind == "lines":
        return lambda row, prediction: file.write(
            "\t".join([*row.pair, *_printed(prediction)]) + "\n"
        )
    writer = csv.writer(file, delimiter=SEPARATORS[kind], lineterminator="\n")
    added = ["prediction", *(f"probability_{name}" for name in classes)]
    kept = [column for column in columns if column not in added]
    writer.writerow([*kept, *added])
    return lambda row, prediction: writer.writerow(
        [*(row.fields[column] for column in kept), *_printed(prediction)]
    )


def _printed(prediction: Predicted) -> list[str]:
    return [prediction.label, *(f"{p:.6f}" for p in prediction.probabilities.values())]


def json_line(fields: Mapping[str, object], prediction: Predicted) -> str:
    """Return the fields of a row with its prediction, as a line of JSON."""
    record = {
        **fields,
        "prediction": prediction.label,
        "probabilities": prediction.probabilities,
        "logits": prediction.logits,
    }
    return json.dumps(record, ensure_ascii=False) + "\n"


@contextlib.contextmanager
def standard_output() -> Iterator[TextIO]:
    """Lend standard output in UTF-8; a reader that has seen enough, as `head`, ends the work
    quietly."""
    out = sys.stdout
    out.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        yield out
        out.flush()
    except OSError as error:
        # What is still in the buffer would fail once more when Python ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), out.fileno())
        if not isinstance(error, BrokenPipeError):
            raise
