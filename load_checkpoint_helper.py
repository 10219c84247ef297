"""Loads the checkpoints of the pretraining scripts, and says what is in one.

A format is a table (`FORMATS`): every tensor's name, its shape, and the names it gets in
`model.py`, where it may be split, or stacked with others. What the file is, is read from all its
keys, confirmed by its scalars, and compared with the script's source that it carries; where they
disagree there is an error and never a guess.

Nothing in a file is executed. The pickle is first read by an unpickler that builds nothing but
inert records (`_InertUnpickler`), and only a file that passes is given to `torch.load`.

    python load_checkpoint_helper.py CKPT [--json] [--n_head N] [--lm_check TOKENS.bin]
"""

from __future__ import annotations

import argparse
import ast
import glob
import hashlib
import io
import json
import math
import os
import pickle
import re
import struct
import sys
import threading
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from xnli_gpt.errors import XNLIError
from xnli_gpt.flags import (
    Flag,
    FlagGroups,
    UsageError,
    exit_code_of,
    parse_flags,
    refuse_wrong_words,
)
from xnli_gpt.processors import set_up_libraries

FLAGS: FlagGroups = {
    "checkpoint": (
        Flag(
            "checkpoint",
            Path,
            None,
            "a path, or a quoted glob for the best of it",
            count="+",
            must_exist=True,
            positional=True,
            metavar="CKPT",
        ),
        Flag("n_head", int, None, "heads, where the file does not tell", low=1),
    ),
    "language-model check": (
        Flag(
            "lm_check",
            Path,
            None,
            "measure the loss on this shard",
            must_exist=True,
            metavar="TOKENS.bin",
        ),
        Flag("lm_row_length", int, 1024, "tokens a row", low=1),
        Flag("lm_rows", int, 64, "rows at most", low=1),
    ),
    "output": (Flag("json", bool, False, "print one JSON object"),),
}
DESCRIPTION = "Say what a pretrained checkpoint is."


def problems_of_names(arguments: argparse.Namespace) -> list[str]:
    """What is wrong with the number of checkpoints: of several, as a shell makes of a glob, none
    is taken."""
    paths = arguments.checkpoint
    if not paths:
        return ["CKPT is needed: the path of a pretrained checkpoint, or a glob"]
    if len(paths) == 1:
        return []
    shown = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
    return [
        f"{len(paths)} checkpoints ({shown}): name one, or put the glob into quotes "
        "('runs/*.pt'), and the best of them is taken"
    ]


if __name__ == "__main__":
    refuse_wrong_words(DESCRIPTION, FLAGS, problems_of_names, recipes=False)
    set_up_libraries()

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from model import (
    FAMILIES,
    NUM_VALUE_EMBEDS,
    SCALARS_PER_LAYER,
    GPTBatched,
    GPTConfig,
    initial_scalars,
    next_multiple,
)

FINE_TUNED_KIND = "hindi-xnli-classifier"
DEFAULT_MAX_SEQ_LEN = 1024
WRAPPER_PREFIXES = ("_orig_mod.", "module.")
MAX_LISTED = 6
LONGEST_NAME = 80
# Of a script's source text; parsing takes some hundred times as much memory.
LONGEST_CODE = 1 << 20
# Tied tables make more weights than a file stores; without a limit, some kilobytes would be a model
# of any size.
MOST_SHARING = 8

# Pieces that stay in a core's cache from reading to copying, and enough threads to wait for the
# disk while others compute the checksum.
PIECE_BYTES = 1 << 20
READERS = 4
# Threads that open entries at the same time move each other's place in the file: Python from 3.11.8
# and 3.12.2 on may then take a whole file for one of overlapping entries.
_HEADERS = threading.Lock()

SHARD_MAGIC = 20240520
SHARD_HEADER_INTS = 256

# On the rows of the recorded loss, right loads of real checkpoints differed by 2e-5 nats; rows of
# another length by up to 0.03; a wrong network, head count, cap or norm by 0.16 to 5.
LM_LOSS_SAME_ROWS = 0.002
LM_LOSS_OTHER_ROWS = 0.15
# Nats a token between shuffled and true order: 3.1 and 5.0 with the right tokenizer on two real
# checkpoints, 0.13 at most with five wrong ones, 0.5 through the other family's network.
SELF_CHECK_GAP = 1.0


class CheckpointError(XNLIError, ValueError):
    """A checkpoint can't be used; the message says the file, what was found and what to do."""


@dataclass(frozen=True)
class TensorRule:
    """One line of a format's table; `{i}` in a name stands for a block, `{t}` for a table.

    Letters in `shape`: D model width, 4D, I = heads × head size, V embedding rows, R head rows.
    `targets` maps our name to the part of the tensor it gets (None: all of it). Where tensors of
    several rules are stacked into one of ours, `place` is where in it this rule's part stands.
    """

    name: str
    shape: tuple[int | str, ...]
    targets: Mapping[str, int | slice | None]
    place: int | slice | None = None


def _same(name: str, *shape: int | str) -> TensorRule:
    return TensorRule(name, shape, {name: None})


EMBEDDING_RULES = (
    _same("embed.weight", "V", "D"),
    _same("value_embeds.{t}.weight", "V", "D"),
)

FORMATS: dict[str, tuple[TensorRule, ...]] = {
    "small": (
        *EMBEDDING_RULES,
        _same("blocks.{i}.attn.qkv_w", 3, "I", "D"),
        _same("blocks.{i}.attn.c_proj.weight", "D", "I"),
        _same("blocks.{i}.mlp.c_fc.weight", "4D", "D"),
        _same("blocks.{i}.mlp.c_proj.weight", "D", "4D"),
        _same("lm_head.weight", "R", "D"),
        _same("scalars", "S"),
    ),
    "medium": (
        *EMBEDDING_RULES,
        TensorRule(
            "blocks.{i}.attn.qkvo_w",
            (4, "I", "D"),
            {"blocks.{i}.attn.qkv_w": slice(0, 3), "blocks.{i}.attn.c_proj.weight": 3},
        ),
        TensorRule("blocks.{i}.mlp.fc_w", ("4D", "D"), {"blocks.{i}.mlp.c_fc.weight": None}),
        TensorRule("blocks.{i}.mlp.proj_w", ("D", "4D"), {"blocks.{i}.mlp.c_proj.weight": None}),
        TensorRule("lm_head_w", ("R", "D"), {"lm_head.weight": None}),
        _same("scalars", "S"),
    ),
}

# The head counts of the sizes in use, for files whose `code` doesn't tell: (format, L, D) -> H.
KNOWN_HEADS = {
    ("medium", 16, 1024): 8,
    ("medium", 24, 1152): 18,
    ("medium", 36, 1280): 20,
    ("medium", 20, 1280): 10,
    ("medium", 24, 1536): 12,
}
SMALL_HEAD_DIM = 128

OTHER_FAMILIES = (
    (r"transformer\.h\.\d+\.attn\.c_attn\b", "GPT-2"),
    (r"transformer\.h\.\d+\.attn\.c_q\b", "the 2024 scripts with c_q, c_k, c_v, or nanochat"),
    (r"\battn_gate\b", "later scripts with gated attention"),
    (r"\bsmear_gate\b", "later scripts with a smear gate"),
    (r"\bvalue_embed_gate\b", "later scripts with gated value embeddings"),
    (r"_bank$", "later scripts that keep their weights in banks"),
    (r"\bembed2\b", "later scripts with a second embedding"),
    (r"\bblocks\.\d+\.lambdas$", "scripts with lambdas in every block"),
)

