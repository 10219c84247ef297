"""A file mapped into memory, and where in it the bytes of a storage lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import reason_of


@dataclass(frozen=True)
class Storage:
    """A run of bytes in a file; `crc` is the CRC-32 that was written with them, None: none was."""

    path: Path
    name: str
    start: int
    num_bytes: int
    crc: int | None = None


class MappedFile:
    """A file whose bytes are in memory once they are used. Raises CheckpointError for a file that
    can't be read."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.version = _version_of(path)
            self.num_bytes = path.stat().st_size
            if self.num_bytes == 0:
                raise CheckpointError(f"{path}: an empty file; copy it again")
            self._whole = torch.UntypedStorage.from_file(str(path), False, self.num_bytes)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"{path}: can't be read ({reason_of(error)})") from error
        self._storages: dict[tuple[int, int], Storage] = {}

    def view(self, storage: Storage) -> torch.UntypedStorage | str:
        """Return the bytes of a storage, or the sentence that says why there are none."""
        end = storage.start + storage.num_bytes
        if not 0 <= storage.start <= end <= self.num_bytes:
            return f"ends beyond the file's {self.num_bytes} bytes"
        data = self._whole[storage.start : end]
        self._storages[data.data_ptr(), storage.num_bytes] = storage
        return data

    def find(self, tensor: torch.Tensor) -> Storage | None:
        """Return where the bytes of a tensor lie; None where it was not made of a `view`."""
        data = tensor.untyped_storage()
        return self._storages.get((data.data_ptr(), data.nbytes()))

    def check_unchanged(self) -> None:
        """Raise CheckpointError where the file is another one than was mapped."""
        try:
            unchanged = _version_of(self.path) == self.version
        except OSError as error:
            raise CheckpointError(f"{self.path}: can't be read ({error.strerror})") from error
        if not unchanged:
            raise CheckpointError(
                f"{self.path}: was changed while it was read; wait until it is written, and start "
                "again"
            )


def storage_in(files: Sequence[MappedFile], tensor: torch.Tensor) -> Storage:
    """Return where the bytes of a tensor lie that is mapped from one of several files."""
    return next(found for file in files if (found := file.find(tensor)) is not None)


def _version_of(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
