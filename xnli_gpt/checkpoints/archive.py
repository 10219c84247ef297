"""The zip that torch.save writes: its pickle as inert records, the bounds of its storages, and its
weights mapped from the file."""

from __future__ import annotations

import math
import os
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from xnli_gpt.checkpoints.paths import told_of_folder
from xnli_gpt.checkpoints.pickles import StorageRecord, TensorRecord, read_pickle, stand_in
from xnli_gpt.checkpoints.wording import listed, shown
from xnli_gpt.errors import CheckpointError
from xnli_gpt.files import FINE_TUNED_KIND

# Tied tables make more weights than a file stores; without a limit, some kilobytes would be a model
# of any size.
MOST_SHARING = 8


@dataclass(frozen=True)
class FileRecord:
    """The pickle's content with records for tensors, and where its storages lie in the zip."""

    content: dict
    storage_root: str
    members: Mapping[str, zipfile.ZipInfo]
    stand_ins: tuple[tuple[str, str], ...]
    version: tuple[int, ...]

    def entry(self, storage: StorageRecord) -> zipfile.ZipInfo | None:
        return self.members.get(f"{self.storage_root}data/{storage.key}")


# What a damaged zip makes `zipfile` raise; RuntimeError for flags of encryption and versions.
_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, struct.error)


def read_inert(path: Path) -> FileRecord:
    with reading(path):
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; give the path of a pretrained checkpoint")
        if path.is_dir():
            raise CheckpointError(told_of_folder(path))
        if not path.is_file():
            raise CheckpointError(f"{path}: not a file; give the path of one checkpoint")
        with zipfile.ZipFile(path) as archive:
            return _read_archive(path, archive)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what `zipfile` raises on a damaged or unreadable file into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _ZIP_ERRORS as error:
        raise CheckpointError(
            f"{path}: not the zip that torch.save writes, or truncated ({shown(str(error))}); "
            "copy the file again and compare its size with the original's"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error


def _read_archive(path: Path, archive: zipfile.ZipFile) -> FileRecord:
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
    content, stand_ins = read_pickle(path, archive.read(pickles[0]))
    content = _checked_content(path, content)
    version = _file_version(os.fstat(archive.fp.fileno()))
    return FileRecord(content, root, members, stand_ins, version)


def _file_version(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def check_unchanged(path: Path, record: FileRecord) -> None:
    with reading(path):
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
        found = listed(content) or "nothing"
        raise CheckpointError(
            f"{path}: no weights under 'model' (found {found}); "
            "give a checkpoint of the pretraining script"
        )
    odd = [name for name, value in model.items() if not isinstance(value, TensorRecord)]
    odd += [name for name in model if not isinstance(name, str)]
    if odd:
        raise CheckpointError(f"{path}: in 'model', {listed(odd)} is no tensor; save it again")
    return content


def check_bounds(path: Path, record: FileRecord) -> None:
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


def _check_bounds_of(path: Path, name: str, tensor: TensorRecord, record: FileRecord) -> None:
    storage, name = tensor.storage, shown(name)
    if not isinstance(storage, StorageRecord):
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


def load_mapped(path: Path, record: FileRecord) -> dict:
    """`torch.load` without reading the tensors; classes that are merely instantiated stay inert."""
    stand_ins = [(stand_in(*names), ".".join(names)) for names in record.stand_ins]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            # It warns of what it is about to refuse.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    # Its reader raises assertions, errors of struct, and whatever the rebuilding of a tensor does.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: torch can't load it ({shown(reason)}); copy it again"
        ) from error
    check_unchanged(path, record)
    return content | {"model": _mapped_weights(path, record)}


def _mapped_weights(path: Path, record: FileRecord) -> dict[str, Tensor]:
    """The weights mapped from where `record` says that they are, which is what gets checked."""
    with reading(path), open(path, "rb") as file:
        starts = {
            tensor.storage: start_of_data(file, record.entry(tensor.storage))
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


def start_of_data(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of an entry begin, behind its local header."""
    file.seek(entry.header_offset + 26)
    of_name, of_extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + of_name + of_extra
