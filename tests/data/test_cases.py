"""Data as people really have it (`tests/cases`): read as it can only be meant, or refused with what
to do; never fewer rows, other labels or other languages without a word."""

import csv
import gzip
import json
import shutil

import datasets
import numpy as np
import pytest
from data_parts import SENTENCES, class_label_dataset, rows_of, write_folder, write_split
from shell import ROOT

from xnli_gpt.choices import SPLITS
from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.encoded import joined
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.errors import DataError

CASES = ROOT / "tests" / "cases"
TOKENIZER = CASES / "tokenizer.json"


def read(folder, cache_dir, **request):
    request = {"optional": ("test",)} | request
    return load_texts(DataRequest(str(folder), **request), cache_dir)


def notes_of(folder, tmp_path, tokenizer=TOKENIZER, **request):
    request = {"optional": ("test",)} | request
    encoding = load_pair_encoding(str(tokenizer))
    return load_encoded(DataRequest(str(folder), **request), encoding, tmp_path).notes


READ = {
    "mnli_hi_columns": {},
    "indic_layout": {},
    "json_array": {},
    "gz": {},
    "dev_name": {},
    "quote_none_tsv": {"quotes": "text"},
    "names_then_ints": {"label_names": ("contradiction", "entailment", "neutral")},
    "hub_no_card": {"dataset_config": "hi"},
    "xnli_orig": {"where": ("language=hi",)},
    "all_languages_parquet": {"where": ("language=hi",)},
}


@pytest.mark.parametrize("case", READ)
def test_what_can_only_be_meant_so_is_read(tmp_path, case):
    splits, classes = read(CASES / case, tmp_path, **READ[case])
    assert set(splits) == set(SPLITS) and classes == NLI_CLASSES
    train = splits["train"]
    assert len(train.labels) == (15 if case == "all_languages_parquet" else 36)
    for split in splits.values():
        assert split.labels.tolist() == [0, 1, 2] * (len(split.labels) // 3)
        assert split.premises[0].startswith("राम ने बाज़ार से") and split.hypotheses[0]


REFUSED = {
    "quote_none_tsv": r"train row 5 \(line 6\) has a quoted field .*`quotes` text",
    "names_then_ints": r"names \(train row 1.*numbers \(validation row 1.*`label_names`",
    "hub_no_card": "several configurations .en, hi.*`dataset_config`",
    "xnli_orig": r"column language has 2 values \(en, hi\).*`where` language=VALUE",
    "all_languages_parquet": r"texts in 2 languages \(en, hi\).*`where` language=",
    "gold_dash": "row 6 has '-', row 12 has '-'; `bad_rows` skip",
    "label_minus_one": "row 6 has -1; `bad_rows` skip",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_meant_in_several_ways_is_a_question(tmp_path, case):
    with pytest.raises(DataError, match=REFUSED[case]):
        read(CASES / case, tmp_path)


@pytest.mark.parametrize("case, left", [("gold_dash", 34), ("label_minus_one", 35)])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path, case, left):
    splits, _ = read(CASES / case, tmp_path, bad_rows="skip")
    assert len(splits["train"].labels) == left
    notes = notes_of(CASES / case, tmp_path, bad_rows="skip")
    assert any(f"train: {36 - left} rows that can't be used are left out" in n for n in notes)


def test_a_row_that_swallows_others_is_never_left_out(tmp_path):
    with pytest.raises(DataError, match="has a quoted field"):
        read(CASES / "quote_none_tsv", tmp_path, bad_rows="skip")
    folder = write_folder(tmp_path / "csv", "csv")
    text = (folder / "train.csv").read_text()
    lines = text.splitlines(keepends=True)
    (folder / "train.csv").write_text("".join([*lines[:3], '"' + lines[3], *lines[4:]]))
    with pytest.raises(DataError, match="train row 3 .line 4. has a field that opens"):
        read(folder, tmp_path, bad_rows="skip")


def test_quotes_that_are_quotes_may_hold_anything(tmp_path):
    rows = [{**row, "premise": "a\tb\nc"} for row in rows_of()]
    folder = write_folder(tmp_path / "data", "tsv", train=rows)
    assert read(folder, tmp_path, quotes="csv")[0]["train"].premises == ["a\tb\nc"] * 5


@pytest.mark.parametrize("quotes", ["text", "csv"])
def test_a_short_row_of_tsv_is_left_out_alone(tmp_path, quotes):
    folder = write_folder(tmp_path / "data", "tsv")
    with open(folder / "train.tsv", "a", encoding="utf-8") as file:
        file.write("क\tख\n" + "क\tख\tneutral\n")
    splits, _ = read(folder, tmp_path, quotes=quotes, bad_rows="skip")
    assert len(splits["train"].labels) == 6
    with pytest.raises(DataError, match=r"train row 6 \(line 7\) has 2 fields"):
        read(folder, tmp_path, quotes=quotes)


def test_without_test_there_are_two_splits(tmp_path):
    splits, _ = read(CASES / "no_test", tmp_path)
    assert set(splits) == {"train", "validation"}
    with pytest.raises(DataError, match="no split test"):
        read(CASES / "no_test", tmp_path, optional=())


def test_a_test_split_without_labels(tmp_path):
    splits, _ = read(CASES / "test_unlabelled", tmp_path)
    assert set(splits["test"].labels.tolist()) == {-1}
    with pytest.raises(DataError, match="must be a label"):
        read(CASES / "test_unlabelled", tmp_path, optional=())


def test_a_test_split_without_a_column_of_labels(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "label"} for row in rows_of()]
    folder = write_folder(tmp_path / "data", "csv", test=rows)
    assert set(read(folder, tmp_path)[0]["test"].labels.tolist()) == {-1}


