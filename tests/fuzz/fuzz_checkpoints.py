"""Checkpoint files for the fuzzer: written by a writer of our own that can lie about everything.

What is right is read independently of the loader: from the state dict that a file was made of,
from the bytes of its storages, or, where a pickle's own bytes were changed, by plain `torch.load`.
"""

from __future__ import annotations

import contextlib
import copyreg
import io
import json
import math
import pickle
import pickletools
import random
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from fuzzing import Kind, Wrong, require_good_message
from made_checkpoints import gpt_call, random_state
from torch import Tensor

import load_checkpoint_helper as loader
from load_checkpoint_helper import load_pretrained_checkpoint
from xnli_gpt.errors import CheckpointError
from xnli_gpt.network.config import initial_scalars

SIZES = {
    "medium": dict(fmt="medium", layers=12, heads=2, dim=8, vocab=10, seed=1),
    "small": dict(fmt="small", layers=6, heads=1, dim=128, vocab=4, seed=1),
}
STORAGE_KINDS = {
    torch.float32: "FloatStorage",
    torch.float64: "DoubleStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
    torch.complex64: "ComplexFloatStorage",
}
DTYPES = {kind: dtype for dtype, kind in STORAGE_KINDS.items()}
ROOT = "archive/"

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Storage:
    """A storage as a pickle names it."""

    key: object
    kind: str
    numel: object


@dataclass(frozen=True)
class Spec:
    """A tensor as a pickle describes it."""

    storage: object
    offset: object
    size: object
    stride: object
    more: tuple = ()  # what stands behind the stride in the call, else what torch writes


@dataclass
class Content:
    """What a file says, before it is bytes."""

    top: dict
    storages: dict[str, bytes]
    state: State  # the weights that it means

    @property
    def model(self) -> dict:
        return self.top["model"]


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: object) -> object:
        if isinstance(thing, Storage):
            return ("storage", getattr(torch, thing.kind), thing.key, "cpu", thing.numel)
        return None

    def reducer_override(self, thing: object) -> object:
        if isinstance(thing, Spec):
            more = thing.more or (False, OrderedDict())
            arguments = (thing.storage, thing.offset, thing.size, thing.stride, *more)
            return torch._utils._rebuild_tensor_v2, arguments
        return NotImplemented


def pickled(thing: object) -> bytes:
    """What torch.save would write for `thing`, in which a `Spec` is a tensor."""
    file = io.BytesIO()
    _Pickler(file, protocol=2).dump(thing)
    return file.getvalue()


def content_of(state: State, layers: int, heads: int, dim: int, **top: object) -> Content:
    """A file with a storage for every tensor, and optimizer states behind them."""
    storages: dict[str, bytes] = {}

    def add(tensor: Tensor) -> Spec:
        return Spec(_add(storages, tensor), 0, tuple(tensor.shape), tensor.contiguous().stride())

    model = {name: add(tensor) for name, tensor in state.items()}
    moments = {"state": {0: {"step": add(torch.tensor([3.0])), "exp_avg": add(torch.ones(40))}}}
    content = {"step": 100, "code": gpt_call(layers, heads, dim), "model": model}
    return Content({**content, "optimizers": [moments], **top}, storages, state)


def _add(storages: dict[str, bytes], values: Tensor) -> Storage:
    key = str(len(storages))
    storages[key] = bytes_of(values)
    return Storage(key, STORAGE_KINDS[values.dtype], values.numel())


