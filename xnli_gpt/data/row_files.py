"""Files of rows as text: jsonl, a JSON array, csv and tsv, also gzipped, read once, row by row and
strictly: a row that can't be read as it was meant comes with the reason, and never as another."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

from xnli_gpt.errors import DataError
from xnli_gpt.messages import reason_of, shown

TEXT_KINDS = ("jsonl", "json", "csv", "tsv")
SEPARATORS = {"csv": ",", "tsv": "\t"}
# What a quotation mark at the beginning of a field is: a letter of the text, or csv's quote.
QUOTES = ("text", "csv")
# Bytes that are no UTF-8 become surrogates, by which the row is found that holds them.
DECODING = {"encoding": "utf-8-sig", "errors": "surrogateescape"}


@dataclass(frozen=True)
class FileRow:
    """A row with its number and the line where it begins, both from 1; where it can't be used it
    has no fields, and `problem` says why. `swallows` others: such a row can't be left out alone."""

    number: int
    line: int
    fields: dict[str, object] = field(default_factory=dict)
    problem: str = ""
    swallows: bool = False

    def __str__(self) -> str:
        return f"row {self.number} (line {self.line})"


@dataclass(frozen=True)
class RowFile:
    """Rows that are read as they are asked for; `columns` are those of a header, if any."""

    name: str
    kind: str
    rows: Iterator[FileRow]
    columns: tuple[str, ...] = ()
    bytes_read: Callable[[], int] | None = None  # of the file, where it is one


def kind_of(path: Path) -> str:
    """Return the ending that tells what a file holds, without that of its compression."""
    name = path.name.lower().removesuffix(".gz")
    return name.rsplit(".", 1)[1] if "." in name else ""


@contextlib.contextmanager
def opened_rows(
    path: Path, quotes: str | None = None, separator: str | None = None
) -> Iterator[RowFile]:
    """Yield the rows of a file by its ending, one of TEXT_KINDS; `quotes` and `separator` as of
    `rows_of`.

    Raises DataError for a file that can't be read, or a header that is none.
    """
    kind = kind_of(path)
    try:
        with contextlib.ExitStack() as stack:
            opened = gzip.open if path.name.lower().endswith(".gz") else open
            binary = stack.enter_context(opened(path, "rb"))
            lines = lines_of(binary, kind, quotes)
            rows = rows_of(str(path), kind, lines, quotes, separator)
            yield replace(rows, bytes_read=binary.tell)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: can't be read ({reason_of(error)})") from error


def lines_of(binary: io.BufferedIOBase, kind: str, quotes: str | None) -> TextIO:
    """Return the text of a stream with its line ends kept; where quotes are letters, a line ends
    with a line feed alone."""
    newline = "\n" if kind == "tsv" and quotes == "text" else ""
    return io.TextIOWrapper(binary, newline=newline, **DECODING)


def rows_of(
    name: str,
    kind: str,
    lines: Iterable[str],
    quotes: str | None = None,
    separator: str | None = None,
) -> RowFile:
    """Return the rows of lines of a kind, of TEXT_KINDS; `separator` replaces that of csv and tsv.

    In tsv a quoted field may be meant, or a text that begins with a quotation mark: `quotes` says
    which ("csv", "text"). None reads what both make the same number of rows of: a quoted field
    that holds a tab or a line end is a problem.
    """
    if kind == "json":
        return RowFile(name, kind, _array_rows(name, lines))
    if kind == "jsonl":
        return RowFile(name, kind, _object_rows(lines))
    assert kind in SEPARATORS, kind
    reader = _Delimited(kind, lines, quotes, separator)
    columns = _header(name, reader)
    return RowFile(name, kind, _delimited_rows(reader, columns), columns)


def text_rows(name: str, lines: Iterable[str], columns: Sequence[str]) -> RowFile:
    """Return rows of lines without a header, whose fields stand between tabs."""
    reader = _Delimited("tsv", lines, "text")
    rows = _delimited_rows(reader, tuple(columns), ", tab, ".join(columns))
    return RowFile(name, "lines", rows, tuple(columns))


class _Delimited:
    """Fields line by line, and the line where the last ones began."""

    def __init__(
        self, kind: str, lines: Iterable[str], quotes: str | None, separator: str | None = None
    ):
        self.splits_at_tabs = kind == "tsv" and quotes == "text"
        self.refuses_quoted = kind == "tsv" and quotes is None
        self.line = self._next_line = 1
        self._lines = iter(lines)
        separator = separator or SEPARATORS[kind]
        self._reader = csv.reader(self._lines, delimiter=separator, strict=True)

    @property
    def spans_lines(self) -> bool:
        """Return whether the last fields took more than one line: quotes that may be none."""
        return self._next_line > self.line + 1

    def read(self) -> list[str] | None:
        """Return the next fields, none of them for a blank line, None at the end. Raises csv.Error
        for what is no row."""
        self.line = self._next_line
        try:
            if self.splits_at_tabs:
                line = next(self._lines, None)
                self._next_line += 1
                text = "" if line is None else line.rstrip("\r\n")
                return None if line is None else text.split("\t") if text.strip("\r\n") else []
            return next(self._reader, None)
        finally:
            if not self.splits_at_tabs:
                self._next_line = self._reader.line_num + 1


