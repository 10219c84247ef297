"""Tokenizers, datasets, caches, token shards and command lines for the fuzzer.

What is right is read here by other means than the code under test: the tokenizers library itself,
the json module line by line, a split at separators, pyarrow.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import io
import json
import math
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fuzzing import Kind, Wrong, require_good_message
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import finetune_hindi_xnli as finetune
from load_checkpoint_helper import CheckpointError, read_token_shard
from xnli_gpt.data import sources
from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.encoded import CACHED_ARRAYS, EncodedDataset
from xnli_gpt.data.library import quiet_datasets
from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import END_OF_TEXT_TOKENS, cuts_vowel_signs, load_pair_encoding
from xnli_gpt.errors import DataError
from xnli_gpt.flags import parse_flags
from xnli_gpt.options import Flag

END = "<|endoftext|>"
TEXTS = [
    "राम ने बाज़ार से किताबें खरीदीं और घर लौट आया।",
    "किसी ने भी दरवाज़ा नहीं खोला।",
    "A plain line, with 12 numbers",
    f"  spaces \t and {END} <pad> [UNK] spelled out ",
    "e\u0301 \u00e9 \U0001f600 क्\u200dष \ufeff \u2028 \x00 \x7f",
    "x",
]
ODD_WORDS = [
    "", " ", "a", "नहीं", "0", "1", "-1", "1.0", "nan", "NaN", "inf", "1e5", "1e999", "true",
    "null",
    "None", "2020-01-01", "x" * 1000, "a\nb", "a\r\nb", "a\rb", "\u2028", "\x85", "\x00",
    "\x1b[31m",
    "\ufeff", "\u202e", "'", '"', '""', '"a"', "a,b", "a\tb", "#", "\\", "\\n", "{}", "[]", "٣",
    "१",
    "9" * 25, "-0", "+1", "entailment", "NEUTRAL", "contradictory", "🤷",
]  # fmt: skip


def changed_bytes(data: bytes, generator: random.Random) -> bytes:
    """A few bytes flipped, replaced, lost or added, or the end cut off."""
    changed = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 4])):
        at, length = generator.randrange(len(changed) + 1), generator.choice([1, 1, 2, 8, 100])
        kind = generator.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            changed[at : at + length] = generator.randbytes(length)
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            word = generator.choice(ODD_WORDS).encode()
            changed[at:at] = generator.choice([word, b"\xff", b"\x00", b"\r", b"\n", b'"', b","])
        elif kind == 4:
            source = generator.randrange(len(changed) + 1)
            changed[at:at] = changed[source : source + length]
        else:
            del changed[at:]
    return bytes(changed)


# Tokenizers


class Tokenizers(Kind):
    """Files of a tokenizer with other bytes, and with other JSON in them."""

    # The library says so on stderr, from below Python, before it raises.
    may_say = "panicked at"

    def __init__(self, folder: Path):
        self.path = folder / "tokenizer.json"
        self.bases = [tokenizer.to_str() for tokenizer in base_tokenizers()]

    def run(self, generator: random.Random) -> str:
        base = generator.choice(self.bases)
        self.doing = generator.choice(["other bytes", "other JSON", "other JSON"])
        if self.doing == "other bytes":
            data = changed_bytes(base.encode(), generator)
        else:
            data = self._other_json(base, generator)
        self.path.write_bytes(data)
        return self._check(data)

    def _other_json(self, base: str, generator: random.Random) -> bytes:
        tree = json.loads(base)
        if generator.random() < 0.05 and isinstance(vocab := tree["model"]["vocab"], dict):
            one, other = generator.sample(sorted(vocab), 2)
            vocab[one] = vocab[generator.choice([other, END])]
        for _ in range(generator.choice([0, 1, 1, 1, 2, 4])):
            tree = changed_json(tree, generator)
        text = json.dumps(tree, ensure_ascii=generator.random() < 0.5)
        if generator.random() < 0.05:
            text = text.replace("{", '{"type": "BPE", "model": 1,', 1)
        encodings = ["utf-8"] * 8 + ["utf-8-sig", "utf-16"]
        return text.encode(generator.choice(encodings), "surrogatepass")

    def _check(self, data: bytes) -> str:
        try:
            encoding = load_pair_encoding(str(self.path))
        except DataError as error:
            require_good_message(error, self.path)
            return "refused"
        num_tokens, pairs = encoding.num_tokens, [(a, b) for a in TEXTS for b in TEXTS[:2]]
        try:
            rows = encode_pairs(pairs, encoding)
        except DataError as error:
            require_good_message(error)
            return "loaded, but gives no tokens"
        if any(row.max() >= num_tokens or row.min() < 0 for row in rows):
            raise Wrong(f"token ids beyond num_tokens {num_tokens}")
        if encoding.tokenizer.id_to_token(encoding.end_of_text) not in END_OF_TEXT_TOKENS:
            raise Wrong("another token than end-of-text")
        vocab = encoding.tokenizer.get_vocab(with_added_tokens=True)
        if len(set(vocab.values())) < len(vocab):
            raise Wrong("two tokens of one id")
        library = library_tokenizer(data)
        if library is None:
            return "loaded, but not by the library"
        for pair, row in zip(pairs, rows, strict=True):
            if row.tolist() != joined(library, pair, encoding.end_of_text):
                raise Wrong(f"{pair} has other tokens than in the library")
        cuts_vowel_signs(encoding.tokenizer)
        return "loaded"


def base_tokenizers() -> list[Tokenizer]:
    """Byte-level BPE as in pretraining, with variants of it, and other models."""
    bases = []
    for pattern in (None, r" ?[\p{L}\p{M}]+| ?\p{N}+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"):
        tokenizer = Tokenizer(models.BPE())
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
        words = pattern and pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = (
            pre_tokenizers.Sequence([words, byte_level]) if words else byte_level
        )
        tokenizer.normalizer = normalizers.NFC() if words else None
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        special = ["<pad>", END] if words else [END]
        trainer = trainers.BpeTrainer(
            vocab_size=290, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(TEXTS[:3] * 4, trainer)
        bases.append(tokenizer)
    dressed = Tokenizer.from_str(bases[0].to_str())
    dressed.enable_truncation(5)
    dressed.enable_padding(length=9, pad_token=END)
    pieces = [(END, 0.0), ("<unk>", 0.0), *((c, -1.0) for c in sorted(set("".join(TEXTS))))]
    words = {word: i for i, word in enumerate([END, "[UNK]", *" ".join(TEXTS).split()])}
    unigram = Tokenizer(models.Unigram(pieces, unk_id=1))
    word_level = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    word_level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return [*bases, *bases, dressed, unigram, word_level]


def library_tokenizer(data: bytes) -> Tokenizer | None:
    """The tokenizer of the same file as the library alone reads it, its additions switched off
    through its own interface; None where the library doesn't take the file."""
    try:
        tokenizer = Tokenizer.from_str(data.decode())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
        tokenizer.encode_special_tokens = True
        added = tokenizer.get_added_tokens_decoder().values()
    # The library raises Exception itself, and panics are no Exception.
    except BaseException:
        return None
    # Spelled out in a text, a token of the end is text for us whatever the file calls it.
    ends = [token for token in added if token.content in END_OF_TEXT_TOKENS]
    return tokenizer if all(token.special for token in ends) else None


