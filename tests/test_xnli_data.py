import csv
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import HANG_S
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from xnli_gpt.choices import SPLITS, TEMPLATES
from xnli_gpt.data import cache, sources, text_files
from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.encoded import collate, pack
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.text_files import TEXT_FORMATS
from xnli_gpt.data.tokenizer import (
    END_OF_TEXT_TOKENS,
    PairEncoding,
    cuts_vowel_signs,
    load_pair_encoding,
)
from xnli_gpt.errors import DataError

REPOSITORY = Path(__file__).parent.parent
COLUMNS = ("premise", "hypothesis", "label")
END = "<|endoftext|>"
SENTENCES = [
    "राम ने बाज़ार से किताबें खरीदीं और घर लौट आया।",
    "सीता पानी पी रही थी जब बारिश शुरू हुई।",
    "बच्चे मैदान में खेल रहे हैं।",
    "उसने कहा कि वह कल दिल्ली जाएगी।",
    "किसी ने भी दरवाज़ा नहीं खोला।",
    "यह पुस्तक बहुत पुरानी है, पर अच्छी है।",
]
WORDS_WITH_THEIR_SIGNS = r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"


def rows_of(label_of=NLI_CLASSES.__getitem__):
    return [
        {"premise": SENTENCES[i], "hypothesis": SENTENCES[i + 1], "label": label_of(i % 3)}
        for i in range(5)
    ]


def as_jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def as_delimited(rows, separator):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_split(folder, stem, kind, rows):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text(as_jsonl(rows), encoding="utf-8")
    else:
        path.write_bytes(as_delimited(rows, {"csv": ",", "tsv": "\t"}[kind]).encode())


def write_folder(folder, kind="jsonl", splits=SPLITS, **rows_by_split):
    for split in splits:
        write_split(folder, split, kind, rows_by_split.get(split) or rows_of())
    return folder


def write_raw(folder, kind, train):
    """A sound folder but for its train split, which is these bytes."""
    write_folder(folder, kind, splits=("validation", "test"))
    (folder / f"train.{kind}").write_bytes(train if isinstance(train, bytes) else train.encode())
    return folder


def texts_of(folder, cache_dir, builtin=None, **request):
    return load_texts(DataRequest(str(folder), **request), cache_dir, builtin)


def pairs_of(split):
    return list(zip(split.premises, split.hypotheses, split.labels.tolist(), strict=True))


def expected_pairs(rows=None, classes=NLI_CLASSES):
    return [
        (row["premise"], row["hypothesis"], classes.index(row["label"]))
        for row in rows or rows_of()
    ]


def class_label_dataset(names, rows=None):
    rows = rows or rows_of()
    text = datasets.Value("string")
    features = {"premise": text, "hypothesis": text, "label": datasets.ClassLabel(names=names)}
    table = {column: [row[column] for row in rows] for column in COLUMNS}
    table["label"] = [names.index(label) for label in table["label"]]
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


def train_tokenizer(pattern=None, special_tokens=("<pad>", END)):
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = byte_level
    if pattern is not None:
        words = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special_tokens),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers") / "bpe-hindi.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def encoding(tokenizer_path):
    return load_pair_encoding(str(tokenizer_path))


def encoding_of(tokenizer, path, **options):
    tokenizer.save(str(path))
    return load_pair_encoding(str(path), **options)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def builtin_of(rows):
    return {"built-in": lambda: dict.fromkeys(SPLITS, rows)}


def encode_rows(rows, encoding, cache_dir):
    return load_encoded(DataRequest("built-in"), encoding, cache_dir, builtin_of(rows))


# Sources


def write_hub_repository(folder):
    card = {"configs": [], "dataset_info": []}
    names = {str(i): name for i, name in enumerate(NLI_CLASSES)}
    for language in ("en", "hi", "ur"):
        (folder / language).mkdir(parents=True)
        for split in SPLITS:
            rows = [
                {**row, "premise": f"{language} {split} {row['premise']}"}
                for row in rows_of(lambda i: i)
            ]
            write_split(folder / language, f"{split}-00000-of-00001", "parquet", rows)
        card["configs"].append(
            {
                "config_name": language,
                "data_files": [{"split": s, "path": f"{language}/{s}-*"} for s in SPLITS],
            }
        )
        text_features = [{"name": column, "dtype": "string"} for column in COLUMNS[:2]]
        label = {"name": "label", "dtype": {"class_label": {"names": names}}}
        card["dataset_info"].append({"config_name": language, "features": [*text_features, label]})
    # JSON is YAML.
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# XNLI\n")
    return folder


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


def test_dates_that_datasets_writes_in_another_way_are_refused(tmp_path):
    rows = [{**row, "premise": "2020-01-01"} for row in rows_of()]
    folder = write_repository_with_features(tmp_path / "data", "jsonl", rows, "string")
    with pytest.raises(DataError, match="row 1 is read as something else.*2020-01-01"):
        texts_of(folder, tmp_path / "cache")


