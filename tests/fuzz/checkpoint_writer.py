"""A writer of checkpoint files that can lie about everything."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from made_checkpoints import gpt_call
from torch import Tensor

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
        return Spec(
            add_storage(storages, tensor), 0, tuple(tensor.shape), tensor.contiguous().stride()
        )

    model = {name: add(tensor) for name, tensor in state.items()}
    moments = {"state": {0: {"step": add(torch.tensor([3.0])), "exp_avg": add(torch.ones(40))}}}
    content = {"step": 100, "code": gpt_call(layers, heads, dim), "model": model}
    return Content({**content, "optimizers": [moments], **top}, storages, state)


def add_storage(storages: dict[str, bytes], values: Tensor) -> Storage:
    key = str(len(storages))
    storages[key] = bytes_of(values)
    return Storage(key, STORAGE_KINDS[values.dtype], values.numel())


def bytes_of(values: Tensor) -> bytes:
    return values.contiguous().flatten().view(torch.uint8).numpy().tobytes()


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
        fields = fields_of(entry) | entry.local
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


def fields_of(entry: Entry) -> dict[str, int]:
    fields = {"version": 20, "flags": 0, "method": entry.method, "time": 0, "date": 33}
    return fields | {
        "crc": zlib.crc32(entry.data),
        "packed": len(_packed(entry)),
        "size": len(entry.data),
    }


def _central_header(entry: Entry, offset: int) -> bytes:
    more = {"made": 20, "disk": 0, "internal": 0, "attributes": 0, "offset": offset}
    fields = fields_of(entry) | more | entry.central
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