def joined(tokenizer: Tokenizer, pair: tuple[str, str], end: int) -> list[int]:
    ids = [tokenizer.encode(text.strip("\r\n"), add_special_tokens=False).ids for text in pair]
    return [end, *ids[0], end, *ids[1], end]


ODD_JSON: list[object] = [
    None, True, False, 0, 1, -1, 5, 255, 1 << 31, 1 << 32, 1 << 64, 10**400, 0.5, -1.5, 1e300,
    math.nan, math.inf, "", "x", END, "a b", "ab", "\ud800", "\x00", "BPE", "Unigram", "WordPiece",
    "ByteLevel", "Regex", "(", "[", [], {}, [[]], [None], ["a", "b"], ["a b c"], [["a", "b", "c"]],
    {"type": "BPE"}, {"type": "x"}, {"Regex": "("}, {"Regex": ".*"}, {"String": ""}, {"Regex": ""},
    {"id": 0, "content": END, "special": True}, {"": {"": {}}},
]  # fmt: skip


def changed_json(tree: object, generator: random.Random) -> object:
    """A random node replaced, lost, doubled, renamed, nested or swapped."""
    places = list(_places(tree))
    # Else nearly every place is in the vocabulary or the merges.
    shallow = [place for place in places if len(place) < 3]
    place = generator.choice(shallow if generator.random() < 0.6 else places)
    if not place:
        return _odd_json(generator)
    parent = tree
    for step in place[:-1]:
        parent = parent[step]
    step, kind = place[-1], generator.randrange(8)
    if kind <= 2:
        parent[step] = _odd_json(generator)
    elif kind == 3:
        del parent[step]
    elif kind == 4:
        other = generator.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[step], parent[other] = parent[other], parent[step]
    elif kind == 5 and isinstance(parent, dict):
        parent[str(generator.choice(ODD_JSON))] = parent.pop(step)
    elif kind == 6 and isinstance(parent, list):
        parent.append(parent[step])
    else:
        for _ in range(generator.choice([1, 2, 100, 300])):
            parent[step] = [parent[step]]
    return tree