@pytest.mark.parametrize("kind", TEXT_FORMATS)
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
    splits, classes = texts_of("built-in", tmp_path, builtin_of(rows_of()))
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
        (lambda folder: write_raw(folder, "jsonl", b"\xff\xfe{}"), "train.jsonl: not UTF-8"),
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
        cwd=REPOSITORY,
        env=environment,
    )
    message = run.stdout.splitlines()
    assert len(message) == 1
    for part in ("hindi_xnli", "no network", "--prepare_only", "local folder"):
        assert part in message[0]


def test_what_the_hub_raises_is_said_in_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise NotImplementedError("no such thing\nand more")

    monkeypatch.setattr(sources, "_hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"can't load some/name \(no such thing\)"):
        load_texts(DataRequest("some/name"), tmp_path)


# Labels


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
    splits, found = texts_of("built-in", tmp_path, builtin_of(label_rows(labels)))
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
        (["entailment", "neutral", "contradiction", "-"], "unknown label.*row 4 has '-'"),
        ([0, 1, 2, 7], "no example of 3, 4, 5, 6 in train.*row 4 has 7"),
        (["entailment", "neutral", "1"], r"names \(row 1\).*numbers \(row 3\)"),
        (["entailment", "neutral"], "no example of contradiction in train"),
        ([0, 2], "no example of neutral in train"),
        (["yes", "yes"], "only one class"),
    ],
)
def test_bad_labels_in_train(tmp_path, labels, said):
    with pytest.raises(DataError, match=said):
        texts_of("built-in", tmp_path, builtin_of(label_rows(labels)))


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (["yes", "no"], ["yes", "maybe"], "test: unknown label.*row 2 has 'maybe'"),
        (["yes", "no"], [0, 1], "test: unknown label.*row 1 has 0"),
        ([0, 1], ["0", "2"], "test: unknown label.*row 2 has 2"),
        ([0, 1, 2], [0, 3], "test: unknown label.*row 2 has 3"),
    ],
)
def test_a_label_that_train_does_not_have(tmp_path, train, test, said):
    splits = {split: label_rows(train) for split in SPLITS} | {"test": label_rows(test)}
    with pytest.raises(DataError, match=said):
        texts_of("built-in", tmp_path, {"built-in": lambda: splits})


def test_num_classes_is_checked(tmp_path):
    rows = builtin_of(label_rows(["no", "yes"]))
    assert texts_of("built-in", tmp_path, rows, num_classes=2)[1] == ("no", "yes")
    with pytest.raises(DataError, match="--num_classes 3"):
        texts_of("built-in", tmp_path, rows, num_classes=3)
    four = builtin_of(label_rows([*NLI_CLASSES, "unrelated"]))
    assert texts_of("built-in", tmp_path, four, num_classes=4)[1][3] == "unrelated"


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
    if layout == "splits":
        splits, _ = texts_of(tmp_path / "data", tmp_path / "cache")
        assert pairs_of(splits["train"]) == pairs_of(splits["validation"]) == expected_pairs()
    else:
        with pytest.raises(DataError, match="one order of names"):
            texts_of(tmp_path / "data", tmp_path / "cache")


# Texts


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
    with pytest.raises(DataError, match=rf"test\.{kind}: test: column hypothesis.*row 4 is empty"):
        texts_of(tmp_path / "data", tmp_path / "cache")


@pytest.mark.parametrize("value", [7, 1.5, None, True, ["a"], {"a": "b"}])
def test_a_text_that_is_none_in_jsonl(tmp_path, value):
    rows = rows_of()
    rows[2]["premise"] = value
    write_folder(tmp_path / "data", train=rows)
    with pytest.raises(DataError, match=r"train\.jsonl: train row 3 \(line 3\).*premise"):
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
        ("jsonl", json.dumps({"premise": ["x" * 9999], "hypothesis": "", "label": 0}), "x…"),
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


@pytest.mark.parametrize("kind", TEXT_FORMATS)
def test_texts_come_out_exactly_as_in_the_file(tmp_path, kind):
    write_folder(tmp_path / "data", kind, train=tricky_rows())
    splits, _ = texts_of(tmp_path / "data", tmp_path / "cache")
    assert pairs_of(splits["train"]) == expected_pairs(tricky_rows())


