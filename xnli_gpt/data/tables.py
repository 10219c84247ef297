"""One split's rows by column: of text files, which are read here, and of the `datasets` library."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xnli_gpt.data.library import quiet_datasets, said_as_data_error
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.row_files import TEXT_KINDS, kind_of, opened_rows
from xnli_gpt.errors import DataError

DATA_KINDS = (*TEXT_KINDS, "parquet")


@dataclass(frozen=True)
class DataTable:
    """Rows by column, as their source has them.

    `class_names` are the names that the numbers of a column of labels have, where the source says;
    `numbers` are those of the rows in their file, where some of it could not be read.
    """

    columns: tuple[str, ...]
    num_rows: int
    values: Callable[[str], Sequence[object]]
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    numbers: Sequence[int] | None = None
    num_unreadable: int = 0

    def number(self, row: int) -> int:
        """Return the number of a row in its file, from 1."""
        return row + 1 if self.numbers is None else self.numbers[row]


def table_of_files(
    split: str, paths: Sequence[Path], request: DataRequest, separator: str | None = None
) -> DataTable:
    """Return the rows of a split's text files, read once.

    Raises DataError for rows that can't be read, unless the request skips them.
    """
    rows, numbers, unreadable, columns = [], [], 0, {}
    for path in paths:
        with opened_rows(path, request.quotes, separator) as file:
            columns |= dict.fromkeys(file.columns)
            for row in file.rows:
                if not row.problem:
                    rows.append(row.fields)
                    numbers.append(row.number)
                elif request.skips_bad_rows and not row.swallows:
                    unreadable += 1
                else:
                    skip = "" if row.swallows else "; `bad_rows` skip leaves it out"
                    raise DataError(f"{path}: {split} {row} {row.problem}{skip}")
    if not rows:
        raise DataError(f"{paths[0]}: {split} is empty, expected at least one row")
    # Objects have the columns that any of them has; one that lacks some has None there.
    columns = columns or dict.fromkeys(name for row in rows for name in row)
    return DataTable(
        tuple(columns),
        len(rows),
        lambda name: [row.get(name) for row in rows],
        numbers=numbers,
        num_unreadable=unreadable,
    )


def table_of_rows(rows: Sequence[Mapping[str, object]]) -> DataTable:
    """Return rows that are in memory."""
    columns = dict.fromkeys(name for row in rows for name in row)
    return DataTable(tuple(columns), len(rows), lambda name: [row.get(name) for row in rows])


def table_of_library(loaded: object, where: str) -> DataTable:
    """Return the rows of a `datasets.Dataset`; `where` is what messages call it."""

    def values(name: str) -> list[object]:
        with said_as_data_error(where):
            return loaded[name][:]

    with said_as_data_error(where):
        # Arrow maps files as they are: a damaged one could end the process here.
        loaded.data.validate(full=True)
        features = loaded.features
        names = {
            name: tuple(features[name].names)
            for name in features
            if getattr(features[name], "names", None)
        }
        return DataTable(tuple(loaded.column_names), len(loaded), values, names)


def table_of_parquet(
    split: str, paths: Sequence[Path], request: DataRequest, cache_dir: Path
) -> DataTable:
    """Return the rows of a split's parquet files, which `datasets` reads."""
    with quiet_datasets() as datasets, said_as_data_error(str(paths[0])):
        loaded = datasets.load_dataset(
            "parquet",
            data_files={split: [glob.escape(str(path)) for path in paths]},
            split=split,
            cache_dir=str(cache_dir),
        )
    require_one_meaning(loaded, paths, request)
    return table_of_library(loaded, f"{paths[0]}: {split}")


def require_one_meaning(loaded: object, paths: Iterable[Path], request: DataRequest) -> None:
    """Raise DataError where files that are read together differ: `datasets` gives them the types
    and class names of the first one, so that numbers become texts, and ids mean other names."""
    import datasets
    import pyarrow.parquet

    for path in paths:
        if kind_of(path) != "parquet":
            continue
        with said_as_data_error(str(path)):
            schema = pyarrow.parquet.read_schema(path)
        for column in set(request.text_columns) & set(schema.names):
            kind = schema.field(column).type
            if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
                raise DataError(f"{path}: numbers ({kind}) in {column}, expected text")
        for column, feature in datasets.Features.from_arrow_schema(schema).items():
            names = getattr(feature, "names", None)
            read = getattr(loaded.features.get(column), "names", None)
            if names not in (None, read):
                raise DataError(
                    f"{path}: its labels are {', '.join(names)}, but datasets reads them as "
                    f"{', '.join(read or ['numbers'])}; write all files with one order of names"
                )