def _odd_json(generator: random.Random) -> object:
    # The next change may fall into it.
    return copy.deepcopy(generator.choice(ODD_JSON))


def _places(tree: object, place: tuple = ()) -> Iterable[tuple]:
    yield place
    if len(place) > 8:
        return
    steps = tree.items() if isinstance(tree, dict) else []
    steps = enumerate(tree) if isinstance(tree, list) else steps
    for step, node in steps:
        yield from _places(node, (*place, step))


# Datasets

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


# Caches


class Caches(Kind):
    """Tokenised caches with other bytes in any of their files: written anew, never believed."""

    def __init__(self, folder: Path):
        self.cache = folder / "cache"
        tokenizer = folder / "tokenizer.json"
        base_tokenizers()[0].save(str(tokenizer))
        self.encoding = load_pair_encoding(str(tokenizer))
        rows = [
            {"premise": TEXTS[i % 3], "hypothesis": TEXTS[i % 2] + str(i), "label": CLASSES[i % 3]}
            for i in range(7)
        ]
        splits = {"train": rows, "validation": rows[:4], "test": rows}
        sources.BUILTIN["built-in"] = lambda: splits
        self.right = in_memory(self._load())

    def _load(self) -> object:
        return load_encoded(DataRequest("built-in"), self.encoding, self.cache)

    def run(self, generator: random.Random) -> str:
        (folder,) = self.cache.glob("encoded-*")
        path = generator.choice(sorted(folder.iterdir()))
        self.doing = path.name
        before = path.read_bytes()
        kind = generator.randrange(5)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            other = generator.choice(sorted(folder.iterdir()))
            shutil.copyfile(other, path) if other != path else path.write_bytes(b"")
        else:
            path.write_bytes(changed_bytes(before, generator))
        changed = not path.exists() or path.read_bytes() != before
        found = self._load()
        require_same_data(self.right, found)
        (again,) = self.cache.glob("encoded-*")
        if again != folder:
            raise Wrong("the cache got another name")
        return "written anew" if changed else "read"


def in_memory(data: EncodedDataset) -> EncodedDataset:
    """The same without a file below it, which is about to be changed."""
    splits = {
        split: replace(rows, **{name: np.array(array) for name, array in vars(rows).items()})
        for split, rows in data.splits.items()
    }
    return replace(data, splits=splits)


