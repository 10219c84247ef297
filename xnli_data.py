"""Premise-hypothesis pairs: from the Hub or local files to token ids in a memory-mapped cache.

Rows are read by the `datasets` library and checked before anything is done with them; labels are
matched by name. A pair becomes one row of tokens by a template. Tokenising happens once: the
cache is keyed by the content of the data, the tokenizer and everything else that shapes the ids.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from xnli_gpt.choices import SPLITS, TEMPLATES
from xnli_gpt.data.library import quiet_datasets
from xnli_gpt.data.names import (
    KNOWN_NAMES,
    XNLI_LANGUAGES,
    is_in_data_dir,
    nearest_dataset,
    problem_of_dataset,
)
from xnli_gpt.errors import XNLIError

NLI_CLASSES = ("entailment", "neutral", "contradiction")
LABEL_ALIASES = {"contradictory": "contradiction"}
HUB_XNLI = "facebook/xnli"
TEXT_FORMATS = ("jsonl", "csv", "tsv", "parquet")
SEPARATORS = {"csv": ",", "tsv": "\t"}
END_OF_TEXT_TOKENS = ("<|endoftext|>", "<ENDOFTEXT>", "</s>", "<eos>", "[EOS]", "[SEP]")
CACHE_VERSION = 1
# Beyond any embedding table.
MOST_TOKENS = 1 << 24
ENCODE_CHUNK = 1024
JOIN_CHUNK = 65536
MAX_LISTED = 5
LONGEST_SHOWN = 200

BuiltinDataset = Callable[[], Mapping[str, Sequence[Mapping[str, str]]]]


class DataError(XNLIError, ValueError):
    """Data or tokenizer can't be used; the message says where, what was found and what to do."""


@dataclass(frozen=True)
class DataRequest:
    """Which rows a user asked for."""

    dataset: str
    dataset_config: str | None = None
    data_dir: str | None = None
    text_columns: tuple[str, str] = ("premise", "hypothesis")
    label_column: str = "label"
    num_classes: int | None = None
    splits: tuple[str, ...] = SPLITS
    classes: tuple[str, ...] | None = None  # those of a trained model; None: found in the data

    @property
    def columns(self) -> tuple[str, str, str]:
        return (*self.text_columns, self.label_column)


@dataclass(frozen=True)
class PairEncoding:
    """How two texts become one row of token ids."""

    tokenizer: Tokenizer
    tokenizer_hash: str  # of `hash_of_tokenizer`: the same everywhere that it is named
    end_of_text: int
    template: str
    block_size: int
    file_hash: str = ""  # SHA-256 of the file's bytes, which older runs named it by

    @property
    def num_special_tokens(self) -> int:
        return sum(part == "end_of_text" for part in TEMPLATES[self.template])

    @property
    def num_tokens(self) -> int:
        """One more than the highest id: the embedding rows that the tokenizer needs."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())


@dataclass(frozen=True)
class TextSplit:
    """The rows of one split as text, with label ids."""

    premises: list[str]
    hypotheses: list[str]
    labels: np.ndarray  # [N] int64


@dataclass(frozen=True)
class EncodedSplit:
    """The rows of one split as token ids, mapped from the cache."""

    tokens: np.ndarray  # [sum of lengths], all rows one after the other
    offsets: np.ndarray  # [N + 1] int64, where the rows begin
    premise_spans: np.ndarray  # [N, 2] int32, first token of the premise in its row, and its length
    labels: np.ndarray  # [N] int64

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of every row, its special tokens included."""
        return np.diff(self.offsets)

    def row(self, index: int) -> np.ndarray:
        """The token ids of one row."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def premise(self, index: int) -> np.ndarray:
        """The token ids of one row's premise."""
        start, length = self.premise_spans[index]
        return self.row(index)[start : start + length]


@dataclass(frozen=True)
class EncodedDataset:
    """All splits asked for, the classes in label order, and what was counted while encoding."""

    splits: dict[str, EncodedSplit]
    classes: tuple[str, ...]
    statistics: dict[str, dict]
    content_hash: str


@dataclass(frozen=True)
class JoinedDatasets:
    """One dataset or several of the same classes, by name; what is trained on is one split."""

    sets: dict[str, EncodedDataset]
    train: EncodedSplit | None  # the rows of all sets one after the other
    train_sets: np.ndarray  # [N], the place in `sets` of the set that a row of `train` is of

    @property
    def classes(self) -> tuple[str, ...]:
        return next(iter(self.sets.values())).classes

    def splits(self, split: str) -> dict[str, EncodedSplit]:
        """The split of every set."""
        return {name: data.splits[split] for name, data in self.sets.items()}


def joined(sets: Mapping[str, EncodedDataset]) -> JoinedDatasets:
    """Raises DataError where the sets have not the same classes."""
    sets = dict(sets)
    first_name, first = next(iter(sets.items()))
    for name, data in sets.items():
        if data.classes != first.classes:
            raise DataError(
                f"--dataset {name}: classes {', '.join(data.classes)}, but {first_name} has "
                f"{', '.join(first.classes)}: sets of other classes can't be joined"
            )
    trains = [data.splits["train"] for data in sets.values() if "train" in data.splits]
    train_sets = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    return JoinedDatasets(sets, _joined_split(trains), train_sets)


def _joined_split(splits: Sequence[EncodedSplit]) -> EncodedSplit | None:
    if len(splits) <= 1:
        return splits[0] if splits else None
    return EncodedSplit(
        tokens=np.concatenate([split.tokens for split in splits]),
        offsets=_offsets(np.concatenate([split.lengths for split in splits])),
        premise_spans=np.concatenate([split.premise_spans for split in splits]),
        labels=np.concatenate([split.labels for split in splits]),
    )


