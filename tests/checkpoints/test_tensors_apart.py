"""Formats that keep apart what the network joins."""

import re

import pytest
import torch
from converted import converted_state
from loader_parts import (
    BOTH,
    assert_holds,
    assert_refused,
    column_major,
    in_a_larger_buffer,
    one_buffer,
    register,
    storage_spans,
    tiny_file,
    tiny_state,
    with_value,
    without,
)
from torch import Tensor

from load_checkpoint_helper import (
    inspect_checkpoint,
    load_pretrained_checkpoint,
)
from xnli_gpt.checkpoints import storages
from xnli_gpt.checkpoints.formats import FORMATS
from xnli_gpt.checkpoints.rules import TensorRule
from xnli_gpt.errors import CheckpointError

# What becomes of the tensors that stand together in a file: several names, and which part of it.
APART = {
    "small": ("attn.qkv_w", {"c_q": 0, "c_k": 1, "c_v": 2}),
    "medium": ("attn.qkvo_w", {"c_q": 0, "c_kv": slice(1, 3), "c_o": 3}),
}


def rules_apart(fmt: str, parts: dict[str, int | slice]) -> tuple:
    joined = APART[fmt][0]
    others = [rule for rule in FORMATS[fmt] if joined not in rule.name]
    ours = "blocks.{i}.attn.qkv_w"
    rules = [
        TensorRule(
            f"blocks.{{i}}.attn.{name}.weight",
            (2, "I", "D") if name == "c_kv" else ("I", "D"),
            {"blocks.{i}.attn.c_proj.weight" if part == 3 else ours: None},
            place=None if part == 3 else part,
        )
        for name, part in parts.items()
    ]
    # In no order of their own: not the table's decides, nor the file's.
    return (*others, *reversed(rules))


def state_apart(fmt: str) -> dict[str, Tensor]:
    joined, parts = APART[fmt]
    state = {}
    for name, tensor in tiny_state(fmt).items():
        if not name.endswith(joined):
            state[name] = tensor
            continue
        for part_name, part in parts.items():
            new_name = name.replace(joined, f"attn.{part_name}.weight")
            state[new_name] = tensor[part].clone()
    return state


@pytest.fixture
def apart(monkeypatch):
    for fmt, (_, parts) in APART.items():
        register(monkeypatch, f"{fmt} apart", rules_apart(fmt, parts), fmt)


@BOTH
@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
@pytest.mark.parametrize("store", [dict, one_buffer, in_a_larger_buffer, column_major])
def test_tensors_apart_load_as_those_that_stand_together(
    tmp_path, monkeypatch, apart, fmt, store, piece_bytes
):
    monkeypatch.setattr(storages, "PIECE_BYTES", piece_bytes)
    # In the dtypes of the parts, whatever the place in memory.
    together = store(tiny_state(fmt))
    expected, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, together))
    trunk, info, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, store(state_apart(fmt))))
    assert info["checkpoint_format"] == f"{fmt} apart"
    ids = torch.arange(40)[None] * 7 % 100
    with torch.no_grad():
        assert torch.equal(trunk.forward_features(ids), expected.forward_features(ids))
    assert_holds(trunk, fmt, tiny_state(fmt))
    assert_holds(trunk, f"{fmt} apart", state_apart(fmt))


@BOTH
def test_damage_in_any_tensor_that_stands_apart_is_found(tmp_path, apart, fmt):
    path = tiny_file(tmp_path, fmt, state_apart(fmt))
    whole, spans = path.read_bytes(), storage_spans(path)
    assert len(spans) == len(state_apart(fmt))
    for span in spans.values():
        damaged = bytearray(whole)
        damaged[span.start] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="bytes of .* are damaged"):
            inspect_checkpoint(path)


@BOTH
def test_every_tensor_that_stands_apart_must_be_there_and_right(tmp_path, capsys, apart, fmt):
    state = state_apart(fmt)
    for part in APART[fmt][1]:
        name = f"blocks.2.attn.{part}.weight"
        changes = {
            f"missing {name}": without(state, re.escape(name)),
            f"{name} is .* expected": state | {name: state[name][..., :-1].clone()},
            f"NaN or infinity in {name}": with_value(state, name, torch.nan),
        }
        for match, changed in changes.items():
            assert_refused(tiny_file(tmp_path, fmt, changed), match, capsys)


@pytest.mark.parametrize(
    "parts",
    [
        {"c_q": 0, "c_k": 2},
        {"c_q": 0, "c_k": 1, "c_v": 1},
        {"c_q": 0, "c_kv": slice(0, 2)},
        {"c_q": 0, "c_kv": slice(1, 4)},
        {"c_q": slice(0, 1), "c_k": 1},
        {"c_q": 0, "c_k": None},
    ],
    ids=["a gap", "one place twice", "overlap", "too long", "a row", "no place"],
)
def test_a_table_whose_parts_make_no_whole_fills_nothing(monkeypatch, parts):
    monkeypatch.setitem(FORMATS, "wrong", rules_apart("small", parts))
    state = {
        f"blocks.0.attn.{name}.weight": torch.ones((2, 128, 128) if name == "c_kv" else (128, 128))
        for name in parts
    }
    with pytest.raises(ValueError, match="qkv_w: its parts .* do not make one tensor"):
        converted_state("wrong", state)
