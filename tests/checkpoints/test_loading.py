"""What loads is what the reference computes with, whatever stands beside it."""

import json
from pathlib import Path

import pytest
import reference
import torch
from loader_parts import (
    BOTH,
    PREFIXES,
    TINY,
    assert_holds,
    column_major,
    in_a_larger_buffer,
    one_buffer,
    run_python,
    scalars_of,
    tiny_file,
    tiny_state,
)
from made_checkpoints import gpt_call, random_state, save_checkpoint
from torch import Tensor

from load_checkpoint_helper import (
    inspect_checkpoint,
    load_pretrained_checkpoint,
)
from model import GPTFlexAttention
from xnli_gpt.checkpoints import storages
from xnli_gpt.errors import CheckpointError


@pytest.mark.parametrize("prefix", PREFIXES)
@BOTH
def test_a_file_loads_as_the_reference_computes(tmp_path, fmt, prefix):
    state = tiny_state(fmt)
    prefixed = {prefix + name: tensor for name, tensor in state.items()}
    trunk, info, checkpoint = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, prefixed))
    ids = torch.arange(40) * 7 % 100
    expected = reference.features(fmt, state, TINY[fmt]["heads"], ids)
    with torch.no_grad():
        features = trunk.forward_features(ids[None])[0]
        loss = float(trunk.lm_loss(ids[:-1], ids[1:]))
    torch.testing.assert_close(features.double(), expected, atol=1e-4, rtol=0)
    assert loss == pytest.approx(reference.lm_loss(fmt, state, expected[:-1], ids[1:]), abs=1e-5)
    assert info["key_prefix"] == prefix
    assert checkpoint["step"] == 100
    assert {p.dtype for p in trunk.parameters()} == {torch.float32}
    assert all(torch.equal(checkpoint["model"][name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("with_code", [True, False])
@pytest.mark.parametrize("world_size, padded", [(1, 60), (6, 60), (8, 64), (16, 64)])
def test_scalars_padded_for_any_world_size_load(tmp_path, world_size, padded, with_code):
    state = random_state("small", 12, 1, 128, 100, seed=2, world_size=world_size)
    code = gpt_call(12, 1, 128) if with_code else ""
    path = save_checkpoint(tmp_path / "file.pt", state, code=code)
    trunk, info, _ = load_pretrained_checkpoint(path)
    assert (info["scalars_size"], info["scalars_padding"]) == (padded, padded - 60)
    assert info["has_code"] == with_code
    assert torch.equal(scalars_of(trunk), state["scalars"][:60])


@pytest.mark.parametrize(
    "fmt, expected",
    [
        ("small", dict(vocab_size=128, lm_head_rows=128, model_dim=128, num_layers=8, num_heads=1)),
        ("medium", dict(vocab_size=333, lm_head_rows=384, model_dim=16, num_layers=12)),
        ("small", dict(head_dim=128, scalars_size=40, checkpoint_format="small")),
        ("medium", dict(head_dim=8, num_heads=2, scalars_size=60, checkpoint_format="medium")),
        ("medium", dict(head_count_from="code", step=7, val_loss=3.5, max_seq_len=50)),
        ("medium", dict(attention_layers=[0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11])),
    ],
)
def test_info_says_what_the_file_is(tmp_path, fmt, expected):
    path = tiny_file(tmp_path, fmt, step=7, val_loss=torch.tensor(3.5))
    info, _ = inspect_checkpoint(path, max_seq_len=50)
    assert {key: info[key] for key in expected} == expected
    assert info["fingerprint"]["verdict"] == "confirmed"
    assert json.loads(json.dumps(info)) == info


def test_max_seq_len_is_the_block_size_of_the_trunk(tmp_path):
    trunk, info, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium"), max_seq_len=8)
    assert info["max_seq_len"] == trunk.config.max_seq_len == 8
    with pytest.raises(ValueError, match="9 tokens"):
        trunk(torch.zeros(1, 9, dtype=torch.long))


def test_the_state_dict_of_a_module_and_its_optimizer_load(tmp_path):
    """A module's own state dict pickles a `_metadata` attribute beside its items."""
    model = GPTFlexAttention(100, 8, 1, 128, 64)
    model.load_state_dict(tiny_state("small"))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0)
    model.lm_loss(torch.arange(8), torch.arange(8)).backward()
    optimizer.step()
    path = tiny_file(tmp_path, "small", model.state_dict(), optimizers=[optimizer.state_dict()])
    trunk, _, _ = load_pretrained_checkpoint(path)
    assert torch.equal(trunk.blocks[0].attn.qkv_w, model.blocks[0].attn.qkv_w)


MEASURE_MEMORY = """
import re, sys
from load_checkpoint_helper import load_pretrained_checkpoint
anonymous = lambda: int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
load_pretrained_checkpoint(sys.argv[1])  # the first load imports much of torch
before = anonymous()
trunk, info, checkpoint = load_pretrained_checkpoint(sys.argv[2])
print(anonymous() - before, sum(p.numel() for p in trunk.parameters()) * 4 // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_optimizer_states_are_not_read_into_memory(tmp_path):
    state = random_state("small", 12, 2, 256, 100, seed=5)
    moments = [{"state": {0: {"exp_avg": torch.ones(30_000_000)}}}]
    path = save_checkpoint(tmp_path / "file.pt", state, optimizers=moments)
    first = tiny_file(tmp_path, "medium")
    done = run_python("-c", MEASURE_MEMORY, str(first), str(path))
    growth, weights = map(int, done.stdout.split())
    assert path.stat().st_size > 150e6, "the case must hold large optimizer states"
    assert 0.5 * weights < growth < 1.2 * weights + 20_000  # KiB


MEASURE_PEAK = """
import re, sys, threading
import load_checkpoint_helper as loader
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
def watch():
    while not done.wait(0.001):
        samples.append(anonymous())
function = getattr(loader, sys.argv[1])
function(sys.argv[2])  # the first load imports much of torch
samples, done, watcher = [anonymous()], threading.Event(), threading.Thread(target=watch)
watcher.start()
# So often that the watcher had its turns.
while len(samples) < 6:
    result = None
    result = function(sys.argv[3])
done.set()
watcher.join()
print(max(samples) - samples[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    "function, most", [("load_pretrained_checkpoint", 1.3), ("inspect_checkpoint", 0.25)]
)
def test_the_most_memory_that_loading_takes(tmp_path, function, most):
    state = random_state("small", 6, 2, 256, 12_000, seed=5)
    moments = {"state": {i: (t, t.clone()) for i, t in enumerate(state.values())}}
    path = save_checkpoint(tmp_path / "file.pt", state, optimizers=[moments])
    first = tiny_file(tmp_path, "medium")
    done = run_python("-c", MEASURE_PEAK, function, str(first), str(path))
    growth = int(done.stdout)
    weights = sum(t.numel() for t in state.values()) * 4 // 1024
    assert weights > 75_000
    assert growth < most * weights  # KiB


@BOTH
@pytest.mark.parametrize("piece_bytes", [64, 1000, 1 << 20])
def test_pieces_of_any_size_give_the_same_weights(tmp_path, monkeypatch, fmt, piece_bytes):
    monkeypatch.setattr(storages, "PIECE_BYTES", piece_bytes)
    state = tiny_state(fmt)
    state["embed.weight"] = state["embed.weight"].double()
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, state))
    assert_holds(trunk, fmt, state)


def one_value_table(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {f"value_embeds.{t}.weight": state["embed.weight"] for t in range(3)}


@BOTH
@pytest.mark.parametrize("piece_bytes", [1000, 1 << 20])
@pytest.mark.parametrize("store", [one_buffer, in_a_larger_buffer, column_major, one_value_table])
def test_however_tensors_lie_in_storages(tmp_path, monkeypatch, fmt, store, piece_bytes):
    monkeypatch.setattr(storages, "PIECE_BYTES", piece_bytes)
    state = store(tiny_state(fmt))
    trunk, _, checkpoint = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, state))
    assert_holds(trunk, fmt, state)
    assert all(torch.equal(checkpoint["model"][name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1, 2000, -2, -1])
def test_a_value_that_is_not_finite_is_found(tmp_path, monkeypatch, dtype, value, place):
    name = "value_embeds.1.weight"
    weight = tiny_state("medium")[name].to(dtype, copy=True)
    weight.view(-1)[place] = value
    path = tiny_file(tmp_path, "medium", tiny_state("medium") | {name: weight})
    for piece_bytes in (1000, 1 << 20):
        monkeypatch.setattr(storages, "PIECE_BYTES", piece_bytes)
        for read in (inspect_checkpoint, load_pretrained_checkpoint):
            with pytest.raises(CheckpointError, match=r"NaN or infinity in value_embeds\.1\."):
                read(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_values_are_no_infinity(tmp_path, dtype):
    name, limits = "embed.weight", torch.finfo(dtype)
    weight = torch.full_like(tiny_state("medium")[name], limits.max, dtype=dtype)
    weight[1::2] = limits.min
    weight[0, 0] = limits.tiny / 2
    state = tiny_state("medium") | {name: weight}
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium", state))
    assert torch.equal(trunk.embed.weight, weight.float())


def test_loading_in_inference_mode(tmp_path):
    with torch.inference_mode():
        trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium"))
    assert_holds(trunk, "medium", tiny_state("medium"))