@pytest.mark.parametrize("text", ["NA", "null", "nan", "1e5", "2020-01-01", "True", "007", "1"])
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
@pytest.mark.parametrize("inside", [".", "data"])
def test_a_column_of_one_such_text_is_exact_or_refused(tmp_path, text, kind, inside):
    rows = [{**row, "premise": text} for row in rows_of()]
    write_folder(tmp_path / "data" / inside, kind, train=rows)
    try:
        splits, _ = texts_of(tmp_path / "data", tmp_path / "cache")
    except DataError as error:
        assert str(tmp_path / "data") in str(error)
        assert inside == "data" or (kind, text) == ("jsonl", "2020-01-01")
    else:
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
    splits, _ = texts_of("built-in", tmp_path, builtin_of(rows))
    assert splits["train"].premises == [f" {row['premise']}\t" for row in rows_of()]


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.text(
    "\"',\t\r\n\\ aक\u0941\ufeff\u2028", min_size=1, max_size=8
)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "unquoted"])
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(texts=st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=3, max_size=4))
def test_any_text_comes_out_exactly_or_is_refused(tmp_path_factory, kind, texts):
    folder = tmp_path_factory.mktemp("any")
    classes = (*NLI_CLASSES, "entailment")
    rows = [dict(zip(COLUMNS, (*t, c), strict=True)) for t, c in zip(texts, classes, strict=False)]
    if kind == "unquoted":
        # A file of a writer that knows nothing of quotes: its fields are what stands between tabs.
        lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in rows)]
        write_raw(folder / "data", "tsv", "\n".join(lines))
    else:
        write_folder(folder / "data", kind, splits=("train",), train=rows)
    try:
        loaded, _ = texts_of(folder / "data", folder / "cache", splits=("train",))
    except DataError:
        every = [text for pair in texts for text in pair]
        sound = {
            "jsonl": lambda text: True,
            "unquoted": str.isalnum,
        }.get(kind, lambda text: "\r" not in text)  # csv.writer leaves that one unquoted
        assert not all(text.strip() and sound(text) for text in every)
        return
    if kind == "unquoted" and any(c in text for pair in texts for text in pair for c in '\t\r\n"'):
        return  # what such a file says is not what its writer meant
    stripped = [(premise.strip("\r\n"), hypothesis.strip("\r\n")) for premise, hypothesis in texts]
    assert [pair[:2] for pair in pairs_of(loaded["train"])] == stripped


# Encoding


@pytest.mark.parametrize(
    ("template", "parts"),
    [("documents", "EPEHE"), ("group", "PEH")],
)
def test_a_pair_as_tokens(tmp_path, tokenizer_path, tokenizer, template, parts):
    encoding = load_pair_encoding(str(tokenizer_path), template=template)
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    for i, row in enumerate(rows_of()):
        premise, hypothesis = (ids_of(tokenizer, row[column]) for column in COLUMNS[:2])
        pieces = {"E": [tokenizer.token_to_id(END)], "P": premise, "H": hypothesis}
        expected = [token for part in parts for token in pieces[part]]
        assert split.row(i).tolist() == expected
        assert split.premise(i).tolist() == premise
        assert split.lengths[i] == len(expected)
    assert len(split) == len(rows_of())
    assert split.labels.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("template", ["documents", "group"])
def test_only_the_premise_is_cut(tmp_path, tokenizer, tokenizer_path, template):
    short, long = SENTENCES[2], SENTENCES[0]
    room = len(ids_of(tokenizer, long)) - 4
    rows = [{"premise": long, "hypothesis": short, "label": label} for label in NLI_CLASSES] + [
        {"premise": "क", "hypothesis": short, "label": "neutral"}
    ]
    specials = 3 if template == "documents" else 1
    block_size = len(ids_of(tokenizer, short)) + room + specials
    encoding = load_pair_encoding(str(tokenizer_path), template=template, block_size=block_size)
    data = encode_rows(rows, encoding, tmp_path)
    split = data.splits["train"]
    assert split.premise(0).tolist() == ids_of(tokenizer, long)[:room]
    hypothesis = split.row(0)[split.premise_spans[0].sum() + 1 :].tolist()
    assert hypothesis[: len(ids_of(tokenizer, short))] == ids_of(tokenizer, short)
    assert split.lengths.max() == block_size
    statistics = data.statistics["train"]
    assert statistics["cut_premises"] == 3
    assert statistics["rows"] == 4
    assert statistics["longest_pair"] == block_size
    assert statistics["tokens_per_pair"] == split.lengths.mean()


def test_a_hypothesis_that_fills_the_block_is_an_error(tmp_path, tokenizer, tokenizer_path):
    block_size = len(ids_of(tokenizer, SENTENCES[1])) + 3
    encoding = load_pair_encoding(str(tokenizer_path), block_size=block_size)
    with pytest.raises(DataError, match=f"train row 1:.*--block_size {block_size}"):
        encode_rows(rows_of(), encoding, tmp_path)


def test_token_id_zero_is_an_ordinary_token(tmp_path):
    tokenizer = train_tokenizer(special_tokens=[END])
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    assert vocabulary[END] == 0
    encoding = encoding_of(tokenizer, tmp_path / "zero.json")
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    row = split.row(0)
    assert row[0] == row[-1] == 0
    assert (row == 0).sum() == 3
    ids, lengths, _ = collate(split, [0, 2])
    assert lengths.tolist() == [len(split.row(0)), len(split.row(2))]
    assert ids[0, : lengths[0]].tolist() == row.tolist()


