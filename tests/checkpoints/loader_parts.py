"""Files of two tiny networks, and what their tests ask of every one that loads or is refused."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from converted import converted_state
from limits import HANG_S
from made_checkpoints import gpt_call, random_state, save_checkpoint
from torch import Tensor

from load_checkpoint_helper import (
    inspect_checkpoint,
    main,
)
from model import GPTBatched
from xnli_gpt.checkpoints.formats import FORMATS
from xnli_gpt.errors import CheckpointError
from xnli_gpt.network.config import FAMILIES
from xnli_gpt.network.mixing import join_scalars, name_scalars

REPOSITORY = Path(__file__).parents[2]
TINY = {
    "small": dict(fmt="small", layers=8, heads=1, dim=128, vocab=100, seed=1),
    "medium": dict(fmt="medium", layers=12, heads=2, dim=16, vocab=333, seed=1),
}
BOTH = pytest.mark.parametrize("fmt", TINY)
PREFIXES = ("", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.")


@functools.cache
def cached_state(**size) -> dict[str, Tensor]:
    return random_state(**size)


def tiny_state(fmt: str) -> dict[str, Tensor]:
    """A fresh dict; its tensors are shared and not to be changed in place."""
    return dict(cached_state(**TINY[fmt]))


def tiny_file(folder: Path, fmt: str, state: dict | None = None, **others) -> Path:
    size = TINY[fmt]
    code = gpt_call(size["layers"], size["heads"], size["dim"])
    state = tiny_state(fmt) if state is None else state
    return save_checkpoint(folder / f"{fmt}.pt", state, **{"code": code} | others)


def block_key(fmt: str, block: int, part: str) -> str:
    names = {
        "small": {"attention": "attn.qkv_w", "fc": "mlp.c_fc.weight"},
        "medium": {"attention": "attn.qkvo_w", "fc": "mlp.fc_w"},
    }
    return f"blocks.{block}.{names[fmt][part]}"


def assert_refused(path: Path, match: str, capsys, num_heads: int | None = None) -> None:
    """CheckpointError that names the file, and as one line from the command line."""
    with pytest.raises(CheckpointError, match=match) as caught:
        inspect_checkpoint(path, num_heads=num_heads)
    assert str(path) in str(caught.value)
    flags = [] if num_heads is None else ["--n_head", str(num_heads)]
    assert main([str(path), *flags]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    # In Python an option is named, on a command line its flag.
    assert str(path) in output.err and re.search(re.sub("`(.+?)`", r"--\1", match), output.err)


def rewritten(path: Path, change: Callable[[str, bytes], bytes], **options) -> Path:
    """The same zip with `change(name, bytes)` applied to every member, and valid checksums."""
    target = path.with_name(f"rewritten-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", **options) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def storage_spans(path: Path) -> dict[str, range]:
    """Where in the file the bytes of every storage lie."""
    spans = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for entry in archive.infolist():
            if "/data/" in entry.filename:
                file.seek(entry.header_offset + 26)
                name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
                start = entry.header_offset + 30 + name + extra
                spans[entry.filename] = range(start, start + entry.file_size)
    return spans


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S
    )


class Calls:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


CALLS = {
    "os.system": (lambda witness: Calls(os.system, f"touch {witness}"), f"{os.name}.system"),
    "exec": (lambda witness: Calls(exec, f"open({str(witness)!r}, 'w')"), "exec"),
    "method": (lambda witness: Calls(pathlib.Path.touch, witness), "getattr|touch|Path"),
    "constructor": (lambda witness: Fraction(1, 3), "fractions.Fraction"),
}


def load_or_refuse(path: Path) -> dict[str, Tensor] | None:
    try:
        return inspect_checkpoint(path)[1]["model"]
    except CheckpointError as error:
        assert str(path) in str(error)
        return None


def assert_exactly_right(state: dict[str, Tensor]) -> None:
    expected = tiny_state("medium")
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def scalars_of(trunk: GPTBatched) -> Tensor:
    return join_scalars(trunk.state_dict(), trunk.config)


def assert_holds(trunk: GPTBatched, fmt: str, state: dict[str, Tensor]) -> None:
    """The trunk has exactly the weights of `state`, in memory of its own."""
    found = trunk.state_dict() | {"lm_head.weight": trunk.lm_head_weight}
    expected = converted_state(fmt, state)
    name_scalars(expected, trunk.config)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].is_contiguous() for name in expected)
    storages = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    assert len(storages) == len(found)


def one_buffer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    buffer = torch.cat([tensor.float().flatten() for tensor in state.values()])
    parts = buffer.split([tensor.numel() for tensor in state.values()])
    return {name: part.view(state[name].shape) for name, part in zip(state, parts, strict=True)}


def in_a_larger_buffer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Around every tensor there is NaN, which is none of its values."""
    around = {n: torch.full((t.numel() + 10,), torch.nan, dtype=t.dtype) for n, t in state.items()}
    for name, tensor in state.items():
        around[name][4:-6] = tensor.flatten()
    return {name: around[name][4:-6].view(tensor.shape) for name, tensor in state.items()}


def column_major(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        if tensor.dim() > 1
        else tensor
        for name, tensor in state.items()
    }


def without(state: dict, pattern: str) -> dict:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


def with_value(state: dict, name: str, value: float) -> dict:
    changed = state[name].clone()
    changed.view(-1)[-1] = value
    return state | {name: changed}


def register(monkeypatch, name: str, rules: tuple, like: str, **facts: object) -> None:
    """A format and its family, for one test."""
    monkeypatch.setitem(FORMATS, name, rules)
    family = dataclasses.replace(FAMILIES[like], **facts)
    monkeypatch.setitem(FAMILIES, name, family)
