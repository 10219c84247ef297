"""A model's predictions as lines of predictions.jsonl: written, read again, and matched with the
rows of the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xnli_gpt.errors import PredictionsError
from xnli_gpt.evaluation.scored_split import ScoredSplit

# In the folder of a run or of an evaluation.
PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class PredictedRows:
    """Rows of one split of one dataset in a predictions.jsonl, in its order."""

    where: str  # the file, for messages
    classes: tuple[str, ...]
    ids: list[int]
    premises: list[str] | None  # None where they are not known
    hypotheses: list[str] | None
    labels: list[str | None]
    logits: np.ndarray  # [N, classes] float32
    has_probabilities: bool = True  # else the logits say no more than the answer


def prediction_lines(dataset: str, split: str, scored: ScoredSplit) -> Iterator[dict]:
    """Return the lines of predictions.jsonl for the first model of `scored`."""
    probabilities = scored.probabilities[0]
    for row, logits in enumerate(scored.logits[0]):
        texts = {"premise": scored.premises[row], "hypothesis": scored.hypotheses[row]}
        shares = dict(zip(scored.classes, probabilities[row].tolist(), strict=True))
        yield {
            "dataset": dataset,
            "split": split,
            "id": int(scored.ids[row]),
            **(texts if scored.has_texts else {}),
            "label": None if scored.labels[row] < 0 else scored.classes[scored.labels[row]],
            "prediction": scored.classes[logits.argmax()],
            **(
                {"probabilities": shares, "logits": logits.tolist()}
                if scored.has_probabilities
                else {}
            ),
            **{column: values[row] for column, values in scored.carried.items()},
        }


def write_predictions(path: Path, splits: Mapping[str, Mapping[str, ScoredSplit]]) -> None:
    """Write predictions.jsonl of the datasets of every split; of several models with the number of
    each as "run", model by model."""
    with open(path, "w", encoding="utf-8") as file:
        for split, scored in splits.items():
            for line in _lines_of_models(split, scored):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines_of_models(split: str, scored: Mapping[str, ScoredSplit]) -> Iterator[dict]:
    num_models = len(next(iter(scored.values())).logits)
    for model in range(num_models):
        run = {"run": model + 1} if num_models > 1 else {}
        for name, one in scored.items():
            for line in prediction_lines(name, split, one.of_model(model)):
                yield line | run


def read_predictions(path: Path, split: str) -> list[dict[str, PredictedRows]]:
    """Return the rows of a split in a predictions.jsonl: by run of several in one file ("run"), and
    by dataset.

    Of a line "logits" may be missing, then they are the logarithms of "probabilities"; "label"
    may, where the data is at hand. Raises PredictionsError that names the line.
    """
    found: dict[tuple[int, str], list[dict]] = {}
    classes: tuple[str, ...] | None = None
    other_splits = set()
    with _said_as_predictions_error(path), open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, start=1):
            where = f"{path}: line {number}"
            line = _checked_line(text, where)
            classes = classes or tuple(line["probabilities"])
            if set(line["probabilities"]) != set(classes):
                raise PredictionsError(
                    f"{where}: classes {', '.join(line['probabilities'])}, but "
                    f"{', '.join(classes)} above"
                )
            if line["split"] != split:
                other_splits.add(line["split"])
                continue
            key = (line.get("run", 1), line["dataset"])
            found.setdefault(key, []).append(_without_probabilities(line, classes, where))
    if not found:
        seen = ", ".join(sorted(other_splits)) or "nothing"
        raise PredictionsError(
            f"{path}: no predictions of split {split} (found {seen}); see `split`"
        )
    runs: dict[int, dict[str, PredictedRows]] = {}
    for (run, dataset), lines in found.items():
        runs.setdefault(run, {})[dataset] = _predicted_rows(lines, classes, f"{path}, {dataset}")
    return [runs[run] for run in sorted(runs)]


class _said_as_predictions_error:
    """Turns what reading a file raises into a PredictionsError that names it."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise PredictionsError(f"{self.path}: not UTF-8 ({error.reason})") from error
        if isinstance(error, OSError):
            raise PredictionsError(
                f"{self.path}: can't be read ({error.strerror}); expected the predictions.jsonl "
                "of an evaluation, or its folder"
            ) from error


# What every line must have, and of which kind.
LINE_FIELDS = {
    "dataset": str,
    "split": str,
    "id": int,
    "premise": str,
    "hypothesis": str,
    "prediction": str,
    "probabilities": dict,
}


def _checked_line(text: str, where: str) -> dict:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PredictionsError(f"{where}: not JSON ({error})") from error
    if not isinstance(line, dict):
        raise PredictionsError(f"{where}: no object, expected one a line")
    missing = [name for name in LINE_FIELDS if name not in line]
    if missing:
        raise PredictionsError(
            f"{where}: no {', '.join(missing)} (found {', '.join(line) or 'nothing'})"
        )
    expected = LINE_FIELDS | {"run": int, "label": str | None, "logits": list}
    for name, kind in expected.items():
        value = line.get(name)
        if name in line and (not isinstance(value, kind) or isinstance(value, bool)):
            raise PredictionsError(f"{where}: {name} {value!r} is no {_kind_name(kind)}")
    return line


