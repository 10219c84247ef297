"""Pickles with other bytes and right checksums, and tensors that are described or stored oddly."""

from __future__ import annotations

import math
import pickletools
import random
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import torch
from checkpoint_judge import Base, Case
from checkpoint_writer import (
    DTYPES,
    STORAGE_KINDS,
    Content,
    Spec,
    Storage,
    add_storage,
    archive_of,
    file_of,
    pickled,
    written,
)
from made_checkpoints import gpt_call, initial_scalars
from torch import Tensor


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
    parts = operations_of(data)
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


def operations_of(data: bytes) -> list[bytes]:
    starts = [position for _, _, position in pickletools.genops(data)] + [len(data)]
    return [data[start:end] for start, end in zip(starts, starts[1:], strict=False)]


SMALL_OPERATIONS = [
    b"N", b"0", b"1", b"2", b"(", b"]", b"}", b")", b"t", b"\x85", b"\x86", b"\x87", b"K\x00",
    b"K\x05", b"M\x00\x01", b"J\xff\xff\xff\xff", b"X\x01\x00\x00\x000", b"X\x00\x00\x00\x00",
    b"\x88", b"\x89", b"G\x7f\xf8\x00\x00\x00\x00\x00\x00", b"R", b"b", b"Q", b"s", b"u", b"a",
    b"e", b"h\x00", b"h\x01", b"q\x00", b"q\xff", b"\x8a\x01\x05", b"\x8f", b"\x90", b"\x94",
    b"ctorch\nFloatStorage\n", b"ctorch\nfloat32\n", b"ccollections\nOrderedDict\n", b"\x81",
]  # fmt: skip
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
    storage, model, at = add_storage(storages, buffer), {}, 0
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
        model[name] = Spec(add_storage(storages, values), before, tuple(tensor.shape), stride)
    return model


def _column_major(base: Base, storages: dict[str, bytes], generator: random.Random) -> dict:
    """The dimensions of every weight lie in another order."""
    model = {}
    for name, tensor in base.state.items():
        order = generator.sample(range(tensor.dim()), tensor.dim())
        turned = tensor.permute(order).contiguous()
        stride = tuple(turned.stride(order.index(i)) for i in range(tensor.dim()))
        model[name] = Spec(add_storage(storages, turned), 0, tuple(tensor.shape), stride)
    return model


def _tied_tables(base: Base, storages: dict[str, bytes], generator: random.Random) -> dict:
    """Some of the embedding tables are one."""
    first = add_storage(storages, base.state["embed.weight"])
    model = {}
    for name, tensor in base.state.items():
        tied = "embed" in name and generator.random() < 0.7
        storage = first if tied else add_storage(storages, tensor)
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
