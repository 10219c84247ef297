"""What the tests of the data share: rows in Hindi, files of them in every format, a tokenizer."""

import csv
import io
import json
import unittest.mock

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from xnli_gpt.choices import SPLITS
from xnli_gpt.data import sources
from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding

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
    elif kind == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
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


def texts_of(folder, cache_dir, **request):
    return load_texts(DataRequest(str(folder), **request), cache_dir)


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


def encoding_of(tokenizer, path, **options):
    tokenizer.save(str(path))
    return load_pair_encoding(str(path), **options)


def ids_of(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def built_in(rows):
    """A context in which "built-in" is a dataset of the same rows in every split."""
    splits = {"built-in": lambda: dict.fromkeys(SPLITS, rows)}
    return unittest.mock.patch.dict(sources.BUILTIN, splits)


def encode_rows(rows, encoding, cache_dir):
    with built_in(rows):
        return load_encoded(DataRequest("built-in"), encoding, cache_dir)


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