_TORCH_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def load_pretrained_checkpoint(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    num_heads: int | None = None,
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN,
) -> tuple[GPTBatched, dict, dict]:
    """The checkpoint as a trunk in float32 on `device`, with its `info` and its dict.

    The weights are read once: what `inspect_checkpoint` checks are the very bytes that the trunk
    is made of. Raises CheckpointError as `inspect_checkpoint` does.
    """
    info, checkpoint, state = _read_checkpoint(Path(path), num_heads, max_seq_len, device)
    state["scalars"] = state["scalars"][: SCALARS_PER_LAYER * info["num_layers"]].clone()
    return GPTBatched.from_state_dict(config_of(info), state), info, checkpoint


def inspect_checkpoint(
    path: str | Path,
    *,
    num_heads: int | None = None,
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN,
) -> tuple[dict, dict]:
    """What the file is, and its dict, whose tensors are mapped from the file and not in memory.

    Every storage of the weights is compared with the zip's CRC-32, every weight looked through
    for NaN, every key, shape and scalar with the format's table. `num_heads` is needed only for
    sizes whose head count neither the file nor `KNOWN_HEADS` tells, and checked where given.
    Raises CheckpointError with what is wrong and what to do.
    """
    return _read_checkpoint(Path(path), num_heads, max_seq_len, None)[:2]


def _read_checkpoint(
    path: Path, num_heads: int | None, max_seq_len: int, device: str | torch.device | None
) -> tuple[dict, dict, dict[str, Tensor]]:
    """What `inspect_checkpoint` returns, and the weights as `converted_state` gives them, or none
    where `device` is None."""
    record = _read_inert(path)
    _check_bounds(path, record)
    checkpoint = _load_mapped(path, record)
    prefix = _common_prefix(checkpoint["model"])
    state = checkpoint["model"] = _unwrapped(path, checkpoint["model"])
    fmt = _detect_format(path, state)
    sizes = _check_tensors(path, fmt, state)
    heads, heads_from = _head_count(path, fmt, sizes, checkpoint.get("code"), num_heads)
    config = _config(path, fmt, sizes, heads, max_seq_len)
    converted = _read_weights(path, record, state, fmt, device)
    fingerprint = _check_scalars(path, fmt, config, state["scalars"])
    _check_unchanged(path, record)
    info = {
        "file": str(path),
        "checkpoint_format": fmt,
        "vocab_size": sizes["V"],
        "lm_head_rows": sizes["R"],
        "model_dim": sizes["D"],
        "num_layers": sizes["L"],
        "num_heads": heads,
        "head_dim": config.head_dim,
        "head_count_from": heads_from,
        "max_seq_len": max_seq_len,
        "scalars_size": state["scalars"].numel(),
        "scalars_padding": state["scalars"].numel() - SCALARS_PER_LAYER * sizes["L"],
        "attention_layers": list(config.attention_layers),
        "num_parameters": sum(t.numel() for t in state.values()),
        "num_block_parameters": sum(t.numel() for k, t in state.items() if k.startswith("blocks.")),
        "dtypes": {str(d).removeprefix("torch."): n for d, n in _count_dtypes(state).items()},
        "key_prefix": prefix,
        "step": _plain_number(checkpoint.get("step")),
        "val_loss": _plain_number(checkpoint.get("val_loss")),
        "has_code": isinstance(checkpoint.get("code"), str) and checkpoint["code"] != "",
        "file_bytes": path.stat().st_size,
        "model_bytes": sum(t.numel() * t.element_size() for t in state.values()),
        "weights_id": _weights_id(record),
        "fingerprint": fingerprint,
    }
    return info, checkpoint, converted


def config_of(info: dict) -> GPTConfig:
    """The network that `info` (of `inspect_checkpoint`) describes."""
    return GPTConfig.of_family(
        info["checkpoint_format"],
        vocab_size=info["vocab_size"],
        lm_head_rows=info["lm_head_rows"],
        num_layers=info["num_layers"],
        num_heads=info["num_heads"],
        model_dim=info["model_dim"],
        max_seq_len=info["max_seq_len"],
        attention_layers=tuple(info["attention_layers"]),
    )


def converted_state(
    fmt: str, state: Mapping[str, Tensor], device: str | torch.device = "cpu"
) -> dict[str, Tensor]:
    """A format's tensors under our names, as float32 copies on `device`."""
    parts = list(_parts_by_target(fmt, state))
    converted = _empty_targets(parts, device)
    for target, _, part, place in parts:
        _part_of(converted[target], place).copy_(part)
    return converted


_Place = int | slice | None


def _parts_by_target(
    fmt: str, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, Tensor, _Place]]:
    """Our name, the name in the file, what of its tensor is ours, and where in ours it stands."""
    for rule, name, numbers in _matches(fmt, state):
        for target, part in rule.targets.items():
            yield target.format(**numbers), name, _part_of(state[name], part), rule.place


def _matches(fmt: str, names: Iterable[str]) -> Iterator[tuple[TensorRule, str, dict[str, str]]]:
    """Every rule with every name that is one of its tensors', and the numbers in the name."""
    names = list(names)
    for rule in FORMATS[fmt]:
        pattern = _name_pattern(rule.name)
        for name in names:
            if match := pattern.fullmatch(name):
                yield rule, name, match.groupdict()


def _part_of(tensor: Tensor, part: _Place) -> Tensor:
    return tensor if part is None else tensor[part]


def _empty_targets(
    parts: Iterable[tuple[str, str, Tensor, _Place]], device: str | torch.device
) -> dict[str, Tensor]:
    """Our tensors, still to be filled: each like its only part, or a stack of several."""
    by_target: dict[str, list[tuple[Tensor, _Place]]] = defaultdict(list)
    for target, _, part, place in parts:
        by_target[target].append((part, place))
    return {
        target: torch.empty(_joined_shape(target, of_it), dtype=torch.float32, device=device)
        for target, of_it in by_target.items()
    }


def _joined_shape(target: str, parts: Sequence[tuple[Tensor, _Place]]) -> tuple[int, ...]:
    """The shape of one of our tensors. Raises ValueError for a table whose parts overlap, leave a
    gap or don't fit: what is not filled would keep whatever was in memory."""
    first, its_place = parts[0]
    if len(parts) == 1 and its_place is None:
        return tuple(first.shape)
    rows = sorted(row for _, place in parts for row in _rows_of(place))
    row_shape = first.shape if isinstance(its_place, int) else first.shape[1:]
    whole = torch.empty(len(rows), *row_shape, device="meta")
    fit = rows == list(range(len(rows))) and all(
        _part_of(whole, place).shape == part.shape for part, place in parts
    )
    if not fit:
        raise ValueError(f"{target}: its parts in the format's table do not make one tensor")
    return tuple(whole.shape)


def _rows_of(place: _Place) -> Sequence[int]:
    if isinstance(place, int):
        return [place]
    return [] if place is None else range(place.start, place.stop)