def bytes_of(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


# Zip files


@dataclass(frozen=True)
class Entry:
    """A member of a zip; `local` and `central` override fields of its two headers."""

    name: bytes
    data: bytes
    method: int = 0
    extra: bytes = b""
    shown: bool = True
    local: Mapping[str, object] = field(default_factory=dict)
    central: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Archive:
    """A zip and what is wrong with it as a whole; `end` overrides fields of its last record."""

    entries: tuple[Entry, ...]
    prefix: bytes = b""
    comment: bytes = b""
    trailing: bytes = b""
    end: Mapping[str, int] = field(default_factory=dict)
    zip64: Mapping[str, int] | None = None
    hidden_directory: bytes = b""

    def with_entry(self, index: int, **changes: object) -> Archive:
        entries = list(self.entries)
        entries[index] = replace(entries[index], **changes)
        return replace(self, entries=tuple(entries))

    def index(self, name: str) -> int:
        return [entry.name for entry in self.entries].index(name.encode())


LOCAL = ("version", "flags", "method", "time", "date", "crc", "packed", "size")
CENTRAL = ("made", *LOCAL, "disk", "internal", "attributes", "offset")
END = ("disk", "disk_of_directory", "here", "count", "directory_size", "directory_offset")


def written(archive: Archive) -> bytes:
    """The bytes of a zip."""
    parts, headers, at = [archive.prefix], [], len(archive.prefix)
    for entry in archive.entries:
        name = entry.local.get("name", entry.name)
        padding = _padding(at + 30 + len(name) + len(entry.extra)) if not entry.extra else b""
        extra = entry.local.get("extra", entry.extra + padding)
        fields = _fields(entry) | entry.local
        header = struct.pack("<4s5H3I", b"PK\x03\x04", *(fields[f] for f in LOCAL))
        header += struct.pack("<2H", len(name), len(extra)) + name + extra
        if entry.shown:
            headers.append(_central_header(entry, at))
        parts += [header, _packed(entry)]
        at += len(header) + len(parts[-1])
    directory = b"".join(headers)
    zip64 = b"" if archive.zip64 is None else _zip64_end(archive, len(headers), len(directory), at)
    end = {"disk": 0, "disk_of_directory": 0, "here": len(headers), "count": len(headers)}
    end |= {"directory_size": len(directory), "directory_offset": at} | archive.end
    last = struct.pack("<4s4H2IH", b"PK\x05\x06", *(end[f] for f in END), len(archive.comment))
    last += archive.comment + archive.trailing
    return b"".join([*parts, directory, archive.hidden_directory, zip64, last])


def _padding(start: int) -> bytes:
    """torch aligns what it maps, by an extra field of any bytes."""
    return struct.pack("<2s H", b"FB", -(start + 4) % 64) + b"Z" * (-(start + 4) % 64)


def _packed(entry: Entry) -> bytes:
    if entry.method != zipfile.ZIP_DEFLATED:
        return entry.data
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    return packer.compress(entry.data) + packer.flush()


def _fields(entry: Entry) -> dict[str, int]:
    fields = {"version": 20, "flags": 0, "method": entry.method, "time": 0, "date": 33}
    return fields | {
        "crc": zlib.crc32(entry.data),
        "packed": len(_packed(entry)),
        "size": len(entry.data),
    }


def _central_header(entry: Entry, offset: int) -> bytes:
    more = {"made": 20, "disk": 0, "internal": 0, "attributes": 0, "offset": offset}
    fields = _fields(entry) | more | entry.central
    name, extra = fields.get("name", entry.name), fields.get("extra", b"")
    comment = fields.get("comment", b"")
    values = [fields[f] for f in CENTRAL]
    header = struct.pack("<4s6H3I", b"PK\x01\x02", *values[:9])
    header += struct.pack("<3H", len(name), len(extra), len(comment))
    return header + struct.pack("<2H2I", *values[9:]) + name + extra + comment


def _zip64_end(archive: Archive, count: int, size: int, offset: int) -> bytes:
    fields = {"count": count, "size": size, "offset": offset, "locator": offset + size}
    fields |= archive.zip64
    record = struct.pack("<4sQ2H2I", b"PK\x06\x06", 44, 45, 45, 0, 0)
    record += struct.pack("<4Q", fields["count"], fields["count"], fields["size"], fields["offset"])
    return record + struct.pack("<4sIQI", b"PK\x06\x07", 0, fields["locator"], 1)


def archive_of(content: Content, data_pkl: bytes | None = None) -> Archive:
    """The members that torch.save writes."""
    first = pickled(content.top) if data_pkl is None else data_pkl
    members = {"data.pkl": first, ".format_version": b"1", ".storage_alignment": b"64"}
    members["byteorder"] = b"little"
    members |= {f"data/{key}": data for key, data in content.storages.items()}
    members |= {"version": b"3\n", ".data/serialization_id": b"0" * 40}
    return Archive(tuple(Entry((ROOT + name).encode(), data) for name, data in members.items()))


def file_of(content: Content) -> bytes:
    """A sound file."""
    return written(archive_of(content))


# What is right


@dataclass(frozen=True)
class Case:
    """A file, what its weights are where it loads at all, and whether it must or must not.

    `state` is None where only plain `torch.load` can tell what the file says.
    """

    data: bytes
    state: State | None
    must: str = "either"  # load, refuse, either
    num_heads: int | None = None


PLAINLY_RENAMED = {
    "mlp.fc_w": "mlp.c_fc.weight",
    "mlp.proj_w": "mlp.c_proj.weight",
    "lm_head_w": "lm_head.weight",
}


def weights_meant(state: State) -> dict[str, Tensor]:
    """Our names and float32 values of a file's weights, from section 3 of the design."""
    named = {}
    for name, tensor in state.items():
        name, tensor = _stripped(name), tensor.detach().float()
        if name.endswith("attn.qkvo_w"):
            named[name.replace("qkvo_w", "qkv_w")] = tensor[:3]
            named[name.replace("qkvo_w", "c_proj.weight")] = tensor[3]
        else:
            for theirs, ours in PLAINLY_RENAMED.items():
                name = name.replace(theirs, ours)
            named[name] = tensor
    layers = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    named["scalars"] = named["scalars"][: 5 * layers]
    return named


def check(path: Path, case: Case) -> str:
    """Load the file at `path`; returns what came of it, and raises `Wrong` where that is wrong."""
    try:
        trunk, _, checkpoint = load_pretrained_checkpoint(path, num_heads=case.num_heads)
    except CheckpointError as error:
        require_good_message(error, path)
        if case.must == "load":
            raise Wrong(f"a sound file was refused: {error}") from error
        return "refused"
    if case.must == "refuse":
        raise Wrong("a file that must be refused was loaded")
    state = case.state
    if state is None:
        # Mapped, since nobody reads the optimizer states, whatever their size is said to be.
        state = _weights_by_torch(path)
    right = weights_meant(state)
    found = trunk.state_dict() | {"lm_head.weight": trunk.lm_head_weight}
    _require_same(right, found, "the trunk")
    mapped = checkpoint["model"]
    meant = {_stripped(name): tensor for name, tensor in state.items()}
    _require_same(meant, mapped, "the checkpoint's dict")
    return "loaded"


def _weights_by_torch(path: Path) -> State:
    """What the pickle module makes of a file, for torch's restricted reader gives a whole file up
    for what stands beside the weights. No changed byte of a sound file makes it a dangerous one."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["model"]
    except Exception:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)["model"]


def _stripped(name: str) -> str:
    while name.startswith(("_orig_mod.", "module.")):
        name = name.partition(".")[2]
    return name


def _require_same(right: State, found: State, what: str) -> None:
    if right.keys() != found.keys():
        raise Wrong(f"{what} has other names: {sorted(right.keys() ^ found.keys())[:6]}")
    for name, tensor in right.items():
        same = tensor.shape == found[name].shape and tensor.dtype == found[name].dtype
        if not (same and torch.equal(tensor, found[name])):
            raise Wrong(f"{what} has other values in {name}")


class Checkpoints(Kind):
    """Files with any damage, and files that say something else than a script would."""

    def __init__(self, folder: Path):
        self.path, self.marker = folder / "case.pt", folder / "marker"
        self.bases = {}
        for fmt, size in SIZES.items():
            shape = (size["layers"], size["heads"], size["dim"])
            self.bases[fmt] = content_of(random_state(**size), *shape)
        self.files = {fmt: file_of(base) for fmt, base in self.bases.items()}

    def run(self, generator: random.Random) -> str:
        # A small-format file can't be tiny: its heads are of 128.
        fmt = "small" if generator.random() < 0.03 else "medium"
        base = Base(self.bases[fmt], self.files[fmt], SIZES[fmt], self.marker)
        mutate = generator.choice(MUTATORS)
        self.doing = mutate.__name__.replace("_", " ")
        case = mutate(base, generator)
        self.path.write_bytes(case.data)
        outcome = check(self.path, case)
        if generator.random() < 0.02:
            check_inspector(self.path, outcome, case)
        return outcome


def check_inspector(path: Path, outcome: str, case: Case) -> None:
    """The command line says the same in its own way."""
    heads = [] if case.num_heads is None else ["--n_head", str(case.num_heads)]
    for options in ([], ["--json"]):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = loader.main([str(path), *heads, *options])
        refused = errors.getvalue().startswith("error: ") and errors.getvalue().count("\n") == 1
        said_right = (out.getvalue() == "") == refused == (code == 2)
        if code != {"loaded": 0, "refused": 2}[outcome] or not said_right:
            raise Wrong(f"the inspector: code {code}, {errors.getvalue()!r}")
        if options and code == 0:
            json.loads(out.getvalue())


@dataclass(frozen=True)
class Base:
    """A sound file to be changed; its parts are shared, and not to be changed in place."""

    content: Content
    data: bytes
    size: Mapping[str, object]
    marker: Path

    @property
    def state(self) -> State:
        return self.content.state

    @property
    def archive(self) -> Archive:
        return archive_of(self.content)

    def with_top(self, **top: object) -> bytes:
        return file_of(replace(self.content, top=self.content.top | top))

    def with_state(self, state: State, **top: object) -> bytes:
        size = self.size
        return file_of(content_of(state, size["layers"], size["heads"], size["dim"], **top))


# Damage of bytes


def sound(base: Base, generator: random.Random) -> Case:
    return Case(base.data, base.state, "load")


def flipped_bits(base: Base, generator: random.Random) -> Case:
    data = bytearray(base.data)
    for _ in range(generator.choice([1, 1, 1, 2, 5, 50])):
        data[_place(data, generator)] ^= 1 << generator.randrange(8)
    return Case(bytes(data), base.state)


def other_bytes(base: Base, generator: random.Random) -> Case:
    data = bytearray(base.data)
    for _ in range(generator.choice([1, 1, 2, 5])):
        at, length = _place(data, generator), generator.choice([1, 2, 4, 8, 64, 1000])
        kind = generator.randrange(4)
        if kind == 0:
            new = generator.randbytes(length)
        elif kind == 1:
            new = generator.choice([b"\0", b"\xff", b"\x7f", b"\x80"]) * length
        elif kind == 2:
            source = generator.randrange(len(data))
            new = bytes(data[source : source + length])
        else:
            new = generator.choice([b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06"])
        data[at : at + len(new)] = new
    return Case(bytes(data), base.state)


def cut_short(base: Base, generator: random.Random) -> Case:
    if generator.random() < 0.3:
        keep = len(base.data) - generator.randrange(1, 100)
    else:
        keep = generator.randrange(len(base.data))
    return Case(base.data[:keep], base.state, "refuse")


def lost_or_added_bytes(base: Base, generator: random.Random) -> Case:
    data, at = base.data, _place(base.data, generator)
    length = generator.choice([1, 1, 4, 64, 4096])
    if generator.random() < 0.5:
        return Case(data[:at] + data[at + length :], base.state)
    return Case(data[:at] + generator.randbytes(length) + data[at:], base.state)


def _place(data: bytes | bytearray, generator: random.Random) -> int:
    """Mostly in the pickle, the directory and the headers, where most can go wrong."""
    region = generator.randrange(4)
    if region == 0:
        return generator.randrange(len(data))
    if region == 1:
        return generator.randrange(min(len(data), 9000))
    if region == 2:
        return len(data) - 1 - generator.randrange(min(len(data), 6000))
    signature = generator.choice([b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"])
    starts = [0]
    while (found := data.find(signature, starts[-1] + 1)) >= 0:
        starts.append(found)
    return min(generator.choice(starts) + generator.randrange(46), len(data) - 1)


# Lies of the zip

ODD_NUMBERS = [0, 1, 2, 63, 64, 255, 256, 0x7FFF, 0xFFFF]
ODD_LONG_NUMBERS = [*ODD_NUMBERS, 1 << 20, 1 << 30, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]
ODD_HUGE_NUMBERS = [*ODD_LONG_NUMBERS, 1 << 33, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def lying_header(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    for _ in range(generator.choice([1, 1, 2])):
        where = generator.choice(["local", "central", "central", "end"])
        if where == "end":
            name = generator.choice(END)
            value = generator.choice(ODD_NUMBERS if END.index(name) < 4 else ODD_LONG_NUMBERS)
            archive = replace(archive, end={**archive.end, name: value})
            continue
        index = _any_entry(archive, generator)
        name = generator.choice(LOCAL if where == "local" else CENTRAL)
        long = name in ("crc", "packed", "size", "attributes", "offset")
        value = generator.choice(ODD_LONG_NUMBERS if long else ODD_NUMBERS)
        if name in ("packed", "size", "offset") and generator.random() < 0.5:
            value = max(0, len(archive.entries[index].data) + generator.choice([-4, -1, 1, 4, 64]))
        old = getattr(archive.entries[index], where)
        archive = archive.with_entry(index, **{where: {**old, name: value}})
    return Case(written(archive), base.state)


def _any_entry(archive: Archive, generator: random.Random) -> int:
    return 0 if generator.random() < 0.3 else generator.randrange(len(archive.entries))


ODD_NAMES = [
    b"", b"/", b"archive", b"archive/", b"/archive/data.pkl", b"archive//data.pkl", b"../data.pkl",
    b"archive/data.pkl\0", b"archive/data/0\0x", b"ARCHIVE/DATA.PKL", b"archive/DATA/0",
    b"Archive/data/0", b"archive/data/00", b"archive\\data.pkl", b"other/data.pkl",
    b"archive/data.pkl/", b"\xff\xfe", b"\xe0\xa4\xb9/data.pkl", b"a" * 60000,
    b"archive/constants.pkl", b"constants.pkl", b"archive/code/x.py", b"archive/byteorder",
    b"archive/.format_version", b"archive/\nx", b"\x1b[31m/data.pkl", b"archive/data/1",
]  # fmt: skip


def renamed_member(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    index = _any_entry(archive, generator)
    name = generator.choice(ODD_NAMES)
    where = generator.choice(["both", "local", "central"])
    if where == "both":
        archive = archive.with_entry(index, name=name)
    else:
        archive = archive.with_entry(index, **{where: {"name": name}})
    return Case(written(archive), base.state)


def extra_member(base: Base, generator: random.Random) -> Case:
    """One more member: a double, one of the same name in other letters, or a strange one."""
    archive, state = base.archive, base.state
    decoys = {
        "data.pkl": pickled(base.content.top | {"model": {}}),
        "data/0": bytes_of(base.state["embed.weight"] + 1),
        "byteorder": b"big",
        ".format_version": b"9" * 30,
        ".storage_alignment": generator.choice([b"1", b"-64", b"x", b"9" * 5000, b"0"]),
    }
    name, data = generator.choice(list(decoys.items()))
    full_name = (ROOT + name).encode()
    odd = generator.choice([full_name, full_name.upper(), full_name.title()] + ODD_NAMES[1:])
    entry = Entry(odd, data, shown=generator.random() < 0.9)
    at = generator.choice([0, 1, len(archive.entries)])
    entries = (*archive.entries[:at], entry, *archive.entries[at:])
    return Case(written(replace(archive, entries=entries)), state)


def swapped_decoy(base: Base, generator: random.Random) -> Case:
    """Members that another reader might take for the real ones, with other weights in them."""
    archive, content = base.archive, base.content
    size = content.model["embed.weight"].size
    names = [name for name, spec in content.model.items() if spec.size == size]
    one, two = generator.sample(names, 2)
    swapped = content.model | {one: content.model[two], two: content.model[one]}
    decoy = pickled(content.top | {"model": swapped})
    kind = generator.randrange(4)
    data_pkl = archive.index(ROOT + "data.pkl")
    if kind == 0:
        letters = "".join(generator.choice([c.upper(), c]) for c in "archive/data.pkl")
        entry = Entry(letters.encode(), decoy)
    elif kind == 1:
        key = content.model[one].storage.key
        letters = generator.choice([f"ARCHIVE/DATA/{key}", f"archive/Data/{key}"])
        entry = Entry(letters.encode(), content.storages[content.model[two].storage.key])
    elif kind == 2:
        entry = Entry(b"archive/data.pkl", decoy, shown=False)
    else:
        # The directory says where the first member is; what is read in order meets another.
        entry = Entry(b"archive/data.pkl", decoy, central={"name": b"archive/old"})
    at = generator.choice([data_pkl, data_pkl + 1, len(archive.entries)])
    entries = (*archive.entries[:at], entry, *archive.entries[at:])
    return Case(written(replace(archive, entries=entries)), base.state)


def shuffled_members(base: Base, generator: random.Random) -> Case:
    entries = list(base.archive.entries)
    generator.shuffle(entries)
    return Case(written(replace(base.archive, entries=tuple(entries))), base.state, "load")


def missing_member(base: Base, generator: random.Random) -> Case:
    entries = list(base.archive.entries)
    lost = entries.pop(_any_entry(base.archive, generator)).name.decode().removeprefix(ROOT)
    needed = lost == "data.pkl" or (lost.startswith("data/") and int(lost[5:]) < len(base.state))
    must = "refuse" if needed else "either"
    return Case(written(replace(base.archive, entries=tuple(entries))), base.state, must)


def around_the_zip(base: Base, generator: random.Random) -> Case:
    """Bytes before, behind and inside of the zip."""
    archive, kind = base.archive, generator.randrange(7)
    some = generator.choice([b"\0" * 64, b"#!/bin/sh\n", base.data, generator.randbytes(4096)])
    if kind == 0:
        archive = replace(archive, prefix=some)
    elif kind == 1:
        return Case(some + written(archive), base.state)
    elif kind == 2:
        archive = replace(archive, trailing=some)
    elif kind == 3:
        archive = replace(archive, comment=some[: generator.choice([1, 5, 4096, 60000])])
    elif kind == 4:
        archive = replace(archive, hidden_directory=some)
    elif kind == 5:
        inner = Entry(b"archive/inner.zip", base.data)
        archive = replace(archive, entries=(*archive.entries, inner))
    else:
        archive = replace(archive, comment=base.data[-60000:])
    return Case(written(archive), base.state)


def zip64_records(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    fields = ["count", "size", "offset", "locator"]
    lies = {generator.choice(fields): generator.choice(ODD_HUGE_NUMBERS)}
    archive = replace(archive, zip64=lies if generator.random() < 0.7 else {})
    if generator.random() < 0.7:
        full = {"directory_offset": 0xFFFFFFFF, "directory_size": 0xFFFFFFFF, "count": 0xFFFF}
        chosen = {name: value for name, value in full.items() if generator.random() < 0.6}
        archive = replace(archive, end=chosen)
    if generator.random() < 0.5:
        index = _any_entry(archive, generator)
        numbers = [generator.choice(ODD_HUGE_NUMBERS) for _ in range(generator.randrange(4))]
        extra = struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
        extra = generator.choice([extra, extra[:-3], struct.pack("<2H", 1, 9999)])
        full = {name: 0xFFFFFFFF for name in ("size", "packed", "offset")}
        chosen = {name: value for name, value in full.items() if generator.random() < 0.6}
        archive = archive.with_entry(index, central={**chosen, "extra": extra})
    return Case(written(archive), base.state)


def compressed_member(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    index = _any_entry(archive, generator)
    archive = archive.with_entry(index, method=zipfile.ZIP_DEFLATED)
    if generator.random() < 0.5:
        archive = archive.with_entry(index, data=bytes(1 << 25))
    lies = generator.choice([{}, {"method": 0}, {"size": 100}, {"size": 0xFFFFFFFE}])
    archive = archive.with_entry(index, central=lies)
    must = "either" if "method" in lies else "refuse"
    return Case(written(archive), base.state, must)


def big_endian(base: Base, generator: random.Random) -> Case:
    archive = base.archive
    order = generator.choice([b"big", b"BIG", b"little\n", b"", b"middle", b"l" * 100])
    archive = archive.with_entry(archive.index(ROOT + "byteorder"), data=order)
    return Case(written(archive), base.state, "refuse")


def overlapping_members(base: Base, generator: random.Random) -> Case:
    """Many members in the directory that are one in the file."""
    archive = base.archive
    first = next(i for i, entry in enumerate(archive.entries) if entry.name.endswith(b"data/0"))
    start = written(archive).index(archive.entries[first].name) - 30
    index = _any_entry(archive, generator)
    fields = _fields(archive.entries[first])
    same = {"offset": start, **({} if generator.random() < 0.5 else fields)}
    archive = archive.with_entry(index, central=same)
    return Case(written(archive), base.state)


# Pickles with other bytes and right checksums


def changed_pickle(base: Base, generator: random.Random) -> Case:
    data = bytearray(pickled(base.content.top))
    for _ in range(generator.choice([1, 1, 1, 2, 5])):
        at = generator.randrange(len(data))
        kind = generator.randrange(4)
        if kind == 0:
            data[at] ^= 1 << generator.randrange(8)
        elif kind == 1:
            data[at] = generator.randrange(256)
        elif kind == 2:
            del data[at : at + generator.choice([1, 2, 5])]
        else:
            data[at:at] = generator.randbytes(generator.choice([1, 2, 5]))
    return Case(written(archive_of(base.content, bytes(data))), None)


def changed_opcodes(base: Base, generator: random.Random) -> Case:
    """Whole operations of the pickle are lost, doubled, swapped or changed in their argument."""
    data = pickled(base.content.top)
    parts = _operations(data)
    for _ in range(generator.choice([1, 1, 2, 3])):
        at = generator.randrange(1, len(parts) - 1)
        kind = generator.randrange(5)
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[at])
        elif kind == 2:
            other = generator.randrange(1, len(parts) - 1)
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts.insert(at, generator.choice(SMALL_OPERATIONS))
        else:
            parts[at] = generator.choice(SMALL_OPERATIONS)
    return Case(written(archive_of(base.content, b"".join(parts))), None)


def _operations(data: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    return [data[start:end] for start, end in zip(starts, starts[1:], strict=False)]


SMALL_OPERATIONS = [
    b"N", b"0", b"1", b"2", b"(", b"]", b"}", b")", b"t", b"\x85", b"\x86", b"\x87", b"K\x00",
    b"K\x05", b"M\x00\x01", b"J\xff\xff\xff\xff", b"X\x01\x00\x00\x000", b"X\x00\x00\x00\x00",
    b"\x88", b"\x89", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"R", b"b", b"Q", b"s", b"u", b"a",
    b"e", b"h\x00", b"h\x01", b"q\x00", b"q\xff", b"\x8a\x01\x05", b"\x8f", b"\x90", b"\x94",
    b"ctorch\nFloatStorage\n", b"ctorch\nfloat32\n", b"ccollections\nOrderedDict\n", b"\x81",
]  # fmt: skip


# Tensors that are described wrongly

ODD_FIELDS = [
    0, 1, -1, 2, 3, 7, 8, 10, 79, 80, 81, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 40, (1 << 63) - 1,
    1 << 63, (1 << 64) - 1, 1 << 64, 10**600, 10**5000, True, None, 1.0, math.nan, "8", b"8", (8,),
    [], {}, ((8,),),
]  # fmt: skip


def odd_tensor(base: Base, generator: random.Random) -> Case:
    content = base.content
    name = generator.choice(list(content.model))
    spec = content.model[name]
    changed = _odd_spec(spec, generator)
    other = replace(content, top=content.top | {"model": content.model | {name: changed}})
    try:
        tensor = _as_described(changed, content.storages)
        # Other numbers of the same width are what the file now says.
        right = tensor.shape == base.state[name].shape and bool(tensor.isfinite().all())
        right = right and tensor.is_floating_point()
    except (ValueError, TypeError, KeyError, OverflowError, RuntimeError):
        right = False
    if not right:
        return Case(file_of(other), {}, "refuse")
    return Case(file_of(other), {**base.state, name: tensor})


def _odd_spec(spec: Spec, generator: random.Random) -> Spec:
    value, which = generator.choice(ODD_FIELDS), generator.randrange(8)
    if which == 0:
        return replace(spec, offset=value)
    if which in (1, 2):
        name = ("size", "stride")[which - 1]
        numbers = list(getattr(spec, name))
        numbers[generator.randrange(len(numbers))] = value
        return replace(spec, **{name: tuple(numbers)})
    if which == 3:
        name = generator.choice(["size", "stride"])
        old = getattr(spec, name)
        return replace(spec, **{name: generator.choice([old[:-1], old + (1,), list(old), value])})
    if which == 4:
        return replace(spec, storage=replace(spec.storage, numel=value))
    if which == 5:
        key = generator.choice(["1", "999", "-1", "", "../x", "0\0", "0 ", "०", 0, *ODD_FIELDS])
        return replace(spec, storage=replace(spec.storage, key=key))
    if which == 6:
        kind = generator.choice(list(STORAGE_KINDS.values()))
        return replace(spec, storage=replace(spec.storage, kind=kind))
    more = generator.choice(ODD_TENSOR_ENDS)
    return replace(spec, more=more)


ODD_TENSOR_ENDS = [
    (True, OrderedDict()),
    (False,),
    (None, None),
    ("yes", []),
    (False, OrderedDict(), {}),
    (False, OrderedDict(), None),
    (False, OrderedDict(), {"neg": True}),
    (False, OrderedDict(), {"conj": True}),
    (False, OrderedDict(), {"no": "such"}),
    (False, OrderedDict(), [1]),
    (False, OrderedDict(), "metadata"),
    (False, OrderedDict(), {}, 1, 2),
]


def _as_described(spec: Spec, storages: Mapping[str, bytes]) -> Tensor:
    """The values that a description means, by arithmetic on the bytes; raises where it can't be."""
    storage, more = spec.storage, spec.more or (False, OrderedDict())
    if len(more) not in (2, 3) or (len(more) == 3 and more[2]) or type(more[0]) is not bool:
        raise ValueError("not the arguments that torch writes")
    numbers = [storage.numel, spec.offset, *spec.size, *spec.stride]
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("not a shape")
    values = torch.frombuffer(bytearray(storages[storage.key]), dtype=DTYPES[storage.kind])
    last = sum((n - 1) * step for n, step in zip(spec.size, spec.stride, strict=True))
    if len(values) != storage.numel or spec.offset + last >= storage.numel:
        raise ValueError("out of bounds")
    return values.as_strided(spec.size, spec.stride, spec.offset)


def two_kinds_of_one_storage(base: Base, generator: random.Random) -> Case:
    """A storage that two tensors take for different things."""
    content = base.content
    one, two = generator.sample(list(content.model), 2)
    kind = generator.choice(list(STORAGE_KINDS.values()))
    theirs = content.model[one].storage
    changed = replace(content.model[two], storage=replace(theirs, kind=kind))
    top = content.top | {"model": content.model | {two: changed}}
    try:
        tensor = _as_described(changed, content.storages)
        right = tensor.shape == base.state[two].shape and kind == theirs.kind
    except (ValueError, RuntimeError):
        right = False
    state = {**base.state, two: tensor} if right else {}
    return Case(file_of(replace(content, top=top)), state, "either" if right else "refuse")


# Weights that lie in their storages in other ways


def other_layout(base: Base, generator: random.Random) -> Case:
    lay_out = generator.choice([_one_buffer, _with_gaps, _column_major, _tied_tables])
    storages: dict[str, bytes] = {}
    model = lay_out(base, storages, generator)
    moments = base.content.top | {"model": model, "optimizers": []}
    state = {name: _as_described(spec, storages) for name, spec in model.items()}
    return Case(file_of(Content(moments, storages, state)), state, "load")


def _one_buffer(base: Base, storages: dict[str, bytes], generator: random.Random) -> dict:
    names = list(base.state)
    generator.shuffle(names)
    buffer = torch.cat([base.state[name].float().flatten() for name in names])
    storage, model, at = _add(storages, buffer), {}, 0
    for name in names:
        shape = tuple(base.state[name].shape)
        model[name] = Spec(storage, at, shape, base.state[name].contiguous().stride())
        at += base.state[name].numel()
    return model


def _with_gaps(base: Base, storages: dict[str, bytes], generator: random.Random) -> dict:
    """Around every weight, and between its last dimension's values, there is NaN."""
    model = {}
    for name, tensor in base.state.items():
        before, step = generator.randrange(9), generator.choice([1, 1, 2, 3])
        values = torch.full((before + step * tensor.numel() + 5,), math.nan, dtype=tensor.dtype)
        values[before : before + step * tensor.numel() : step] = tensor.flatten()
        stride = tuple(step * s for s in tensor.contiguous().stride())
        model[name] = Spec(_add(storages, values), before, tuple(tensor.shape), stride)
    return model


def _column_major(base: Base, storages: dict[str, bytes], generator: random.Random) -> dict:
    """The dimensions of every weight lie in another order."""
    model = {}
    for name, tensor in base.state.items():
        order = generator.sample(range(tensor.dim()), tensor.dim())
        turned = tensor.permute(order).contiguous()
        stride = tuple(turned.stride(order.index(i)) for i in range(tensor.dim()))
        model[name] = Spec(_add(storages, turned), 0, tuple(tensor.shape), stride)
    return model


def _tied_tables(base: Base, storages: dict[str, bytes], generator: random.Random) -> dict:
    """Some of the embedding tables are one."""
    first = _add(storages, base.state["embed.weight"])
    model = {}
    for name, tensor in base.state.items():
        tied = "embed" in name and generator.random() < 0.7
        storage = first if tied else _add(storages, tensor)
        model[name] = Spec(storage, 0, tuple(tensor.shape), tensor.contiguous().stride())
    return model


def expanded_weights(base: Base, generator: random.Random) -> Case:
    """A file of some kilobytes whose weights are some gigabytes, if it is believed."""
    rows = generator.choice([1 << 16, 1 << 21, 1 << 24, 1 << 28, 1 << 40, 1 << 59])
    content = base.content
    one = Storage("0", "FloatStorage", 1)
    storages = {**content.storages, "0": struct.pack("<f", 1.0)}
    model = dict(content.model)
    for name in model:
        if name.startswith(("embed", "value_embeds", "lm_head")):
            model[name] = Spec(one, 0, (rows, base.size["dim"]), (0, 0))
    top = content.top | {"model": model}
    return Case(file_of(Content(top, storages, {})), {}, "refuse")


def blocks_of_one_storage(base: Base, generator: random.Random) -> Case:
    """Thousands of blocks that are all the same bytes of the file."""
    layers, dim = generator.choice([200, 1000, 3000]), generator.choice([8, 64, 256])
    storage = Storage("0", "BFloat16Storage", 4 * dim * dim)
    model: dict[str, Spec] = {}
    for name in ("embed.weight", *(f"value_embeds.{t}.weight" for t in range(3)), "lm_head_w"):
        model[name] = Spec(storage, 0, (4, dim) if name != "lm_head_w" else (128, dim), (dim, 1))
    for i in range(layers):
        if i != 7:
            model[f"blocks.{i}.attn.qkvo_w"] = Spec(storage, 0, (4, dim, dim), (dim * dim, dim, 1))
        model[f"blocks.{i}.mlp.fc_w"] = Spec(storage, 0, (4 * dim, dim), (dim, 1))
        model[f"blocks.{i}.mlp.proj_w"] = Spec(storage, 0, (dim, 4 * dim), (4 * dim, 1))
    scalars = initial_scalars(layers)
    model["scalars"] = Spec(Storage("1", "FloatStorage", 5 * layers), 0, (5 * layers,), (1,))
    data = {"0": bytes(8 * dim * dim), "1": scalars.numpy().tobytes()}
    top = {"step": 1, "code": gpt_call(layers, 2, dim), "model": model}
    return Case(file_of(Content(top, data, {})), {}, "refuse")


# Other states


def other_values(base: Base, generator: random.Random) -> Case:
    name = generator.choice([name for name in base.state if name != "scalars"])
    tensor = base.state[name].clone()
    value = generator.choice([0.0, -0.0, 1.0, 1e-30, -3e38, generator.gauss(0, 1)])
    tensor.view(-1)[generator.randrange(tensor.numel())] = value
    state = {**base.state, name: tensor}
    return Case(base.with_state(state), state, "load")


def value_not_finite(base: Base, generator: random.Random) -> Case:
    name = generator.choice(list(base.state))
    tensor = base.state[name].clone()
    value = generator.choice([math.nan, math.inf, -math.inf])
    tensor.view(-1)[generator.randrange(tensor.numel())] = value
    return Case(base.with_state({**base.state, name: tensor}), {}, "refuse")


def other_dtypes(base: Base, generator: random.Random) -> Case:
    floats = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    state = {name: t.to(generator.choice(floats)) for name, t in base.state.items()}
    # Rounded to fewer bits, a scalar that training never moved is still 1 or 0.5.
    return Case(base.with_state(state), state, "load")


def no_floating_point(base: Base, generator: random.Random) -> Case:
    others = [dtype for dtype in STORAGE_KINDS if not dtype.is_floating_point]
    name = generator.choice(list(base.state))
    state = {**base.state, name: base.state[name].to(generator.choice(others))}
    return Case(base.with_state(state), {}, "refuse")


def moved_scalar(base: Base, generator: random.Random) -> Case:
    scalars = base.state["scalars"].clone()
    scalars[generator.randrange(len(scalars))] = generator.gauss(0, 1)
    state = {**base.state, "scalars": scalars}
    return Case(base.with_state(state), state)


def other_number_of_scalars(base: Base, generator: random.Random) -> Case:
    scalars, layers = base.state["scalars"], base.size["layers"]
    number = generator.choice([0, 1, 5 * layers - 1, 5 * layers + generator.randrange(20)])
    padded = torch.cat([scalars, torch.ones(100)])[:number]
    state = {**base.state, "scalars": padded}
    must = "load" if number >= 5 * layers else "refuse"
    return Case(base.with_state(state), state, must)


def other_order(base: Base, generator: random.Random) -> Case:
    names = list(base.state)
    generator.shuffle(names)
    state = {name: base.state[name] for name in names}
    return Case(base.with_state(state), state, "load")


def wrapped_names(base: Base, generator: random.Random) -> Case:
    """Prefixes of torch.compile and DistributedDataParallel, on all names or in a mixture."""
    prefixes = ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod." * 50]
    same = generator.choice(prefixes)
    mixed = generator.random() < 0.3
    state = {
        (generator.choice(prefixes) if mixed else same) + name: tensor
        for name, tensor in base.state.items()
    }
    return Case(base.with_state(state), state, "either" if mixed else "load")


def lost_names(base: Base, generator: random.Random) -> Case:
    lost = set(generator.sample(list(base.state), generator.choice([1, 1, 2, 5])))
    state = {name: tensor for name, tensor in base.state.items() if name not in lost}
    return Case(base.with_state(state), {}, "refuse")


ODD_TENSOR_NAMES = [
    "", "x", "blocks", "blocks.", "blocks.12.mlp.fc_w", "blocks.99999.mlp.fc_w",
    "blocks.00.mlp.fc_w", "blocks.१.mlp.fc_w", "blocks.1१.mlp.fc_w", "blocks.-1.mlp.fc_w",
    f"blocks.{'9' * 5000}.attn.qkvo_w", f"blocks.{'9' * 5000}.mlp.fc_w", "blocks.0.attn.qkv_w",
    "value_embeds.3.weight", "value_embeds.0", "scalars.", "Scalars", "embed.weight\n",
    "embed\nweight", "\x1b[2J", "\u202eweight", "\ud800", "\0", "a" * 100_000,
    "pretrained_model.embed.weight", "_orig_mod.", "module.module.", "module.scalars", "embed2",
    "{i}", "blocks.{i}.mlp.fc_w", "transformer.h.0.attn.c_attn", "blocks.0.lambdas",
]  # fmt: skip


def odd_names(base: Base, generator: random.Random) -> Case:
    """One more tensor of an odd name, or one tensor under another name."""
    odd = generator.choice(ODD_TENSOR_NAMES)
    state = dict(base.state)
    name = generator.choice(list(state))
    state[odd] = state[name] if generator.random() < 0.5 else state.pop(name)
    return Case(base.with_state(state), {}, "refuse")


def swapped_names(base: Base, generator: random.Random) -> Case:
    """Two tensors change their places: refused by their shapes, or loaded as the file says."""
    one, two = generator.sample(list(base.state), 2)
    state = {**base.state, one: base.state[two], two: base.state[one]}
    return Case(base.with_state(state), state)


def other_shapes(base: Base, generator: random.Random) -> Case:
    name = generator.choice(list(base.state))
    tensor = base.state[name]
    kinds: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(0, -1).contiguous(),
        lambda t: t.flatten(),
        lambda t: t[None],
        lambda t: t[..., None],
        lambda t: t[:-1].clone(),
        lambda t: torch.cat([t, t[:1]]),
        lambda t: t[:0].clone(),
        lambda t: t.flatten()[0].clone(),
        lambda t: t.reshape(-1, 2) if t.dim() > 1 else t.reshape(1, -1),
    ]
    changed = generator.choice(kinds)(tensor)
    state = {**base.state, name: changed}
    must = "either" if changed.shape == tensor.shape or name == "scalars" else "refuse"
    return Case(base.with_state(state), state, must)