def require_same_data(right: object, found: object) -> None:
    same = right.classes == found.classes and right.statistics == found.statistics
    for split, rows in right.splits.items():
        for name in CACHED_ARRAYS:
            one, other = getattr(rows, name), getattr(found.splits[split], name)
            same = same and one.dtype == other.dtype and np.array_equal(one, other)
    if not same or right.content_hash != found.content_hash:
        raise Wrong("a damaged cache was believed")


# Token shards


class Shards(Kind):
    """Token shards with any header and any length."""

    doing = "header and length"

    def __init__(self, folder: Path):
        self.path = folder / "tokens.bin"

    def run(self, generator: random.Random) -> str:
        data = self._data(generator)
        self.path.write_bytes(data)
        right = shard_tokens(data)
        try:
            found = read_token_shard(self.path).tolist()
        except CheckpointError as error:
            require_good_message(error, self.path)
            if right is not None:
                raise Wrong(f"a sound shard was refused: {error}") from error
            return "refused"
        if found != right:
            raise Wrong(f"read as {found[:9]}, and holds {right and right[:9]}")
        return "loaded"

    def _data(self, generator: random.Random) -> bytes:
        count = generator.choice([0, 1, 2, 3, 10, 1000])
        version, bits = generator.choice([(1, 0), (1, 16), (2, 0), (2, 16), (2, 32)])
        width = 2 if version == 1 or bits == 16 else 4
        header = [20240520, version, count, bits] + [0] * 252
        for _ in range(generator.choice([0, 0, 1, 2])):
            odd = [0, 1, 2, 3, 7, 8, 16, 32, 64, -1, count + 1, count - 1, 1 << 30, -(1 << 31)]
            header[generator.choice([0, 1, 2, 3, 3, 9])] = generator.choice([*odd, (1 << 31) - 1])
        tokens = generator.randbytes(count * width)
        data = struct.pack("<256i", *header) + tokens
        if generator.random() < 0.3:
            data = data[: generator.choice([0, 3, 1023, 1024, len(data) - 1])]
        if generator.random() < 0.2:
            data += generator.randbytes(generator.choice([1, 2, 4, 64]))
        return changed_bytes(data, generator) if generator.random() < 0.2 else data


def shard_tokens(data: bytes) -> list[int] | None:
    """The tokens that the bytes of a shard hold, None where it is none."""
    if len(data) < 1024:
        return None
    magic, version, count, bits = struct.unpack("<4i", data[:16])
    letter = "H" if version == 1 else {16: "H", 32: "I", 0: "I"}.get(bits)
    if magic != 20240520 or version not in (1, 2) or letter is None or count < 2:
        return None
    size = struct.calcsize(f"<{letter}") * count
    return (
        None
        if len(data) < 1024 + size
        else list(struct.unpack(f"<{count}{letter}", data[1024 : 1024 + size]))
    )


# Command lines