def test_what_the_file_says_of_rows_is_switched_off(tmp_path, tokenizer):
    dressed = Tokenizer.from_str(tokenizer.to_str())
    dressed.enable_truncation(3)
    dressed.enable_padding(length=50, pad_token="<pad>")
    dressed.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, dressed.token_to_id(END))]
    )
    parsed = json.loads(dressed.to_str())
    parsed["model"]["dropout"] = 0.9
    (tmp_path / "dressed.json").write_text(json.dumps(parsed))
    plain = encode_rows(rows_of(), encoding_of(tokenizer, tmp_path / "plain.json"), tmp_path)
    dressed = load_pair_encoding(str(tmp_path / "dressed.json"))
    got = encode_rows(rows_of(), dressed, tmp_path)
    assert got.splits["train"].tokens.tolist() == plain.splits["train"].tokens.tolist()


@pytest.mark.parametrize("special", [True, False])
def test_special_tokens_spelled_in_the_text_are_text(tmp_path, tokenizer, special):
    spelled = Tokenizer.from_str(tokenizer.to_str())
    parsed = json.loads(spelled.to_str())
    for added in parsed["added_tokens"]:
        added["special"] = special or added["content"] != END
    (tmp_path / "tokenizer.json").write_text(json.dumps(parsed))
    encoding = load_pair_encoding(str(tmp_path))
    text = f"क {END} ख <pad>"
    rows = [{**row, "premise": text, "hypothesis": text} for row in rows_of()]
    split = encode_rows(rows, encoding, tmp_path).splits["train"]
    assert (split.row(0) == encoding.end_of_text).sum() == 3
    assert tokenizer.token_to_id("<pad>") not in split.row(0)
    assert tokenizer.decode(split.premise(0).tolist(), skip_special_tokens=False) == text


def test_each_distinct_text_is_encoded_once(tmp_path, encoding, monkeypatch):
    encoded = []
    tokenizer = type(encoding.tokenizer)
    original = tokenizer.encode_batch_fast

    class Watched:
        def __getattr__(self, name):
            return getattr(encoding.tokenizer, name)

        def encode_batch_fast(self, texts, **options):
            encoded.extend(texts)
            return original(encoding.tokenizer, texts, **options)

    watched = PairEncoding(
        Watched(), encoding.tokenizer_hash, encoding.end_of_text, "documents", 1024
    )
    monkeypatch.setattr("xnli_gpt.data.pairs.ENCODE_CHUNK", 4)
    data = encode_rows(rows_of(), watched, tmp_path / "watched")
    assert sorted(encoded) == sorted(SENTENCES)
    plain = encode_rows(rows_of(), encoding, tmp_path / "plain")
    assert data.splits["test"].tokens.tolist() == plain.splits["test"].tokens.tolist()


def random_rows(num_rows):
    """Pairs of beginnings of one text, so that texts come again."""
    pick = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()
    lengths = pick.integers(1, 12, size=(num_rows, 2))
    labels = [*range(3), *pick.integers(3, size=num_rows - 3).tolist()]
    return [
        {"premise": " ".join(words[:p]), "hypothesis": " ".join(words[:h]), "label": label}
        for (p, h), label in zip(lengths, labels, strict=True)
    ]


def joined_row_by_row(rows, encoding):
    """Rows, premise spans and statistics, straight from the rule: the premise is cut to fit."""
    template = TEMPLATES[encoding.template]
    joined, spans, num_cut, num_text_tokens, num_words = [], [], 0, 0, 0
    for row in rows:
        premise, hypothesis = (ids_of(encoding.tokenizer, row[column]) for column in COLUMNS[:2])
        kept = premise[: encoding.block_size - encoding.num_special_tokens - len(hypothesis)]
        parts = {"premise": kept, "hypothesis": hypothesis, "end_of_text": [encoding.end_of_text]}
        joined.append([token for part in template for token in parts[part]])
        spans.append([template.index("premise"), len(kept)])
        num_cut += len(kept) < len(premise)
        num_text_tokens += len(premise) + len(hypothesis)
        num_words += len(row["premise"].split()) + len(row["hypothesis"].split())
    lengths = [len(row) for row in joined]
    statistics = {
        "rows": len(rows),
        "cut_premises": num_cut,
        "tokens_per_pair": sum(lengths) / len(rows),
        "longest_pair": max(lengths),
        "tokens_per_word": num_text_tokens / num_words,
    }
    return joined, spans, statistics


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("block_size", [45, 1024])
def test_rows_are_those_of_a_loop_over_rows(
    tmp_path, tokenizer_path, monkeypatch, template, block_size
):
    monkeypatch.setattr("xnli_gpt.data.pairs.ENCODE_CHUNK", 5)
    monkeypatch.setattr("xnli_gpt.data.pairs.JOIN_CHUNK", 16)
    encoding = load_pair_encoding(str(tokenizer_path), template=template, block_size=block_size)
    rows = random_rows(50)
    expected, spans, statistics = joined_row_by_row(rows, encoding)
    data = encode_rows(rows, encoding, tmp_path)
    split = data.splits["train"]
    assert split.tokens.tolist() == [token for row in expected for token in row]
    assert split.offsets.tolist() == [0, *np.cumsum([len(row) for row in expected])]
    assert split.premise_spans.tolist() == spans
    assert split.labels.tolist() == [row["label"] for row in rows]
    arrays = (split.tokens, split.offsets, split.premise_spans, split.labels)
    assert [array.dtype for array in arrays] == [np.uint16, np.int64, np.int32, np.int64]
    assert data.statistics == dict.fromkeys(SPLITS, statistics)
    assert (statistics["cut_premises"] > 0) == (block_size == 45)
    pairs = [(row["premise"], row["hypothesis"]) for row in rows]
    assert [row.tolist() for row in encode_pairs(pairs, encoding)] == expected


