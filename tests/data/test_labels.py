"""Labels are matched by name; what is none, or is not in train, is refused."""

import pytest
from data_parts import built_in, class_label_dataset, expected_pairs, pairs_of, texts_of

from xnli_gpt.choices import SPLITS
from xnli_gpt.data import sources
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.errors import DataError


def label_rows(labels):
    return [{"premise": "क", "hypothesis": "ख", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "classes", "ids"),
    [
        ([2, 0, 1], NLI_CLASSES, [2, 0, 1]),
        (["2", "0", "1"], NLI_CLASSES, [2, 0, 1]),
        (["Contradiction", " NEUTRAL", "entailment"], NLI_CLASSES, [2, 1, 0]),
        (["contradictory", "neutral", "entailment"], NLI_CLASSES, [2, 1, 0]),
        (["yes", "no", "Yes"], ("no", "yes"), [1, 0, 1]),
        (["not_entailment", "entailment"], ("entailment", "not_entailment"), [1, 0]),
        ([1, 0], ("0", "1"), [1, 0]),
        ([True, False], ("false", "true"), [1, 0]),
    ],
)
def test_labels_by_name(tmp_path, labels, classes, ids):
    with built_in(label_rows(labels)):
        splits, found = texts_of("built-in", tmp_path)
    assert found == classes
    assert splits["train"].labels.tolist() == ids


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 2, -1], "row 4 has -1"),
        ([0, 1, 2, None], "row 4 has None"),
        ([0.0, 1.0, 2.0], "row 1 has 0.0"),
        (["0.0", "1.0", "2.0"], "row 1 has '0.0'"),
        (["entailment", "neutral", "contradiction", ""], "row 4 has ''"),
        (["entailment", "neutral", "contradiction", "nan"], "row 4 has 'nan'"),
        (["entailment", "neutral", "contradiction", "-"], "row 4 has '-'"),
        ([0, 1, 2, 7], "no example of 3, 4, 5, 6 in train.*row 4 has 7"),
        (["entailment", "neutral", "1"], r"names \(train row 1: e.*numbers \(train row 3: 1\)"),
        (["entailment", "neutral"], "no example of contradiction in train"),
        ([0, 2], "no example of neutral in train"),
        (["yes", "yes"], "only one class"),
    ],
)
def test_bad_labels_in_train(tmp_path, labels, said):
    with built_in(label_rows(labels)), pytest.raises(DataError, match=said):
        texts_of("built-in", tmp_path)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (["yes", "no"], ["yes", "maybe"], "test: unknown label.*row 2 has 'maybe'"),
        (["yes", "no"], [0, 1], r"names \(train row 1: yes\).*numbers \(test row 1: 0\)"),
        ([0, 1], ["0", "2"], "test: unknown label.*row 2 has 2"),
        ([0, 1, 2], [0, 3], "test: unknown label.*row 2 has 3"),
    ],
)
def test_a_label_that_train_does_not_have(tmp_path, monkeypatch, train, test, said):
    splits = {split: label_rows(train) for split in SPLITS} | {"test": label_rows(test)}
    monkeypatch.setitem(sources.BUILTIN, "built-in", lambda: splits)
    with pytest.raises(DataError, match=said):
        texts_of("built-in", tmp_path)


def test_num_classes_is_checked(tmp_path):
    with built_in(label_rows(["no", "yes"])):
        assert texts_of("built-in", tmp_path, num_classes=2)[1] == ("no", "yes")
        with pytest.raises(DataError, match="`num_classes` 3"):
            texts_of("built-in", tmp_path, num_classes=3)
    with built_in(label_rows([*NLI_CLASSES, "unrelated"])):
        assert texts_of("built-in", tmp_path, num_classes=4)[1][3] == "unrelated"


@pytest.mark.parametrize("layout", ["splits", "shards", "repository"])
def test_parquet_files_with_their_classes_in_different_orders(tmp_path, layout):
    folder = tmp_path / "data" / ("inside" if layout == "repository" else "")
    folder.mkdir(parents=True)
    stems = ["train", "validation", "test"]
    if layout == "shards":
        stems[:1] = ["train-00000-of-00002", "train-00001-of-00002"]
    for i, stem in enumerate(stems):
        names = list(NLI_CLASSES[::-1] if i == 1 else NLI_CLASSES)
        class_label_dataset(names).to_parquet(folder / f"{stem}.parquet")
    if layout != "shards":
        splits, _ = texts_of(tmp_path / "data", tmp_path / "cache")
        assert pairs_of(splits["train"]) == pairs_of(splits["validation"]) == expected_pairs()
    else:
        with pytest.raises(DataError, match="one order of names"):
            texts_of(tmp_path / "data", tmp_path / "cache")
