"""From a split's table to its pairs: the rows that are asked for, the columns that hold the texts,
and what of a row can't be used."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xnli_gpt.data.labels import label_name
from xnli_gpt.data.request import LABEL_COLUMN, TEXT_COLUMNS, DataRequest
from xnli_gpt.data.tables import DataTable
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed, shown

# How public sets call the columns, where nobody says otherwise; the first that are there.
KNOWN_TEXT_COLUMNS = (
    TEXT_COLUMNS,
    ("premise", "hypo"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
)
KNOWN_LABEL_COLUMNS = (LABEL_COLUMN, "gold_label")
# Columns that tell the language of a row.
LANGUAGE_COLUMNS = ("language", "lang", "locale")


# A label behind a separator, at the end of a line that is not the last one of its text.
_ENDS_A_ROW = re.compile(r"[,;\t](?:entailment|neutral|contradict(?:ion|ory)|[0-2])\r?\n", re.I)


@dataclass(frozen=True)
class SelectedRows:
    """The rows of one split that can be used, as text; a label is a name or a number, None where
    the split has none. `notes` are for the user."""

    premises: list[str]
    hypotheses: list[str]
    labels: list[str | int | None]
    carried: Mapping[str, list[str]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Columns:
    """The columns that hold the texts and the label of a split's rows."""

    texts: tuple[str, str]
    label: str | None

    def __str__(self) -> str:
        return ", ".join(filter(None, (*self.texts, self.label)))


def select_rows(
    tables: Mapping[str, DataTable], where: Mapping[str, str], request: DataRequest
) -> dict[str, SelectedRows]:
    """Return the rows asked for of every split; `where` is what messages call a split.

    Raises DataError for columns that are not there, for rows of several languages, and for rows
    that can't be used unless the request skips them.
    """
    conditions = _conditions(request, tables)
    return {
        split: _select(table, split, where[split], conditions, request)
        for split, table in tables.items()
    }


def _conditions(request: DataRequest, tables: Mapping[str, DataTable]) -> dict[str, list[str]]:
    """Return the values that each column may have. Raises DataError for a column of no split."""
    conditions: dict[str, list[str]] = {}
    for condition in request.where:
        column, equals, value = condition.partition("=")
        if not (column and equals):
            raise DataError(f"`where` {shown(condition)}: expected COLUMN=VALUE")
        conditions.setdefault(column, []).append(value)
    known = dict.fromkeys(name for table in tables.values() for name in table.columns)
    for column in conditions:
        if column not in known and not _holds_translations(column, tables.values(), request):
            raise DataError(
                f"`where` {column}={conditions[column][0]}: {request.dataset} has no column "
                f"{shown(column)} (found {listed(known)})"
            )
    return conditions


def _holds_translations(column: str, tables: Iterable[DataTable], request: DataRequest) -> bool:
    """Tell whether a column's name picks one of the languages that each text is in."""
    if column.lower() not in LANGUAGE_COLUMNS:
        return False
    return any(
        isinstance(value, Mapping)
        for table in tables
        for name in (*request.text_columns, *TEXT_COLUMNS)
        if name in table.columns
        for value in table.values(name)[:1]
    )


def _select(
    table: DataTable,
    split: str,
    where: str,
    conditions: Mapping[str, list[str]],
    request: DataRequest,
) -> SelectedRows:
    kept, notes = _rows_where(table, where, conditions)
    columns = _columns_of(table, split, where, request)
    if (columns.texts, columns.label or request.label_column) != (
        request.text_columns,
        request.label_column,
    ):
        notes.append(f"note: {where}: read from the columns {columns}")
    languages = [v for name in conditions if _is_language(name) for v in conditions[name]]
    texts = [
        _texts_in(table.values(name), name, where, languages or [request.dataset_config])
        for name in columns.texts
    ]
    labels, names = [None] * table.num_rows, None
    if columns.label is not None:
        labels, names = table.values(columns.label), table.class_names.get(columns.label)
    carried = {name: table.values(name) for name in _carried(table, where, request)}
    rows = _UsableRows(table, where, request)
    labels = rows.labels(kept, labels, names, columns.label, split)
    texts = [rows.texts(kept, v, name) for v, name in zip(texts, columns.texts, strict=True)]
    good = [row for row in kept if row not in rows.bad]
    left_out = len(kept) - len(good) + table.num_unreadable
    if left_out:
        notes.append(f"note: {where}: {left_out} rows that can't be used are left out")
    if not good:
        raise DataError(f"{where}: no row is left, expected at least one")
    return SelectedRows(
        *([texts[i][row] for row in good] for i in range(2)),
        [labels[row] for row in good],
        {name: [str(values[row]) for row in good] for name, values in carried.items()},
        tuple(notes),
    )