def test_no_pairs_are_no_rows(encoding):
    assert encode_pairs([], encoding) == []


def test_the_first_row_that_can_not_be_joined_is_named(tmp_path, tokenizer_path):
    latin = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(special_tokens=[END], show_progress=False)
    latin.train_from_iterator(["abc"] * 4, trainer)
    encoding = encoding_of(latin, tmp_path / "latin.json", block_size=8)
    for pairs, said in [
        ([("a", "b"), ("a", "क"), ("क", "a")], "pair 2: .* no token for the hypothesis"),
        ([("a", "b"), ("क", "ख"), ("a", "क")], "pair 2: .* no token for the premise"),
        ([("a", "b"), ("क", "abacada"), ("a", "b")], "pair 2: .* no token for the premise"),
        ([("a", "b"), ("a", "b"), ("a", "bbbbb"), ("क", "b")], "pair 3: a hypothesis of 5 tokens"),
    ]:
        with pytest.raises(DataError, match=said):
            encode_pairs(pairs, encoding)


class WatchedTokenizer:
    """A tokenizer that calls `watch` before each batch."""

    def __init__(self, tokenizer, watch):
        self.tokenizer, self.watch = tokenizer, watch

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode_batch_fast(self, texts, **options):
        self.watch()
        return self.tokenizer.encode_batch_fast(texts, **options)


@pytest.mark.parametrize("num_cores", [1, 3])
def test_as_many_chunks_at_a_time_as_the_process_has_cores(encoding, monkeypatch, num_cores):
    """Each batch waits until one has begun on every core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    monkeypatch.setattr("xnli_gpt.data.pairs.ENCODE_CHUNK", 1)
    barrier = threading.Barrier(num_cores)
    threads = set()

    def watch():
        threads.add(threading.get_ident())
        barrier.wait(timeout=HANG_S)

    watched = PairEncoding(
        WatchedTokenizer(encoding.tokenizer, watch), "", encoding.end_of_text, "documents", 1024
    )
    pairs = list(zip(SENTENCES[::2], SENTENCES[1::2], strict=True))
    rows = encode_pairs(pairs, watched)
    assert len(threads) == num_cores
    for row, expected in zip(rows, encode_pairs(pairs, encoding), strict=True):
        assert row.tolist() == expected.tolist()


@pytest.mark.parametrize("parallelism", [None, "true", "false"])
def test_tokenising_before_and_after_a_fork(tokenizer_path, parallelism):
    program = f"""
        import os, signal
        from xnli_gpt.data.pairs import encode_pairs
        from xnli_gpt.data.tokenizer import load_pair_encoding
        before = os.environ.get("TOKENIZERS_PARALLELISM")
        encoding = load_pair_encoding({str(tokenizer_path)!r})
        pairs = [(f"क {{i}}", f"ख {{i}}") for i in range(3000)]
        rows = [row.tolist() for row in encode_pairs(pairs, encoding)]
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before
        child = os.fork()
        signal.alarm({HANG_S})
        again = [row.tolist() for row in encode_pairs(pairs, encoding)]
        if not child:
            os._exit(0 if again == rows else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    if parallelism is not None:
        environment["TOKENIZERS_PARALLELISM"] = parallelism
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        cwd=REPOSITORY,
        env=environment,
    )
    assert (run.returncode, run.stderr) == (0, "")


# Cache


def forbid(monkeypatch, *names, room=cache):
    def refuse(*_, **__):
        raise AssertionError("not from the cache")

    for name in names:
        monkeypatch.setattr(room, name, refuse)


def same(one, other):
    return (
        one.classes == other.classes
        and one.statistics == other.statistics
        and one.content_hash == other.content_hash
        and all(
            np.array_equal(getattr(one.splits[split], a), getattr(other.splits[split], a))
            for split in SPLITS
            for a in ("tokens", "offsets", "premise_spans", "labels")
        )
    )


@pytest.mark.parametrize("source", ["files", "saved", "repository", "built-in"])
def test_a_second_start_reads_the_cache(tmp_path, encoding, monkeypatch, source):
    request = DataRequest(source, data_dir=str(tmp_path / "data"))
    if source == "files":
        write_folder(tmp_path / "data")
    elif source == "saved":
        rows = class_label_dataset(list(NLI_CLASSES))
        datasets.DatasetDict(dict.fromkeys(SPLITS, rows)).save_to_disk(str(tmp_path / "data"))
    elif source == "repository":
        write_hub_repository(tmp_path / "data")
        request = DataRequest("hindi_xnli", data_dir=str(tmp_path / "data"))
    builtin = builtin_of(rows_of())
    first = load_encoded(request, encoding, tmp_path / "cache", builtin)
    for room in (sources, text_files):
        forbid(monkeypatch, "quiet_datasets", room=room)
    forbid(monkeypatch, "_checked_texts", "encode_distinct", "_write_cache")
    second = load_encoded(request, encoding, tmp_path / "cache", builtin)
    assert same(first, second)
    assert all(isinstance(split.tokens, np.memmap) for split in second.splits.values())