FLAGS = {flag.name: flag for group in finetune.COMMAND.flags.values() for flag in group}
NUMBERS = [
    "0", "1", "-1", "2", "3.5", "1e-4", "1e400", "-1e400", "nan", "inf", "-inf", "1_000", " 7 ",
    "٣",
    "0x10", "1e3", "9" * 30, "9" * 5000, "4294967295", "4294967296", "65536", "65537", "0.99",
    "1.0",
    "-0", "+5", "1/2", "1,5", "true", "None",
]  # fmt: skip
YAML_TEXTS = [
    "", "[]", "3", "null", "~", "- a", "a", "a: b: c", "{", "seed: [", "seed: 1\nseed: 2", "? a",
    "---",
    "seed: 1\n---\nseed: 2", "%YAML 9.9\n---\nseed: 1", "seed: !!python/object:os.system []",
    "seed: !!python/object/apply:os.system [touch MARKER]", "seed: !!python/name:os.system",
    "seed: !!python/tuple [1, 2]", "seed: !!binary aGVsbG8=", "seed: !!binary '*'", "seed: !!int x",
    "seed: !!int ''", "seed: !!float x", "seed: !!timestamp x", "seed: 2020-13-45",
    "seed: 2020-01-01",
    "seed: 2020-01-01 25:61:61", "seed: !!set {a, b}", "seed: !!omap [a: 1]", "seed: !!null x",
    "seed: !!bool x", "seed: !!str 5", "seed: !!map 5", "seed: !!seq 5", "seed: !x 5", "seed: &a 5",
    "seed: *a", "seed: &a [*a]", "text_column: &a [*a, x]", "text_column: &a [x, {y: *a}]",
    "&a seed: *a", "seed: 0x10", "seed: 0o7", "seed: 010", "seed: 1_000", "seed: 1:30",
    "seed: .inf",
    "seed: .nan", "seed: " + "9" * 5000, "seed: 0x" + "f" * 5000, "seed: 1e999", "seed: -0.0",
    "seed: " + "[" * 3000, "seed: " + "{a: " * 3000, "- " * 3000, "seed: '\\0'", 'seed: "\\0"',
    'dataset: "a\\0b"', 'pretrained_ckpt_path: "a\\0*"', 'out_dir: "a\\0b"',
    'tokenizer_name: "\\0"',
    'cache_dir: "\\0"', 'data_dir: "a\\0"', 'config: x.yaml', "true: 1", "1: 2", "null: 3",
    "[a]: 1", "{a: 1}: 2", "dataset: [a, b]", "dataset: {a: b}", "text_column: a", "compile: no",
    "compile: off", "random_init: yes", "random_init: 'yes'", "random_init: 1",
    "text_column: [a, 1]",
    "text_column: [a, b, c]", "text_column: []", "text_column: [a, null]", "dtype: [float32]",
    "pretrained_ckpt_path: []", "pretrained_ckpt_path: [1]", "pretrained_ckpt_path: {a: 1}",
    "seed: !!python/object/new:type {args: [z, !!python/tuple [], {extend: !!python/name:exec}]}",
    "<<: {seed: 1}", "<<: [a]", "<<: *x", "? [a, b]\n: 1", "seed: |\n  5", "seed: >\n  5\n  6",
    "seed: 1\x00", "seed: \ud800", "\ufeffseed: 1", "seed:\t1", "\tseed: 1", "seed: 1 # comment",
    "dataset: 2024", "dataset: 1e-4", "dataset: yes", "dataset: ~", "dataset: ''", "dataset: '\n'",
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
    "c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
    "e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\n"
    "text_column: &g [*f, *f, *f, *f, *f, *f, *f, *f]\nseed: [*g, *g, *g, *g, *g, *g]",
]  # fmt: skip


class CommandLines(Kind):
    """Words after the command and YAML recipes, with any names and any values."""

    def __init__(self, folder: Path):
        self.folder, self.recipe = folder / "here", folder / "recipe.yaml"
        self.marker = folder / "marker"
        self.folder.mkdir()
        os.chdir(self.folder)

    def run(self, generator: random.Random) -> str:
        words, self.doing = some_words(generator), "flags"
        if generator.random() < 0.6:
            text = some_yaml(generator).replace("MARKER", str(self.marker))
            self.recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
            words, self.doing = ["--config", str(self.recipe), *words], "YAML"
        problems = check_arguments(words)
        if generator.random() < 0.15:
            # One problem is certain, so that nothing long begins.
            check_run([*words, "--n_layer", "0"], self.folder)
        if self.marker.exists():
            raise Wrong("the payload was executed")
        return "no problem" if not problems else "problems"


