"""Which rows of a dataset a user asks for, and that its splits, columns and texts can be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xnli_gpt.choices import SPLITS
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed


@dataclass(frozen=True)
class DataRequest:
    """Which rows a user asked for."""

    dataset: str
    dataset_config: str | None = None
    data_dir: str | None = None
    text_columns: tuple[str, str] = ("premise", "hypothesis")
    label_column: str = "label"
    num_classes: int | None = None
    splits: tuple[str, ...] = SPLITS
    classes: tuple[str, ...] | None = None  # those of a trained model; None: found in the data

    @property
    def columns(self) -> tuple[str, str, str]:
        return (*self.text_columns, self.label_column)


def require_splits(loaded: Mapping[str, object], name: str, request: DataRequest) -> None:
    missing = [split for split in request.splits if split not in loaded]
    empty = [split for split in request.splits if split in loaded and not len(loaded[split])]
    if missing:
        raise DataError(
            f"{name}: no split {', '.join(missing)} (found {', '.join(loaded) or 'none'}), "
            f"and this run needs {', '.join(request.splits)}"
        )
    if empty:
        raise DataError(f"{name}: split {', '.join(empty)} is empty, expected at least one row")


def require_columns(found: Iterable[str], where: str, request: DataRequest) -> None:
    found = list(found)
    missing = [column for column in request.columns if column not in found]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)} (found {listed(found)}); "
            "name the columns with `text_column` PREMISE HYPOTHESIS and `label_column`"
        )


def checked_column(values: Iterable[object], column: str, where: str) -> list[str]:
    """Texts with their line ends dropped; empty and non-string ones are listed in the error."""
    texts, bad = [], []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            bad.append(f"row {number} has {type(value).__name__} {value!r}")
        elif not value.strip():
            bad.append(f"row {number} is empty")
        else:
            texts.append(value.strip("\r\n"))
    if bad:
        raise DataError(f"{where}: column {column} must be text, but {listed(bad)}")
    return texts
