"""Files of rows: jsonl, csv, tsv and parquet, read by `datasets` and compared with what they say.

A reader that guesses types may turn text into other text; such a file is refused.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from xnli_gpt.data.library import quiet_datasets, said_as_data_error
from xnli_gpt.data.request import DataRequest, require_columns
from xnli_gpt.errors import DataError
from xnli_gpt.messages import reason_of, shown

TEXT_FORMATS = ("jsonl", "csv", "tsv", "parquet")
SEPARATORS = {"csv": ",", "tsv": "\t"}


def load_file(split: str, paths: list[Path], request: DataRequest, cache_dir: Path) -> object:
    kind = paths[0].suffix.removeprefix(".")
    separator = SEPARATORS.get(kind, "")
    plain = read_plainly(paths, split, separator, request)
    names = _header(paths[0], separator) if separator else []
    builder = {"jsonl": "json", "tsv": "csv"}.get(kind, kind)
    with quiet_datasets() as datasets, said_as_data_error(str(paths[0])):
        options: dict[str, object] = {}
        if separator:
            options = {
                "sep": separator,
                "features": datasets.Features({name: datasets.Value("string") for name in names}),
                "na_filter": False,
                "encoding": "utf-8-sig",
            }
        loaded = datasets.load_dataset(
            builder,
            data_files={split: [glob.escape(str(path)) for path in paths]},
            split=split,
            cache_dir=str(cache_dir),
            **options,
        )
    compare_with_plain_reading(loaded, plain, paths, request)
    compare_parquet(loaded, paths, request)
    return loaded


def _header(path: Path, separator: str) -> list[str]:
    """The column names as pandas has them."""
    with _opened(path) as file:
        names = next(csv.reader(file, delimiter=separator, strict=True), [])
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)]


def read_plainly(
    paths: Sequence[Path], split: str, separator: str, request: DataRequest
) -> list[tuple[object, ...]] | None:
    """The asked-for columns of text files without `datasets`, None for files of other formats."""
    rows: list[tuple[object, ...]] = []
    for path in paths:
        if path.suffix in (".csv", ".tsv"):
            rows += _read_delimited(path, split, separator, request)
        elif path.suffix == ".jsonl":
            rows += _read_jsonl(path, split, request)
        else:
            return None
    if not rows:
        raise DataError(f"{paths[0]}: {split} is empty, expected at least one row")
    return rows


def _read_delimited(
    path: Path, split: str, separator: str, request: DataRequest
) -> list[tuple[object, ...]]:
    """The asked-for columns as the csv module reads them, strictly."""
    rows: list[tuple[object, ...]] = []
    with _opened(path) as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            places = _places(header, path, request)
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}: {split} row {len(rows) + 1} (line {reader.line_num}) has "
                        f"{len(fields)} fields, expected the {len(header)} of the header"
                    )
                rows.append(tuple(fields[place] for place in places))
        except csv.Error as error:
            opens = "opens with a quote but is not a quoted field"
            what = "is too long" if "limit" in str(error) else opens
            raise DataError(
                f"{path}: {split} row {len(rows) + 1} (line {reader.line_num}) has a field that "
                f"{what} ({reason_of(error)}); double the quotes and quote the whole field, or "
                "write jsonl"
            ) from error
    return rows


def _places(header: list[str], path: Path, request: DataRequest) -> list[int]:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: column {shown(repeated[0])} stands twice in the header")
    require_columns(header, str(path), request)
    return [header.index(column) for column in request.columns]


def _read_jsonl(path: Path, split: str, request: DataRequest) -> list[tuple[object, ...]]:
    rows = []
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}: {split} row {len(rows) + 1} (line {number})"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({reason_of(error)})") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} is no object, expected one a line")
            require_columns(row, where, request)
            for column in request.text_columns:
                if not isinstance(row[column], str):
                    found = f"{type(row[column]).__name__} {shown(repr(row[column]))}"
                    raise DataError(f"{where} has {found} in {column}, expected text")
            rows.append(tuple(row[column] for column in request.columns))
    return rows


class _opened:
    """A text file opened with its line ends kept; what isn't UTF-8 is a DataError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Iterable[str]:
        self.file = open(self.path, encoding="utf-8-sig", newline="")
        return self.file

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"{self.path}: not UTF-8 ({error.reason}); convert it") from error


def compare_with_plain_reading(
    loaded: object,
    rows: list[tuple[object, ...]] | None,
    paths: Sequence[Path],
    request: DataRequest,
) -> None:
    """A reader that guesses types may turn text into other text; such a file is refused."""
    if rows is None:
        return
    if len(loaded) != len(rows):
        raise DataError(
            f"{paths[0]}: {len(rows)} rows, but datasets reads {len(loaded)}; write it as parquet"
        )
    for place, column in enumerate(request.text_columns):
        for number, (row, text) in enumerate(zip(rows, loaded[column][:], strict=True), start=1):
            if row[place] != text:
                raise _misread(paths[0], number, row[place], text)
    if getattr(loaded.features[request.label_column], "names", None) is None:
        labels = loaded[request.label_column][:]
        for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=1):
            # A missing one is refused where the labels are checked.
            if label is not None and str(row[-1]) != str(label):
                raise _misread(paths[0], number, row[-1], label)


def _misread(path: Path, number: int, written: object, read: object) -> DataError:
    return DataError(
        f"{path}: row {number} is read as something else by datasets "
        f"({shown(repr(written))} as {shown(repr(read))}); write it as parquet"
    )


def compare_parquet(loaded: object, paths: Iterable[Path], request: DataRequest) -> None:
    """Files read together get the types and class names of the first one; numbers that become
    texts, and ids that mean other names in a later one, are refused."""
    import datasets
    import pyarrow.parquet

    read = getattr(loaded.features.get(request.label_column), "names", None)
    for path in paths:
        if path.suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            for column in set(request.text_columns) & set(schema.names):
                kind = schema.field(column).type
                if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
                    raise DataError(f"{path}: numbers ({kind}) in {column}, expected text")
            feature = datasets.Features.from_arrow_schema(schema).get(request.label_column)
            names = getattr(feature, "names", None)
            if names not in (None, read):
                raise DataError(
                    f"{path}: its labels are {', '.join(names)}, but datasets reads them as "
                    f"{', '.join(read or ['numbers'])}; write all files with one order of names"
                )
