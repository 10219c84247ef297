"""The rows that are scored: those of datasets, or those that predictions hold themselves."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.loading import with_rows
from xnli_gpt.data.names import KNOWN_NAMES, dataset_names, notes_of_datasets, short_name
from xnli_gpt.data.options import RowOptions
from xnli_gpt.data.own_data import OwnData
from xnli_gpt.data.request import LABEL_COLUMN, TEXT_COLUMNS, DataRequest
from xnli_gpt.errors import DataError, PredictionsError
from xnli_gpt.evaluation.options import ScoredDataOptions
from xnli_gpt.evaluation.predictions import PredictedRows


@dataclass(frozen=True)
class Rows:
    """The rows of one dataset's split that are scored."""

    ids: Sequence[int]
    premises: list[str]
    hypotheses: list[str]
    labels: np.ndarray  # [N] int64
    request: DataRequest | None  # None where the rows are those of predictions
    carried: Mapping[str, list[str]] = field(default_factory=dict)  # other columns of the data
    has_texts: bool = True  # else premises are numbers of rows


def data_of_models(
    options: ScoredDataOptions, rows: RowOptions, fine_tuned: Sequence[tuple[Path, OwnData]]
) -> tuple[ScoredDataOptions, RowOptions]:
    """Return the options with what they leave open filled in: the data that the checkpoints were
    fine-tuned on and how it was read, then the defaults.

    Raises DataError where that data is not known, or not the same for all checkpoints.
    """
    if options.dataset is None and fine_tuned:
        (first_path, own), *others = fine_tuned
        for path, other in others:
            if other != own:
                raise DataError(
                    f"{path}: was fine-tuned on other data than {first_path}; say by `dataset` "
                    "what they are scored on"
                )
        names = _names_of_own_data(own, first_path, options.data_dir)
        left_open = {
            name: getattr(own, name)
            for name in ("dataset_config", "data_dir", "text_column", "label_column")
            if getattr(options, name) is None
        }
        options = replace(options, dataset=tuple(names), **left_open)
        rows = replace(own.rows, **{n: v for n, v in vars(rows).items() if v is not None})
        print(f"note: no dataset is named, so the run's own data: {' '.join(names)}")
    text_column = tuple(options.text_column or TEXT_COLUMNS)
    label_column = options.label_column or LABEL_COLUMN
    return replace(options, text_column=text_column, label_column=label_column), rows


def _names_of_own_data(own: OwnData, path: Path, data_dir: str | None) -> list[str]:
    """Return the names of a run's data, found where they were, or within `data_dir`."""
    if data_dir is not None:
        return [short_name(name) for name in own.dataset]
    for name in own.dataset:
        if own.data_dir is not None or name in KNOWN_NAMES:
            continue
        if not own.is_recorded:
            raise DataError(
                f"{path}: was fine-tuned on {name}, and does not say where that is; name it by "
                "`dataset`"
            )
        if os.path.isabs(name) and not Path(name).is_dir():
            raise DataError(
                f"{path}: was fine-tuned on {name}, which is no folder here; say by `dataset` "
                "where the data is"
            )
    return list(own.dataset)


def load_rows(
    options: ScoredDataOptions, reading: RowOptions, classes: tuple[str, ...], model: Path
) -> dict[str, Rows]:
    """Return the rows of every dataset, in the data's order; `model` has the classes, and is for
    messages."""
    names = dataset_names(options.dataset)
    for note in notes_of_datasets(names, options.data_dir):
        print(note)
    rows = {}
    for dataset in names:
        request = with_rows(_request(options, dataset, classes), reading)
        texts = _texts_of(request, options.cache_dir, model)[options.split]
        absent = ", ".join(name for i, name in enumerate(classes) if i not in texts.labels)
        if absent:
            print(f"note: {dataset}: no row of {absent} in {options.split}: 0 in macro figures")
        rows[short_name(dataset)] = Rows(
            range(len(texts.labels)),
            texts.premises,
            texts.hypotheses,
            texts.labels,
            request,
            texts.carried,
        )
    return rows


def _request(options: ScoredDataOptions, dataset: str, classes: tuple[str, ...]) -> DataRequest:
    return DataRequest(
        dataset=dataset,
        dataset_config=options.dataset_config,
        data_dir=options.data_dir,
        text_columns=options.text_column,
        label_column=options.label_column,
        splits=(options.split,),
        classes=classes,
    )


def _texts_of(request: DataRequest, cache_dir: Path, model: Path) -> dict:
    """Return the texts by split. Where the data can be used, but not with the model's classes, the
    error tells both."""
    try:
        return load_texts(request, cache_dir)[0]
    except DataError as error:
        try:
            _, found = load_texts(replace(request, classes=None), cache_dir)
        except DataError:
            raise error from None
        raise DataError(
            f"`dataset` {request.dataset}: classes {', '.join(found)}, but {model} knows "
            f"{', '.join(request.classes)}; use a model that was fine-tuned on the data's classes"
        ) from error


def rows_of_predictions(
    predictions: Mapping[str, PredictedRows], classes: tuple[str, ...]
) -> dict[str, Rows]:
    """Return the rows that predictions hold themselves, by their ids."""
    rows = {}
    numbers = {label: number for number, label in enumerate(classes)}
    for name, predicted in predictions.items():
        for row, label in zip(predicted.ids, predicted.labels, strict=True):
            if label not in numbers:
                raise PredictionsError(
                    f"{predicted.where}: id {row} has the label {label}, expected "
                    f"{', '.join(numbers)}; labels of the data are taken with `dataset`"
                )
        order = np.argsort(predicted.ids, kind="stable")
        labels = np.array([numbers[label] for label in predicted.labels])
        # Without its text a premise is taken for another one in every row.
        premises = predicted.premises or [f"row {i}" for i in predicted.ids]
        hypotheses = predicted.hypotheses or [""] * len(predicted.ids)
        rows[name] = Rows(
            [predicted.ids[i] for i in order],
            [premises[i] for i in order],
            [hypotheses[i] for i in order],
            labels[order],
            request=None,
            has_texts=predicted.premises is not None,
        )
    return rows