def cache_of(cache_dir):
    (folder,) = cache_dir.glob("encoded-*")
    return folder


def flip_byte(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "test.offsets.npy").unlink(),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: os.truncate(folder / "train.tokens.npy", 150),
        lambda folder: os.truncate(folder / "meta.json", 60),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: flip_byte(folder / "train.tokens.npy", -3),
        lambda folder: flip_byte(folder / "validation.labels.npy", -8),
        lambda folder: flip_byte(folder / "train.tokens.npy", 20),
        lambda folder: flip_byte(
            folder / "meta.json", (folder / "meta.json").read_bytes().index(b"neutral")
        ),
        lambda folder: folder.rename(folder.with_name(folder.name + ".partial-host-1")),
    ],
    ids="unlinked no-meta truncated cut-meta list-meta token label header class partial".split(),
)
def test_a_damaged_cache_is_written_anew(tmp_path, encoding, monkeypatch, damage):
    cache_dir = tmp_path / "cache"
    first = encode_rows(rows_of(), encoding, tmp_path / "other")
    encode_rows(rows_of(), encoding, cache_dir)
    damage(cache_of(cache_dir))
    assert same(encode_rows(rows_of(), encoding, cache_dir), first)
    forbid(monkeypatch, "_checked_texts")
    assert same(encode_rows(rows_of(), encoding, cache_dir), first)


def test_a_cache_of_another_layout_is_not_read(tmp_path, encoding, monkeypatch):
    first = encode_rows(rows_of(), encoding, tmp_path)
    monkeypatch.setattr(cache, "CACHE_VERSION", cache.CACHE_VERSION + 1)
    with monkeypatch.context() as patched:
        forbid(patched, "_checked_texts")
        with pytest.raises(AssertionError, match="not from the cache"):
            encode_rows(rows_of(), encoding, tmp_path)
    assert same(encode_rows(rows_of(), encoding, tmp_path), first)
    assert len(list(tmp_path.glob("encoded-*"))) == 2


def test_a_start_reads_only_the_splits_asked_for(tmp_path, encoding, monkeypatch):
    rows = class_label_dataset(list(NLI_CLASSES))
    folders = {"saved": tmp_path / "saved", "files": write_folder(tmp_path / "files")}
    datasets.DatasetDict(dict.fromkeys(SPLITS, rows)).save_to_disk(str(folders["saved"]))
    for name, folder in folders.items():
        request = DataRequest(str(folder), splits=("validation", "test"))
        load_encoded(request, encoding, tmp_path / name)
        for path in folder.rglob("*"):
            if path.is_file() and "train" in str(path.relative_to(folder)):
                path.write_bytes(b"changed")
        with monkeypatch.context() as patched:
            forbid(patched, "_checked_texts")
            assert set(load_encoded(request, encoding, tmp_path / name).splits) == {
                "validation",
                "test",
            }
        with pytest.raises(DataError):
            load_encoded(DataRequest(str(folder)), encoding, tmp_path / name)


