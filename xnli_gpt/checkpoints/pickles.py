"""An unpickler that never looks a name up nor calls anything: plain data, tensors mapped from
their file, and an `Inert` for whatever else a pickle would make.

torch's own restricted reader (`torch.load(weights_only=True)`) gives the whole file up for a deque,
for a name of the modules `os` and `sys` or for a pickle of a protocol other than 2, wherever in the
file that is, and nanochat pickles its tokenizer without torch. What stands beside the weights is
none of our business, so this one goes on.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import shown

_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGE_DTYPES = {
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
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class StorageRecord(NamedTuple):
    """What a pickle says of a storage: its name in the file, and `numel` values of `dtype`."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Inert:
    """Stands for what a pickle makes by the call of `name`, which was not called.

    `problem` is a sentence on a tensor that can't be made, for those who need it; `state` the
    attributes that an object would have.
    """

    def __init__(self, name: str, problem: str = ""):
        self.name, self.problem = name, problem
        self.state: dict = {}

    def __call__(self, *_args: object, **_options: object) -> Inert:
        return Inert(self.name)

    def __repr__(self) -> str:
        return f"<{self.name}, not executed>"


# A storage's bytes, mapped; or the sentence that says why they can't be.
MapStorage = Callable[[StorageRecord], torch.UntypedStorage | str]


