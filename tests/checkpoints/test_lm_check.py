"""Token shards, and the loss over one that shows whether a checkpoint was read right."""

import json
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from loader_parts import BOTH, TINY, tiny_file, tiny_state

from load_checkpoint_helper import (
    load_pretrained_checkpoint,
    main,
)
from xnli_gpt.checkpoints.lm_check import lm_check, read_token_shard
from xnli_gpt.errors import CheckpointError


def write_shard(
    path: Path, tokens: list[int], version: int = 1, bits: int = 0, dtype: str = "<u2", **header
) -> Path:
    words = np.zeros(256, dtype="<i4")
    words[:4] = header.get("magic", 20240520), version, header.get("count", len(tokens)), bits
    path.write_bytes(words.tobytes() + np.array(tokens, dtype=dtype).tobytes())
    return path


@pytest.mark.parametrize(
    "version, bits, dtype", [(1, 0, "<u2"), (2, 16, "<u2"), (2, 0, "<u4"), (2, 32, "<u4")]
)
def test_a_shard_is_read_by_version_and_token_width(tmp_path, version, bits, dtype):
    tokens = [1, 50256, 0, 65535]
    path = write_shard(tmp_path / "t.bin", tokens, version, bits, dtype)
    assert read_token_shard(path).tolist() == tokens


def test_tokens_above_16_bits_survive(tmp_path):
    path = write_shard(tmp_path / "t.bin", [5, 100_000], version=2, bits=32, dtype="<u4")
    assert read_token_shard(path).tolist() == [5, 100_000]


@pytest.mark.parametrize(
    "shard, match",
    [
        (dict(magic=20240521), "not a token shard"),
        (dict(version=3), "version 3"),
        (dict(version=2, bits=8), "8 bits"),
        (dict(count=5), "says 5 tokens, but 4 are there"),
        (dict(count=-1), "says -1 tokens"),
    ],
    ids=["magic", "version", "width", "truncated", "negative count"],
)
def test_a_damaged_shard_is_refused(tmp_path, shard, match):
    path = write_shard(tmp_path / "t.bin", [1, 2, 3, 4], **shard)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_token_shard(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"short", bytes(4 * 256)])
def test_a_shard_of_any_bytes_is_refused(tmp_path, content):
    path = tmp_path / "t.bin"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a token shard"):
        read_token_shard(path)


@pytest.mark.parametrize("name", ["none.bin", "."])
def test_a_shard_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="can't be read"):
        read_token_shard(tmp_path / name)


TOKENS = np.random.RandomState(0).randint(0, 100, size=101).astype(np.uint16)


def reference_loss(fmt: str, row_length: int, num_rows: int) -> float:
    state, heads, losses = tiny_state(fmt), TINY[fmt]["heads"], []
    tokens = torch.from_numpy(TOKENS.astype(np.int64))
    for start in range(0, num_rows * row_length, row_length):
        features = reference.features(fmt, state, heads, tokens[start : start + row_length])
        targets = tokens[start + 1 : start + 1 + row_length]
        losses.append(reference.lm_loss(fmt, state, features, targets))
    return sum(losses) / len(losses)


@BOTH
@pytest.mark.parametrize("batch_tokens", [1, 70, 4096])
def test_lm_check_is_the_loss_of_the_reference(tmp_path, fmt, batch_tokens):
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt))
    found = lm_check(trunk, TOKENS, row_length=30, max_rows=64, batch_tokens=batch_tokens)
    assert (found["rows"], found["tokens"]) == (3, 90)
    assert found["lm_loss"] == pytest.approx(reference_loss(fmt, 30, 3), abs=1e-4)


def test_lm_check_stops_at_max_rows(tmp_path):
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium"))
    found = lm_check(trunk, TOKENS, row_length=30, max_rows=2)
    assert found["lm_loss"] == pytest.approx(reference_loss("medium", 30, 2), abs=1e-4)


@pytest.mark.parametrize(
    "tokens, match",
    [
        (np.arange(30), "no row of 30"),
        (np.full(31, 333), "token 333, but the checkpoint only 333"),
    ],
)
def test_lm_check_refuses_tokens_that_do_not_fit(tmp_path, tokens, match):
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium"))
    with pytest.raises(CheckpointError, match=match):
        lm_check(trunk, tokens, row_length=30, max_rows=1)


@pytest.mark.parametrize(
    "error, verdict", [(0.0, "agrees"), (0.001, "agrees"), (0.05, "near"), (-0.5, "differs")]
)
def test_the_inspector_compares_the_loss_with_the_recorded_one(tmp_path, capsys, error, verdict):
    recorded = reference_loss("medium", 30, 3) + error
    path = tiny_file(tmp_path, "medium", val_loss=recorded)
    shard = write_shard(tmp_path / "t.bin", TOKENS.tolist())
    arguments = ["--json", "--lm_check", str(shard), "--lm_row_length", "30"]
    assert main([str(path), *arguments]) == 0
    check = json.loads(capsys.readouterr().out)["lm_check"]
    assert check["verdict"].startswith(verdict)
    assert check["difference"] == pytest.approx(-error, abs=1e-4)


def test_without_a_recorded_loss_there_is_no_verdict(tmp_path, capsys):
    shard = write_shard(tmp_path / "t.bin", TOKENS.tolist())
    path = tiny_file(tmp_path, "medium")
    assert main([str(path), "--lm_check", str(shard), "--lm_row_length", "30"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith(", no recorded loss to compare with")
    assert "lm_loss" in printed and "verdict" not in printed.split("lm_check")[1]