def lost_or_extra_blocks(base: Base, generator: random.Random) -> Case:
    layers = base.size["layers"]
    block = generator.randrange(layers)
    if generator.random() < 0.5:
        state = {n: t for n, t in base.state.items() if not n.startswith(f"blocks.{block}.")}
        return Case(base.with_state(state), {}, "refuse")
    new = generator.choice([layers, layers + 1, 500, 9999, 10000])
    extra = {
        name.replace(f"blocks.{block}.", f"blocks.{new}."): tensor
        for name, tensor in base.state.items()
        if name.startswith(f"blocks.{block}.")
    }
    return Case(base.with_state({**base.state, **extra}), {}, "refuse")


def of_two_formats(base: Base, generator: random.Random) -> Case:
    other = random_state("small", 6, 1, 8, 10, 2) if base.size["fmt"] == "medium" else {}
    names = generator.sample(list(other), min(len(other), generator.choice([1, 3, 30])))
    state = {**base.state, **{name: other[name] for name in names}}
    sound = state.keys() == base.state.keys()
    return Case(base.with_state(state), state, "either" if sound else "refuse")


# Other things than weights

ODD_CODES: list[object] = [
    "", "x", "GPT(", "GPT()", "GPT(num_heads=2)", "GPT(num_heads=4)", "GPT(num_heads=3)",
    "GPT(num_heads=0)", f"GPT(num_heads={'9' * 4000})", f"GPT(num_heads={'9' * 5000})",
    "GPT(num_heads=1e400)", "GPT(num_heads=2, num_layers=11)", "(" * 90, "(" * 100_000,
    "-" * 100_000 + "1", "[" * 5000 + "]" * 5000, "a." * 50_000 + "a", "1+" * 50_000 + "1",
    "x = '\\d'\nGPT(num_heads=2)", "'\\/'", "0777", "1if 1else 2", "0x1for x in y", "x is 3",
    "assert (1, 2)", "\0", "\ud800", "# coding: latin-1\n'\xe9'", "# coding: no-such\n1",
    "\ufeffGPT(num_heads=2)", "GPT(*[1, 2])", "GPT(**{'num_heads': 3})", "f'{GPT(num_heads=3)}'",
    "GPT = print\nGPT(num_heads=4)", "match x:\n case GPT(num_heads=3): pass", "\t\n x\n",
    "h = 2\nh: int = 4\nGPT(num_heads=h)", "GPT(num_heads=(h := 4))", "lambda: GPT(10, 12, 2, 8)",
    "GPT(num_heads=2j)", "GPT(num_heads=-2)", b"GPT(num_heads=4)", 5, None, ["GPT(num_heads=4)"],
    "async def f():\n  await GPT(num_heads=2)", "\x1b[31mGPT(num_heads=2)",
]  # fmt: skip


