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
from dataclasses import asdict
from pathlib import Path

import numpy as np

from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.encoded import CACHED_ARRAYS, EncodedDataset, EncodedSplit
from xnli_gpt.data.labels import classes_of, label_ids, label_names
from xnli_gpt.data.library import said_as_data_error
from xnli_gpt.data.pairs import TextSplit, encode_distinct, encode_split
from xnli_gpt.data.request import DataRequest, checked_column, require_columns, require_splits
from xnli_gpt.data.sources import Source, find_source
from xnli_gpt.data.tokenizer import PairEncoding

CACHE_VERSION = 1


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
        texts, classes = _checked_texts(source, request)
        cached = _write_cache(folder, texts, classes, encoding, source.content_hash)
    return cached


def load_texts(
    request: DataRequest, cache_dir: str | Path
) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    """Return the rows asked for as text, with their classes; checked as by `load_encoded`."""
    source = find_source(request, Path(cache_dir))
    return _checked_texts(source, request)


def _checked_texts(
    source: Source, request: DataRequest
) -> tuple[dict[str, TextSplit], tuple[str, ...]]:
    loaded = source.load()
    require_splits(loaded, source.name, request)
    texts, labels = {}, {}
    for split in request.splits:
        where = source.where(split)
        require_columns(loaded[split].column_names, where, request)
        with said_as_data_error(where):
            # Arrow maps files as they are: a damaged one could end the process here.
            loaded[split].data.validate(full=True)
            columns = [loaded[split][column][:] for column in request.columns]
        texts[split] = [
            checked_column(values, column, where)
            for values, column in zip(columns, request.text_columns, strict=False)
        ]
        names = getattr(loaded[split].features[request.label_column], "names", None)
        labels[split] = label_names(columns[-1], names, request.label_column, where)
    classes = request.classes or classes_of(labels, source.name, request)
    return {
        split: TextSplit(*texts[split], label_ids(labels[split], classes, source.where(split)))
        for split in request.splits
    }, classes


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
    encoded_texts = encode_distinct(texts, encoding)
    statistics, checksums = {}, {}
    for split, rows in texts.items():
        arrays, statistics[split] = encode_split(split, rows, encoded_texts, encoding)
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
                *(np.load(folder / f"{split}.{a}.npy", mmap_mode="r") for a in CACHED_ARRAYS)
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
