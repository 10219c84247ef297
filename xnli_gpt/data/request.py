"""Which rows of a dataset a user asks for, and how they are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xnli_gpt.choices import SPLITS
from xnli_gpt.errors import DataError

TEXT_COLUMNS, LABEL_COLUMN = ("premise", "hypothesis"), "label"


@dataclass(frozen=True)
class DataRequest:
    """Which rows a user asked for.

    `where` holds COLUMN=VALUE; `label_names` are what numbers mean, in their order; of `splits`
    those in `optional` may be missing, or have no labels.
    """

    dataset: str
    dataset_config: str | None = None
    data_dir: str | None = None
    text_columns: tuple[str, str] = TEXT_COLUMNS
    label_column: str = LABEL_COLUMN
    num_classes: int | None = None
    splits: tuple[str, ...] = SPLITS
    classes: tuple[str, ...] | None = None  # those of a trained model; None: found in the data
    label_names: tuple[str, ...] | None = None
    where: tuple[str, ...] = ()
    bad_rows: str = "error"
    quotes: str | None = None
    validation_split: str | None = None
    carry_columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()

    @property
    def skips_bad_rows(self) -> bool:
        return self.bad_rows == "skip"


def require_splits(found: Mapping[str, int], name: str, request: DataRequest) -> tuple[str, ...]:
    """Return the splits that are there, of those asked for; `found` has their numbers of rows.

    Raises DataError for one that is missing or empty, unless it may be.
    """
    missing = [split for split in request.splits if split not in found]
    empty = [split for split in request.splits if found.get(split) == 0]
    needed = [split for split in missing if split not in request.optional]
    if needed:
        raise DataError(
            f"{name}: no split {', '.join(needed)} (found {', '.join(found) or 'none'}), "
            f"and this run needs {', '.join(request.splits)}"
        )
    if empty:
        raise DataError(f"{name}: split {', '.join(empty)} is empty, expected at least one row")
    return tuple(split for split in request.splits if split in found)