def _kind_name(kind: object) -> str:
    return {str: "text", int: "whole number", dict: "object", list: "list"}.get(kind, "text")


def _without_probabilities(line: dict, classes: tuple[str, ...], where: str) -> dict:
    """Return the line with logits in the order of `classes` in place of probabilities.

    Raises PredictionsError where they, the probabilities and the prediction do not agree."""
    probabilities = [line["probabilities"][name] for name in classes]
    if not _are_numbers(probabilities) or abs(sum(probabilities) - 1) > 1e-3:
        raise PredictionsError(f"{where}: probabilities {probabilities} are no shares of 1")
    # An own line's logits stand in the order of its own probabilities.
    by_class = dict(zip(line["probabilities"], line.get("logits", ()), strict=False))
    logits = [by_class.get(name) for name in classes]
    if "logits" not in line:
        logits = [math.log(max(p, 1e-12)) for p in probabilities]
    elif len(line["logits"]) != len(classes) or not _are_numbers(logits):
        raise PredictionsError(f"{where}: logits {line['logits']} are not {len(classes)} numbers")
    elif not _give(logits, probabilities):
        raise PredictionsError(f"{where}: logits {logits} don't give probabilities {probabilities}")
    prediction = line["prediction"]
    if prediction not in classes or logits[classes.index(prediction)] < max(logits):
        raise PredictionsError(f"{where}: prediction {prediction} is not the likeliest class")
    del line["probabilities"]
    return line | {"logits": logits}


def _give(logits: Sequence[float], probabilities: Sequence[float]) -> bool:
    """Return whether the softmax of one row's logits is this. In plain Python: a line at a time,
    numpy would take most of a file's reading."""
    weights = [math.exp(logit - max(logits)) for logit in logits]
    shares = (weight / sum(weights) for weight in weights)
    return all(abs(a - b) < 1e-3 for a, b in zip(shares, probabilities, strict=True))


def _are_numbers(values: Iterable[object]) -> bool:
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )


def _predicted_rows(lines: list[dict], classes: tuple[str, ...], where: str) -> PredictedRows:
    return PredictedRows(
        where,
        classes,
        ids=[line["id"] for line in lines],
        premises=[line["premise"] for line in lines],
        hypotheses=[line["hypothesis"] for line in lines],
        labels=[line.get("label") for line in lines],
        logits=np.array([line["logits"] for line in lines], dtype=np.float32),
    )


def logits_in_order(
    predicted: PredictedRows,
    ids: Sequence[int],
    premises: Sequence[str],
    hypotheses: Sequence[str],
    labels: Sequence[str],
    classes: tuple[str, ...],
) -> np.ndarray:
    """Return the predicted rows' logits [N, classes] in the order of the data's rows.

    Raises PredictionsError where the two are not the same rows with the same texts and labels, or
    not of the same classes.
    """
    if set(predicted.classes) != set(classes):
        raise PredictionsError(
            f"{predicted.where}: predictions of {', '.join(predicted.classes)}, but the data's "
            f"classes are {', '.join(classes)}"
        )
    place = _places_by_id(predicted)
    _require_same_ids(predicted, place, ids)
    at = [place[i] for i in ids]
    theirs = (predicted.premises, predicted.hypotheses, predicted.labels)
    for name, found, expected in zip(
        ("premise", "hypothesis", "label"), theirs, (premises, hypotheses, labels), strict=True
    ):
        for row, value in zip(at, expected, strict=True) if found is not None else ():
            if found[row] != value and (name != "label" or found[row] is not None):
                raise PredictionsError(
                    f"{predicted.where}: {name} of id {predicted.ids[row]} is {found[row]!r}, but "
                    f"{value!r} in the data: predictions of other data"
                )
    order = [predicted.classes.index(name) for name in classes]
    return predicted.logits[at][:, order]


def _places_by_id(predicted: PredictedRows) -> dict[int, int]:
    place: dict[int, int] = {}
    for row, number in enumerate(predicted.ids):
        if number in place:
            raise PredictionsError(f"{predicted.where}: id {number} stands twice")
        place[number] = row
    return place


def _require_same_ids(
    predicted: PredictedRows, place: Mapping[int, int], ids: Sequence[int]
) -> None:
    unpredicted = [number for number in ids if number not in place]
    unknown = sorted(place.keys() - set(ids))
    if unpredicted:
        raise PredictionsError(
            f"{predicted.where}: no prediction for {len(unpredicted)} of the data's {len(ids)} "
            f"rows, the first of them id {unpredicted[0]}"
        )
    if unknown:
        raise PredictionsError(
            f"{predicted.where}: {len(unknown)} predictions for rows that the data's {len(ids)} "
            f"don't have, the first of them id {unknown[0]}"
        )
