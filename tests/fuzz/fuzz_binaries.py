"""Caches and token shards for the fuzzer."""

from __future__ import annotations

import random
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
from fuzz_datasets import CLASSES
from fuzz_tokenizers import base_tokenizers
from fuzzing import Kind, Wrong, require_good_message
from odd_inputs import TEXTS, changed_bytes

from load_checkpoint_helper import CheckpointError, read_token_shard
from xnli_gpt.data import sources
from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.encoded import CACHED_ARRAYS, EncodedDataset
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding


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