def dataset_names(datasets: Sequence[str]) -> list[str]:
    """What --dataset stands for, set by set: xnli_all is XNLI in its 15 languages."""
    all_of_xnli = [f"xnli_{language}" for language in XNLI_LANGUAGES]
    names = [n for name in datasets for n in (all_of_xnli if name == "xnli_all" else [name])]
    shorts = [short_name(name) for name in names]
    twice = sorted({short for short in shorts if shorts.count(short) > 1})
    if twice:
        raise DataError(f"--dataset: {', '.join(twice)} more than once")
    return names


def is_xnli(dataset: str) -> bool:
    """Return whether a name is that of one of XNLI's sets, or of all."""
    return dataset in ("hindi_xnli", "xnli_all", *(f"xnli_{code}" for code in XNLI_LANGUAGES))


def short_name(dataset: str) -> str:
    """Return a dataset's name in files and tables: the last part of its path."""
    if dataset in KNOWN_NAMES:
        return dataset
    path = Path(dataset)
    return path.resolve().name if path.is_dir() else path.name


def load_encoded(
    request: DataRequest,
    encoding: PairEncoding,
    cache_dir: str | Path,
    builtin: Mapping[str, BuiltinDataset] | None = None,
) -> EncodedDataset:
    """The rows asked for as token ids, from the cache or tokenised now.

    `builtin` maps a dataset's name to a function that makes its splits.
    Raises DataError for rows, labels, splits or texts that can't be used.
    """
    source = _find_source(request, Path(cache_dir), builtin or {})
    key = _cache_key(source.content_hash, request, encoding)
    folder = Path(cache_dir) / f"encoded-{key}"
    cached = _read_cache(folder)
    if cached is None:
        texts, classes = _checked_texts(source, request)
        cached = _write_cache(folder, texts, classes, encoding, source.content_hash)
    return cached


def load_texts(
    request: DataRequest, cache_dir: str | Path, builtin: Mapping[str, BuiltinDataset] | None = None
) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    """The rows asked for as text, with their classes; the checks are those of `load_encoded`."""
    source = _find_source(request, Path(cache_dir), builtin or {})
    return _checked_texts(source, request)


def load_pair_encoding(
    tokenizer_name: str,
    *,
    tokenizer_dir: str | None = None,
    template: str = "documents",
    block_size: int = 1024,
) -> PairEncoding:
    """The tokenizer of a path, or of a name in `tokenizer_dir`, ready to encode pairs.

    What the file says of truncation, padding, post-processing and dropout is switched off: the
    template alone decides what a row is. Raises DataError for a file that is no tokenizer or has
    no end-of-text token.
    """
    path = find_tokenizer(tokenizer_name, tokenizer_dir)
    return pair_encoding(path.read_bytes(), template, block_size, name=str(path))


def pair_encoding(
    tokenizer_json: bytes | str, template: str, block_size: int, name: str = "the saved tokenizer"
) -> PairEncoding:
    """The same from the text of a tokenizer file; `name` is for the messages."""
    if isinstance(tokenizer_json, str):
        tokenizer_json = tokenizer_json.encode()
    with _tokenizers_errors(
        f"{name}: not a tokenizer file", "give the tokenizer.json of the pretraining"
    ):
        parsed = json.loads(tokenizer_json)
        parsed |= {"truncation": None, "padding": None, "post_processor": None}
        if isinstance(parsed["model"], dict) and "dropout" in parsed["model"]:
            parsed["model"]["dropout"] = None
        for added in parsed.get("added_tokens") or []:
            # Only tokens marked special are left alone by encode_special_tokens below.
            if added["content"] in END_OF_TEXT_TOKENS:
                added["special"] = True
        _check_merges(parsed["model"])
        tokenizer = Tokenizer.from_str(json.dumps(parsed))
        _check_ids(tokenizer)
    # A special token spelled out in a text is text: it must not end the premise.
    tokenizer.encode_special_tokens = True
    candidates = (tokenizer.token_to_id(token) for token in END_OF_TEXT_TOKENS)
    end_of_text = next((token for token in candidates if token is not None), None)
    if end_of_text is None:
        raise DataError(
            f"{name}: has none of the end-of-text tokens {' '.join(END_OF_TEXT_TOKENS)}; "
            "add the one that pretraining put before every document"
        )
    file_hash = hashlib.sha256(tokenizer_json).hexdigest()
    return PairEncoding(
        tokenizer, hash_of_tokenizer(tokenizer), end_of_text, template, block_size, file_hash
    )


def hash_of_tokenizer(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer as it is used here: of what the library writes of it, with
    its keys in order, without truncation, padding, post-processing and dropout.

    So the file of the pretraining, the copy in a fine-tuned checkpoint, and the same file indented
    in another way have one hash.
    """
    content = json.loads(tokenizer.to_str())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _tokenizers_errors(said: str, advice: str) -> Iterator[None]:
    """Turns what the tokenizers library and its parsers raise into a DataError."""
    try:
        yield
    # It raises bare Exception, and where its Rust code panics something that is none.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{said} ({_reason(error)}); {advice}") from error


def _check_merges(model: Mapping[str, object]) -> None:
    """The library cuts the prefix off unseen, and ends the whole process where it is not there."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in (model.get("merges") or []) if prefix else []:
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        if not second.startswith(prefix):
            raise ValueError(f"the merge {merge!r} lacks the prefix {prefix!r}")


def _check_ids(tokenizer: Tokenizer) -> None:
    token_of: dict[int, str] = {}
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_of.setdefault(number, token) != token:
            raise ValueError(f"{token!r} and {token_of[number]!r} are both token {number}")
    # To write a vocabulary the library counts up to its largest number, and ends the process where
    # memory does not suffice.
    largest = max(token_of, default=0)
    if largest >= MOST_TOKENS:
        raise ValueError(f"{token_of[largest]!r} is token {largest}: no model has so many rows")


def encode_pairs(pairs: Sequence[tuple[str, str]], encoding: PairEncoding) -> list[np.ndarray]:
    """One row of token ids for every (premise, hypothesis), as `load_encoded` makes them."""
    stripped = [text.strip("\r\n") for pair in pairs for text in pair]
    texts = _encode_texts(dict.fromkeys(stripped), encoding, show_progress=False)
    numbers = texts.numbers(stripped).reshape(-1, 2)  # [N, 2]
    tokens, offsets, _ = _join_pairs(texts, numbers, "pair", encoding)
    tokens = tokens.astype(np.int64)
    return [tokens[start:end] for start, end in pairwise(offsets)]


def cuts_vowel_signs(tokenizer: Tokenizer) -> bool:
    """Whether the pre-tokenizer cuts Devanagari words at their vowel signs, as the default
    byte-level pattern does: about twice the tokens of one that doesn't."""
    if tokenizer.pre_tokenizer is None:
        return False
    word = "किताबें"
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) > 1