def odd_code(base: Base, generator: random.Random) -> Case:
    """Source text that tells nothing, tells lies, or is a burden to the parser."""
    code = generator.choice(ODD_CODES)
    if generator.random() < 0.03:
        code = generator.choice(["a=1\n" * 1_000_000, "(" * 4_000_000, "x" * (1 << 25)])
    if generator.random() < 0.3 and isinstance(code, str):
        code += "\n" + gpt_call(base.size["layers"], base.size["heads"], base.size["dim"])
    heads = generator.choice([None, base.size["heads"]])
    return Case(base.with_top(code=code), base.state, num_heads=heads)


def odd_entries(base: Base, generator: random.Random) -> Case:
    """Odd things under the keys of a checkpoint, and keys that none has."""
    odd: list[object] = [
        None, True, -1, 10**600, 10**5000, math.nan, math.inf, "", "x\ny", b"x", [], {}, (), [[]],
        {"a": {"b": [1, 2.0, None]}}, {1: 2, None: 3, False: 4, 1.5: 6}, OrderedDict(a=1),
        Spec(Storage("0", "BFloat16Storage", 80), 0, (), ()),
        Spec(Storage("0", "BFloat16Storage", 80), 79, (1, 1), (1, 1)),
        Spec(Storage("0", "BFloat16Storage", 80), 80, (1,), (1,)),
        Spec(Storage("0", "BFloat16Storage", 80), 0, (10**9, 10**9), (0, 0)),
        Spec(Storage("77", "FloatStorage", 10**12), 0, (10**12,), (1,)),
        Spec(Storage("0", "FloatStorage", -5), 0, (5,), (1,)),
    ]  # fmt: skip
    keys = ["step", "val_loss", "optimizers", "kind", "model", "x", "", "a\nb", "\x1b[1m", "\ud800"]
    keys += [0, None, 1.5, b"model", ("a", 1)]
    key, value = generator.choice(keys), generator.choice(odd)
    top = base.content.top | {key: value}
    if key == "model":
        return Case(file_of(replace(base.content, top=top)), {}, "refuse")
    return Case(file_of(replace(base.content, top=top)), base.state)


