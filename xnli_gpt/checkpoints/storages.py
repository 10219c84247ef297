"""The weights read storage by storage: each once, piece after piece, its CRC-32 and its values
checked, and converted on the way."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xnli_gpt.checkpoints.conversion import empty_targets, part_of, parts_by_target
from xnli_gpt.checkpoints.mapped import Storage
from xnli_gpt.checkpoints.reading import CheckpointFile
from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed, shown

# Pieces that stay in a core's cache from reading to copying, and enough threads to wait for the
# disk while others compute the checksum.
PIECE_BYTES = 1 << 20
READERS = 4


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
    file: CheckpointFile, fmt: str, device: str | torch.device | None
) -> tuple[dict[str, Tensor], str]:
    """Read and check every storage of the weights; convert them on the way if there is a device.

    Returns the converted weights, and an id that the same weights share: a hash of every name,
    shape, place and CRC-32. Raises CheckpointError for damage, and for values that are not finite.
    """
    parts = [] if device is None else list(parts_by_target(fmt, file.weights))
    converted = empty_targets(parts, device)
    storages = {name: file.storage_of(name) for name in file.weights}
    copies: dict[Storage, list[_Copy]] = defaultdict(list)
    for target, name, part, place in parts:
        if part.is_contiguous():
            copy = _Copy(part.storage_offset(), part_of(converted[target], place).view(-1))
            copies[storages[name]].append(copy)
    read = _read_storages(file, storages, copies)
    suspects = {storage for storage, (_, finite) in read.items() if not finite}
    check_finite(file.path, {n: t for n, t in file.weights.items() if storages[n] in suspects})
    for target, _, part, place in parts:
        if not part.is_contiguous():
            part_of(converted[target], place).copy_(part)
    return converted, _weights_id(file, {n: read[storage][0] for n, storage in storages.items()})


def _read_storages(
    file: CheckpointFile,
    storages: Mapping[str, Storage],
    copies: Mapping[Storage, Sequence[_Copy]],
) -> dict[Storage, tuple[int, bool]]:
    """Read every storage of the weights once, check its CRC-32 and fill its copies.

    Returns the CRC-32 of each, and whether all its values are finite.
    """
    names: dict[Storage, str] = {}
    for name, storage in storages.items():
        first = names.setdefault(storage, name)
        if file.weights[first].dtype != file.weights[name].dtype:
            raise CheckpointError(
                f"{file.path}: {shown(first)} and {shown(name)} are of two types in one storage; "
                "save the model again"
            )

    def take_in(storage: Storage) -> tuple[int, bool]:
        dtype = file.weights[names[storage]].dtype
        crc, num_bytes, finite = _take_in(_pieces(storage), dtype, copies.get(storage, ()))
        if num_bytes != storage.num_bytes or storage.crc not in (None, crc):
            raise CheckpointError(
                f"{file.path}: the bytes of {shown(names[storage])} are damaged (CRC-32 of "
                f"{shown(storage.name)}); copy the file again"
            )
        return crc, finite

    # The largest first, so that no thread is left with a large one when the others are done.
    order = sorted(names, key=lambda storage: storage.num_bytes, reverse=True)
    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(order, pool.map(take_in, order), strict=True))


def _pieces(storage: Storage) -> Iterator[memoryview]:
    """Yield the bytes of a storage, piece after piece in one buffer; not all of them where the
    file ends early."""
    try:
        with open(storage.path, "rb") as file:
            file.seek(storage.start)
            buffer, left = memoryview(bytearray(PIECE_BYTES)), storage.num_bytes
            while left and file.readinto(buffer[:left]) == len(buffer[:left]):
                yield buffer[:left]
                left -= len(buffer[:left])
    except OSError as error:
        raise CheckpointError(f"{storage.path}: can't be read ({error.strerror})") from error


# As threads don't inherit the caller's mode, and only in this one may any tensor be filled.
@torch.inference_mode()
def _take_in(
    pieces: Iterable[memoryview], dtype: torch.dtype, copies: Sequence[_Copy]
) -> tuple[int, int, bool]:
    """Fill `copies` from the bytes of a storage; return their CRC-32, how many they are, and
    whether all values are finite."""
    crc, count, finite = 0, 0, True
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
        values = torch.frombuffer(piece, dtype=dtype)
        finite = finite and _all_finite(values)
        for copy in copies:
            copy.take(count, values)
        count += len(values)
    return crc, count * dtype.itemsize, finite


def _all_finite(values: Tensor) -> bool:
    # A NaN makes both bounds NaN, and there is no tensor of booleans: 20 times as fast.
    return all(math.isfinite(bound) for bound in torch.aminmax(values))


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError that names the tensors with a NaN or infinity."""
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinity in {listed(bad)}: pretraining had diverged; "
            "take an earlier checkpoint"
        )


def _weights_id(file: CheckpointFile, crcs: Mapping[str, int]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(file.weights.items()):
        place = (tuple(tensor.shape), tensor.storage_offset(), tensor.dtype)
        digest.update(repr((name, *place, crcs[name])).encode())
    return digest.hexdigest()[:32]
