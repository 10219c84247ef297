"""The unpickler that builds nothing but inert records, and what of a pickle it refuses."""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

from xnli_gpt.checkpoints.wording import shown
from xnli_gpt.errors import CheckpointError

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


class TensorRecord:
    """What the pickle says of one tensor; nothing of it is read yet."""

    __slots__ = ("storage", "offset", "size", "stride")

    def __init__(self, storage: object, offset: object, size: object, stride: object):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


@dataclass(frozen=True)
class StorageRecord:
    key: str
    dtype: torch.dtype
    numel: int


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


def stand_in(module: str, name: str) -> type:
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
        self.storages: dict[str, StorageRecord] = {}

    def find_class(self, module: str, name: str) -> object:
        inert = _inert_global(module, name)
        if inert is not None:
            return inert
        key = (module, name)
        return self.stand_ins.setdefault(key, stand_in(module, name))

    def persistent_load(self, pid: object) -> StorageRecord:
        kind, storage_type, key, _location, numel = pid
        if kind != "storage" or not isinstance(storage_type, torch.dtype):
            raise pickle.UnpicklingError("unknown kind of storage")
        if type(key) is not str or type(numel) is not int:
            raise pickle.UnpicklingError("a storage without a name or a size")
        storage = StorageRecord(key, storage_type, numel)
        # torch goes by the first, so weights could be read as another type than it sees.
        if self.storages.setdefault(storage.key, storage) != storage:
            raise pickle.UnpicklingError(f"storage {shown(storage.key)} is of two kinds")
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
) -> TensorRecord:
    if metadata:
        raise pickle.UnpicklingError("a tensor that is not just its storage's values")
    return TensorRecord(storage, offset, size, stride)


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


def read_pickle(path: Path, pickled: bytes) -> tuple[object, tuple[tuple[str, str], ...]]:
    """Return what a torch file's pickle holds, as inert records, and the names of its stand-ins.

    Raises CheckpointError for a pickle that calls anything, or is damaged.
    """
    unpickler = _InertUnpickler(io.BytesIO(pickled))
    try:
        content = unpickler.load()
    except _RefusedCall as refused:
        raise CheckpointError(
            f"{path}: its pickle calls {shown(str(refused))}, and nothing in a checkpoint is "
            "executed; load it where you trust it, and save the weights alone with torch.save"
        ) from None
    except _PICKLE_ERRORS as error:
        raise CheckpointError(
            f"{path}: its pickle is damaged ({shown(str(error))}); copy the file again"
        ) from error
    return content, tuple(unpickler.stand_ins)