def test_leaked_and_contradictory_rows_are_counted(tmp_path):
    notes = notes_of(CASES / "pairs", tmp_path)
    assert any("15 of 15 pairs stand in train" in note for note in notes)
    notes = notes_of(CASES / "same_pair_other_label", tmp_path)
    assert any("train: 1 pairs stand more than once, with different labels" in n for n in notes)
    encoding = load_pair_encoding(str(TOKENIZER))
    data = load_encoded(DataRequest(str(CASES / "pairs")), encoding, tmp_path)
    assert data.leaked == {"validation": list(range(15))}


@pytest.mark.parametrize("layout", ["saved", "parquet", "stems"])
def test_a_validation_split_by_another_name(tmp_path, layout):
    whole = class_label_dataset(list(NLI_CLASSES))
    splits = {"train": whole, "validation_matched": whole, "validation_mismatched": whole}
    folder = tmp_path / "data"
    if layout == "saved":
        datasets.DatasetDict(splits).save_to_disk(str(folder))
    else:
        folder.mkdir()
        ending = "-00000-of-00001.parquet" if layout == "parquet" else ".parquet"
        for split, rows in splits.items():
            rows.to_parquet(folder / f"{split}{ending}")
    with pytest.raises(DataError, match="matched.*`validation_split`"):
        read(folder, tmp_path)
    found, _ = read(folder, tmp_path, validation_split="validation_matched")
    assert set(found) == {"train", "validation"}


def test_two_languages_in_one_folder_are_told_by_name(tmp_path):
    for language in ("hi", "ur"):
        for split in SPLITS:
            rows = [{**row, "premise": f"{language} {row['premise']}"} for row in rows_of()]
            write_split(tmp_path / "data", f"{split}_{language}", "jsonl", rows)
    with pytest.raises(DataError, match="several configurations .hi, ur"):
        read(tmp_path / "data", tmp_path)
    splits, _ = read(tmp_path / "data", tmp_path, dataset_config="ur")
    assert all(text.startswith("ur ") for text in splits["test"].premises)
    named = DataRequest("xnli_hi", data_dir=str(tmp_path / "data"))
    assert load_texts(named, tmp_path)[0]["test"].premises[0].startswith("hi ")


def test_where_takes_rows_of_any_column(tmp_path):
    rows = [{**row, "genre": "ab"[i % 2], "n": i} for i, row in enumerate(rows_of() * 2)]
    folder = write_folder(tmp_path / "data", train=rows, validation=rows, test=rows)
    splits, _ = read(folder, tmp_path, where=("genre=a",))
    assert len(splits["train"].labels) == 5
    splits, _ = read(folder, tmp_path, where=("genre=a", "n=0", "n=2", "n=4"))
    assert splits["train"].premises == [SENTENCES[0], SENTENCES[2], SENTENCES[4]]
    for where, said in {
        "genre": "COLUMN=VALUE",
        "x=1": "no column x",
        "genre=c": "found a, b",
    }.items():
        with pytest.raises(DataError, match=said):
            read(folder, tmp_path, where=(where,))


@pytest.mark.parametrize("names", [None, ("Contradiction", "entailment", "NEUTRAL")])
def test_what_numbers_mean(tmp_path, names):
    rows = rows_of(lambda i: i)
    folder = write_folder(tmp_path / "data", **dict.fromkeys(SPLITS, rows))
    splits, classes = read(folder, tmp_path, label_names=names)
    assert classes == NLI_CLASSES
    order = [0, 1, 2] if names is None else [2, 0, 1]
    assert splits["train"].labels.tolist() == [order[i % 3] for i in range(5)]
    said = any(
        "labels are numbers" in note for note in notes_of(folder, tmp_path, label_names=names)
    )
    assert said == (names is None)


def test_names_in_one_set_and_numbers_in_another_are_not_joined(tmp_path):
    encoding = load_pair_encoding(str(TOKENIZER))
    folders = {
        "names": write_folder(tmp_path / "names"),
        "numbers": write_folder(tmp_path / "n", **dict.fromkeys(SPLITS, rows_of(lambda i: i))),
    }

    def sets(**request):
        return {
            name: load_encoded(DataRequest(str(folder), **request), encoding, tmp_path)
            for name, folder in folders.items()
        }

    with pytest.raises(DataError, match="numbers.*names: .*`label_names`"):
        joined(sets())
    assert joined(sets(label_names=NLI_CLASSES)).classes == NLI_CLASSES