def pack(split: EncodedSplit, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows one after the other in the order of `indices`, without padding: ids [sum of lengths],
    lengths [B], labels [B], all int64."""
    indices = np.asarray(indices, dtype=np.int64)
    starts = split.offsets[indices]
    lengths = split.offsets[indices + 1] - starts
    tokens = split.tokens[_places_of_rows(starts, lengths)].astype(np.int64)
    return tuple(torch.from_numpy(array) for array in (tokens, lengths, split.labels[indices]))


def _places_of_rows(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[B], [B] -> [sum of lengths], the places of rows' tokens in an array of all tokens."""
    ends = np.cumsum(lengths)
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)


def collate(split: EncodedSplit, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows padded on the right to the longest: ids [B, T], lengths [B], labels [B], all int64."""
    tokens, lengths, labels = pack(split, indices)
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]  # [B, T]
    input_ids = torch.zeros(is_token.shape, dtype=torch.int64)  # [B, T]
    input_ids[is_token] = tokens
    return input_ids, lengths, labels


@dataclass(frozen=True)
class _Source:
    """Rows that can be loaded, and a hash of their content that is cheaper than loading them."""

    name: str
    content_hash: str
    load: Callable[[], Mapping[str, object]]  # split -> datasets.Dataset
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def where(self, split: str) -> str:
        """A split as messages name it: by its file where it is one file."""
        files = self.files.get(split, ())
        return f"{files[0] if len(files) == 1 else self.name}: {split}"


def _find_source(
    request: DataRequest, cache_dir: Path, builtin: Mapping[str, BuiltinDataset]
) -> _Source:
    if request.dataset in builtin and not is_in_data_dir(request.dataset, request.data_dir):
        return _builtin_source(request.dataset, builtin[request.dataset])
    name, config = _hub_name(request)
    folder = _local_folder(request)
    if folder is None:
        if problem := problem_of_dataset(request.dataset):
            raise DataError(problem)
        return _hub_source(name, config, request, cache_dir)
    if (folder / "dataset_dict.json").exists():
        return _saved_source(folder, request)
    if (folder / "state.json").exists() or (folder / "dataset_info.json").exists():
        raise DataError(
            f"{folder}: one dataset without splits; save a DatasetDict with {', '.join(SPLITS)}"
        )
    if _split_files(folder):
        return _files_source(folder, request, cache_dir)
    if config is None and is_xnli(folder.name):
        # The whole path of a copy means what its name alone does.
        config = _hub_name(replace(request, dataset=folder.name))[1]
    return _repository_source(folder, config, request, cache_dir)


def _hub_name(request: DataRequest) -> tuple[str, str | None]:
    language = {"hindi_xnli": "hi"}.get(request.dataset)
    match = re.fullmatch(r"xnli_([a-z]{2})", request.dataset)
    if match and match[1] in XNLI_LANGUAGES:
        language = match[1]
    if language:
        return HUB_XNLI, request.dataset_config or language
    return request.dataset, request.dataset_config


def _local_folder(request: DataRequest) -> Path | None:
    if request.data_dir is not None:
        base = Path(request.data_dir)
        if not base.is_dir():
            raise DataError(f"--data_dir {base}: no such folder; give one that holds the dataset")
        inside = base / request.dataset
        return inside if inside.is_dir() else base
    if request.dataset in KNOWN_NAMES:
        return None
    folder = Path(request.dataset)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(
            f"--dataset {folder}: a file, expected a folder with train, validation and test files"
        )
    looks_like_path = request.dataset.startswith((".", "/", "~")) or request.dataset.count("/") > 1
    if looks_like_path:
        raise DataError(f"--dataset {folder}: no such folder")
    return None


def _builtin_source(name: str, make: BuiltinDataset) -> _Source:
    splits = {split: list(rows) for split, rows in make().items()}
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    def load() -> Mapping[str, object]:
        with quiet_datasets() as datasets:
            return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    return _Source(name, digest, load)


def _saved_source(folder: Path, request: DataRequest) -> _Source:
    inside = chain.from_iterable((folder / split).rglob("*") for split in request.splits)
    files = [folder / "dataset_dict.json", *sorted(path for path in inside if path.is_file())]

    def load() -> Mapping[str, object]:
        with _said_as_data_error(str(folder)):
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        loaded = {}
        for split in splits:
            # It stumbles over a split that was saved without rows.
            where = f"{folder}: {_shown(str(split))}, empty or damaged"
            with quiet_datasets() as datasets, _said_as_data_error(where):
                loaded[split] = datasets.load_from_disk(str(folder / split))
        return loaded

    return _Source(str(folder), _hash_files(files, folder), load)


def _files_source(folder: Path, request: DataRequest, cache_dir: Path) -> _Source:
    files = {
        split: paths for split, paths in _split_files(folder).items() if split in request.splits
    }
    digest = _hash_files(sorted(path for paths in files.values() for path in paths), folder)

    def load() -> Mapping[str, object]:
        return {
            split: _load_file(split, paths, request, cache_dir / f"datasets-{digest[:16]}")
            for split, paths in files.items()
        }

    return _Source(str(folder), digest, load, files)


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: `train.jsonl`, or shards `train-00000-of-00002.parquet`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(\w+?)(-\d+-of-\d+)?\.(\w+)", path.name)
        if match and match[1] in SPLITS and match[3] in TEXT_FORMATS and path.is_file():
            found.setdefault(match[1], []).append(path)
    for split, paths in found.items():
        stems = {re.sub(r"-\d+-of-\d+", "-shard", path.name) for path in paths}
        if len(stems) > 1:
            names = " and ".join(path.name for path in paths[:2])
            raise DataError(f"{folder}: {names} are both {split}; keep one of them")
        _require_all_shards(paths)
    return found


def _require_all_shards(paths: Sequence[Path]) -> None:
    shards = [re.search(r"-(\d+)-of-(\d+)\.", path.name) for path in paths]
    numbers = [(int(shard[1]), int(shard[2])) for shard in shards if shard]
    if numbers and numbers != [(i, numbers[0][1]) for i in range(numbers[0][1])]:
        names = _listed([path.name for path in paths])
        raise DataError(f"{paths[0].parent}: found only {names} of the shards; copy all of them")


def _load_file(split: str, paths: list[Path], request: DataRequest, cache_dir: Path) -> object:
    kind = paths[0].suffix.removeprefix(".")
    separator = SEPARATORS.get(kind, "")
    plain = _read_plainly(paths, split, separator, request)
    names = _header(paths[0], separator) if separator else []
    builder = {"jsonl": "json", "tsv": "csv"}.get(kind, kind)
    with quiet_datasets() as datasets, _said_as_data_error(str(paths[0])):
        options: dict[str, object] = {}
        if separator:
            options = {
                "sep": separator,
                "features": datasets.Features({name: datasets.Value("string") for name in names}),
                "na_filter": False,
                "encoding": "utf-8-sig",
            }
        loaded = datasets.load_dataset(
            builder,
            data_files={split: [glob.escape(str(path)) for path in paths]},
            split=split,
            cache_dir=str(cache_dir),
            **options,
        )
    _compare_with_plain_reading(loaded, plain, paths, request)
    _compare_parquet(loaded, paths, request)
    return loaded


def _header(path: Path, separator: str) -> list[str]:
    """The column names as pandas has them."""
    with _opened(path) as file:
        names = next(csv.reader(file, delimiter=separator, strict=True), [])
    return [name or f"Unnamed: {i}" for i, name in enumerate(names)]


def _read_plainly(
    paths: Sequence[Path], split: str, separator: str, request: DataRequest
) -> list[tuple[object, ...]] | None:
    """The asked-for columns of text files without `datasets`, None for files of other formats."""
    rows: list[tuple[object, ...]] = []
    for path in paths:
        if path.suffix in (".csv", ".tsv"):
            rows += _read_delimited(path, split, separator, request)
        elif path.suffix == ".jsonl":
            rows += _read_jsonl(path, split, request)
        else:
            return None
    if not rows:
        raise DataError(f"{paths[0]}: {split} is empty, expected at least one row")
    return rows


def _read_delimited(
    path: Path, split: str, separator: str, request: DataRequest
) -> list[tuple[object, ...]]:
    """The asked-for columns as the csv module reads them, strictly."""
    rows: list[tuple[object, ...]] = []
    with _opened(path) as file:
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            header = next(reader, [])
            places = _places(header, path, request)
            for fields in reader:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}: {split} row {len(rows) + 1} (line {reader.line_num}) has "
                        f"{len(fields)} fields, expected the {len(header)} of the header"
                    )
                rows.append(tuple(fields[place] for place in places))
        except csv.Error as error:
            opens = "opens with a quote but is not a quoted field"
            what = "is too long" if "limit" in str(error) else opens
            raise DataError(
                f"{path}: {split} row {len(rows) + 1} (line {reader.line_num}) has a field that "
                f"{what} ({_reason(error)}); double the quotes and quote the whole field, or write "
                "jsonl"
            ) from error
    return rows


def _places(header: list[str], path: Path, request: DataRequest) -> list[int]:
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: column {_shown(repeated[0])} stands twice in the header")
    _require_columns(header, str(path), request)
    return [header.index(column) for column in request.columns]


def _read_jsonl(path: Path, split: str, request: DataRequest) -> list[tuple[object, ...]]:
    rows = []
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}: {split} row {len(rows) + 1} (line {number})"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({_reason(error)})") from error
            if not isinstance(row, dict):
                raise DataError(f"{where} is no object, expected one a line")
            _require_columns(row, where, request)
            for column in request.text_columns:
                if not isinstance(row[column], str):
                    found = f"{type(row[column]).__name__} {_shown(repr(row[column]))}"
                    raise DataError(f"{where} has {found} in {column}, expected text")
            rows.append(tuple(row[column] for column in request.columns))
    return rows


class _opened:
    """A text file opened with its line ends kept; what isn't UTF-8 is a DataError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Iterable[str]:
        self.file = open(self.path, encoding="utf-8-sig", newline="")
        return self.file

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        self.file.close()
        if isinstance(error, UnicodeDecodeError):
            raise DataError(f"{self.path}: not UTF-8 ({error.reason}); convert it") from error


def _compare_with_plain_reading(
    loaded: object,
    rows: list[tuple[object, ...]] | None,
    paths: Sequence[Path],
    request: DataRequest,
) -> None:
    """A reader that guesses types may turn text into other text; such a file is refused."""
    if rows is None:
        return
    if len(loaded) != len(rows):
        raise DataError(
            f"{paths[0]}: {len(rows)} rows, but datasets reads {len(loaded)}; write it as parquet"
        )
    for place, column in enumerate(request.text_columns):
        for number, (row, text) in enumerate(zip(rows, loaded[column][:], strict=True), start=1):
            if row[place] != text:
                raise _misread(paths[0], number, row[place], text)
    if getattr(loaded.features[request.label_column], "names", None) is None:
        labels = loaded[request.label_column][:]
        for number, (row, label) in enumerate(zip(rows, labels, strict=True), start=1):
            # A missing one is refused where the labels are checked.
            if label is not None and str(row[-1]) != str(label):
                raise _misread(paths[0], number, row[-1], label)


def _misread(path: Path, number: int, written: object, read: object) -> DataError:
    return DataError(
        f"{path}: row {number} is read as something else by datasets "
        f"({_shown(repr(written))} as {_shown(repr(read))}); write it as parquet"
    )


def _compare_parquet(loaded: object, paths: Iterable[Path], request: DataRequest) -> None:
    """Files read together get the types and class names of the first one; numbers that become
    texts, and ids that mean other names in a later one, are refused."""
    import datasets
    import pyarrow.parquet

    read = getattr(loaded.features.get(request.label_column), "names", None)
    for path in paths:
        if path.suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            for column in set(request.text_columns) & set(schema.names):
                kind = schema.field(column).type
                if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind):
                    raise DataError(f"{path}: numbers ({kind}) in {column}, expected text")
            feature = datasets.Features.from_arrow_schema(schema).get(request.label_column)
            names = getattr(feature, "names", None)
            if names not in (None, read):
                raise DataError(
                    f"{path}: its labels are {', '.join(names)}, but datasets reads them as "
                    f"{', '.join(read or ['numbers'])}; write all files with one order of names"
                )


