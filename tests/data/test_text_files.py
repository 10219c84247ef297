"""Texts come out exactly as they stand in a file, or the file is refused."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_parts import (
    COLUMNS,
    built_in,
    class_label_dataset,
    expected_pairs,
    pairs_of,
    rows_of,
    texts_of,
    write_folder,
    write_raw,
    write_split,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xnli_gpt.choices import SPLITS
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.tables import DATA_KINDS
from xnli_gpt.errors import DataError


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path, kind, column):
    rows = [{name: value for name, value in r.items() if name != column} for r in rows_of()]
    write_folder(tmp_path / "data", kind, validation=rows)
    with pytest.raises(DataError, match=f"validation.*no column {column} "):
        texts_of(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_text_is_named_by_file_split_and_row(tmp_path, kind, text):
    rows = rows_of()
    rows[3]["hypothesis"] = text
    write_folder(tmp_path / "data", kind, test=rows)
    quotes = "csv" if text == "\n" else None
    with pytest.raises(DataError, match=rf"test\.{kind}: test: column hypothesis.*row 4 is empty"):
        texts_of(tmp_path / "data", tmp_path / "cache", quotes=quotes)


@pytest.mark.parametrize("value", [7, 1.5, None, True, ["a"], {"a": "b"}])
def test_a_text_that_is_none_in_jsonl(tmp_path, value):
    rows = rows_of()
    rows[2]["premise"] = value
    write_folder(tmp_path / "data", train=rows)
    with pytest.raises(DataError, match=r"train\.jsonl: train: column premise .*row 3 has"):
        texts_of(tmp_path / "data", tmp_path / "cache")


def test_a_text_that_is_none_in_parquet(tmp_path):
    for name, value in {"null": None, "bytes": b"\xff"}.items():
        rows = [{**row, "premise": value} for row in rows_of()]
        write_folder(tmp_path / name, "parquet", train=rows)
        with pytest.raises(DataError, match=r"train\.parquet: train: column premise.*row 1 has"):
            texts_of(tmp_path / name, tmp_path / "cache")


def test_parquet_text_that_is_not_utf8(tmp_path):
    premises = pa.array([b"\xff\xfe", b"b", b"c"]).view(pa.string())
    table = pa.table({"premise": premises, "hypothesis": ["a"] * 3, "label": [0, 1, 2]})
    write_folder(tmp_path / "data", "parquet")
    pq.write_table(table, tmp_path / "data" / "train.parquet")
    with pytest.raises(DataError, match="train.*Invalid UTF8"):
        texts_of(tmp_path / "data", tmp_path / "cache")


HEADER = "premise,hypothesis,label\n"


@pytest.mark.parametrize(
    ("kind", "train", "said"),
    [
        ("csv", '"pre\nmise",hypothesis,label\na,b,0\n', r"no column premise .found pre\\nmise"),
        ("csv", '"\x1b[1m","\x1b[1m",label\na,b,0\n', r"\\x1b\[1m stands twice"),
        ("tsv", 'premise\thypothesis\tlabel\n"a"b\tc\t0\n', "opens with a quote"),
        ("csv", f"premise,hypothesis,label\na,{'b' * 200_000},0\n", "field that is too long"),
        ("jsonl", '{"pre\\nmise": 1}\n', r"found pre\\nmise"),
        ("jsonl", json.dumps({"premise": ["x" * 9999], "hypothesis": "", "label": 0}), r"x\.\.\.x"),
    ],
)
def test_what_a_file_holds_is_said_on_one_line(tmp_path, kind, train, said):
    write_raw(tmp_path / "data", kind, train)
    with pytest.raises(DataError, match=said) as caught:
        texts_of(tmp_path / "data", tmp_path / "cache")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_a_save_to_disk_folder_with_damaged_places_of_texts(tmp_path):
    """Whatever is in the places is an error, and never another text or the end of the process."""
    rows = class_label_dataset(list(NLI_CLASSES))
    datasets.DatasetDict(dict.fromkeys(SPLITS, rows)).save_to_disk(str(tmp_path / "data"))
    (path,) = (tmp_path / "data" / "train").glob("*.arrow")
    ends = np.cumsum([len(row["premise"].encode()) for row in rows_of()], dtype=np.int32)
    data, places = path.read_bytes(), ends[:2].tobytes()
    assert data.count(places) == 1
    path.write_bytes(data.replace(places, np.int32([ends[0], 1 << 30]).tobytes()))
    with pytest.raises(DataError, match="train.*can't read"):
        texts_of(tmp_path / "data", tmp_path / "cache")


def test_a_save_to_disk_folder_with_other_json_in_it(tmp_path):
    rows = class_label_dataset(list(NLI_CLASSES))
    datasets.DatasetDict(dict.fromkeys(SPLITS, rows)).save_to_disk(str(tmp_path / "data"))
    (tmp_path / "data" / "test" / "dataset_info.json").write_text('{"features": "x"}')
    with pytest.raises(DataError, match="test.*can't read"):
        texts_of(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("inside", [".", "data"])
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a,b,0\nc,d,1,x\n", r"row 2 \(line 3\) has 4 fields"),
        ("a,b,0,x\nc,d,1,x\n", r"row 1 \(line 2\) has 4 fields"),
        ("a,b,0\nc,d\n", r"row 2 \(line 3\) has 2 fields"),
        ('a,b,0\n"c" x,d,1\n', r"row 2 \(line 3\) has a field that opens with a quote"),
        ('a,b,0\n"c,d,1\n', "row 2 .*opens with a quote"),
    ],
)
def test_a_csv_row_that_is_none(tmp_path, lines, said, inside):
    write_raw(tmp_path / "data" / inside, "csv", HEADER + lines)
    with pytest.raises(DataError, match=rf"train\.csv: train {said}"):
        texts_of(tmp_path / "data", tmp_path / "cache")


def test_a_repeated_column_is_an_error(tmp_path):
    write_raw(tmp_path / "data", "csv", "premise,hypothesis,premise,label\na,b,c,0\n")
    with pytest.raises(DataError, match="premise stands twice"):
        texts_of(tmp_path / "data", tmp_path / "cache")


TRICKY_TEXTS = [
    "NA", "null", "nan", "None", "1e5", "2020-01-01", "True", "007", "1", "-0.0", "inf",
    " leading and trailing ", "\u2028", "a\u2028b\u2029c\x85d", "क्\u200dष र\u200cह", "e\u0301",
    "\u00e9", 'he said "no"', '"quoted"', 'a "" b', "a,b", "a\tb", "a\nb", "a\r\nb", "#x", "'x'",
    "\\n", "a\\", "\ufeffa", "\U0001f600", "a\x00b", "\x1a",
]  # fmt: skip


def tricky_rows():
    """Every text in both columns."""
    texts = TRICKY_TEXTS
    pairs = zip(texts, texts[1:] + texts[:1], strict=True)
    labels = (NLI_CLASSES * len(texts))[: len(texts)]
    rows = [
        {"premise": premise, "hypothesis": hypothesis, "label": label}
        for (premise, hypothesis), label in zip(pairs, labels, strict=True)
    ]
    return [row for row in rows if all(row[column].strip() for column in COLUMNS)]


@pytest.mark.parametrize("kind", DATA_KINDS)
def test_texts_come_out_exactly_as_in_the_file(tmp_path, kind):
    write_folder(tmp_path / "data", kind, train=tricky_rows())
    splits, _ = texts_of(tmp_path / "data", tmp_path / "cache", quotes="csv")
    assert pairs_of(splits["train"]) == expected_pairs(tricky_rows())


@pytest.mark.parametrize("text", ["NA", "null", "nan", "1e5", "2020-01-01", "True", "007", "1"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("inside", [".", "data"])
def test_a_column_of_one_such_text_is_exact(tmp_path, text, kind, inside):
    rows = [{**row, "premise": text} for row in rows_of()]
    write_folder(tmp_path / "data" / inside, kind, train=rows)
    splits, _ = texts_of(tmp_path / "data", tmp_path / "cache")
    assert splits["train"].premises == [text] * 5


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\n\n"),
        lambda text: text.rstrip(b"\n"),
    ],
    ids=["BOM", "CRLF", "blank lines", "no last line end"],
)
def test_how_lines_and_file_begin_and_end(tmp_path, kind, change):
    write_folder(tmp_path / "data", kind)
    path = tmp_path / "data" / f"train.{kind}"
    path.write_bytes(change(path.read_bytes()))
    splits, _ = texts_of(tmp_path / "data", tmp_path / "cache")
    assert pairs_of(splits["train"]) == expected_pairs()


def test_a_csv_with_an_index_column(tmp_path):
    rows = [{"": str(i), **row} for i, row in enumerate(rows_of())]
    write_folder(tmp_path / "data", "csv", train=rows)
    assert pairs_of(texts_of(tmp_path / "data", tmp_path / "c")[0]["train"]) == expected_pairs()


def test_csv_shards_with_their_columns_in_different_orders(tmp_path):
    rows = rows_of()
    write_folder(tmp_path / "data", "csv", splits=("validation", "test"))
    write_split(tmp_path / "data", "train-00000-of-00002", "csv", rows[:3])
    turned = [dict(reversed(row.items())) for row in rows[3:]]
    write_split(tmp_path / "data", "train-00001-of-00002", "csv", turned)
    assert pairs_of(texts_of(tmp_path / "data", tmp_path / "c")[0]["train"]) == expected_pairs()


def test_line_ends_around_a_text_are_dropped_and_nothing_else(tmp_path):
    rows = [{**row, "premise": f"\r\n {row['premise']}\t\n"} for row in rows_of()]
    with built_in(rows):
        splits, _ = texts_of("built-in", tmp_path)
    assert splits["train"].premises == [f" {row['premise']}\t" for row in rows_of()]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text(
    "\"',\t\r\n\\ aक\u0941\ufeff\u2028", min_size=1, max_size=8
)


@pytest.mark.parametrize("quotes", [None, "csv", "text"])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "unquoted"])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(texts=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=3, max_size=4))
def test_any_text_comes_out_exactly_or_is_refused(tmp_path_factory, kind, quotes, texts):
    folder = tmp_path_factory.mktemp("any")
    classes = (*NLI_CLASSES, "entailment")
    rows = [dict(zip(COLUMNS, (*t, c), strict=True)) for t, c in zip(texts, classes, strict=False)]
    if kind == "unquoted":
        # A file of a writer that knows nothing of quotes: its fields are what stands between tabs.
        lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]
        write_raw(folder / "data", "tsv", "\n".join(lines))
    else:
        write_folder(folder / "data", kind, splits=("train",), train=rows)
    every = [text for pair in texts for text in pair]
    try:
        loaded, _ = texts_of(folder / "data", folder / "cache", splits=("train",), quotes=quotes)
    except DataError:
        assert not all(text.strip() and SOUND[kind, quotes](text) for text in every)
        return
    if not all(MEANT[kind, quotes](text) for text in every):
        return  # what such a file says by these quotes is not what its writer meant
    stripped = [(premise.strip("\r\n"), hypothesis.strip("\r\n")) for premise, hypothesis in texts]
    assert [pair[:2] for pair in pairs_of(loaded["train"])] == stripped


def has_none_of(characters):
    return lambda text: not any(c in text for c in characters)


# Texts that must be read, and those that must come out as they are, by the file's writer and by
# what its reader takes for quotes. csv.writer leaves a lone carriage return unquoted.
SOUND = {
    **{(kind, q): lambda text: True for kind in ("jsonl", "json") for q in (None, "csv", "text")},
    **{("csv", q): has_none_of("\r") for q in (None, "csv", "text")},
    ("tsv", "csv"): has_none_of("\r"),
    ("tsv", None): has_none_of("\r\n\t"),
    ("tsv", "text"): has_none_of("\r\n\t"),
    ("unquoted", "csv"): str.isalnum,
    ("unquoted", None): str.isalnum,
    ("unquoted", "text"): has_none_of("\r\n\t"),
}
MEANT = {
    **SOUND,
    ("tsv", "text"): has_none_of('\r\n\t"'),
    ("unquoted", "csv"): has_none_of('\r\n\t"'),
    ("unquoted", None): has_none_of('\r\n\t"'),
    ("unquoted", "text"): has_none_of("\n\t"),
}
