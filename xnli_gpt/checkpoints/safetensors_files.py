"""Files of safetensors: eight bytes of length, names, types and places as JSON, then the values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from xnli_gpt.checkpoints.mapped import MappedFile, Storage
from xnli_gpt.errors import CheckpointError
from xnli_gpt.files import save_atomically
from xnli_gpt.messages import reason_of, shown

# The library's own limit.
LONGEST_HEADER = 100_000_000
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def is_safetensors(start: bytes, num_bytes: int) -> bool:
    """Tell whether a file begins as safetensors do: the length of a header, and the header."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= num_bytes - 8


def read_safetensors(mapped: MappedFile) -> dict[str, object]:
    """Return the tensors of a file, mapped, as "model", and what its metadata say beside them.

    Raises CheckpointError.
    """
    path = mapped.path
    try:
        header, start = _header_of(path)
        beside = header.pop("__metadata__", None) or {}
        tensors = {name: _tensor_of(mapped, start, name, said) for name, said in header.items()}
        return {**{key: _number_or_text(value) for key, value in beside.items()}, "model": tensors}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: its header of safetensors is damaged ({reason_of(error)}); copy the file "
            "again"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], beside: Mapping[str, object]
) -> None:
    """Write tensors, and as metadata what stands beside them."""
    from safetensors.torch import save_file

    plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    said = {key: str(value) for key, value in beside.items() if value is not None}
    save_atomically(path, lambda part: save_file(plain, part, metadata={"format": "pt"} | said))


def _number_or_text(value: str) -> float | int | str:
    """Return a value of the metadata, which are texts alone, as the number that it is, if any."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return value


def _header_of(path: Path) -> tuple[dict, int]:
    """Return what the header says, and where the values begin."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            raise ValueError(f"{length} bytes")
        return json.loads(file.read(length)), 8 + length


def _tensor_of(mapped: MappedFile, start: int, name: str, said: dict) -> Tensor:
    begin, end = said["data_offsets"]
    shape, kind = said["shape"], said["dtype"]
    if kind not in _DTYPES:
        raise CheckpointError(
            f"{mapped.path}: {shown(name)} is of type {shown(kind)}, which is not known here; "
            "save it in another"
        )
    whole = all(type(n) is int and 0 <= n < 1 << 63 for n in (begin, end, *shape))
    dtype = _DTYPES[kind]
    needed = math.prod(shape) * dtype.itemsize if whole else -1
    data = mapped.view(Storage(mapped.path, name, start + begin, end - begin)) if whole else ""
    if isinstance(data, str) or needed != end - begin:
        why = data if isinstance(data, str) and data else f"has {shown(said['data_offsets'])}"
        raise CheckpointError(
            f"{mapped.path}: {shown(name)} of shape {shown(shape)} needs {needed} bytes, and its "
            f"place {why}; the file is damaged, copy it again"
        )
    return torch.empty(0, dtype=dtype).set_(data, 0, tuple(shape))