def _header(name: str, reader: _Delimited) -> tuple[str, ...]:
    try:
        columns = reader.read() or []
    except csv.Error as error:
        raise DataError(f"{name}: its header can't be read ({reason_of(error)})") from error
    if not all(map(is_unicode, columns)):
        utf16 = columns[0].startswith(("\udcff\udcfe", "\udcfe\udcff"))
        found = " but UTF-16, as spreadsheets write it" if utf16 else ""
        raise DataError(f"{name}: its header is not UTF-8{found}; convert the file")
    repeated = [column for column in columns if columns.count(column) > 1]
    if repeated:
        raise DataError(f"{name}: column {shown(repeated[0])} stands twice in the header")
    return tuple(columns)


def _delimited_rows(
    reader: _Delimited, columns: tuple[str, ...], expected: str = ""
) -> Iterator[FileRow]:
    expected = expected or f"the {len(columns)} of the header"
    number = 1
    while True:
        try:
            fields = reader.read()
            if fields is None:
                return
            problem = _problem_of_fields(fields, reader.refuses_quoted)
            if not problem and fields and len(fields) != len(columns):
                problem = f"has {len(fields)} fields, expected {expected}"
        except csv.Error as error:
            fields, problem = [], _problem_of_quotes(error, reader.refuses_quoted)
        if problem:
            yield FileRow(number, reader.line, problem=problem, swallows=reader.spans_lines)
        elif fields:
            yield FileRow(number, reader.line, dict(zip(columns, fields, strict=True)))
        number += bool(fields or problem)


def _problem_of_fields(fields: list[str], refuses_quoted: bool) -> str:
    # Only quotes can have kept such a character within a field.
    if refuses_quoted and any(c in text for text in fields for c in "\t\r\n"):
        return (
            "has a quoted field with a tab or a line end in it: `quotes` text reads every line as "
            "a row and a quotation mark as a letter, `quotes` csv reads it as it stands"
        )
    return "" if all(map(is_unicode, fields)) else "is not UTF-8"


def _problem_of_quotes(error: csv.Error, is_tsv: bool) -> str:
    if "limit" in str(error):
        return f"has a field that is too long ({reason_of(error)}); write jsonl"
    letters = ", or say by `quotes` text that they are letters" if is_tsv else ""
    return (
        f"has a field that opens with a quote but is not a quoted field ({reason_of(error)}); "
        f"double the quotes and quote the whole field, or write jsonl{letters}"
    )


def _object_rows(lines: Iterable[str]) -> Iterator[FileRow]:
    number = 0
    for line_number, line in enumerate(lines, start=1):
        if line.strip():
            number += 1
            yield _object_row(number, line_number, line)


def _object_row(number: int, line_number: int, line: str) -> FileRow:
    if not is_unicode(line):
        return FileRow(number, line_number, problem="is not UTF-8")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return FileRow(number, line_number, problem=f"is not JSON ({reason_of(error)})")
    if not isinstance(fields, dict):
        return FileRow(number, line_number, problem="is no object, expected one a line")
    return FileRow(number, line_number, fields)


def _array_rows(name: str, lines: Iterable[str]) -> Iterator[FileRow]:
    """Yield the objects of a JSON array, of the only array in an object, or of lines."""
    lines = list(lines)
    text = "".join(lines)
    if not is_unicode(text):
        raise DataError(f"{name}: not UTF-8; convert it")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and len(lines) > 1:
            yield from _object_rows(lines)
            return
        raise DataError(f"{name}: not JSON ({reason_of(error)})") from error
    if isinstance(content, dict):
        arrays = [value for value in content.values() if isinstance(value, list)]
        content = arrays[0] if len(arrays) == 1 else [content]
    if not isinstance(content, list):
        raise DataError(f"{name}: no array of objects, expected one")
    for number, fields in enumerate(content, start=1):
        if isinstance(fields, dict):
            yield FileRow(number, 1, fields)
        else:
            yield FileRow(number, 1, problem="is no object")


def is_unicode(text: str) -> bool:
    """Return whether a text holds no half of a character, as bytes that are no UTF-8 become."""
    try:
        text.encode()
        return True
    except UnicodeEncodeError:
        return False