def check_flags_against_file(
    info: dict,
    *,
    n_layer: int | None = None,
    n_head: int | None = None,
    n_embd: int | None = None,
    vocab_size: int | None = None,
) -> list[str]:
    """Compare what a user said of the network with the file; returns one message a contradiction.

    A vocabulary is right as the file's embedding rows, or as the number that pads to them.
    """
    found = {
        "--n_layer": (n_layer, info["num_layers"]),
        "--n_head": (n_head, info["num_heads"]),
        "--n_embd": (n_embd, info["model_dim"]),
    }
    problems = [
        f"{flag} {given}, but {info['file']} has {actual}: leave the flag out or correct it"
        for flag, (given, actual) in found.items()
        if given is not None and given != actual
    ]
    rows = info["vocab_size"]
    if vocab_size is not None and rows not in (vocab_size, next_multiple(vocab_size, 128)):
        problems.append(
            f"--vocab_size {vocab_size}, but {info['file']} has {rows} embedding rows: "
            "leave the flag out, it is no longer needed"
        )
    return problems


def resolve_checkpoint_path(patterns: str | Path | Sequence[str | Path]) -> Path:
    """The best file of paths and globs: the lowest `_val…` in the name, without one the highest
    step. Raises CheckpointError where a pattern matches nothing."""
    patterns = [patterns] if isinstance(patterns, str | Path) else patterns
    candidates = []
    for pattern in map(str, patterns):
        # A literal path may hold glob characters.
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            what = "matches no file" if glob.has_magic(pattern) else "no such file"
            raise CheckpointError(f"{pattern}: {what}; give the path of a pretrained checkpoint")
        candidates += [Path(match) for match in matches]
    return min(dict.fromkeys(candidates), key=_preference)


def _preference(path: Path) -> tuple[float, float]:
    loss = re.search(r"_val(\d+(?:\.\d+)?)", path.name)
    step = re.search(r"step(\d+)", path.name)
    return (
        float(loss[1]) if loss else float("inf"),
        -float(step[1]) if step else 0.0,
    )


class _TensorRecord:
    """What the pickle says of one tensor; nothing of it is read yet."""

    __slots__ = ("storage", "offset", "size", "stride")

    def __init__(self, storage: object, offset: object, size: object, stride: object):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


@dataclass(frozen=True)
class _StorageRecord:
    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _FileRecord:
    """The pickle's content with records for tensors, and where its storages lie in the zip."""

    content: dict
    storage_root: str
    members: Mapping[str, zipfile.ZipInfo]
    stand_ins: tuple[tuple[str, str], ...]
    version: tuple[int, ...]

    def entry(self, storage: _StorageRecord) -> zipfile.ZipInfo | None:
        return self.members.get(f"{self.storage_root}data/{storage.key}")


@dataclass(frozen=True)
class _Copy:
    """A flat float32 tensor to fill with the values of a storage from index `start` on."""

    start: int
    values: Tensor

    def take(self, first: int, values: Tensor) -> None:
        """Take what is ours of `values`, which the storage has from index `first` on."""
        begin = max(first, self.start)
        end = min(first + len(values), self.start + len(self.values))
        if begin < end:
            mine = self.values[begin - self.start : end - self.start]
            mine.copy_(values[begin - first : end - first])


class _Inert:
    """Stands for a harmless global of torch's own; calling it gives a record or a plain value."""

    __slots__ = ("_name", "_call")

    def __init__(self, name: str, call: object):
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: object) -> object:
        return self._call(*args)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets an attribute of {self._name}")

    __reduce_ex__ = None


class _InertDict(dict):
    """An OrderedDict's items, without its attributes (the `_metadata` of a state dict)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _RefusingType(type):
    """Metaclass of the stand-ins: `cls.__new__` is how a pickle instantiates, a call is a call."""

    def __call__(cls, *args: object, **kwargs: object) -> object:
        raise _RefusedCall(f"{cls.__module__}.{cls.__qualname__}")


class _RefusedCall(Exception):
    pass


def _stand_in(module: str, name: str) -> type:
    """An empty class with another's name: pickled attributes land in it, nothing ever runs."""
    return _RefusingType(
        name,
        (),
        {
            "__module__": module,
            "__qualname__": name,
            "__new__": lambda cls, *args, **kwargs: object.__new__(cls),
            "__setstate__": lambda self, state: None,
        },
    )


def _refuse_operation(unpickler: pickle._Unpickler) -> None:
    raise pickle.UnpicklingError("an operation that torch.save does not write")


# What torch's own restricted reader takes, and what else can make a call, so that it is named.
_PICKLE_OPERATIONS = b"".join(
    (
        *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.NEWOBJ),
        *(pickle.BUILD, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS),
        *(pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.EMPTY_TUPLE),
        *(pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET, pickle.BINPERSID),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1),
        *(pickle.BININT2, pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
        *(pickle.SHORT_BINSTRING, pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT),
        *(pickle.LONG_BINPUT, pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.STACK_GLOBAL),
        *(pickle.SHORT_BINUNICODE, pickle.MEMOIZE, pickle.FRAME),
    )
)


# Where torch's own reader finds real classes, which take memory by the arguments of a pickle.
_MODULES_OF_TORCHS_READER = (
    *("builtins", "collections", "_codecs", "torch", "torch.cuda", "torch.sparse"),
    *("torch.cuda.sparse", "torch.storage", "torch.nn.parameter"),
)


class _InertUnpickler(pickle._Unpickler):
    """Reads the pickle of a torch file into records. No global of the file is ever looked up.

    The pickle module's reader in Python: that in C takes gigabytes for the memo of a few bytes,
    and hashes whatever a pickle puts into a dict.
    """

    dispatch = dict.fromkeys(range(256), _refuse_operation) | {
        code: pickle._Unpickler.dispatch[code] for code in _PICKLE_OPERATIONS
    }

    def __init__(self, file: object):
        super().__init__(file, encoding="utf-8")
        self.stand_ins: dict[tuple[str, str], type] = {}
        self.storages: dict[str, _StorageRecord] = {}

    def find_class(self, module: str, name: str) -> object:
        inert = _inert_global(module, name)
        if inert is not None:
            return inert
        key = (module, name)
        return self.stand_ins.setdefault(key, _stand_in(module, name))

    def persistent_load(self, pid: object) -> _StorageRecord:
        kind, storage_type, key, _location, numel = pid
        if kind != "storage" or not isinstance(storage_type, torch.dtype):
            raise pickle.UnpicklingError("unknown kind of storage")
        if type(key) is not str or type(numel) is not int:
            raise pickle.UnpicklingError("a storage without a name or a size")
        storage = _StorageRecord(key, storage_type, numel)
        # torch goes by the first, so weights could be read as another type than it sees.
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {_shown(storage.key)} is of two kinds")
        return storage

    def _set_items(self) -> None:
        self._set(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set(self, items: list) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple of the same tuple twice, and so on, is hashed for ever.
            if isinstance(key, tuple) and any(isinstance(part, tuple) for part in key):
                raise pickle.UnpicklingError("a nested tuple as a key")
            if not isinstance(target, dict):
                raise pickle.UnpicklingError("items of what is no dict")
            target[key] = value

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _InertDict) and type(type(target)) is not _RefusingType:
            raise pickle.UnpicklingError(f"sets the state of a {type(target).__name__.lstrip('_')}")
        target.__setstate__(state)

    def _new(self) -> None:
        _arguments, cls = self.stack.pop(), self.stack.pop()
        if not isinstance(cls, _RefusingType):
            raise pickle.UnpicklingError("instantiates what is no class")
        if cls.__module__ in _MODULES_OF_TORCHS_READER:
            raise _RefusedCall(f"{cls.__module__}.{cls.__qualname__}")
        self.append(cls.__new__(cls))

    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.NEWOBJ[0]] = _new


