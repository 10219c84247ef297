"""Files of datasets for the fuzzer; what is right is read by independent readers."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from fuzzing import Kind, Wrong, require_good_message
from odd_inputs import ODD_WORDS, TEXTS, changed_bytes

from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.library import quiet_datasets
from xnli_gpt.data.request import DataRequest
from xnli_gpt.errors import DataError

COLUMNS = ("premise", "hypothesis", "label")
CLASSES = ("entailment", "neutral", "contradiction")
Row = tuple[object, object, object]


class Datasets(Kind):
    """Local files of every format with other bytes, other rows and other tables."""

    def __init__(self, folder: Path):
        self.folder, self.cache = folder / "data", folder / "cache"
        os.environ["HF_HOME"] = str(folder / "home")
        with quiet_datasets() as datasets:
            # What it logs of a file that it can't read says nothing wrong, and goes to stderr.
            datasets.logging.set_verbosity(100)

    def run(self, generator: random.Random) -> str:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)
        kinds = ["jsonl", "jsonl", "csv", "csv", "tsv", "parquet", "saved"]
        self.doing = kind = generator.choice(kinds)
        write = {"jsonl": write_jsonl, "parquet": write_parquet, "saved": self._write_saved}
        folder = self.folder
        if kind != "saved" and generator.random() < 0.3:
            folder, self.doing = self.folder / "inside", f"{kind} in a repository"
        folder.mkdir(parents=True)
        case = write.get(kind, write_delimited)(folder, kind, generator)
        if folder != self.folder and generator.random() < 0.5:
            write_card(self.folder)
        request = DataRequest(str(self.folder), splits=("train",))
        try:
            splits, classes = load_texts(request, self.cache)
        except DataError as error:
            require_good_message(error, self.folder)
            if case.must_load:
                raise Wrong(f"a sound file was refused: {error}") from error
            return "refused"
        found = splits["train"]
        labels = [classes[label] for label in found.labels]
        rows = list(zip(found.premises, found.hypotheses, labels, strict=True))
        require_rows(case.read(), rows, classes)
        return "loaded"

    def _write_saved(self, folder: Path, kind: str, generator: random.Random) -> DataCase:
        rows = some_rows(generator, odd=0.3)
        table = {column: [str(row[i]) for row in rows] for i, column in enumerate(COLUMNS[:2])}
        table["label"] = [CLASSES.index(row[2]) for row in rows]
        with quiet_datasets() as datasets:
            dataset = datasets.Dataset.from_dict(table)
            datasets.DatasetDict({"train": dataset}).save_to_disk(str(folder))
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        changed = generator.random() < 0.8
        if changed:
            path = generator.choice([*files, *folder.rglob("*.arrow")])
            path.write_bytes(changed_bytes(path.read_bytes(), generator))
        arrow = next(folder.rglob("*.arrow"))
        sound = not changed and all(text.strip() for row in rows for text in row[:2])
        return DataCase(lambda: read_arrow(arrow), sound)


def write_card(folder: Path) -> None:
    """The card of a repository, which says what its columns are."""
    features = [{"name": column, "dtype": "string"} for column in COLUMNS]
    card = json.dumps({"dataset_info": {"features": features}})
    (folder / "README.md").write_text(f"---\n{card}\n---\n")


class DataCase:
    """How the rows of a case are read by other means, and whether it must load."""

    def __init__(self, read: Callable[[], list[Row] | None], must_load: bool = False):
        self.read, self.must_load = read, must_load


def require_rows(right: list[Row] | None, found: Sequence[Row], classes: Sequence[str]) -> None:
    """The rows that were loaded are those that the file holds."""
    if right is None:
        raise Wrong("a file that holds no rows of text was loaded")
    if len(right) != len(found):
        raise Wrong(f"{len(found)} rows were loaded, the file holds {len(right)}")
    for number, (row, mine) in enumerate(zip(right, found, strict=True), start=1):
        # A card may say of bytes that they are text.
        decoded = [text.decode() if isinstance(text, bytes) else text for text in row[:2]]
        texts = tuple(text.strip("\r\n") if isinstance(text, str) else text for text in decoded)
        if texts != mine[:2]:
            raise Wrong(f"row {number} is {texts!r}, and was loaded as {mine[:2]!r}")
        if label_meant(row[2], classes) != mine[2]:
            raise Wrong(f"row {number} has label {row[2]!r}, and was loaded as {mine[2]!r}")


def label_meant(value: object, classes: Sequence[str]) -> str | None:
    """The class of a label as a file has it, None for what is no label."""
    if isinstance(value, bytes):
        return label_meant(value.decode(), classes)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        names = CLASSES if set(classes) == set(CLASSES) else classes
        return names[value] if 0 <= value < len(names) else None
    if not isinstance(value, str):
        return None
    name = value.strip().casefold()
    if re.fullmatch(r"-?\d{1,6}", name):
        return label_meant(int(name), classes)
    return {"contradictory": "contradiction"}.get(name, name)


# Where a whole column is of these, a reader may take them for numbers or dates.
TYPED_WORDS = [
    "2020-01-01", "2020-01-01 10:00:00", "2020-01-01T10:00:00Z", "12:30", "1", "1.50", "007", "1e5",
    "true", "nan", "null",
]  # fmt: skip


def some_rows(generator: random.Random, odd: float) -> list[list]:
    """Rows with all three classes; a share of them has odd texts."""
    rows = []
    for i in range(generator.choice([3, 3, 4, 12])):
        texts = [
            generator.choice(ODD_WORDS) if generator.random() < odd else generator.choice(TEXTS)
            for _ in range(2)
        ]
        rows.append([*texts, CLASSES[i % 3]])
    if generator.random() < 0.1:
        column, word = generator.randrange(2), generator.choice(TYPED_WORDS)
        for row in rows:
            row[column] = word
    return rows


ODD_CELLS: list[object] = [
    None, 0, 1, 2, 3, -1, 1.0, 0.5, 10**30, True, False, [], ["a"], {"a": "b"}, "", "0", "1.0",
]  # fmt: skip


def write_jsonl(folder: Path, kind: str, generator: random.Random) -> DataCase:
    rows = some_rows(generator, odd=0.2)
    objects = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    numbered = generator.random() < 0.3
    for row in objects:
        row["label"] = CLASSES.index(row["label"]) if numbered else row["label"]
    for _ in range(generator.choice([0, 0, 1, 2])):
        row = generator.choice(objects)
        column = generator.choice([*COLUMNS, "label", "label", "other", "premise\n"])
        row[column] = generator.choice([*ODD_CELLS, *ODD_WORDS])
        if generator.random() < 0.1:
            del row[column]
    endings = ["\n", "\n", "\r\n"]
    text = "".join(
        json.dumps(row, ensure_ascii=generator.random() < 0.3) + generator.choice(endings)
        for row in objects
    )
    if generator.random() < 0.1:
        text = text.replace('"label"', '"label": 1, "label"', 1)
    data = _encoded(text, generator)
    path = folder / "train.jsonl"
    path.write_bytes(data)
    return DataCase(lambda: read_jsonl(path))


def _encoded(text: str, generator: random.Random) -> bytes:
    encoding = generator.choice(["utf-8"] * 12 + ["utf-8-sig", "utf-16", "latin-1"])
    data = text.encode(encoding, "replace")
    return changed_bytes(data, generator) if generator.random() < 0.4 else data


def read_jsonl(path: Path) -> list[Row] | None:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        rows = [json.loads(line) for line in re.split("\r\n|\r|\n", text) if line.strip()]
        return [tuple(row[column] for column in COLUMNS) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def write_delimited(folder: Path, kind: str, generator: random.Random) -> DataCase:
    separator = {"csv": ",", "tsv": "\t"}[kind]
    rows = some_rows(generator, odd=0.2)
    header = list(COLUMNS)
    if generator.random() < 0.15:
        header.insert(generator.randrange(4), generator.choice([*ODD_WORDS, "premise", "id"]))
        rows = [row[:1] + ["7"] + row[1:] if header[1] not in COLUMNS else row for row in rows]
    if generator.random() < 0.1:
        rows[generator.randrange(len(rows))] = generator.choice([[], ["a"], ["a"] * 9, [""] * 3])
    if generator.random() < 0.05:
        generator.choice(rows)[:1] = ["x" * generator.choice([100_000, 200_000])]
    if generator.random() < 0.2:
        text = "\n".join(separator.join(map(str, row)) for row in [header, *rows])
    else:
        out = io.StringIO(newline="")
        ending = generator.choice(["\n", "\r\n", "\r"])
        quoting = generator.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        csv.writer(out, delimiter=separator, lineterminator=ending, quoting=quoting).writerows(
            [header, *rows]
        )
        text = out.getvalue()
    path = folder / f"train.{kind}"
    path.write_bytes(_encoded(text, generator))
    return DataCase(lambda: read_delimited(path, separator))


def read_delimited(path: Path, separator: str) -> list[Row] | None:
    """The rows of a file: without quotes by plain splitting, else by the csv module."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if '"' in text:
            csv.field_size_limit(1 << 30)
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
        else:
            rows = [line.split(separator) for line in re.split("\r\n|\r|\n", text) if line]
        rows = [row for row in rows if row]
        places = [rows[0].index(column) for column in COLUMNS]
        if any(len(row) != len(rows[0]) for row in rows):
            return None
        return [tuple(row[place] for place in places) for row in rows[1:]]
    except (ValueError, IndexError, csv.Error):
        return None