def no_checkpoint(base: Base, generator: random.Random) -> Case:
    """Another thing than a dict with a model."""
    model = base.content.model
    cyclic: dict = {}
    cyclic["model"] = cyclic
    endless: list = []
    endless.append(endless)
    thing = generator.choice(
        [
            None, 3, "model", [], (model,), {}, model, {"weights": model}, {"model": [model]},
            {"model": {"model": model}}, {"model": {}}, {"MODEL": model}, cyclic, endless,
            {"model": list(model.items())}, {"model": {1: next(iter(model.values()))}},
            {"kind": "hindi-xnli-classifier", "model": model}, {"a\nb" * 99: 1}, {"x" * 10**6: 1},
            {"model": {("a", ("b",)): 1}}, {"model": {"a\nb": 1, "\x1b[2J": 2}},
        ]
    )  # fmt: skip
    return Case(file_of(replace(base.content, top=thing)), {}, "refuse")


MUTATORS: Sequence[Callable[[Base, random.Random], Case]] = (
    sound,
    *[flipped_bits, other_bytes, changed_pickle, changed_opcodes, odd_tensor] * 3,
    cut_short,
    lost_or_added_bytes,
    *[lying_header, swapped_decoy] * 2,
    renamed_member,
    extra_member,
    shuffled_members,
    missing_member,
    around_the_zip,
    zip64_records,
    compressed_member,
    big_endian,
    overlapping_members,
    two_kinds_of_one_storage,
    other_layout,
    expanded_weights,
    blocks_of_one_storage,
    other_values,
    value_not_finite,
    other_dtypes,
    no_floating_point,
    moved_scalar,
    other_number_of_scalars,
    other_order,
    wrapped_names,
    lost_names,
    odd_names,
    swapped_names,
    other_shapes,
    lost_or_extra_blocks,
    of_two_formats,
    odd_code,
    odd_entries,
    no_checkpoint,
)