def _rebuilt_tensor(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _requires_grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> _TensorRecord:
    if metadata:
        raise pickle.UnpicklingError("a tensor that is not just its storage's values")
    return _TensorRecord(storage, offset, size, stride)


def _inert_global(module: str, name: str) -> object:
    if module in ("torch", "torch.storage") and name in _TORCH_STORAGE_DTYPES:
        return _TORCH_STORAGE_DTYPES[name]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    calls = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuilt_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("collections", "OrderedDict"): lambda: _InertDict(),
        ("torch", "Size"): lambda *args: tuple(*args),
        ("torch", "device"): lambda *_: "device",
    }
    call = calls.get((module, name))
    return call and _Inert(f"{module}.{name}", call)


# What a damaged or hostile pickle can make an unpickler raise.
_PICKLE_ERRORS = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    ImportError,
    struct.error,
)

# What a damaged zip makes `zipfile` raise; RuntimeError for flags of encryption and versions.
_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, struct.error)


def _read_inert(path: Path) -> _FileRecord:
    with _reading(path):
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; give the path of a pretrained checkpoint")
        if path.is_dir():
            raise CheckpointError(_told_of_folder(path))
        if not path.is_file():
            raise CheckpointError(f"{path}: not a file; give the path of one checkpoint")
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)


def _told_of_folder(folder: Path) -> str:
    """What to give instead of a folder."""
    names = sorted(path.name for path in folder.glob("*.pt"))
    if not names:
        return f"{folder}: a folder, not a file, and without a *.pt in it; give a checkpoint's path"
    if len(names) == 1:
        return f"{folder}: a folder, not a file; give the checkpoint in it, {folder / names[0]}"
    return (
        f"{folder}: a folder, not a file, with {len(names)} checkpoints ({_listed(names)}); give "
        f"one of them, or '{folder}/*.pt' in quotes for the best"
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what `zipfile` raises on a damaged or unreadable file into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _ZIP_ERRORS as error:
        raise CheckpointError(
            f"{path}: not the zip that torch.save writes, or truncated ({_shown(str(error))}); "
            "copy the file again and compare its size with the original's"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> _FileRecord:
    members = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    # torch looks for names without regard to case.
    if len({name.lower() for name in members}) != len(archive.infolist()) or len(pickles) != 1:
        raise CheckpointError(
            f"{path}: a zip, but not one that torch.save wrote (found {len(pickles)} data.pkl); "
            "give a checkpoint of the pretraining script"
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in members.values()):
        raise CheckpointError(f"{path}: a compressed zip; save it again with torch.save")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path}: written on a big-endian machine; save it again on another")
    # Read as a whole first: that checks its CRC, and a flipped byte could ask for any memory.
    unpickler = _InertUnpickler(io.BytesIO(archive.read(pickles[0])))
    try:
        content = unpickler.load()
    except _RefusedCall as refused:
        raise CheckpointError(
            f"{path}: its pickle calls {_shown(str(refused))}, and nothing in a checkpoint is "
            "executed; load it where you trust it, and save the weights alone with torch.save"
        ) from None
    except _PICKLE_ERRORS as error:
        raise CheckpointError(
            f"{path}: its pickle is damaged ({_shown(str(error))}); copy the file again"
        ) from error
    content = _checked_content(path, content)
    version = _file_version(os.fstat(archive.fp.fileno()))
    return _FileRecord(content, root, members, tuple(unpickler.stand_ins), version)


def _file_version(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _check_unchanged(path: Path, record: _FileRecord) -> None:
    with _reading(path):
        if _file_version(os.stat(path)) != record.version:
            raise CheckpointError(
                f"{path}: was changed while it was read; wait until it is written, and start again"
            )


def _checked_content(path: Path, content: object) -> dict:
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__.lstrip('_')}, expected the dict that the "
            "pretraining script saves, with the weights under 'model'"
        )
    if content.get("kind") == FINE_TUNED_KIND:
        raise CheckpointError(
            f"{path}: a fine-tuned checkpoint of this project, expected a pretrained one; "
            "to score it use --eval_only, to fine-tune give the pretraining script's file"
        )
    model = content.get("model")
    if not isinstance(model, dict) or not model:
        found = _listed(content) or "nothing"
        raise CheckpointError(
            f"{path}: no weights under 'model' (found {found}); "
            "give a checkpoint of the pretraining script"
        )
    odd = [name for name, value in model.items() if not isinstance(value, _TensorRecord)]
    odd += [name for name in model if not isinstance(name, str)]
    if odd:
        raise CheckpointError(f"{path}: in 'model', {_listed(odd)} is no tensor; save it again")
    return content


def _read_weights(
    path: Path,
    record: _FileRecord,
    state: Mapping[str, Tensor],
    fmt: str,
    device: str | torch.device | None,
) -> dict[str, Tensor]:
    """Read and check every storage of the weights; convert them on the way if there is a device."""
    storages = {_without_prefix(k): t.storage for k, t in record.content["model"].items()}
    parts = [] if device is None else list(_parts_by_target(fmt, state))
    converted = _empty_targets(parts, device)
    copies: dict[_StorageRecord, list[_Copy]] = defaultdict(list)
    for target, name, part, place in parts:
        if part.is_contiguous():
            copy = _Copy(part.storage_offset(), _part_of(converted[target], place).view(-1))
            copies[storages[name]].append(copy)
    suspects = _read_storages(path, record, copies)
    _check_finite(path, {name: t for name, t in state.items() if storages[name] in suspects})
    for target, _, part, place in parts:
        if not part.is_contiguous():
            _part_of(converted[target], place).copy_(part)
    return converted


def _read_storages(
    path: Path, record: _FileRecord, copies: Mapping[_StorageRecord, Sequence[_Copy]]
) -> set[_StorageRecord]:
    """Read every storage of the weights once, check its CRC-32 and fill its copies.

    Returns those that hold a NaN or an infinity.
    """
    names: dict[_StorageRecord, str] = {}
    for name, tensor in record.content["model"].items():
        names.setdefault(tensor.storage, name)
    with _reading(path):
        archive = zipfile.ZipFile(path)

    def has_bad_values(storage: _StorageRecord) -> bool:
        entry = record.entry(storage)
        pieces = _stored_pieces(path, archive, entry)
        crc, count, finite = _take_in(pieces, storage.dtype, copies.get(storage, ()))
        if (crc, count) != (entry.CRC, storage.numel):
            raise CheckpointError(
                f"{path}: the bytes of {_shown(names[storage])} are damaged (CRC-32 of "
                f"{_shown(entry.filename)}); copy the file again"
            )
        return not finite

    # The largest first, so that no thread is left with a large one when the others are done.
    order = sorted(names, key=lambda storage: record.entry(storage).file_size, reverse=True)
    with archive, ThreadPoolExecutor(READERS) as pool:
        bad = zip(order, pool.map(has_bad_values, order), strict=True)
        return {storage for storage, is_bad in bad if is_bad}