def _repository_source(
    folder: Path, config: str | None, request: DataRequest, cache_dir: Path
) -> _Source:
    """A folder laid out as a repository of the Hub: a card, and data files by config."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not re.search(r"(^|/)\.", path.relative_to(folder).as_posix())
    )
    if not any(path.suffix.removeprefix(".") in TEXT_FORMATS for path in files):
        found = ", ".join(path.name for path in files[:MAX_LISTED]) or "nothing"
        raise DataError(
            f"{folder}: no dataset (found {found}); expected train, validation and test as "
            f"{', '.join(TEXT_FORMATS)}, a save_to_disk folder, or a copy of a Hub repository"
        )
    digest = _hash_files(files, folder)

    def load() -> Mapping[str, object]:
        # An absolute path: a relative one may be the name of a format, such as csv.
        where = {"path": str(folder.resolve()), "name": config}
        where["cache_dir"] = str(cache_dir / f"datasets-{digest[:16]}")
        with quiet_datasets() as datasets, _said_as_data_error(str(folder)):
            reader = datasets.load_dataset_builder(**where).config
        paths = {
            split: [Path(path) for path in reader.data_files[split]]
            for split in request.splits
            if split in reader.data_files
        }
        separator = getattr(reader, "sep", "")
        plain = {split: _read_plainly(paths[split], split, separator, request) for split in paths}
        with quiet_datasets() as datasets, _said_as_data_error(str(folder)):
            loaded = dict(datasets.load_dataset(**where))
        for split in paths:
            _compare_with_plain_reading(loaded[split], plain[split], paths[split], request)
            _compare_parquet(loaded[split], paths[split], request)
        return loaded

    return _Source(str(folder), digest, load)


def _hub_source(name: str, config: str | None, request: DataRequest, cache_dir: Path) -> _Source:
    if Path(name).is_dir():
        raise DataError(
            f"--dataset {request.dataset}: is {name} on the Hub, which the folder {name} here "
            f"hides; run from another folder, or read the copy by --data_dir {name}"
        )
    online = _hub_reachable()
    try:
        with quiet_datasets(offline=not online) as datasets:
            loaded = dict(datasets.load_dataset(name, config))
    # The errors of the HTTP library below `datasets` have no base of their own.
    except Exception as error:
        reason = _reason(error)
        meant = None if "/" in name else nearest_dataset(name)
        perhaps = "" if meant is None else f"; did you mean {meant}?"
        if online:
            raise DataError(
                f"--dataset {request.dataset}: can't load {name} ({reason}); check the name and "
                f"the network, or give a local folder as --dataset{perhaps}"
            ) from error
        raise DataError(
            f"--dataset {request.dataset}: no network, and {name} is not in the cache of datasets; "
            "run the same command with --prepare_only where there is network (and the same "
            f"HF_HOME), or give a local folder as --dataset{perhaps}"
        ) from error
    files = [Path(f["filename"]) for split in loaded.values() for f in split.cache_files]
    digest = _hash_files(sorted(files), None)
    return _Source(f"{name} {config or ''}".strip(), digest, lambda: loaded)


def _hub_reachable(timeout_s: float = 3.0) -> bool:
    """Whether the Hub's host, or the proxy that leads to it, takes a connection."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    url = urlparse(proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        address = (url.hostname, url.port or (80 if url.scheme == "http" else 443))
        with socket.create_connection(address, timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


class _said_as_data_error:
    """Turns what `datasets` raises for unreadable files into a DataError that names them."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        # A damaged file makes it stumble over whatever it takes for granted.
        if isinstance(error, Exception):
            reason = _reason(error.__cause__ or error)
            raise DataError(f"{self.name}: datasets can't read it ({reason})") from error


def _hash_files(files: Iterable[Path], root: Path | None) -> str:
    digest = hashlib.sha256()
    for path in files:
        name = path.name if root is None else str(path.relative_to(root))
        digest.update(name.encode() + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _checked_texts(
    source: _Source, request: DataRequest
) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    loaded = source.load()
    _require_splits(loaded, source.name, request)
    texts, labels = {}, {}
    for split in request.splits:
        where = source.where(split)
        _require_columns(loaded[split].column_names, where, request)
        with _said_as_data_error(where):
            # Arrow maps files as they are: a damaged one could end the process here.
            loaded[split].data.validate(full=True)
            columns = [loaded[split][column][:] for column in request.columns]
        texts[split] = [
            _checked_column(values, column, where)
            for values, column in zip(columns, request.text_columns, strict=False)
        ]
        names = getattr(loaded[split].features[request.label_column], "names", None)
        labels[split] = _label_names(columns[-1], names, request.label_column, where)
    classes = request.classes or _classes(labels, source.name, request)
    return {
        split: TextSplit(*texts[split], _label_ids(labels[split], classes, source.where(split)))
        for split in request.splits
    }, classes


def _require_splits(loaded: Mapping[str, object], name: str, request: DataRequest) -> None:
    missing = [split for split in request.splits if split not in loaded]
    empty = [split for split in request.splits if split in loaded and not len(loaded[split])]
    if missing:
        raise DataError(
            f"{name}: no split {', '.join(missing)} (found {', '.join(loaded) or 'none'}), "
            f"and this run needs {', '.join(request.splits)}"
        )
    if empty:
        raise DataError(f"{name}: split {', '.join(empty)} is empty, expected at least one row")


def _require_columns(found: Iterable[str], where: str, request: DataRequest) -> None:
    found = list(found)
    missing = [column for column in request.columns if column not in found]
    if missing:
        raise DataError(
            f"{where}: no column {', '.join(missing)} (found {_listed(found)}); "
            "name the columns with --text_column PREMISE HYPOTHESIS and --label_column"
        )


def _checked_column(values: Iterable[object], column: str, where: str) -> list[str]:
    """Texts with their line ends dropped; empty and non-string ones are listed in the error."""
    texts, bad = [], []
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            bad.append(f"row {number} has {type(value).__name__} {value!r}")
        elif not value.strip():
            bad.append(f"row {number} is empty")
        else:
            texts.append(value.strip("\r\n"))
    if bad:
        raise DataError(f"{where}: column {column} must be text, but {_listed(bad)}")
    return texts


def _label_names(
    values: Iterable[object], names: Sequence[str] | None, column: str, where: str
) -> list[str | int]:
    """Labels as names (lower case) or, where the data has only numbers, as numbers."""
    labels: list[str | int] = []
    bad = []
    for number, value in enumerate(values, start=1):
        label = _label_name(value, names)
        if label is None:
            bad.append(f"row {number} has {value!r}")
        else:
            labels.append(label)
    if bad:
        raise DataError(f"{where}: column {column} must be a label, but {_listed(bad)}")
    return labels


def _label_name(value: object, names: Sequence[str] | None) -> str | int | None:
    """One label, or None for what is none: a missing value, -1, an empty string, a float."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value.strip().casefold()
        if re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+e[+-]?\d+|nan)", value):
            return None
        if not re.fullmatch(r"-?\d{1,6}", value):
            return LABEL_ALIASES.get(value, value) or None
        value = int(value)
    if not isinstance(value, int) or value < 0:
        return None
    if names is None:
        return value
    return _label_name(names[value], None) if value < len(names) else None


