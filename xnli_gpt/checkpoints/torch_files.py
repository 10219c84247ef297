"""The files that torch.save writes: a zip with a CRC-32 for every storage, and before torch 1.6
pickles one behind the other with the storages behind them."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch

from xnli_gpt.checkpoints.mapped import MappedFile, Storage
from xnli_gpt.checkpoints.pickles import StorageRecord, read_pickle
from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import reason_of

# The first object of a legacy file, by `torch.serialization.MAGIC_NUMBER`.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# What a damaged zip makes `zipfile` raise; RuntimeError for flags of encryption and versions.
_ZIP_ERRORS = (zipfile.BadZipFile, RuntimeError, ValueError, OverflowError, EOFError, struct.error)


def read_zip(mapped: MappedFile) -> object:
    """Return the content of a torch file with its tensors mapped. Raises CheckpointError."""
    path = mapped.path
    with _reading(path), zipfile.ZipFile(path) as archive:
        members = {entry.filename: entry for entry in archive.infolist()}
        root = _root(path, archive, members)
        entries = _MappedEntries(mapped, archive, members, f"{root}data/")
        # Read as a whole first: that checks its CRC, and a flipped byte could ask for any memory.
        return read_pickle(path, archive.read(f"{root}data.pkl"), entries.map)[0]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what `zipfile` raises on a damaged or unreadable file into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except _ZIP_ERRORS as error:
        raise CheckpointError(
            f"{path}: not the zip that torch.save writes, or truncated ({reason_of(error)}); "
            "copy the file again and compare its size with the original's"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error


def _root(path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo]) -> str:
    """Return what all names of a torch file begin with. Raises CheckpointError for another zip."""
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
    return root


class _MappedEntries:
    """The storages of a zip by their keys, each where its local header says that it begins."""

    def __init__(
        self,
        mapped: MappedFile,
        archive: zipfile.ZipFile,
        members: Mapping[str, zipfile.ZipInfo],
        folder: str,
    ):
        self.mapped, self.archive, self.members, self.folder = mapped, archive, members, folder

    def map(self, record: StorageRecord) -> torch.UntypedStorage | str:
        entry = self.members.get(f"{self.folder}{record.key}")
        if entry is None:
            return "has none"
        if entry.file_size != record.num_bytes:
            return f"has {entry.file_size // record.dtype.itemsize} values"
        try:
            self.archive.open(entry).close()  # its local header is there and names this entry
        except zipfile.BadZipFile as error:
            return f"is not at its place ({reason_of(error)})"
        start = _start_of_data(self.archive.fp, entry)
        return self.mapped.view(
            Storage(self.mapped.path, entry.filename, start, entry.file_size, entry.CRC)
        )


def _start_of_data(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where in the file the bytes of an entry begin, behind its local header."""
    file.seek(entry.header_offset + 26)
    of_name, of_extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
    return entry.header_offset + 30 + of_name + of_extra


def is_legacy(start: bytes) -> bool:
    """Tell whether a file begins as torch's before 1.6: the pickle of a number, which is this."""
    return LEGACY_MAGIC.to_bytes(10, "little") in start[:32]


def read_legacy(mapped: MappedFile) -> object:
    """Return the content of a torch file of before 1.6 with its tensors mapped.

    It has no checksums. Its pickles are a number, the protocol, facts of the machine, the content
    and the keys of the storages, which follow in that order, each with its length before it
    (`torch.serialization._legacy_save`). Raises CheckpointError.
    """
    path = mapped.path
    try:
        with open(path, "rb") as file:
            _magic, protocol, machine = (read_pickle(path, file)[0] for _ in range(3))
            if protocol != 1001 or not isinstance(machine, dict):
                raise CheckpointError(f"{path}: a torch file of an unknown protocol {protocol}")
            if not machine.get("little_endian", True):
                raise CheckpointError(
                    f"{path}: written on a big-endian machine; save it again on another"
                )
            start = file.tell()
            _, records = read_pickle(path, file)
            places = _legacy_places(file, read_pickle(path, file)[0], records)
            file.seek(start)
            return read_pickle(path, file, lambda record: _legacy_view(mapped, places, record))[0]
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error


def _legacy_places(
    file: BinaryIO, keys: object, records: Mapping[str, StorageRecord]
) -> dict[str, tuple[int, int]]:
    """Return where the values of every storage begin, and how many bytes they are."""
    places = {}
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in records:
            break
        numel = int.from_bytes(file.read(8), "little", signed=True)
        places[key] = (file.tell(), max(numel, 0) * records[key].dtype.itemsize)
        file.seek(places[key][1], 1)
    return places


def _legacy_view(
    mapped: MappedFile, places: Mapping[str, tuple[int, int]], record: StorageRecord
) -> torch.UntypedStorage | str:
    start, num_bytes = places.get(record.key, (0, -1))
    if num_bytes != record.num_bytes:
        return "has another length than was written with it" if num_bytes >= 0 else "has none"
    return mapped.view(Storage(mapped.path, f"storage {record.key}", start, num_bytes))