def _stored_pieces(
    path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo
) -> Iterator[memoryview]:
    """The bytes of an uncompressed entry, piece after piece in one buffer; not all of them where
    the entry is not at its place, or the file ends early."""
    with _reading(path), open(path, "rb") as file:
        try:
            with _HEADERS, archive.open(entry):
                pass  # the local header is there and names this entry
        except zipfile.BadZipFile:
            return
        file.seek(_start_of_data(file, entry))
        buffer, left = memoryview(bytearray(PIECE_BYTES)), entry.file_size
        while left and file.readinto(buffer[:left]) == len(buffer[:left]):
            yield buffer[:left]
            left -= len(buffer[:left])


# As threads don't inherit the caller's mode, and only in this one may any tensor be filled.
@torch.inference_mode()
def _take_in(
    pieces: Iterable[memoryview], dtype: torch.dtype, copies: Sequence[_Copy]
) -> tuple[int, int, bool]:
    """Fill `copies` from the bytes of a storage; returns their CRC-32, the number of values, and
    whether all are finite."""
    crc, count, finite = 0, 0, True
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
        values = torch.frombuffer(piece, dtype=dtype)
        finite = finite and _all_finite(values)
        for copy in copies:
            copy.take(count, values)
        count += len(values)
    return crc, count, finite


def _all_finite(values: Tensor) -> bool:
    # A NaN makes both bounds NaN, and there is no tensor of booleans: 20 times as fast.
    return all(math.isfinite(bound) for bound in torch.aminmax(values))


def _weights_id(record: _FileRecord) -> str:
    """A hash of every weight's name, shape, place and CRC-32: the same weights, the same id."""
    digest = hashlib.sha256()
    for name, tensor in sorted(record.content["model"].items()):
        crc = record.entry(tensor.storage).CRC
        fields = (_without_prefix(name), tensor.size, tensor.offset, tensor.storage.dtype, crc)
        digest.update(repr(fields).encode())
    return digest.hexdigest()[:32]


def _check_bounds(path: Path, record: _FileRecord) -> None:
    """Every storage of the weights is there, and as long as its tensors need."""
    model = record.content["model"]
    for name, tensor in model.items():
        _check_bounds_of(path, name, tensor, record)
    stored = sum(storage.numel for storage in {tensor.storage for tensor in model.values()})
    meant = sum(math.prod(tensor.size) for tensor in model.values())
    if meant > MOST_SHARING * stored:
        raise CheckpointError(
            f"{path}: {meant} weights of only {stored} stored values; save the model again"
        )


def _check_bounds_of(path: Path, name: str, tensor: _TensorRecord, record: _FileRecord) -> None:
    storage, name = tensor.storage, _shown(name)
    if not isinstance(storage, _StorageRecord):
        raise CheckpointError(f"{path}: {name} has no storage; copy the file again")
    size, stride = _as_ints(tensor.size), _as_ints(tensor.stride)
    numbers = (tensor.offset, *size, *stride)
    if len(size) != len(stride) or any(type(n) is not int or not 0 <= n < 1 << 63 for n in numbers):
        raise CheckpointError(f"{path}: {name} has an impossible shape; copy the file again")
    steps = [(n - 1) * step for n, step in zip(size, stride, strict=True)]
    needed = 0 if 0 in size else tensor.offset + sum(steps) + 1
    entry = record.entry(storage)
    itemsize = torch.empty(0, dtype=storage.dtype).element_size()
    if entry is None or entry.file_size != storage.numel * itemsize or needed > storage.numel:
        there = "none" if entry is None else f"{entry.file_size // itemsize} values"
        raise CheckpointError(
            f"{path}: {name} of shape {size} needs {needed} values, and its storage "
            f"has {there}; the file is damaged, copy it again"
        )


def _as_ints(values: object) -> tuple:
    return tuple(values) if isinstance(values, list | tuple) else (None,)


def _load_mapped(path: Path, record: _FileRecord) -> dict:
    """`torch.load` without reading the tensors; classes that are merely instantiated stay inert."""
    stand_ins = [(_stand_in(*names), ".".join(names)) for names in record.stand_ins]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            # It warns of what it is about to refuse.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    # Its reader raises assertions, errors of struct, and whatever the rebuilding of a tensor does.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: torch can't load it ({_shown(reason)}); copy it again"
        ) from error
    _check_unchanged(path, record)
    return content | {"model": _mapped_weights(path, record)}


def _mapped_weights(path: Path, record: _FileRecord) -> dict[str, Tensor]:
    """The weights mapped from where `record` says that they are, which is what gets checked."""
    with _reading(path), open(path, "rb") as file:
        starts = {
            tensor.storage: _start_of_data(file, record.entry(tensor.storage))
            for tensor in record.content["model"].values()
        }
        num_bytes = os.fstat(file.fileno()).st_size
    whole = torch.UntypedStorage.from_file(str(path), False, num_bytes)
    ends = {storage: start + record.entry(storage).file_size for storage, start in starts.items()}
    if max(ends.values()) > num_bytes:
        raise CheckpointError(f"{path}: ends within its weights; copy the file again")
    storages = {storage: whole[start : ends[storage]] for storage, start in starts.items()}
    return {
        name: torch.empty(0, dtype=tensor.storage.dtype).set_(
            storages[tensor.storage], tensor.offset, tuple(tensor.size), tuple(tensor.stride)
        )
        for name, tensor in record.content["model"].items()
    }


def _start_of_data(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of an entry begin, behind its local header."""
    file.seek(entry.header_offset + 26)
    of_name, of_extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + of_name + of_extra


def _unwrapped(path: Path, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes of torch.compile and DistributedDataParallel."""
    state = {_without_prefix(name): tensor for name, tensor in model.items()}
    if len(state) != len(model):
        raise CheckpointError(f"{path}: holds the same weights with and without a wrapper's prefix")
    return state


def _without_prefix(name: str) -> str:
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _common_prefix(model: Mapping[str, Tensor]) -> str:
    name = next(iter(model))
    return name.removesuffix(_without_prefix(name))


_BLOCK = re.compile(r"blocks\.([0-9]{1,4})\.")


def _name_pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name)
    # At most four digits, and no leading zero: "blocks.007" is not a name that a script writes.
    number = r"0|[1-9][0-9]{0,3}"
    return re.compile(re.sub(r"\\{(\w)\\}", rf"(?P<\1>{number})", escaped))


def _detect_format(path: Path, state: Mapping[str, Tensor]) -> str:
    """The format of a file: all its keys decide, and where several formats know them all, facts.

    A file with keys that no format knows gets the nearest one, whose table then names them.
    """
    if any(name.startswith("pretrained_model.") for name in state):
        raise CheckpointError(
            f"{path}: a fine-tuned checkpoint, expected a pretrained one; "
            "give the pretraining script's file"
        )
    known = {fmt: {name for _, name, _ in _matches(fmt, state)} for fmt in FORMATS}
    covering = [fmt for fmt, names in known.items() if len(names) == len(state)]
    if not covering:
        return _nearest_format(path, state, known)
    return covering[0] if len(covering) == 1 else _format_by_facts(path, state, covering)