def _classes(
    labels: Mapping[str, Sequence[str | int]], name: str, request: DataRequest
) -> tuple[str, ...]:
    """The classes in the order of their ids, from the labels of train (else of the first split)."""
    basis = "train" if "train" in labels else request.splits[0]
    found = set(labels[basis])
    wanted = request.num_classes
    if len({type(label) for label in found}) > 1:
        first = {type(label): number for number, label in reversed([*enumerate(labels[basis], 1)])}
        raise DataError(
            f"{name}: {basis} has labels that are names (row {first[str]}) and labels that are "
            f"numbers (row {first[int]})"
        )
    if all(isinstance(label, int) for label in found):
        count = wanted or max(found) + 1
        if count > 1000:
            raise DataError(f"{name}: a label {max(found)} in {basis}; expected ids from 0 upwards")
        classes = NLI_CLASSES if count == 3 else tuple(str(i) for i in range(count))
        present = {classes[i] for i in found if i < count}
    else:
        # All three and a fourth: that one is a mistake, not a class, unless it is asked for.
        nli = found <= set(NLI_CLASSES) or found >= set(NLI_CLASSES)
        is_nli = nli and wanted in (None, len(NLI_CLASSES))
        classes = NLI_CLASSES if is_nli else tuple(sorted(found))
        present = found
    if wanted is not None and len(classes) != wanted:
        raise DataError(
            f"--num_classes {wanted}, but {name} has {len(classes)} classes in {basis}: "
            f"{_listed(classes)}; leave the flag out or correct it"
        )
    absent = [label for label in classes if label not in present]
    if absent and basis == "train":
        seen = [
            f"row {labels[basis].index(label) + 1} has {label}"
            for label in sorted(found, reverse=True)
        ]
        raise DataError(
            f"{name}: no example of {_listed(absent)} in train, so it can't be learned "
            f"({_listed(seen)}); add examples, or say --num_classes for a set with fewer classes"
        )
    if len(classes) < 2:
        raise DataError(f"{name}: only one class, {classes[0]}, in {basis}; expected two or more")
    return classes


