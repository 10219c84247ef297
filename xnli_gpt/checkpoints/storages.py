"""The weights read storage by storage: each once, piece after piece, its CRC-32 and its values
checked, and converted on the way."""

from __future__ import annotations

import hashlib
import math
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xnli_gpt.checkpoints.archive import FileRecord, reading, start_of_data
from xnli_gpt.checkpoints.conversion import empty_targets, part_of, parts_by_target
from xnli_gpt.checkpoints.formats import without_prefix
from xnli_gpt.checkpoints.pickles import StorageRecord
from xnli_gpt.checkpoints.wording import listed, shown
from xnli_gpt.errors import CheckpointError

# Pieces that stay in a core's cache from reading to copying, and enough threads to wait for the
# disk while others compute the checksum.
PIECE_BYTES = 1 << 20
READERS = 4
# Threads that open entries at the same time move each other's place in the file: Python from 3.11.8
# and 3.12.2 on may then take a whole file for one of overlapping entries.
_HEADERS = threading.Lock()


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


def read_weights(
    path: Path,
    record: FileRecord,
    state: Mapping[str, Tensor],
    fmt: str,
    device: str | torch.device | None,
) -> dict[str, Tensor]:
    """Read and check every storage of the weights; convert them on the way if there is a device."""
    storages = {without_prefix(k): t.storage for k, t in record.content["model"].items()}
    parts = [] if device is None else list(parts_by_target(fmt, state))
    converted = empty_targets(parts, device)
    copies: dict[StorageRecord, list[_Copy]] = defaultdict(list)
    for target, name, part, place in parts:
        if part.is_contiguous():
            copy = _Copy(part.storage_offset(), part_of(converted[target], place).view(-1))
            copies[storages[name]].append(copy)
    suspects = _read_storages(path, record, copies)
    check_finite(path, {name: t for name, t in state.items() if storages[name] in suspects})
    for target, _, part, place in parts:
        if not part.is_contiguous():
            part_of(converted[target], place).copy_(part)
    return converted


def _read_storages(
    path: Path, record: FileRecord, copies: Mapping[StorageRecord, Sequence[_Copy]]
) -> set[StorageRecord]:
    """Read every storage of the weights once, check its CRC-32 and fill its copies.

    Returns those that hold a NaN or an infinity.
    """
    names: dict[StorageRecord, str] = {}
    for name, tensor in record.content["model"].items():
        names.setdefault(tensor.storage, name)
    with reading(path):
        archive = zipfile.ZipFile(path)

    def has_bad_values(storage: StorageRecord) -> bool:
        entry = record.entry(storage)
        pieces = _stored_pieces(path, archive, entry)
        crc, count, finite = _take_in(pieces, storage.dtype, copies.get(storage, ()))
        if (crc, count) != (entry.CRC, storage.numel):
            raise CheckpointError(
                f"{path}: the bytes of {shown(names[storage])} are damaged (CRC-32 of "
                f"{shown(entry.filename)}); copy the file again"
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
    with reading(path), open(path, "rb") as file:
        try:
            with _HEADERS, archive.open(entry):
                pass  # the local header is there and names this entry
        except zipfile.BadZipFile:
            return
        file.seek(start_of_data(file, entry))
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


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinity in {listed(bad)}: pretraining had diverged; "
            "take an earlier checkpoint"
        )


def weights_id(record: FileRecord) -> str:
    """A hash of every weight's name, shape, place and CRC-32: the same weights, the same id."""
    digest = hashlib.sha256()
    for name, tensor in sorted(record.content["model"].items()):
        crc = record.entry(tensor.storage).CRC
        fields = (without_prefix(name), tensor.size, tensor.offset, tensor.storage.dtype, crc)
        digest.update(repr(fields).encode())
    return digest.hexdigest()[:32]