def _nearest_format(path: Path, state: Mapping[str, Tensor], known: Mapping[str, set[str]]) -> str:
    """The one format that knows whatever any other knows of a file that has other keys as well.

    Raises CheckpointError where there is none, with the family that the other keys tell.
    """
    for pattern, family in OTHER_FAMILIES:
        hints = [name for name in state if re.search(pattern, name)]
        if hints:
            raise CheckpointError(
                f"{path}: has {_shown(hints[0])}, as {family}: that family is not supported yet; "
                f"supported are {', '.join(FORMATS)}"
            )
    most = [
        fmt
        for fmt, names in known.items()
        if names and not any(names < others for others in known.values())
    ]
    if len(most) == 1:
        return most[0]
    if all(known[fmt] == known[most[0]] for fmt in most):
        unknown = [name for name in state if not most or name not in known[most[0]]]
        told = f"of none of {', '.join(FORMATS)}: {_listed(unknown)}"
    else:
        told = f"of both {' and '.join(most)}: {_listed(state)}"
    raise CheckpointError(
        f"{path}: its keys are {told}; give a checkpoint of the pretraining script"
    )


def _format_by_facts(path: Path, state: Mapping[str, Tensor], formats: Sequence[str]) -> str:
    """The only one of several formats, all of which know every key, that the file is also by what
    it lacks, its shapes and its scalars; where scalars speak against none, the only one they
    confirm. Raises CheckpointError where that leaves none or several."""
    verdicts, objections = {}, []
    for fmt in formats:
        try:
            verdicts[fmt] = _verdict_without_heads(path, state, fmt)
        except CheckpointError as error:
            objections.append(str(error).removeprefix(f"{path}: "))
    confirmed = [fmt for fmt, verdict in verdicts.items() if verdict == "confirmed"]
    for fitting in (list(verdicts), confirmed):
        if len(fitting) == 1:
            return fitting[0]
    if verdicts:
        raise CheckpointError(
            f"{path}: its keys, shapes and scalars are those of {' and '.join(verdicts)} alike: "
            "nothing in it tells which; give a checkpoint of later in the training"
        )
    raise CheckpointError(
        f"{path}: its keys are those of {' and '.join(formats)}, and it is none of them: "
        f"{'; '.join(objections)}"
    )


def _verdict_without_heads(path: Path, state: Mapping[str, Tensor], fmt: str) -> str:
    """What keys, shapes and scalars say of a format: `_check_scalars`' verdict, or its error."""
    sizes = _check_tensors(path, fmt, state)
    _check_finite(path, {"scalars": state["scalars"]})
    # No scalar depends on the number of heads, which may not be known.
    config = _config(path, fmt, sizes, 1, DEFAULT_MAX_SEQ_LEN)
    return _check_scalars(path, fmt, config, state["scalars"])["verdict"]


def _check_tensors(path: Path, fmt: str, state: Mapping[str, Tensor]) -> dict[str, int | None]:
    """The sizes L, D, I, V, R, S of a file whose every key and shape is as the table says, and
    `no_attention`, the block without attention."""
    blocks = [int(m[1]) for name in state if (m := _BLOCK.match(name))]
    L = max(blocks, default=-1) + 1
    no_attention = _layer_without_attention(L, state)
    expected = dict(_expected_shapes(fmt, L, no_attention))
    unknown = [name for name in state if name not in expected]
    missing = [name for name in expected if name not in state]
    problems = [f"missing {_listed(missing)}"] if missing else []
    problems += [f"unknown {_listed(unknown)}"] if unknown else []
    if problems:
        raise CheckpointError(
            f"{path}: of format {fmt} with {L} blocks, but keys are {' and '.join(problems)}; "
            "every key must be known and there: save the whole model of the pretraining script"
        )
    sizes = _read_sizes(path, fmt, state) | {"L": L, "no_attention": no_attention}
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {wanted}"
        for name, shape in expected.items()
        if tuple(state[name].shape) != (wanted := tuple(_resolve(d, sizes) for d in shape))
    ]
    wrong += [
        f"{name} is {tensor.dtype}, expected floating point"
        for name, tensor in state.items()
        if not tensor.is_floating_point()
    ]
    if wrong:
        raise CheckpointError(
            f"{path}: of format {fmt}, but {_listed(wrong)}; save the model again"
        )
    return sizes


def _expected_shapes(
    fmt: str, num_layers: int, no_attention: int | None
) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    for rule in FORMATS[fmt]:
        if "{t}" in rule.name:
            yield from ((rule.name.format(t=t), rule.shape) for t in range(NUM_VALUE_EMBEDS))
        elif "{i}" in rule.name:
            for i in range(num_layers):
                if not (i == no_attention and ".attn." in rule.name):
                    yield rule.name.format(i=i), rule.shape
        else:
            yield rule.name, rule.shape


def _layer_without_attention(num_layers: int, state: Iterable[str]) -> int | None:
    """The one block that the scripts leave without attention; any further one is a loss."""
    blocks = ((name, _BLOCK.match(name)) for name in state)
    with_attention = {int(m[1]) for name, m in blocks if m and name.startswith("attn", m.end())}
    without = [i for i in range(num_layers) if i not in with_attention]
    if 7 in without:
        return 7
    return without[0] if len(without) == 1 else None