def _rows_where(
    table: DataTable, where: str, conditions: Mapping[str, list[str]]
) -> tuple[list[int], list[str]]:
    """Return the rows that the conditions leave, and notes. Raises DataError where they leave none,
    and for several languages that nobody chose from."""
    kept, notes = list(range(table.num_rows)), []
    for column, values in conditions.items():
        if column not in table.columns:
            if not _is_language(column):
                notes.append(f"note: {where}: has no column {shown(column)}, all rows are taken")
            continue
        found = [str(value) for value in table.values(column)]
        kept = [row for row in kept if found[row] in values]
        if not kept:
            raise DataError(
                f"{where}: no row has {shown(column)} {' or '.join(map(shown, values))} "
                f"(found {listed(dict.fromkeys(found))})"
            )
    for column in filter(_is_language, table.columns):
        if column not in conditions:
            found = dict.fromkeys(map(str, table.values(column)))
            if len(found) > 1:
                raise DataError(
                    f"{where}: its column {column} has {len(found)} values ({listed(found)}), "
                    f"which are never read as one; choose by `where` {column}=VALUE"
                )
    return kept, notes


def _is_language(column: str) -> bool:
    return column.lower() in LANGUAGE_COLUMNS


def _columns_of(table: DataTable, split: str, where: str, request: DataRequest) -> _Columns:
    """Return the columns of the texts and of the label: those asked for, else known ones."""
    asked_texts, asked_label = request.text_columns, request.label_column
    texts_by_default = asked_texts == TEXT_COLUMNS
    known_texts = KNOWN_TEXT_COLUMNS if texts_by_default else (asked_texts,)
    known_labels = KNOWN_LABEL_COLUMNS if asked_label == LABEL_COLUMN else (asked_label,)
    texts = next((pair for pair in known_texts if set(pair) <= set(table.columns)), None)
    label = next((name for name in known_labels if name in table.columns), None)
    missing = [] if texts else [name for name in asked_texts if name not in table.columns]
    if label is None and split not in request.optional:
        missing.append(asked_label)
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)} (found {listed(table.columns)}); "
            "name the columns with `text_column` PREMISE HYPOTHESIS and `label_column`"
        )
    return _Columns(texts, label)


def _carried(table: DataTable, where: str, request: DataRequest) -> list[str]:
    missing = [name for name in request.carry_columns if name not in table.columns]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)} to carry (found {listed(table.columns)})"
        )
    return list(request.carry_columns)


def _texts_in(
    values: Sequence[object], column: str, where: str, languages: Sequence[str | None]
) -> list[object]:
    """Return the texts of a column; of texts in several languages, those in the one asked for."""
    if not any(isinstance(value, Mapping) for value in values[:1]):
        return list(values)
    there = list(_translations(values[0]))
    language = languages[0] if len(languages) == 1 else None
    if language not in there:
        raise DataError(
            f"{where}: its column {column} holds texts in {len(there)} languages "
            f"({listed(there)}); choose one by `where` language=CODE"
        )
    return [_translations(value).get(language) for value in values]


def _translations(value: object) -> dict[str, object]:
    """Return texts by their language, of either of the shapes that `datasets` has for them."""
    if not isinstance(value, Mapping):
        return {}
    if set(value) == {"language", "translation"}:
        return dict(zip(value["language"], value["translation"], strict=False))
    return dict(value)


class _UsableRows:
    """Finds the rows that can't be used: listed in an error, or left out and counted."""

    def __init__(self, table: DataTable, where: str, request: DataRequest):
        self.table, self.where, self.request = table, where, request
        self.bad: set[int] = set()

    def labels(
        self,
        kept: Sequence[int],
        values: Sequence[object],
        names: Sequence[str] | None,
        column: str | None,
        split: str,
    ) -> list[str | int | None]:
        """Return labels as names (lower case), or as numbers where the data has only numbers; all
        of them None where a split that need not have any has none."""
        names = self.request.label_names or names
        labels = [label_name(value, names) for value in values]
        if split in self.request.optional and all(labels[row] is None for row in kept):
            return labels
        advice = "`bad_rows` skip leaves such rows out"
        told = {row: f"has {values[row]!r}" for row in kept if labels[row] is None}
        self._refuse(told, f"column {column} must be a label", advice)
        return labels

    def texts(self, kept: Sequence[int], values: Sequence[object], column: str) -> list[str]:
        """Return texts with their line ends dropped."""
        told = {}
        for row in kept:
            value = values[row]
            if not isinstance(value, str):
                told[row] = f"has {type(value).__name__} {shown(value)}"
            elif not value.strip():
                told[row] = "is empty"
        self._refuse(told, f"column {column} must be text", "`bad_rows` skip leaves such rows out")
        self._refuse_swallowed(kept, values, column)
        return [value.strip("\r\n") if isinstance(value, str) else "" for value in values]

    def _refuse_swallowed(self, kept: Sequence[int], values: Sequence[object], column: str) -> None:
        """Raise DataError for a text with the end of another row in it, unless its quotes are
        said to be quotes: it opened with a quotation mark that was a letter."""
        swallowing = [row for row in kept if _ENDS_A_ROW.search(str(values[row]))]
        if swallowing and self.request.quotes != "csv":
            raise DataError(
                f"{self.where}: row {self.table.number(swallowing[0])} has in {column} what looks "
                "like the end of another row: is a quotation mark at its beginning a letter? "
                "double the quotes and quote the whole field; `quotes` csv reads it as it stands"
            )

    def _refuse(self, told: Mapping[int, str], expected: str, advice: str) -> None:
        if told and not self.request.skips_bad_rows:
            rows = listed(f"row {self.table.number(row)} {what}" for row, what in told.items())
            raise DataError(f"{self.where}: {expected}, but {rows}; {advice}")
        self.bad |= told.keys()