def _label_ids(labels: Sequence[str | int], classes: Sequence[str], where: str) -> np.ndarray:
    ids: dict[str | int, int] = {label: i for i, label in enumerate(classes)}
    if classes == NLI_CLASSES or "0" in classes:
        ids |= {i: i for i in range(len(classes))}
    bad = [f"row {n} has {label!r}" for n, label in enumerate(labels, start=1) if label not in ids]
    if bad:
        raise DataError(f"{where}: unknown label, expected {', '.join(classes)}; {_listed(bad)}")
    return np.array([ids[label] for label in labels], dtype=np.int64)


def _listed(items: Iterable[object]) -> str:
    items = list(items)
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(_shown(str(item)) for item in items[:MAX_LISTED]) + more


def _reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return _shown((str(error).splitlines() or [""])[0].strip() or type(error).__name__)


def _shown(text: str) -> str:
    """What comes from a file, fit for one line of a terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: LONGEST_SHOWN + 1])
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def find_tokenizer(name: str, tokenizer_dir: str | None) -> Path:
    """Return the file that a path, or a name in `tokenizer_dir`, means; raises DataError."""
    places = [Path(name)]
    if tokenizer_dir is not None:
        places += [Path(tokenizer_dir) / name, Path(tokenizer_dir) / f"{name}.json"]
    for place in places:
        if place.is_dir():
            place = place / "tokenizer.json"
        if place.is_file():
            return place
    raise DataError(
        f"--tokenizer_name {name}: no such file (looked at {', '.join(map(str, places))}); "
        "give its path, or a name in --tokenizer_dir"
    )


def _cache_key(content_hash: str, request: DataRequest, encoding: PairEncoding) -> str:
    """Everything that shapes the token ids or the labels."""
    shaping = {
        "version": CACHE_VERSION,
        "content": content_hash,
        "request": {k: v for k, v in asdict(request).items() if k not in ("dataset", "data_dir")},
        "tokenizer": encoding.tokenizer_hash,
        "template": TEMPLATES[encoding.template],
        "end_of_text": encoding.end_of_text,
        "block_size": encoding.block_size,
    }
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:24]


_CACHED_ARRAYS = ("tokens", "offsets", "premise_spans", "labels")


def _write_cache(
    folder: Path,
    texts: Mapping[str, TextSplit],
    classes: tuple[str, ...],
    encoding: PairEncoding,
    content_hash: str,
) -> EncodedDataset:
    """Encode and write beside, then rename: a folder with the final name is whole."""
    partial = folder.with_name(f"{folder.name}.partial-{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    encoded_texts = _encode_distinct(texts, encoding)
    statistics, checksums = {}, {}
    for split, rows in texts.items():
        arrays, statistics[split] = _encode_split(split, rows, encoded_texts, encoding)
        for name, array in arrays.items():
            path = partial / f"{split}.{name}.npy"
            np.save(path, array)
            checksums[path.name] = _crc_of_file(path)
    meta = {
        "classes": classes,
        "statistics": statistics,
        "content_hash": content_hash,
        "checksums": checksums,
    }
    meta["checksum"] = _crc_of_meta(meta)
    text = json.dumps(meta, ensure_ascii=False, indent=1)
    (partial / "meta.json").write_text(text, encoding="utf-8")
    # Mapped before another process can come in between: a mapped file outlives its folder.
    written = _read_cache(partial)
    assert written is not None, "a cache just written is whole"
    _publish(partial, folder)
    return written


def _publish(partial: Path, folder: Path) -> None:
    """Give a whole cache its final name, unless another process was first."""
    with suppress(OSError):
        partial.rename(folder)
        return
    if _read_cache(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            partial.rename(folder)
    shutil.rmtree(partial, ignore_errors=True)


def _read_cache(folder: Path) -> EncodedDataset | None:
    """The cache in `folder`, or None where it is absent, half-written or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["checksum"] != _crc_of_meta(meta):
            return None
        if any(_crc_of_file(folder / name) != crc for name, crc in meta["checksums"].items()):
            return None
        splits = {
            split: EncodedSplit(
                *(np.load(folder / f"{split}.{a}.npy", mmap_mode="r") for a in _CACHED_ARRAYS)
            )
            for split in meta["statistics"]
        }
        classes = tuple(meta["classes"])
        return EncodedDataset(splits, classes, meta["statistics"], meta["content_hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _crc_of_meta(meta: Mapping[str, object]) -> int:
    rest = {name: value for name, value in meta.items() if name != "checksum"}
    return zlib.crc32(json.dumps(rest).encode())


def _crc_of_file(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            crc = zlib.crc32(chunk, crc)
    return crc


@dataclass(frozen=True)
class _EncodedTexts:
    """Distinct texts as token ids."""

    number_of: dict[str, int]
    tokens: np.ndarray  # [sum of lengths + 1], the texts by number, then the end-of-text token
    offsets: np.ndarray  # [M + 1] int64, where the texts begin
    num_words: np.ndarray  # [M] int64

    @property
    def lengths(self) -> np.ndarray:
        """[M] tokens of every text."""
        return np.diff(self.offsets)

    def numbers(self, texts: Sequence[str]) -> np.ndarray:
        """[N] int64, the numbers of any of the texts."""
        return np.fromiter(map(self.number_of.__getitem__, texts), np.int64, len(texts))


def _encode_distinct(texts: Mapping[str, TextSplit], encoding: PairEncoding) -> _EncodedTexts:
    """Token ids of every distinct text, each encoded once, on all cores."""
    every = (column for rows in texts.values() for column in (rows.premises, rows.hypotheses))
    return _encode_texts(dict.fromkeys(chain.from_iterable(every)), encoding)


def _encode_texts(
    distinct: Iterable[str], encoding: PairEncoding, show_progress: bool = True
) -> _EncodedTexts:
    distinct = list(distinct)
    dtype = np.uint16 if encoding.num_tokens <= 1 << 16 else np.uint32
    chunks = [distinct[i : i + ENCODE_CHUNK] for i in range(0, len(distinct), ENCODE_CHUNK)]
    tokens, lengths, num_words = [], [], []
    hidden = None if show_progress else True
    with (
        _threads_of_tokenizers_off(),
        ThreadPoolExecutor(_num_cores()) as pool,
        tqdm(total=len(distinct), desc="tokenising", unit="text", disable=hidden) as progress,
    ):
        encoded = pool.map(partial(_encode_chunk, encoding.tokenizer, dtype), chunks)
        for chunk_tokens, chunk_lengths, chunk_words in encoded:
            tokens.append(chunk_tokens)
            lengths += chunk_lengths
            num_words += chunk_words
            progress.update(len(chunk_lengths))
    return _EncodedTexts(
        {text: number for number, text in enumerate(distinct)},
        np.concatenate([*tokens, np.array([encoding.end_of_text], dtype)]),
        _offsets(lengths),
        np.array(num_words, dtype=np.int64),
    )


def _encode_chunk(
    tokenizer: Tokenizer, dtype: type, texts: list[str]
) -> tuple[np.ndarray, list[int], list[int]]:
    """The token ids of texts one after the other, and the tokens and words of each."""
    with _tokenizers_errors("the tokenizer can't encode the texts", "is it the right one?"):
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    rows = [row.ids for row in encoded]
    tokens = np.fromiter(chain.from_iterable(rows), dtype)
    return tokens, [len(row) for row in rows], [len(text.split()) for text in texts]


@contextmanager
def _threads_of_tokenizers_off() -> Iterator[None]:
    """The library's own threads don't survive a fork: once they have run, a forked process gets
    one core, or hangs if the environment asks for more."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _num_cores() -> int:
    """The cores that this process may use: a SLURM job has some of the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _encode_split(
    split: str, rows: TextSplit, texts: _EncodedTexts, encoding: PairEncoding
) -> tuple[dict[str, np.ndarray], dict]:
    columns = (rows.premises, rows.hypotheses)
    numbers = np.stack([texts.numbers(column) for column in columns], axis=1)  # [N, 2]
    tokens, offsets, spans = _join_pairs(texts, numbers, f"{split} row", encoding)
    lengths = np.diff(offsets)
    text_lengths = texts.lengths[numbers]  # [N, 2]
    statistics = {
        "rows": len(lengths),
        "cut_premises": int((spans[:, 1] < text_lengths[:, 0]).sum()),
        "tokens_per_pair": int(lengths.sum()) / len(lengths),
        "longest_pair": int(lengths.max()),
        "tokens_per_word": int(text_lengths.sum()) / int(texts.num_words[numbers].sum()),
    }
    arrays = (tokens, offsets, spans, rows.labels)
    return dict(zip(_CACHED_ARRAYS, arrays, strict=True)), statistics


def _join_pairs(
    texts: _EncodedTexts, numbers: np.ndarray, name: str, encoding: PairEncoding
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows by the template from the numbers [N, 2] of their texts, premises cut to fit: tokens,
    offsets and premise spans as in EncodedSplit. `name` is what messages call a row."""
    space = encoding.block_size - encoding.num_special_tokens
    lengths = texts.lengths[numbers]  # [N, 2]
    _require_tokens(lengths, space, name, encoding)
    lengths[:, 0] = np.minimum(lengths[:, 0], space - lengths[:, 1])
    template = TEMPLATES[encoding.template]
    order = [("premise", "hypothesis", "end_of_text").index(part) for part in template]
    end_of_text = np.full(len(numbers), texts.offsets[-1])
    # [N, 2] -> [N, 3], the end-of-text token as a third text -> [N, parts of the template]
    starts = np.column_stack([texts.offsets[numbers], end_of_text])[:, order]
    lengths = np.column_stack([lengths, np.ones_like(end_of_text)])[:, order]
    tokens = [texts.tokens[:0]]
    for i in range(0, len(numbers), JOIN_CHUNK):
        rows = slice(i, i + JOIN_CHUNK)
        tokens.append(texts.tokens[_places_of_rows(starts[rows].ravel(), lengths[rows].ravel())])
    at = template.index("premise")
    spans = np.column_stack([np.full(len(numbers), at), lengths[:, at]]).astype(np.int32)
    return np.concatenate(tokens), _offsets(lengths.sum(axis=1)), spans


def _offsets(lengths: Sequence[int]) -> np.ndarray:
    """[N] -> [N + 1] int64, where each begins and the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _require_tokens(lengths: np.ndarray, space: int, name: str, encoding: PairEncoding) -> None:
    """Raise for the first row whose texts, of these lengths [N, 2], can't be joined."""
    bad = (lengths == 0).any(axis=1) | (lengths[:, 1] >= space)
    if not bad.any():
        return
    where = f"{name} {bad.argmax() + 1}"
    premise_length, hypothesis_length = lengths[bad.argmax()]
    if not premise_length or not hypothesis_length:
        which = "premise" if not premise_length else "hypothesis"
        raise DataError(
            f"{where}: the tokenizer gives no token for the {which}; is it the right one?"
        )
    raise DataError(
        f"{where}: a hypothesis of {hypothesis_length} tokens leaves no room for the premise "
        f"in --block_size {encoding.block_size}; a hypothesis is never cut: raise it"
    )