def some_words(generator: random.Random) -> list[str]:
    words = []
    for _ in range(generator.choice([0, 1, 2, 5])):
        name = generator.choice(list(FLAGS))
        others = [f"--no-{name}", f"-{name}", name, f"--{name[:-1]}"]
        flag = generator.choice([f"--{name}"] * 6 + others)
        values = [str(generator.choice([*NUMBERS, *ODD_WORDS, *FLAGS])) for _ in range(3)]
        if FLAGS[name].choices and generator.random() < 0.7:
            values[0] = generator.choice(FLAGS[name].choices)
        form = generator.randrange(6)
        if form == 0:
            words.append(f"{flag}={values[0]}")
        else:
            words += [flag, *values[: generator.choice([0, 1, 1, 1, 2, 3])]]
    if generator.random() < 0.15:
        odd = [
            "--",
            "-",
            "--=",
            "-x",
            "--no-",
            "@file",
            "--random_init=x",
            "--seed",
            "-h1",
            "--\x00",
        ]
        words.insert(generator.randrange(len(words) + 1), generator.choice(odd))
    return [word for word in words if word not in ("-h", "--help")]


def some_yaml(generator: random.Random) -> str:
    kind = generator.randrange(4)
    if kind == 0:
        return generator.choice(YAML_TEXTS)
    if kind == 1:
        lines = [generator.choice(YAML_TEXTS) for _ in range(2)]
        return "\n".join(lines)
    names = [*FLAGS, "unknown", "config", 1, None, True]
    recipe = {generator.choice(names): _yaml_value(generator) for _ in range(3)}
    text = yaml.safe_dump(recipe, allow_unicode=generator.random() < 0.5)
    if kind == 2:
        return text
    return changed_bytes(text.encode(), generator).decode("latin-1")


def _yaml_value(generator: random.Random) -> object:
    plain = [*ODD_CELLS, *ODD_WORDS, *NUMBERS, math.nan, math.inf, 10**4200, b"x", b"\xff"]
    nested = [{"a": [1, {"b": None}]}, [[["x"]]], ["premise", "hypothesis"], ["a", None]]
    return generator.choice([*plain, *nested])


def check_arguments(words: list[str]) -> list[str]:
    """Parse; returns the problems. Raises `Wrong` where a value that no problem names is not what
    its flag says."""
    command = finetune.COMMAND
    args, problems = parse_flags(command.description, command.flags, words)
    for problem in problems:
        require_good_message(ValueError(problem))
    for name, flag in FLAGS.items():
        value = getattr(args, name)
        if not is_right_value(flag, value):
            raise Wrong(f"--{name} became {value!r}: {problems}")
    return problems


def is_right_value(flag: Flag, value: object) -> bool:
    """Whether a value is what the table of flags promises; a default always is."""
    if value is None or value == flag.default:
        return type(value) is type(flag.default)
    if flag.count is not None:
        right_count = isinstance(value, list) and (flag.count == "+" or len(value) == flag.count)
        return right_count and len(value) > 0 and all(_is_name(word) for word in value)
    if flag.choices is not None:
        return type(value) is str and value in flag.choices
    if flag.kind in (str, Path):
        return _is_name(value)
    if type(value) is not flag.kind:
        return False
    if flag.kind is float and not math.isfinite(value):
        return False
    low_enough = flag.high is None or value <= flag.high
    high_enough = flag.low is None or value >= flag.low
    return low_enough and high_enough and (flag.above is None or value > flag.above)


def _is_name(value: object) -> bool:
    return type(value) is str and value != ""


def check_run(words: list[str], folder: Path) -> None:
    """A command line with a problem: exit code 2, nothing but errors, and no file left."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = finetune.main(words)
    lines = errors.getvalue().splitlines()
    if code != 2 or not lines or not all(line.startswith("error: ") for line in lines):
        raise Wrong(f"exit code {code}: {errors.getvalue()[:2000]!r}")
    left = list(folder.iterdir())
    if left or out.getvalue():
        raise Wrong(f"left {left}, said {out.getvalue()!r}")