class InertUnpickler(pickle._Unpickler):
    """Reads a pickle of any protocol into plain data, mapped tensors and `Inert`s.

    It is the pickle module's reader in Python: that in C takes gigabytes for the memo of a few
    bytes, and hashes whatever a pickle puts into a dict.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: object, map_storage: MapStorage):
        # Latin-1 takes every byte of the strings that Python 2 wrote.
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, StorageRecord] = {}
        self.map_storage = map_storage
        self.calls = {
            ("collections", "OrderedDict"): _dict_of,
            ("collections", "defaultdict"): lambda *_: {},
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
            ("torch._utils", "_rebuild_tensor"): self._old_tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_of_dtype,
            ("torch._tensor", "_rebuild_from_type_v2"): lambda call, _kind, args, *_: call(*args),
        }

    def find_class(self, module: str, name: str) -> object:
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return self.calls.get((module, name)) or Inert(f"{module}.{name}")

    def persistent_load(self, pid: object) -> StorageRecord | Inert:
        kind, dtype, key, _location, numel, *_view = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"a reference to {shown(kind)}, not to a storage")
        if isinstance(dtype, Inert):  # of quantized values, say
            return dtype
        if not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a storage of no type")
        if type(key) is not str or type(numel) is not int:
            raise pickle.UnpicklingError("a storage without a name or a size")
        storage = StorageRecord(key, dtype, numel)
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {shown(key)} is of two kinds")
        return storage

    def _old_tensor(
        self, storage: object, offset: object, size: object, stride: object
    ) -> Tensor | Inert:
        return self._tensor(storage, offset, size, stride, False, None)

    def _tensor(
        self, storage: object, offset: object, size: object, stride: object, *more: object
    ) -> Tensor | Inert:
        """Make a tensor's description. `more` is `requires_grad`, hooks and, where it is not just
        its storage's values, why."""
        dtype = storage.dtype if isinstance(storage, StorageRecord) else None
        requires_grad, hooks, *metadata = more
        return self._tensor_of_dtype(
            storage, offset, size, stride, requires_grad, hooks, dtype, *metadata
        )

    def _tensor_of_dtype(
        self, storage: object, offset: object, size: object, stride: object, *more: object
    ) -> Tensor | Inert:
        """Make one as `_tensor` does, with the dtype in `more` before the last."""
        requires_grad, _hooks, dtype, *metadata = more
        if not isinstance(storage, StorageRecord) or not isinstance(dtype, torch.dtype):
            return Inert("torch.Tensor", f"is of {_name_of(storage)}, which is not read")
        if type(requires_grad) is not bool or len(metadata) > 1 or any(metadata):
            return Inert("torch.Tensor", "is not just its storage's values")
        return self._mapped(storage, dtype, offset, (size, stride))

    def _mapped(
        self, storage: StorageRecord, dtype: torch.dtype, offset: object, layout: tuple
    ) -> Tensor | Inert:
        sizes, strides = (tuple(v) if isinstance(v, list | tuple) else (None,) for v in layout)
        numbers = (offset, storage.numel, *sizes, *strides)
        if len(sizes) != len(strides) or any(
            type(n) is not int or not 0 <= n < 1 << 63 for n in numbers
        ):
            return Inert("torch.Tensor", "has an impossible shape")
        steps = [(n - 1) * step for n, step in zip(sizes, strides, strict=True)]
        needed = 0 if 0 in sizes else offset + sum(steps) + 1
        held, rest = divmod(storage.num_bytes, dtype.itemsize)
        if rest:
            return Inert(
                "torch.Tensor", f"is of {dtype}, and its storage of {storage.num_bytes} bytes"
            )
        data = self.map_storage(storage)
        if isinstance(data, str) or needed > held or math.prod(sizes) >= 1 << 63:
            there = data if isinstance(data, str) else f"has {held} values"
            return Inert(
                "torch.Tensor",
                f"of shape {sizes} needs {needed} values, and its storage {there}",
            )
        return torch.empty(0, dtype=dtype).set_(data, offset, sizes, strides)

    def _instantiate(self, made_by: object, args: object) -> None:
        self.append(Inert(_name_of(made_by)))

    def _new(self) -> None:
        _args, made_by = self.stack.pop(), self.stack.pop()
        self.append(Inert(_name_of(made_by)))

    def _new_with_options(self) -> None:
        self.stack.pop()
        self._new()

    def _call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        known = function in self.calls.values() if callable(function) else False
        self.append(function(*args) if known else Inert(_name_of(function)))

    def _leave_state(self) -> None:
        """Leave the attributes of an object with it, and the `_metadata` of a state dict out."""
        state, target = self.stack.pop(), self.stack[-1]
        self._target(dict)
        if isinstance(target, Inert) and isinstance(state, dict):
            target.state = state

    def _append_item(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _append_items(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list) -> None:
        self._target(list).extend(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([(key, value)])

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._set(zip(items[::2], items[1::2], strict=True))

    def _set(self, pairs: Iterable[tuple[object, object]]) -> None:
        self._target(dict).update((_plain_key(key), value) for key, value in pairs)

    def _target(self, kind: type) -> object:
        """Return what an operation fills; something to throw away where an `Inert` is to be
        filled."""
        target = self.stack[-1]
        if isinstance(target, Inert):
            return kind()
        if not isinstance(target, kind):
            raise pickle.UnpicklingError(f"fills a {type(target).__name__} as if it were another")
        return target

    def _make_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(zip(items[::2], items[1::2], strict=True))

    def _make_set(self) -> None:
        self.append(Inert("builtins.set"))

    def _leave_items(self) -> None:
        self.pop_mark()

    def _make_frozen_set(self) -> None:
        self.pop_mark()
        self.append(Inert("builtins.frozenset"))

    def _make_byte_array(self) -> None:
        # Theirs takes the memory that is asked for before it is read.
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(min(length, 1 << 62)))

    dispatch |= {
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _new,
        pickle.NEWOBJ_EX[0]: _new_with_options,
        pickle.BUILD[0]: _leave_state,
        pickle.APPEND[0]: _append_item,
        pickle.APPENDS[0]: _append_items,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _make_dict,
        pickle.EMPTY_SET[0]: _make_set,
        pickle.ADDITEMS[0]: _leave_items,
        pickle.FROZENSET[0]: _make_frozen_set,
        pickle.BYTEARRAY8[0]: _make_byte_array,
    }


def _dict_of(*args: object) -> dict:
    """Make an OrderedDict as pickles do: empty, or of a list of pairs."""
    return {_plain_key(key): value for key, value in args[0]} if args else {}


def _plain_key(key: object) -> object:
    """Return a key of a dict, if it is plain: a tuple of the same tuple twice, and so on, would be
    hashed for ever."""
    plain = isinstance(key, str | int | float | bytes | None)
    return key if plain else Inert("a key that is no text")


def _name_of(made_by: object) -> str:
    return made_by.name if isinstance(made_by, Inert) else type(made_by).__name__


# What a damaged or hostile pickle can make an unpickler raise.
_PICKLE_ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(OverflowError, MemoryError, RecursionError, struct.error),
)


def read_pickle(
    path: Path, file: bytes | io.BufferedIOBase, map_storage: MapStorage | None = None
) -> tuple[object, dict[str, StorageRecord]]:
    """Return what the next pickle of a file holds, and the storages that it names by their keys.

    `map_storage` gives the bytes of a storage; without it, tensors are made of none. Raises
    CheckpointError for a damaged pickle.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    unpickler = InertUnpickler(stream, map_storage or (lambda _: "was not read"))
    try:
        return unpickler.load(), unpickler.storages
    except _PICKLE_ERRORS as error:
        raise CheckpointError(
            f"{path}: its pickle is damaged ({shown(str(error))}); copy the file again"
        ) from error