# Hostile pickles


class HostilePickles(Kind):
    """Pickles that call, claim, nest or repeat more than a checkpoint has any use for."""

    def __init__(self, folder: Path):
        self.path, self.marker = folder / "case.pt", folder / "marker"
        size = SIZES["medium"]
        shape = (size["layers"], size["heads"], size["dim"])
        self.content = content_of(random_state(**size), *shape)
        self.operations = _operations(pickled(self.content.top))
        register_extensions()

    def run(self, generator: random.Random) -> str:
        group = generator.choice([calls, calls, tricks, bombs, bombs, controls])
        self.doing = group.__name__
        snippet, must = group(self.marker, generator)
        data, place = self._with_snippet(snippet, generator)
        if group is controls:
            must = CONTROLS_MUST[place]
        elif must == "refuse" and place in ("dropped at once", "an entry"):
            # Beside the weights it is left alone, where the operation can be read at all.
            must = "either"
        case = Case(written(archive_of(self.content, data)), self.content.state, must)
        self.path.write_bytes(case.data)
        try:
            outcome = check(self.path, case)
        finally:
            if self.marker.exists():
                self.marker.unlink()
                raise Wrong("the payload was executed")
        return outcome

    def _with_snippet(self, snippet: bytes, generator: random.Random) -> tuple[bytes, str]:
        """The base's pickle with operations in it that leave one more value, and its place."""
        whole = b"".join(self.operations)
        place = generator.choice(list(CONTROLS_MUST))
        if place == "dropped at once":
            at = generator.randrange(1, len(self.operations))
            before, after = self.operations[:at], self.operations[at:]
            return b"".join([*before, snippet, b"0", *after]), place
        if place == "an entry":
            return whole[:-2] + unicode_op("extra") + snippet + whole[-2:], place
        if place == "a weight":
            model = pickled(self.content.model)
            rest = {key: value for key, value in self.content.top.items() if key != "model"}
            start = pickled(rest)[:-1]
            model = pickletools.optimize(model)[2:-1]
            model += unicode_op("extra") + snippet + b"s"
            return start + unicode_op("model") + model + b"s.", place
        return b"\x80\x02" + snippet + b".", place


