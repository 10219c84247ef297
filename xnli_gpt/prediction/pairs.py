"""Pairs to predict, one by one: of a file of rows, or of what is piped in."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from xnli_gpt.data.request import TEXT_COLUMNS
from xnli_gpt.data.row_files import (
    SEPARATORS,
    RowFile,
    kind_of,
    lines_of,
    opened_rows,
    rows_of,
    text_rows,
)
from xnli_gpt.data.selection import KNOWN_TEXT_COLUMNS
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed


@dataclass(frozen=True)
class Row:
    """A pair as its source has it, and how messages name its place."""

    where: str
    fields: dict[str, object]
    pair: tuple[object, object]


@dataclass(frozen=True)
class PairSource:
    """Pairs that are read one by one; `kind` is that of a file of rows, or "lines" without header.

    `bytes_read` and `num_bytes` are None where they can't be known.
    """

    name: str
    kind: str
    columns: tuple[str, ...]  # what csv and tsv output takes over
    rows: Iterator[Row]
    bytes_read: Callable[[], int] | None = None
    num_bytes: int | None = None


class BadRows:
    """What is done with a row that can't be used: an error, or a note and the next row."""

    def __init__(self, skips: bool):
        self.skips = skips
        self.count = 0

    def __call__(self, where: str, problem: str) -> None:
        if not self.skips:
            raise DataError(f"{where}: {problem}; `bad_rows` skip leaves such rows out")
        self.count += 1
        tqdm.write(f"skipped {where}: {problem}", file=sys.stderr)


@dataclass(frozen=True)
class PairReader:
    """Reads pairs: the columns of their texts, what a quotation mark is, and what becomes of rows
    that can't be used."""

    columns: tuple[str, str]
    quotes: str | None
    bad: BadRows

    @contextlib.contextmanager
    def opened(self, path: Path | None) -> Iterator[PairSource]:
        """Yield the pairs of a file, or of standard input.

        Raises DataError for a header without the columns.
        """
        if path is None:
            lines = lines_of(sys.stdin.buffer, "tsv", "text")
            yield self._of_stream("standard input", lines)
            # Whoever called may want to go on with its standard input.
            lines.detach()
            return
        with opened_rows(path, self.quotes) as file:
            source = self._source(file)
            is_plain = not path.name.lower().endswith(".gz") and kind_of(path) != "json"
            if file.bytes_read is None or not is_plain:
                yield source
                return
            yield PairSource(
                source.name,
                source.kind,
                source.columns,
                source.rows,
                file.bytes_read,
                path.stat().st_size,
            )

    def _of_stream(self, name: str, lines: TextIO) -> PairSource:
        kind, lines = self._kind_of_lines(lines)
        if kind == "lines":
            return self._source(text_rows(name, lines, self.columns))
        return self._source(rows_of(name, kind, lines, self.quotes))

    def _kind_of_lines(self, file: TextIO) -> tuple[str, Iterator[str]]:
        """Return what a stream holds, told by its first line with something on it, and all its
        lines."""
        seen: list[str] = []
        for line in file:
            seen.append(line)
            if line.strip():
                break
        first = seen[-1].strip("\r\n").removeprefix("\ufeff") if seen else ""
        if first.lstrip().startswith(("{", "[")):
            kind = "jsonl" if first.lstrip().startswith("{") else "json"
        else:
            kind = "tsv" if self._columns_in(first.split("\t")) else "lines"
        return kind, chain(seen, file)

    def _columns_in(self, there: Sequence[str]) -> tuple[str, str] | None:
        """Return the columns of the texts: those asked for, else the first known ones."""
        known = KNOWN_TEXT_COLUMNS if self.columns == TEXT_COLUMNS else (self.columns,)
        return next((pair for pair in known if set(pair) <= set(there)), None)

    def _source(self, file: RowFile) -> PairSource:
        columns = self._columns_in(file.columns)
        if file.kind in SEPARATORS and columns is None:
            raise DataError(f"{file.name}: {self._missing(file.columns)}")
        if columns not in (None, self.columns):
            print(f"note: {file.name}: read from the columns {', '.join(columns)}", file=sys.stderr)
        return PairSource(
            file.name, file.kind, file.columns or self.columns, self._rows(file, columns)
        )

    def _missing(self, there: Sequence[str]) -> str:
        missing = [column for column in self.columns if column not in there]
        return (
            f"no column {', '.join(missing)} (found {listed(there) or 'nothing'}); name the "
            "columns with `text_column` PREMISE HYPOTHESIS"
        )

    def _rows(self, file: RowFile, columns: tuple[str, str] | None) -> Iterator[Row]:
        for row in file.rows:
            # A row with line ends in its fields is named by its first line.
            where = f"{file.name} line {row.line}"
            own = columns or self._columns_in(list(row.fields))
            if row.swallows:
                raise DataError(f"{where}: {row.problem}")
            if row.problem:
                self.bad(where, row.problem)
            elif own is None:
                self.bad(where, self._missing(list(row.fields)))
            else:
                yield Row(where, row.fields, (row.fields[own[0]], row.fields[own[1]]))