def test_every_flipped_byte_of_the_cache_is_noticed(tmp_path, encoding):
    encode_rows(rows_of(), encoding, tmp_path)
    folder = cache_of(tmp_path)
    assert cache._read_cache(folder) is not None
    positions = np.random.default_rng(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for at in positions.integers(len(whole), size=12):
            flip_byte(path, at)
            read = cache._read_cache(folder)
            # A flipped space between the values of the JSON changes none of them.
            assert read is None or (path.suffix == ".json" and chr(whole[at]).isspace())
            path.write_bytes(whole)


def test_an_interrupted_write_is_not_used(tmp_path, encoding, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_crc_of_meta", interrupt)
        with pytest.raises(KeyboardInterrupt):
            encode_rows(rows_of(), encoding, tmp_path / "cache")
    whole = encode_rows(rows_of(), encoding, tmp_path / "other")
    assert same(encode_rows(rows_of(), encoding, tmp_path / "cache"), whole)


def test_changed_data_of_the_same_size_and_time(tmp_path, encoding):
    folder = write_folder(tmp_path / "data")
    path = folder / "train.jsonl"
    before = path.stat()
    first = load_encoded(DataRequest(str(folder)), encoding, tmp_path / "cache")
    path.write_bytes(path.read_bytes().replace("राम".encode(), "काम".encode()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    second = load_encoded(DataRequest(str(folder)), encoding, tmp_path / "cache")
    premise = encoding.tokenizer.decode(second.splits["train"].premise(0).tolist())
    assert premise == SENTENCES[0].replace("राम", "काम")
    assert first.content_hash != second.content_hash


def test_whatever_shapes_the_tokens_is_in_the_key(tmp_path, tokenizer_path, monkeypatch):
    def plain(**options):
        return load_pair_encoding(str(tokenizer_path), **options)

    turned = [{**row, "a": row["premise"], "b": row["hypothesis"]} for row in rows_of()]
    other = encoding_of(train_tokenizer(WORDS_WITH_THEIR_SIGNS), tmp_path / "other.json")
    variants = [
        ({}, plain()),
        ({}, other),
        ({}, plain(template="group")),
        ({}, plain(block_size=50)),
        ({"text_columns": ("hypothesis", "premise")}, plain()),
        ({"splits": ("test",)}, plain()),
    ]
    for request, encoding in variants:
        load_encoded(
            DataRequest("built-in", **request), encoding, tmp_path / "cache", builtin_of(turned)
        )
    assert len(list((tmp_path / "cache").glob("encoded-*"))) == len(variants)
    read = load_encoded(
        DataRequest("built-in", text_columns=("hypothesis", "premise")),
        plain(),
        tmp_path / "cache",
        builtin_of(turned),
    )
    assert plain().tokenizer.decode(read.splits["train"].premise(0).tolist()) == SENTENCES[1]


def test_the_cache_goes_by_content_not_by_path(tmp_path, encoding, monkeypatch):
    load_encoded(DataRequest(str(write_folder(tmp_path / "a"))), encoding, tmp_path / "cache")
    forbid(monkeypatch, "_checked_texts")
    load_encoded(DataRequest(str(write_folder(tmp_path / "b"))), encoding, tmp_path / "cache")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_that_another_process_finished_meanwhile(tmp_path, encoding, monkeypatch, damaged):
    """The other one publishes while this one is tokenising; it then finds this one's there."""
    cache_dir = tmp_path / "cache"
    original = cache.encode_distinct
    others = []

    def encode_after_the_other(*arguments):
        monkeypatch.setattr(cache, "encode_distinct", original)
        monkeypatch.setattr(cache.os, "getpid", lambda: 1)
        others.append(encode_rows(rows_of(), encoding, cache_dir))
        if damaged:
            (published,) = cache_dir.glob("*/meta.json")
            flip_byte(published.with_name("train.labels.npy"), -1)
        monkeypatch.undo()
        return original(*arguments)

    whole = encode_rows(rows_of(), encoding, tmp_path / "whole")
    monkeypatch.setattr(cache, "encode_distinct", encode_after_the_other)
    mine = encode_rows(rows_of(), encoding, cache_dir)
    assert same(mine, whole)
    assert damaged or same(others[0], whole)
    assert [path.name for path in cache_dir.iterdir()] == [cache_of(cache_dir).name]
    assert same(cache._read_cache(cache_of(cache_dir)), whole)


def test_two_processes_write_one_cache(tmp_path, tokenizer_path):
    folder = write_folder(tmp_path / "data")
    program = f"""
        import sys, time
        from pathlib import Path
        from xnli_gpt.data import cache
        from xnli_gpt.data.request import DataRequest
        from xnli_gpt.data.tokenizer import load_pair_encoding
        import datasets
        encoding = load_pair_encoding({str(tokenizer_path)!r})
        write = cache._write_cache
        def write_together(folder, *rest):
            me, other = Path(sys.argv[1]), Path(sys.argv[2])
            me.touch()
            while not other.exists():
                time.sleep(0.001)
            return write(folder, *rest)
        cache._write_cache = write_together
        request = DataRequest({str(folder)!r})
        data = cache.load_encoded(request, encoding, {str(tmp_path / "cache")!r})
        print(data.splits["train"].tokens.tolist())
    """
    signs = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), *order],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for order in (signs, signs[::-1])
    ]
    printed = [process.communicate(timeout=HANG_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert printed[0] == printed[1] != ""
    assert [path.name for path in (tmp_path / "cache").glob("encoded-*")] == [
        cache_of(tmp_path / "cache").name
    ]


# Tokenizers


@pytest.mark.parametrize("name", ["path", "stem", "file", "folder", "folder inside"])
def test_where_a_tokenizer_is_found(tmp_path, tokenizer, tokenizer_path, name):
    (tmp_path / "folder").mkdir()
    tokenizer.save(str(tmp_path / "folder" / "tokenizer.json"))
    arguments = {
        "path": (str(tokenizer_path), None),
        "stem": (tokenizer_path.stem, str(tokenizer_path.parent)),
        "file": (tokenizer_path.name, str(tokenizer_path.parent)),
        "folder": (str(tmp_path / "folder"), None),
        "folder inside": ("folder", str(tmp_path)),
    }
    path, tokenizer_dir = arguments[name]
    found = load_pair_encoding(path, tokenizer_dir=tokenizer_dir)
    assert found.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert found.end_of_text == tokenizer.token_to_id(END)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b"{}", b"\xff\xff", b'{"model": {"type": "BPE"}}', b'{"model": 3}'],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DataError, match="bad.json: not a tokenizer file"):
        load_pair_encoding(str(tmp_path / "bad.json"))


def two_tokens_of_one_id(parsed):
    parsed["model"]["vocab"]["क"] = 7


def a_token_far_beyond_any_table(parsed):
    """The library would end the process: it counts up to it where it writes the vocabulary."""
    parsed["model"]["vocab"]["क"] = 1 << 31


def merges_without_their_prefix(parsed):
    """The library would end the process: it cuts a letter in two."""
    parsed["model"]["continuing_subword_prefix"] = "x"


def a_name_of_two_lines(parsed):
    parsed["model"]["type"] = "a\n\x1b[31mb"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (two_tokens_of_one_id, "are both token 7"),
        (a_token_far_beyond_any_table, "'क' is token 2147483648: no model has so many rows"),
        (merges_without_their_prefix, "the merge .* lacks the prefix 'x'"),
        (a_name_of_two_lines, "not a tokenizer file"),
    ],
)
def test_a_tokenizer_that_contradicts_itself(tmp_path, tokenizer, change, said):
    parsed = json.loads(tokenizer.to_str())
    change(parsed)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(parsed))
    with pytest.raises(DataError, match=said) as caught:
        load_pair_encoding(str(path))
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_a_tokenizer_without_its_token_for_the_unknown(tmp_path):
    words = Tokenizer(models.WordLevel({END: 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"can't encode the texts \(.*is it the right one"):
        encode_pairs([("a", "b")], encoding_of(words, tmp_path / "words.json"))


def test_a_tokenizer_that_is_missing_names_the_places(tmp_path):
    with pytest.raises(DataError, match="looked at nothing.*nothing.json"):
        load_pair_encoding("nothing", tokenizer_dir=str(tmp_path))


@pytest.mark.parametrize("token", [*END_OF_TEXT_TOKENS, "<unk>"])
def test_the_end_of_text_token_is_one_of_the_list(tmp_path, token):
    tokenizer = train_tokenizer(special_tokens=["<pad>", token])
    if token == "<unk>":
        with pytest.raises(DataError, match="none of the end-of-text tokens"):
            encoding_of(tokenizer, tmp_path / "t.json")
    else:
        assert encoding_of(tokenizer, tmp_path / "t.json").end_of_text == 1


def test_num_tokens_counts_added_tokens(tmp_path, tokenizer):
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens([AddedToken("दिल्ली"), AddedToken("मैदान")])
    num_tokens = encoding_of(tokenizer, tmp_path / "a.json").num_tokens
    assert encoding_of(larger, tmp_path / "b.json").num_tokens == num_tokens + 2


def test_ids_above_sixteen_bits(tmp_path, tokenizer):
    parsed = json.loads(tokenizer.to_str())
    (end,) = [added for added in parsed["added_tokens"] if added["content"] == END]
    end["id"] = parsed["model"]["vocab"][END] = 70_000
    (tmp_path / "wide.json").write_text(json.dumps(parsed))
    encoding = load_pair_encoding(str(tmp_path / "wide.json"))
    assert encoding.num_tokens == 70_001
    assert encode_rows(rows_of(), encoding, tmp_path).splits["train"].row(0)[0] == 70_000


def test_cuts_vowel_signs(tokenizer):
    assert cuts_vowel_signs(tokenizer)
    keeping = train_tokenizer(WORDS_WITH_THEIR_SIGNS)
    assert not cuts_vowel_signs(keeping)
    word = "किताबें"
    assert len(ids_of(tokenizer, word)) > len(ids_of(keeping, word))
    assert not cuts_vowel_signs(Tokenizer(models.BPE()))


# Batches


def test_collate(tmp_path, encoding):
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    for indices in ([3, 0, 4], np.array([3, 0, 4])):
        ids, lengths, labels = collate(split, indices)
        assert ids.dtype == lengths.dtype == labels.dtype
        assert ids.shape == (3, max(split.lengths[[3, 0, 4]]))
        assert lengths.tolist() == split.lengths[[3, 0, 4]].tolist()
        assert labels.tolist() == split.labels[[3, 0, 4]].tolist()
        for row, length, index in zip(ids, lengths, [3, 0, 4], strict=True):
            assert row[:length].tolist() == split.row(index).tolist()
            assert not row[length:].any()


@pytest.mark.parametrize("indices", [[3, 0, 4], np.array([3, 0, 4]), [1, 1], [2], []])
def test_pack_has_the_rows_of_collate_without_padding(tmp_path, encoding, indices):
    split = encode_rows(rows_of(), encoding, tmp_path).splits["train"]
    tokens, lengths, labels = pack(split, indices)
    assert tokens.dtype == lengths.dtype == labels.dtype == torch.int64
    assert lengths.tolist() == split.lengths[np.asarray(indices, dtype=int)].tolist()
    assert tokens.tolist() == [token for i in indices for token in split.row(i).tolist()]
    if len(indices):
        padded, *others = collate(split, indices)
        rows = [row[:length] for row, length in zip(padded, lengths, strict=True)]
        assert torch.equal(tokens, torch.cat(rows))
        assert [lengths.tolist(), labels.tolist()] == [other.tolist() for other in others]