# Where a snippet of a pickle is put, and what becomes of a harmless one there.
CONTROLS_MUST = {
    "dropped at once": "either",
    "an entry": "load",
    "a weight": "refuse",
    "everything": "refuse",
}


def unicode_op(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def value_ops(value: object) -> bytes:
    """Operations that push a plain value and touch no memo."""
    return pickletools.optimize(pickle.dumps(value, protocol=2))[2:-1]


EXTENSION = 241


def register_extensions() -> None:
    """So that an extension code of the file means a function that is known already."""
    with contextlib.suppress(ValueError):
        copyreg.add_extension("builtins", "open", EXTENSION)
        pickle.loads(pickle.dumps(open, protocol=2))


def payloads(marker: Path) -> list[tuple[str, str, tuple]]:
    """Calls that leave `marker` behind when they are executed."""
    path = str(marker)
    source = f"open({path!r}, 'w').close()"
    inner = pickle.dumps(_Call("builtins", "open", (path, "w")), protocol=2)
    return [
        ("os", "system", (f"touch {path}",)),
        ("posix", "system", (f"touch {path}",)),
        ("nt", "system", (f"touch {path}",)),
        ("os", "mkdir", (path,)),
        ("os", "popen", (f"touch {path}",)),
        ("subprocess", "check_output", (["touch", path],)),
        ("subprocess", "Popen", (["touch", path],)),
        ("builtins", "eval", (source,)),
        ("builtins", "exec", (source,)),
        ("__builtin__", "eval", (source,)),
        ("builtins", "open", (path, "w")),
        ("io", "open", (path, "w")),
        ("_io", "FileIO", (path, "w")),
        ("logging", "FileHandler", (path,)),
        ("zipfile", "ZipFile", (path, "w")),
        ("pathlib", "Path.touch", (path,)),
        ("shutil", "copyfile", ("/dev/null", path)),
        ("runpy", "_run_code", (source, {})),
        ("timeit", "timeit", (source,)),
        ("code", "interact", ()),
        ("pickle", "loads", (inner,)),
        ("_pickle", "loads", (inner,)),
        ("torch", "load", (path,)),
        ("torch.serialization", "load", (path,)),
        ("torch.storage", "_load_from_bytes", (inner,)),
        ("torch.hub", "load_state_dict_from_url", (f"file://{path}",)),
        ("torch._utils", "_rebuild_device_tensor_from_numpy", (1, 2, 3, 4)),
        ("torch._utils", "_rebuild_wrapper_subclass", (1, 2, 3, 4, 5, 6, 7)),
        ("torch._utils", "_rebuild_meta_tensor_no_storage", (1, (2,), (3,), False)),
        ("torch._tensor", "_rebuild_from_type_v2", (open, path, "w", ())),
        ("torch.jit", "load", (path,)),
        ("torch", "save", ({}, path)),
        ("numpy", "save", (path, [1])),
        ("numpy", "load", (path,)),
        ("functools", "partial", (open, path, "w")),
        ("operator", "attrgetter", ("x",)),
        ("builtins", "getattr", ("", "join")),
        ("builtins", "__import__", ("os",)),
        ("importlib", "import_module", ("os",)),
        ("ctypes", "CDLL", (path,)),
        ("_codecs", "encode", ("x", "latin1")),
        ("collections", "defaultdict", (list,)),
        ("collections", "Counter", ("abc",)),
        ("builtins", "set", ([1],)),
        ("builtins", "bytearray", (8,)),
        ("fractions", "Fraction", (1, 3)),
        ("types", "FunctionType", ()),
        ("__main__", "Settings", (1,)),
    ]  # fmt: skip


class _Call:
    """Pickles as a call of a function that is named and need not exist here."""

    def __init__(self, module: str, name: str, arguments: tuple):
        self.parts = module, name, arguments

    def __reduce__(self) -> tuple:
        module, name, arguments = self.parts
        return getattr(__import__(module), name), arguments


def calls(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """A call in any of the ways that a pickle can write it."""
    module, name, arguments = generator.choice(payloads(marker))
    return call_ops(module, name, arguments, generator), "refuse"


def call_ops(module: str, name: str, arguments: tuple, generator: random.Random) -> bytes:
    by_name = f"c{module}\n{name}\n".encode()
    short = b"".join(b"\x8c" + bytes([len(n)]) + n.encode() for n in (module, name)) + b"\x93"
    from_memo = unicode_op(module) + b"r\x10\x27\x00\x000"
    from_memo += unicode_op(name) + b"r\x11\x27\x00\x000"
    from_memo += b"j\x10\x27\x00\x00j\x11\x27\x00\x00\x93"
    arguments_ops = value_ops(arguments)
    each = b"".join(map(value_ops, arguments))
    forms = [
        by_name + arguments_ops + b"R",
        short + arguments_ops + b"R",
        from_memo + arguments_ops + b"R",
        b"(" + by_name + each + b"o",
        b"(" + each + b"i" + f"{module}\n{name}\n".encode(),
        by_name + arguments_ops + b"}" + b"\x92",
        by_name + b"q\xf0" + b"0h\xf0" + arguments_ops + b"R",
        by_name + arguments_ops + b"R" + b"}b",
        b"\x82" + bytes([EXTENSION]) + arguments_ops + b"R",
        b"\x83" + struct.pack("<H", EXTENSION) + arguments_ops + b"R",
        b"\x84" + struct.pack("<I", EXTENSION) + arguments_ops + b"R",
        b"(" + b"\x82" + bytes([EXTENSION]) + each + b"o",
        b"(" + by_name + arguments_ops + b"R" + b"t",
        b"ccollections\nOrderedDict\n" + b"]" + by_name + arguments_ops + b"Ra\x85" + b"R",
        unicode_op("storage") + by_name + arguments_ops + b"R" + b"\x86Q",
    ]
    return generator.choice(forms)


def tricks(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """Objects that are made without a call, and then given a state that matters."""
    path = str(marker)
    state = value_ops({"__setstate__": 1, "x": path})
    slots = b"N" + state + b"\x86"
    storage = value_ops("storage") + b"ctorch\nFloatStorage\n" + value_ops("0") + value_ops("cpu")
    storage = b"(" + storage + b"K\x02tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
    tensor += b"K\x00K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)R"
    targets = [
        b"cos\nsystem\n", b"cbuiltins\nprint\n", b"ctorch\nfloat32\n", b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n", b"ccollections\nOrderedDict\n)R", tensor + b"tR",
        storage, b"}", b"]", b")", b"N", b"K\x05", b"c__main__\nSettings\n)\x81",
        b"c__main__\nSettings\n", b"ctorch.nn.parameter\nParameter\n)\x81",
        b"ctorch\nTensor\n)\x81",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nSize\n)R",
    ]  # fmt: skip
    states = [state, slots, b"}", b"N", b")", b"K\x01", storage]
    states += [value_ops((1, 2, 3, 4)), tensor + b"tR"]
    target, given = generator.choice(targets), generator.choice(states)
    made = [
        target + given + b"b",
        b"clogging\nFileHandler\n" + value_ops((path,)) + b"\x81" + given + b"b",
        b"c_io\nFileIO\n" + value_ops((path, "w")) + b"\x81",
        b"cos\n__dict__\n" + given + b"s",
        b"cposix\nenviron\n" + given + given + b"s",
        target + b"(" + given + given + b"u",
        target + given + b"a",
        target + b"(" + given + b"e",
        target + b"(" + given + b"\x90",
        tensor + given + b"tR",
        tensor + b"N" + given + b"tR",
        b"P" + path.encode() + b"\n",
        given + b"Q",
        b"(" + given + b"\x91",
        b"(" + given + given + b"d",
    ]
    return generator.choice(made), "either"


def bombs(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """A few bytes that ask for gigabytes or for hours."""
    n = generator.choice([22, 26, 28, 60, 300])
    twice = generator.choice([b"2\x86", b"q\xf0h\xf0\x86", b"q\xf0h\xf0\x86"])
    doubled = b")" + twice * n
    depth = generator.choice([1000, 30_000, 1_000_000])
    deep = b")" + b"\x85" * depth
    lengths = [1 << 20, 1 << 27, 1 << 28, 1 << 30, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
    index = length4 = struct.pack("<I", generator.choice(lengths))
    length = struct.pack("<Q", generator.choice([*lengths, 1 << 33, 1 << 40, (1 << 63) - 1]))
    count = value_ops(generator.choice([1 << 20, 1 << 28, 1 << 31, 1 << 40, 1 << 62]))
    storage = b"(" + value_ops("storage") + b"ctorch\nFloatStorage\n"
    made = [
        doubled,
        b"}" + doubled + b"Ns",
        b"}(" + doubled + b"Nu",
        b"(" + doubled + b"Nd",
        b"\x8f(" + doubled + b"\x90",
        b"(" + doubled + b"\x91",
        b"ccollections\nOrderedDict\n]]" + doubled + b"aNaa\x85R",
        b"ctorch\ndevice\n" + doubled + b"\x85R",
        b"ctorch\nSize\n" + doubled + b"\x85R",
        storage + doubled + value_ops("cpu") + b"K\x02tQ",
        storage + value_ops("0") + doubled + b"K\x02tQ",
        storage + value_ops("0") + value_ops("cpu") + doubled + b"tQ",
        doubled + b"Q",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00" + doubled + doubled + b"\x89}tR",
        deep,
        b"}" + deep + b"Ns",
        b"]" * depth + b"a" * (depth - 1),
        b"}" * depth,
        b"(" * depth,
        b"(" * depth + b"t" * depth,
        b"N" * depth,
        b"Nr" + index,
        b"K\x01r" + index,
        b"\x8d" + length + b"abc",
        b"\x8e" + length + b"abc",
        b"\x96" + length + b"abc",
        b"\x95" + length + b"N",
        b"X" + length4 + b"abc",
        b"B" + length4 + b"abc",
        b"T" + length4 + b"abc",
        b"\x8b" + length4 + b"abc",
        b"\x8a\xff" + b"\x7f" * 255,
        b"I" + b"9" * 4000 + b"\n",
        b"L" + b"9" * 100_000 + b"L\n",
        b"F" + b"9" * 100_000 + b"\n",
        b"S'" + b"\\" * 100_001 + b"'\n",
        b"V" + b"\\u0041" * 10_000 + b"\n",
        b"\x80" + bytes([generator.randrange(256)]) + b"N",
        b"ctorch\nTensor\n" + count + b"\x85\x81",
        b"ctorch\nFloatTensor\n" + count + b"\x85\x81",
        b"ctorch.sparse\nFloatTensor\n)\x81",
        b"cbuiltins\nbytearray\n" + count + b"\x85\x81",
        b"ctorch.storage\nUntypedStorage\n" + count + b"\x85\x81",
        b"ctorch\nFloatStorage\n" + count + b"\x85\x81",
        b"ctorch.nn.parameter\nParameter\n" + count + b"\x85\x81",
        b"c" + b"a" * 1_000_000 + b"\nb\n",
        b"c\n\n",
        b"c\x1b[31m\n\xe2\x80\xae\n)R",
        b"ca\nb" + b"b" * 100_000 + b"\n)R",
        b"\x97",
        b"\x98",
        generator.randbytes(generator.randrange(1, 30)),
    ]
    return generator.choice(made), "either"


def controls(marker: Path, generator: random.Random) -> tuple[bytes, str]:
    """Harmless values: what is refused among these is refused for its place alone."""
    return value_ops(generator.choice([1, "x", None, 2.5, [1, 2], {"a": 1}, ()])), "either"