def write_parquet(folder: Path, kind: str, generator: random.Random) -> DataCase:
    rows = some_rows(generator, odd=0.3)
    columns: dict[str, object] = {}
    for i, column in enumerate(COLUMNS):
        values = [row[i] for row in rows]
        if generator.random() < 0.15:
            odd = generator.choice(ODD_CELLS)
            values = [odd] * len(values)
        elif generator.random() < 0.1:
            values[generator.randrange(len(values))] = None
        kinds = [pa.string()] * 6 + [pa.large_string(), pa.string_view(), pa.binary(), None]
        try:
            columns[column] = pa.array(values, generator.choice(kinds))
        except (pa.ArrowException, OverflowError, TypeError):
            columns[column] = pa.array([str(value) for value in values])
        if generator.random() < 0.1 and columns[column].type == pa.string():
            columns[column] = columns[column].dictionary_encode()
    if generator.random() < 0.3:
        columns["label"] = pa.array([CLASSES.index(row[2]) for row in rows])
    path = folder / "train.parquet"
    compression = generator.choice(["none", "snappy", "zstd"])
    pq.write_table(pa.table(columns), path, compression=compression)
    if generator.random() < 0.5:
        path.write_bytes(changed_bytes(path.read_bytes(), generator))
    return DataCase(lambda: read_parquet(path))


def read_parquet(path: Path) -> list[Row] | None:
    try:
        return _rows_of(pq.read_table(path))
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def read_arrow(path: Path) -> list[Row] | None:
    try:
        table = pa.ipc.open_stream(path).read_all()
        table.validate(full=True)
        return _rows_of(table)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _rows_of(table: pa.Table) -> list[Row]:
    table.validate(full=True)
    return list(zip(*(table[column].to_pylist() for column in COLUMNS), strict=True))
