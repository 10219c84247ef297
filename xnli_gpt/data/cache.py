"""Rows as checked text and as token ids, the latter tokenised once into a memory-mapped cache.

The cache is keyed by the content of the data, the tokenizer and everything else that shapes the
ids.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.encoded import CACHED_ARRAYS, EncodedDataset, EncodedSplit
from xnli_gpt.data.labels import any_label, classes_of, label_ids, note_of_numbers
from xnli_gpt.data.leaks import find_leaks
from xnli_gpt.data.pairs import TextSplit, encode_distinct, encode_split
from xnli_gpt.data.request import DataRequest, require_splits
from xnli_gpt.data.selection import select_rows
from xnli_gpt.data.sources import DataSource, find_source
from xnli_gpt.data.tokenizer import PairEncoding
from xnli_gpt.data.tokenizer_check import notes_of_encoding

CACHE_VERSION = 2


def load_encoded(
    request: DataRequest,
    encoding: PairEncoding,
    cache_dir: str | Path,
) -> EncodedDataset:
    """Return the rows asked for as token ids, from the cache or tokenised now.

    Raises DataError for rows, labels, splits or texts that can't be used.
    """
    source = find_source(request, Path(cache_dir))
    key = _cache_key(source.content_hash, request, encoding)
    folder = Path(cache_dir) / f"encoded-{key}"
    cached = _read_cache(folder)
    if cached is None:
        cached = _write_cache(folder, _checked_texts(source, request), encoding, source)
    return cached


def load_texts(
    request: DataRequest, cache_dir: str | Path
) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    """Return the rows asked for as text, with their classes; checked as by `load_encoded`."""
    checked = _checked_texts(find_source(request, Path(cache_dir)), request)
    return checked.splits, checked.classes


@dataclass(frozen=True)
class _CheckedTexts:
    """Rows as text with label ids, and what was found of them."""

    splits: dict[str, TextSplit]
    classes: tuple[str, ...]
    leaked: dict[str, list[int]]
    notes: list[str]
    label_kind: str


def _checked_texts(source: DataSource, request: DataRequest) -> _CheckedTexts:
    tables = source.load()
    splits = require_splits({s: t.num_rows for s, t in tables.items()}, source.name, request)
    where = {split: source.where(split) for split in splits}
    selected = select_rows({split: tables[split] for split in splits}, where, request)
    labels = {split: rows.labels for split, rows in selected.items()}
    labelled = {split: of_split for split, of_split in labels.items() if any_label(of_split)}
    classes = request.classes or classes_of(labelled or labels, source.name, request)
    every = list(chain.from_iterable(labels.values()))
    notes = [note for rows in selected.values() for note in rows.notes]
    notes += filter(None, [note_of_numbers(every, classes)])
    leaked, of_leaks = find_leaks(selected, where)
    texts = {
        split: TextSplit(
            rows.premises,
            rows.hypotheses,
            label_ids(labels[split], classes, where[split]),
            dict(rows.carried),
        )
        for split, rows in selected.items()
    }
    kind = "numbers" if any(isinstance(label, int) for label in every) else "names"
    return _CheckedTexts(texts, classes, leaked, [*notes, *of_leaks], kind)


def _cache_key(content_hash: str, request: DataRequest, encoding: PairEncoding) -> str:
    """Hash everything that shapes the token ids or the labels."""
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


def _write_cache(
    folder: Path, texts: _CheckedTexts, encoding: PairEncoding, source: DataSource
) -> EncodedDataset:
    """Encode and write beside, then rename: a folder with the final name is whole."""
    partial = folder.with_name(f"{folder.name}.partial-{socket.gethostname()}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    encoded_texts = encode_distinct(texts.splits, encoding)
    statistics, checksums = {}, {}
    for split, rows in texts.splits.items():
        arrays, statistics[split] = encode_split(split, rows, encoded_texts, encoding)
        for name, array in arrays.items():
            path = partial / f"{split}.{name}.npy"
            np.save(path, array)
            checksums[path.name] = _crc_of_file(path)
    meta = {
        "classes": texts.classes,
        "statistics": statistics,
        "content_hash": source.content_hash,
        "leaked": texts.leaked,
        "notes": [*texts.notes, *notes_of_encoding(encoded_texts.number_of, encoding)],
        "label_kind": texts.label_kind,
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
    """Return the cache in `folder`, or None where it is absent, half-written or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if meta["checksum"] != _crc_of_meta(meta):
            return None
        if any(_crc_of_file(folder / name) != crc for name, crc in meta["checksums"].items()):
            return None
        splits = {
            split: EncodedSplit(
                *(np.load(folder / f"{split}.{a}.npy", mmap_mode="r") for a in CACHED_ARRAYS)
            )
            for split in meta["statistics"]
        }
        return EncodedDataset(
            splits,
            tuple(meta["classes"]),
            meta["statistics"],
            meta["content_hash"],
            meta["leaked"],
            tuple(meta["notes"]),
            meta["label_kind"],
        )
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
