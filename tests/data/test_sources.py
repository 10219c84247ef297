"""Where rows come from: folders, repositories, saved and built-in datasets, the Hub."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
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
    write_hub_repository,
    write_raw,
    write_split,
)
from limits import HANG_S
from shell import ROOT

from xnli_gpt.choices import SPLITS
from xnli_gpt.data import sources
from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tables import DATA_KINDS
from xnli_gpt.errors import DataError


@pytest.mark.parametrize(
    ("dataset", "language"), [("hindi_xnli", "hi"), ("xnli_ur", "ur"), ("xnli_en", "en")]
)
def test_hub_repository_copied_to_a_folder(tmp_path, dataset, language):
    folder = write_hub_repository(tmp_path / "xnli")
    splits, classes = load_texts(DataRequest(dataset, data_dir=str(folder)), tmp_path / "cache")
    assert classes == NLI_CLASSES
    assert set(splits) == set(SPLITS)
    for split in SPLITS:
        rows = [{**r, "premise": f"{language} {split} {r['premise']}"} for r in rows_of()]
        assert pairs_of(splits[split]) == expected_pairs(rows)


def test_a_language_missing_in_the_repository_is_an_error(tmp_path):
    folder = write_hub_repository(tmp_path / "xnli")
    with pytest.raises(DataError, match="'fr' not found"):
        load_texts(DataRequest("xnli_fr", data_dir=str(folder)), tmp_path / "cache")


def write_repository_with_features(folder, kind, rows, label):
    for split in SPLITS:
        write_split(folder / "data", split, kind, rows)
    features = [{"name": column, "dtype": "string"} for column in COLUMNS[:2]]
    card = {"dataset_info": {"features": [*features, {"name": "label", "dtype": label}]}}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    return folder


def test_class_names_of_the_card_are_followed_in_csv(tmp_path):
    label = {"class_label": {"names": dict(enumerate(reversed(NLI_CLASSES)))}}
    rows = rows_of(lambda i: 2 - i)
    folder = write_repository_with_features(tmp_path / "data", "csv", rows, label)
    splits, _ = texts_of(folder, tmp_path / "cache")
    assert pairs_of(splits["train"]) == expected_pairs()


def test_dates_stay_as_they_are_written(tmp_path):
    rows = [{**row, "premise": "2020-01-01"} for row in rows_of()]
    folder = write_repository_with_features(tmp_path / "data", "jsonl", rows, "string")
    splits, _ = texts_of(folder, tmp_path / "cache")
    assert pairs_of(splits["train"]) == expected_pairs(rows)


@pytest.mark.parametrize("kind", DATA_KINDS)
@pytest.mark.parametrize("num_shards", [None, 2])
def test_local_folder_in_every_format(tmp_path, kind, num_shards):
    rows = rows_of()
    write_folder(tmp_path / "data", kind, splits=SPLITS if num_shards is None else SPLITS[1:])
    for shard in range(num_shards or 0):
        some = rows[:3] if shard == 0 else rows[3:]
        write_split(tmp_path / "data", f"train-0000{shard}-of-00002", kind, some)
    splits, classes = texts_of(tmp_path / "data", tmp_path / "cache")
    assert classes == NLI_CLASSES
    assert pairs_of(splits["train"]) == pairs_of(splits["test"]) == expected_pairs()


@pytest.mark.parametrize("name", ["data [v2]", "csv", ".hidden", "data.git/copy"])
@pytest.mark.parametrize("inside", [".", "data"])
def test_any_folder_name_will_do(tmp_path, monkeypatch, name, inside):
    if "[" in name and inside == "data":
        pytest.skip("datasets takes the brackets of a repository's own folder for a pattern")
    write_folder(tmp_path / name / inside)
    monkeypatch.chdir(tmp_path)
    splits, _ = texts_of(f"./{name}" if "git" in name else name, tmp_path / "cache")
    assert pairs_of(splits["train"]) == expected_pairs()


@pytest.mark.parametrize("names", [NLI_CLASSES, NLI_CLASSES[::-1], ("Neutral", "X", "ENTAILMENT")])
def test_save_to_disk_folder_goes_by_class_names(tmp_path, names):
    folded = [name.casefold().replace("x", "contradiction") for name in names]
    in_order = class_label_dataset(folded)
    names = [name.replace("X", "contradictory") for name in names]
    dataset = in_order.cast_column("label", datasets.ClassLabel(names=names))
    datasets.DatasetDict(dict.fromkeys(SPLITS, dataset)).save_to_disk(str(tmp_path / "saved"))
    splits, classes = texts_of(tmp_path / "saved", tmp_path / "cache")
    assert classes == NLI_CLASSES
    assert pairs_of(splits["validation"]) == expected_pairs()


def test_a_dataset_saved_without_splits_is_an_error(tmp_path):
    class_label_dataset(list(NLI_CLASSES)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match="without splits"):
        texts_of(tmp_path / "saved", tmp_path / "cache")


def test_builtin_dataset(tmp_path):
    with built_in(rows_of()):
        splits, classes = texts_of("built-in", tmp_path)
    assert pairs_of(splits["test"]) == expected_pairs()
    assert classes == NLI_CLASSES


def test_only_the_splits_asked_for_are_needed(tmp_path):
    write_folder(tmp_path / "data", splits=("test",))
    splits, _ = texts_of(tmp_path / "data", tmp_path / "cache", splits=("test",))
    assert list(splits) == ["test"]


def test_other_column_names(tmp_path):
    rows = [{"a": r["premise"], "b": r["hypothesis"], "gold": r["label"]} for r in rows_of()]
    write_folder(tmp_path / "data", "tsv", **dict.fromkeys(SPLITS, rows))
    columns = {"text_columns": ("a", "b"), "label_column": "gold"}
    splits, _ = texts_of(tmp_path / "data", tmp_path / "cache", **columns)
    assert pairs_of(splits["train"]) == expected_pairs()


def make_file(folder):
    folder.write_text("x")


def make_two_formats(folder):
    write_folder(folder)
    write_split(folder, "train", "csv", rows_of())


def make_shard_missing(folder):
    write_folder(folder, splits=("validation", "test"))
    write_split(folder, "train-00001-of-00002", "jsonl", rows_of())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no such folder"),
        (make_file, "a file"),
        (Path.mkdir, "found nothing"),
        (make_two_formats, "train.csv and train.jsonl are both train"),
        (make_shard_missing, "found only train-00001-of-00002.jsonl"),
        (lambda folder: write_folder(folder, splits=("train", "test")), "no split validation"),
        (lambda folder: write_raw(folder, "jsonl", "\n\n"), "train is empty"),
        (lambda folder: write_raw(folder, "csv", "premise,hypothesis,label\n"), "train is empty"),
        (lambda folder: write_raw(folder, "parquet", "garbage"), "can't read"),
        (
            lambda folder: write_raw(folder, "jsonl", b"\xff\xfe{}"),
            r"train.jsonl: train row 1 \(line 1\) is not UTF-8",
        ),
        (lambda folder: write_raw(folder, "csv", b"premise,hypothesis,label\n\xe0,a,0"), "UTF-8"),
        (lambda folder: write_raw(folder, "jsonl", "[1]\n"), "no object"),
        (lambda folder: write_raw(folder, "jsonl", "{oops\n"), r"row 1 \(line 1\) is not JSON"),
    ],
)
def test_unusable_folder(tmp_path, make, said):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=said):
        texts_of(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_a_split_without_rows_is_an_error(tmp_path, kind):
    whole = class_label_dataset(list(NLI_CLASSES))
    splits = datasets.DatasetDict(dict.fromkeys(SPLITS, whole) | {"test": whole.select([])})
    (tmp_path / "data").mkdir()
    if kind == "saved":
        splits.save_to_disk(str(tmp_path / "data"))
    else:
        for split, rows in splits.items():
            rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    with pytest.raises(DataError, match="test.*(empty|no data)"):
        texts_of(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (DataRequest("xnli_xx"), "no language xx"),
        (DataRequest("hindi_xnli", data_dir="/nowhere/at/all"), "no such folder"),
        (DataRequest("hindi_xnli", data_dir=__file__), "no such folder"),
        (DataRequest("./nowhere"), "no such folder"),
    ],
)
def test_a_dataset_that_is_not_there(tmp_path, request_, said):
    with pytest.raises(DataError, match=said):
        load_texts(request_, tmp_path)


def test_hub_name_without_network(tmp_path):
    program = """
        import sys, time
        from xnli_gpt.data import sources
        from xnli_gpt.data.cache import load_texts
        from xnli_gpt.data.request import DataRequest
        from xnli_gpt.errors import DataError
        sources._hub_reachable = lambda: False
        time.sleep = lambda seconds: print("waited before another try")
        try:
            load_texts(DataRequest("hindi_xnli"), sys.argv[1])
        except DataError as error:
            print(error)
    """
    environment = {**os.environ, "HF_HOME": str(tmp_path / "empty")}
    environment.pop("HF_HUB_OFFLINE", None)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=ROOT,
        env=environment,
    )
    message = run.stdout.splitlines()
    assert len(message) == 1
    for part in ("hindi_xnli", "no network", "`prepare_only`", "local folder"):
        assert part in message[0]


def test_what_the_hub_raises_is_said_in_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such thing\nand more")

    monkeypatch.setattr(sources, "_hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"can't load some/name \(no such thing\)"):
        load_texts(DataRequest("some/name"), tmp_path)