def test_names_of_two_classes_keep_their_order(tmp_path):
    rows = rows_of(lambda i: min(i, 1))
    folder = write_folder(tmp_path / "data", **dict.fromkeys(SPLITS, rows))
    names = ("not_entailment", "entailment")
    assert read(folder, tmp_path, label_names=names)[1] == names


def test_carried_columns_come_along(tmp_path):
    rows = [{**row, "genre": "ab"[i % 2]} for i, row in enumerate(rows_of())]
    folder = write_folder(tmp_path / "data", **dict.fromkeys(SPLITS, rows))
    splits, _ = read(folder, tmp_path, carry_columns=("genre",))
    assert splits["test"].carried == {"genre": ["a", "b", "a", "b", "a"]}
    with pytest.raises(DataError, match="no column topic to carry"):
        read(folder, tmp_path, carry_columns=("topic",))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_compressed_files_are_those_that_were_compressed(tmp_path, kind):
    write_folder(tmp_path / "plain", kind)
    shutil.copytree(tmp_path / "plain", tmp_path / "packed")
    for path in list((tmp_path / "packed").iterdir()):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    plain, packed = (read(tmp_path / name, tmp_path)[0] for name in ("plain", "packed"))
    assert plain["train"].premises == packed["train"].premises
    whole = (tmp_path / "packed" / f"train.{kind}.gz").read_bytes()
    (tmp_path / "packed" / f"train.{kind}.gz").write_bytes(whole[:-10])
    with pytest.raises(DataError, match="can't be read"):
        read(tmp_path / "packed", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        lambda rows: json.dumps(rows),
        lambda rows: json.dumps({"version": "1", "data": rows}),
        lambda rows: "\n".join(map(json.dumps, rows)),
        lambda rows: json.dumps(rows, indent=2),
    ],
    ids=["array", "array in an object", "lines", "indented"],
)
def test_json_of_any_shape(tmp_path, text):
    folder = write_folder(tmp_path / "data", "json")
    (folder / "train.json").write_text(text(rows_of()))
    assert read(folder, tmp_path)[0]["train"].premises == [r["premise"] for r in rows_of()]


@pytest.mark.parametrize("text", ["3", "[1, 2]", "{", '{"a": 1}', ""])
def test_json_that_is_no_table(tmp_path, text):
    folder = write_folder(tmp_path / "data", "json")
    (folder / "train.json").write_text(text)
    with pytest.raises(DataError, match=r"train\.json"):
        read(folder, tmp_path)


def test_a_spreadsheet_in_utf16_is_called_that(tmp_path):
    folder = write_folder(tmp_path / "data", "csv")
    text = (folder / "train.csv").read_text(encoding="utf-8")
    (folder / "train.csv").write_bytes(text.encode("utf-16"))
    with pytest.raises(DataError, match="not UTF-8 but UTF-16"):
        read(folder, tmp_path)


def test_fields_of_any_length_of_csv_are_read_up_to_the_limit(tmp_path):
    rows = [{**row, "premise": "क" * (csv.field_size_limit() - 1)} for row in rows_of()]
    folder = write_folder(tmp_path / "data", "csv", train=rows)
    assert len(read(folder, tmp_path)[0]["train"].premises[0]) == csv.field_size_limit() - 1


def test_lengths_are_those_of_the_rows_that_are_left(tmp_path):
    encoding = load_pair_encoding(str(TOKENIZER))
    request = DataRequest(str(CASES / "gold_dash"), bad_rows="skip")
    data = load_encoded(request, encoding, tmp_path)
    assert len(data.splits["train"]) == 34 and (np.diff(data.splits["train"].offsets) > 0).all()


def test_a_quoted_field_of_csv_that_holds_another_row_is_a_question(tmp_path):
    """It begins with a quotation mark that was a letter, and ends where another text ends so."""
    lines = ["premise,hypothesis,label", "क,ख,entailment", '"क,ख,neutral', 'क,ख",contradiction']
    lines = [*lines, "क,ख,neutral", "क,ख,contradiction", ""]
    folder = write_folder(tmp_path / "data", "csv")
    rows = "\n".join(lines).replace('"क,ख,neutral\nक,ख"', 'क,"ख,neutral\nक,ख"')
    (folder / "train.csv").write_text(rows)
    for options in ({}, {"bad_rows": "skip"}):
        with pytest.raises(DataError, match="row 2 has in hypothesis what looks like the end of"):
            read(folder, tmp_path, **options)
    splits, _ = read(folder, tmp_path, quotes="csv")
    assert splits["train"].hypotheses[1] == "ख,neutral\nक,ख"


def test_texts_of_several_lines_are_texts(tmp_path):
    rows = [{**row, "premise": "first, second\nthird, fourth\nneutral"} for row in rows_of()]
    folder = write_folder(tmp_path / "data", "csv", train=rows)
    assert read(folder, tmp_path)[0]["train"].premises[0] == rows[0]["premise"]