def _read_sizes(path: Path, fmt: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    head = state[next(rule.name for rule in FORMATS[fmt] if "lm_head.weight" in rule.targets)]
    embed, scalars = state["embed.weight"], state["scalars"]
    if embed.dim() != 2 or head.dim() != 2 or scalars.dim() != 1:
        raise CheckpointError(
            f"{path}: embed.weight {tuple(embed.shape)}, head {tuple(head.shape)}, scalars "
            f"{tuple(scalars.shape)}: expected a matrix, a matrix, a vector; save the model again"
        )
    V, D = embed.shape
    R = head.shape[0]
    if R not in (V, next_multiple(V, 128)):
        raise CheckpointError(
            f"{path}: {V} embedding rows, but {R} rows in the language-model head, expected "
            f"{V} or {next_multiple(V, 128)}; save the model again"
        )
    return {"V": V, "D": D, "I": D, "R": R, "S": scalars.shape[0]}


def _resolve(dimension: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    return 4 * sizes["D"] if dimension == "4D" else sizes[dimension]


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinity in {_listed(bad)}: pretraining had diverged; "
            "take an earlier checkpoint"
        )


def _head_count(
    path: Path, fmt: str, sizes: Mapping[str, int], code: object, given: int | None
) -> tuple[int, str]:
    """The number of heads, and where it was found: in code, in the sizes in use, or given."""
    L, D = sizes["L"], sizes["D"]
    call = _gpt_call(code) if isinstance(code, str) else {}
    for key, actual in (("num_layers", L), ("model_dim", D)):
        if call.get(key, actual) != actual:
            raise CheckpointError(
                f"{path}: its code says {key}={call[key]}, but its weights have {actual}; "
                "part of the model is missing, or the code is another run's: save it again"
            )
    known = KNOWN_HEADS.get((fmt, L, D))
    if fmt == "small":
        known = D // SMALL_HEAD_DIM if D % SMALL_HEAD_DIM == 0 else None
        if known is None:
            raise CheckpointError(
                f"{path}: of format small with a width of {D}, expected a multiple of "
                f"{SMALL_HEAD_DIM}, its head size"
            )
    sources = {
        "code": call.get("num_heads"),
        "format" if fmt == "small" else "sizes in use": known,
        "--n_head": given,
    }
    if fmt != "small" and sources["code"] is not None:
        sources["sizes in use"] = None
    told = {source: value for source, value in sources.items() if value is not None}
    if len(set(told.values())) > 1:
        values = ", ".join(f"{value} ({source})" for source, value in told.items())
        raise CheckpointError(
            f"{path}: contradicting numbers of heads: {values}; leave --n_head out or correct it"
        )
    if not told:
        raise CheckpointError(
            f"{path}: the number of heads can't be told from {L} layers of width {D} and there is "
            "no usable code in the file: give it as --n_head (num_heads=… in Python)"
        )
    source, heads = next(iter(told.items()))
    return heads, source


def _gpt_call(code: str) -> dict[str, int]:
    """The sizes in the call `GPT(…)` of a training script, read and never run.

    Only what is a literal, or a name or attribute that the script sets to one literal, is told;
    calls that contradict each other tell nothing.
    """
    if len(code) > LONGEST_CODE:
        return {}
    try:
        with warnings.catch_warnings():
            # Of a script that is not the user's to mend.
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    constants = _constants(tree)
    positions = ("vocab_size", "num_layers", "num_heads", "model_dim", "max_seq_len")
    found: dict[str, set[int]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _last_name(node.func) != "GPT":
            continue
        arguments = dict(zip(positions, node.args, strict=False))
        arguments |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for key, value in arguments.items():
            number = _constant(value, constants)
            if number is not None:
                found.setdefault(key, set()).add(number)
    return {key: values.pop() for key, values in found.items() if len(values) == 1}


def _constants(tree: ast.AST) -> dict[str, set[int | None]]:
    constants: dict[str, set[int | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        plain = not isinstance(node, ast.AugAssign) and isinstance(value, ast.Constant)
        for target in targets:
            name = _last_name(target)
            if name:
                constants.setdefault(name, set()).add(value.value if plain else None)
    return constants


def _last_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def _constant(node: ast.AST, constants: Mapping[str, set[int | None]]) -> int | None:
    if isinstance(node, ast.Constant):
        values = {node.value}
    else:
        values = constants.get(_last_name(node) or "", set())
    value = next(iter(values)) if len(values) == 1 else None
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _config(
    path: Path, fmt: str, sizes: Mapping[str, int], heads: int, max_seq_len: int
) -> GPTConfig:
    try:
        return GPTConfig.of_family(
            fmt,
            vocab_size=sizes["V"],
            lm_head_rows=sizes["R"],
            num_layers=sizes["L"],
            num_heads=heads,
            model_dim=sizes["D"],
            max_seq_len=max_seq_len,
            attention_layers=tuple(i for i in range(sizes["L"]) if i != sizes["no_attention"]),
        )
    except ValueError as error:
        raise CheckpointError(f"{path}: of format {fmt}, but {error}") from error


def _check_scalars(path: Path, fmt: str, config: GPTConfig, scalars: Tensor) -> dict:
    """Compare the scalars that no block reads with their initial values; training never moves
    them, so they tell the family. Raises CheckpointError where they contradict the keys."""
    needed = SCALARS_PER_LAYER * config.num_layers
    if scalars.numel() < needed:
        raise CheckpointError(
            f"{path}: {scalars.numel()} scalars, expected at least {needed} for "
            f"{config.num_layers} layers; save the whole model of the pretraining script"
        )
    if not bool((scalars[needed:] == 1).all()):
        raise CheckpointError(
            f"{path}: its {scalars.numel()} scalars don't end in a padding of ones after the "
            f"{needed} of {config.num_layers} layers: a block may be missing; save it again"
        )
    initial = initial_scalars(config.num_layers)
    moved = {int(i) for i in (scalars[:needed].float() != initial).nonzero()}
    _check_lost_attention(path, config, moved)
    contradiction = _fingerprint_contradiction(config, moved)
    if contradiction:
        raise CheckpointError(
            f"{path}: its keys are of format {fmt}, but {contradiction}: the file was converted or "
            "mixed; give the pretraining script's own file"
        )
    read_skips = {weight for _, _, weight in config.skips}
    confirmed = bool(read_skips) and read_skips <= moved
    return {"moved_scalars": len(moved), "verdict": "confirmed" if confirmed else "not trained"}


def _check_lost_attention(path: Path, config: GPTConfig, moved: set[int]) -> None:
    for layer in set(range(config.num_layers)) - set(config.attention_layers):
        if moved & {3 * config.num_layers + 2 * layer, 3 * config.num_layers + 2 * layer + 1}:
            raise CheckpointError(
                f"{path}: the attention of block {layer} is missing, though its scalars were "
                "trained; save the whole model of the pretraining script"
            )


def _fingerprint_contradiction(config: GPTConfig, moved: set[int]) -> str | None:
    """What speaks against `config` in the set of scalars that training moved, if anything."""
    unread = sorted(moved - _read_scalars(config))
    if unread:
        names = _listed(_scalar_name(i, config.num_layers) for i in unread)
        return f"training moved {names}, which that format never reads"
    own = {weight for _, _, weight in config.skips}
    moved_skips = {i for i in moved if i < config.num_layers}
    for other, facts in FAMILIES.items():
        theirs = {weight for _, _, weight in facts.skips(config.num_layers)}
        if other != config.family and moved_skips and moved_skips == theirs != own:
            return f"training moved just the skip weights of format {other}, {sorted(theirs)}"
    return None


def _read_scalars(config: GPTConfig) -> set[int]:
    L = config.num_layers
    skips = {weight for _, _, weight in config.skips}
    block_lambdas = set(range(L, 3 * L))
    value_lambdas = {3 * L + 2 * i for i in config.attention_layers}
    value_embed_lambdas = {3 * L + 2 * i + 1 for i, _ in config.value_embed_layers}
    return skips | block_lambdas | value_lambdas | value_embed_lambdas


def _scalar_name(index: int, num_layers: int) -> str:
    if index < num_layers:
        return f"skip_weights[{index}]"
    index -= num_layers
    kind = "lambdas" if index < 2 * num_layers else "sa_lambdas"
    return f"{kind}[{index % (2 * num_layers) // 2},{index % 2}]"


def _listed(names: Iterable[object]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(_shown, names[:MAX_LISTED])) + more


def _shown(name: object) -> str:
    """What a file calls something, fit for one line of a terminal."""
    text = name if isinstance(name, str) else repr(name)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"


def _count_dtypes(state: Mapping[str, Tensor]) -> Counter:
    counts: Counter = Counter()
    for tensor in state.values():
        counts[tensor.dtype] += tensor.numel()
    return counts


def _plain_number(value: object) -> float | int | None:
    """A step or loss as the scripts store it: a number, or a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_token_shard(path: str | Path) -> np.ndarray:
    """The tokens of a pretraining shard, mapped from the file.

    Header of 256 int32: magic 20240520, version 1 (uint16 tokens) or 2 (token width in bits at
    index 3, 0 meaning 32), token count at index 2. Raises CheckpointError for anything else.
    """
    path = Path(path)
    try:
        header = np.fromfile(path, dtype="<i4", count=SHARD_HEADER_INTS)
        num_bytes = path.stat().st_size
    except OSError as error:
        raise CheckpointError(
            f"{path}: can't be read ({error.strerror}); give a token shard"
        ) from error
    if len(header) < SHARD_HEADER_INTS or header[0] != SHARD_MAGIC:
        found = header[0] if len(header) else "an empty file"
        raise CheckpointError(
            f"{path}: not a token shard (found {found}, expected magic {SHARD_MAGIC}); "
            "give a .bin that the pretraining reads"
        )
    version, count, bits = int(header[1]), int(header[2]), int(header[3])
    width = {1: {bits: 16}, 2: {0: 32, 16: 16, 32: 32}}.get(version, {}).get(bits)
    if width is None:
        raise CheckpointError(
            f"{path}: shard of version {version} with tokens of {bits} bits, expected version 1, "
            "or 2 with 16 or 32 bits"
        )
    header_bytes = 4 * SHARD_HEADER_INTS
    there = (num_bytes - header_bytes) // (width // 8)
    if count < 2 or there < count:
        raise CheckpointError(
            f"{path}: its header says {count} tokens, but {there} are there; copy the file again"
        )
    return np.memmap(path, dtype=f"<u{width // 8}", mode="r", offset=header_bytes, shape=(count,))


@torch.inference_mode()
def lm_check(
    trunk: GPTBatched,
    tokens: np.ndarray,
    *,
    row_length: int,
    max_rows: int,
    batch_tokens: int = 4096,
) -> dict:
    """Language-model loss of the loaded trunk on the first rows of a shard, each on its own.

    Row r predicts tokens r·T+1 … (r+1)·T from tokens r·T … (r+1)·T-1. Returns the mean loss in
    nats, the rows and the tokens. Raises CheckpointError for tokens that the model has no row for.
    """
    num_rows = min(max_rows, (len(tokens) - 1) // row_length)
    if num_rows < 1:
        raise CheckpointError(
            f"a shard of {len(tokens)} tokens has no row of {row_length}: lower --lm_row_length"
        )
    used = torch.from_numpy(tokens[: num_rows * row_length + 1].astype(np.int64))
    highest = int(used.max())
    if highest >= trunk.config.vocab_size:
        raise CheckpointError(
            f"the shard has token {highest}, but the checkpoint only {trunk.config.vocab_size} "
            "embedding rows: it was written with another tokenizer"
        )
    inputs, targets = (used[i : i + num_rows * row_length].view(num_rows, -1) for i in (0, 1))
    device, total = trunk.scalars.device, 0.0
    rows_at_once = max(1, batch_tokens // row_length)
    for ids, wanted in zip(inputs.split(rows_at_once), targets.split(rows_at_once), strict=True):
        total += trunk.lm_loss(ids.to(device), wanted.to(device)).item() * len(ids)
    return {"lm_loss": total / num_rows, "rows": num_rows, "tokens": num_rows * row_length}


@torch.inference_mode()
def lm_self_check(trunk: GPTBatched, texts: Sequence[np.ndarray], seed: int = 0) -> dict:
    """Language-model loss on texts, and on the same texts with their tokens shuffled.

    `texts` are rows of token ids, each opening with the end-of-text token, which stays in front.
    A trunk that knows the language in these tokens finds the true order far likelier; with another
    tokenizer, or a wrong load, the two hardly differ. Returns both losses in nats a token, their
    difference, and `suspicious` (see `SELF_CHECK_GAP`).
    """
    generator = np.random.default_rng(seed)
    shuffled = [np.concatenate([text[:1], generator.permutation(text[1:])]) for text in texts]
    right, wrong = _loss_of_texts(trunk, texts), _loss_of_texts(trunk, shuffled)
    return {
        "lm_loss": right,
        "shuffled_loss": wrong,
        "gap": wrong - right,
        "suspicious": wrong - right < SELF_CHECK_GAP,
    }


def _loss_of_texts(trunk: GPTBatched, texts: Sequence[np.ndarray], rows_at_once: int = 16) -> float:
    device, total, count = trunk.scalars.device, 0.0, 0
    by_length = sorted(texts, key=len)
    for i in range(0, len(by_length), rows_at_once):
        rows = [torch.from_numpy(text.astype(np.int64)) for text in by_length[i : i + rows_at_once]]
        targets = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=-100)
        inputs = pad_sequence([row[:-1] for row in rows], batch_first=True)  # [B, T]
        predicted = int((targets != -100).sum())
        total += trunk.lm_loss(inputs.to(device), targets.to(device)).item() * predicted
        count += predicted
    return total / count


def _report(arguments: argparse.Namespace) -> dict:
    path = resolve_checkpoint_path(arguments.checkpoint)
    if arguments.lm_check is None:
        return inspect_checkpoint(path, num_heads=arguments.n_head)[0]
    tokens = read_token_shard(arguments.lm_check)
    trunk, info, _ = load_pretrained_checkpoint(
        path, num_heads=arguments.n_head, max_seq_len=arguments.lm_row_length
    )
    check = lm_check(trunk, tokens, row_length=arguments.lm_row_length, max_rows=arguments.lm_rows)
    if info["val_loss"] is not None:
        check["recorded_loss"] = info["val_loss"]
        check["difference"] = check["lm_loss"] - info["val_loss"]
        check["verdict"] = lm_verdict(check["difference"])
    return info | {"lm_check": check}


def lm_verdict(difference: float) -> str:
    """What a difference between measured and recorded loss (nats) says of the load."""
    if abs(difference) <= LM_LOSS_SAME_ROWS:
        return "agrees: the load is right"
    if abs(difference) <= LM_LOSS_OTHER_ROWS:
        return "near: give the rows of the recorded loss (--lm_row_length, --lm_rows) for a proof"
    return (
        f"differs by more than {LM_LOSS_OTHER_ROWS}: wrong load, wrong tokens, or a recorded loss "
        "of other data or much longer rows (--lm_row_length)"
    )


def _printed(report: dict, indent: str = "") -> Iterator[str]:
    for key, value in report.items():
        if isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _printed(value, indent + "  ")
        else:
            shown = "not recorded" if value is None else value
            yield f"{indent}{key:<{24 - len(indent)}}{shown}"


def main(argv: Sequence[str] | None = None) -> int:
    """The inspector; returns the exit code: 0, or 2 for a file that can't be used."""

    def work() -> None:
        arguments, problems = parse_flags(DESCRIPTION, FLAGS, argv, recipes=False)
        problems += problems_of_names(arguments)
        if problems:
            raise UsageError(problems)
        report = _report(arguments)
        if arguments.json:
            print(json.dumps(report, indent=2))
        else:
            print("\n".join([*_printed(report), _summary(report)]))

    return exit_code_of(work)


def _summary(report: Mapping[str, object]) -> str:
    """The last line: what was found of which file. Indented, as it is no field."""
    found = (
        f"  in short: {report['file']}: format {report['checkpoint_format']}, "
        f"{report['num_layers']} layers, "
        f"{report['num_heads']} heads, width {report['model_dim']}, all weights checked"
    )
    check = report.get("lm_check")
    if check is None:
        return found
    verdict = check.get("verdict", "no recorded loss to compare with")
    return f"{found}; language-model loss {check['lm_loss']:.4f}, {verdict}"


if __name__ == "__main__":
    sys.exit(main())
