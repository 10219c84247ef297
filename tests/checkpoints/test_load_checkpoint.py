"""Loading and inspecting checkpoint files: right, or refused with a reason; nothing executed."""

import argparse
import collections
import dataclasses
import datetime
import decimal
import functools
import json
import operator
import os
import pathlib
import pickle
import random
import re
import signal
import string
import subprocess
import sys
import uuid
import warnings
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import reference
import torch
from limits import HANG_S
from made_checkpoints import gpt_call, random_state, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

import finetune_hindi_xnli as finetune
import load_checkpoint_helper as loader
from load_checkpoint_helper import (
    check_flags_against_file,
    inspect_checkpoint,
    load_pretrained_checkpoint,
    main,
)
from model import GPTBatched, GPTFlexAttention
from xnli_gpt.checkpoints import storages
from xnli_gpt.checkpoints.conversion import converted_state
from xnli_gpt.checkpoints.formats import FORMATS, KNOWN_HEADS, OTHER_FAMILIES
from xnli_gpt.checkpoints.lm_check import lm_check, read_token_shard
from xnli_gpt.checkpoints.paths import resolve_checkpoint_path
from xnli_gpt.checkpoints.rules import TensorRule
from xnli_gpt.errors import CheckpointError
from xnli_gpt.files import FINE_TUNED_KIND
from xnli_gpt.network.config import FAMILIES, initial_scalars

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
    assert torch.equal(trunk.scalars, state["scalars"][:60])


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


CODES_THAT_TELL = {
    "keywords": "model = GPT(num_layers=12, num_heads=4, model_dim=16)",
    "positions": "model = GPT(333, 12, 4, 16, 1024)",
    "name": "heads = 4\nmodel = GPT(333, 12, heads, 16)",
    "annotated name": "heads: int = 4\nmodel = GPT(333, 12, num_heads=heads)",
    "class attribute": "class Args:\n    heads = 4\nargs = Args()\nGPT(num_heads=args.heads)",
    "module attribute": "import gpt\nmodel = gpt.GPT(num_heads=4)",
    "same twice": "a = GPT(num_heads=4)\nb = GPT(num_heads=4)",
}
CODES_THAT_DO_NOT = {
    "no code": "",
    "no call": "print('GPT(num_heads=4)')  # GPT(num_heads=4)",
    "syntax error": "model = GPT(num_heads=4",
    "null byte": "GPT(num_heads=4)\0",
    "too deep": "(" * 100_000,
    "contradictory calls": "a = GPT(num_heads=4)\nb = GPT(num_heads=2)",
    "name set twice": "heads = 4\nheads = 2\nmodel = GPT(num_heads=heads)",
    "name changed": "heads = 4\nheads *= 2\nmodel = GPT(num_heads=heads)",
    "expression": "model = GPT(num_heads=2 + 2)",
    "unknown name": "model = GPT(num_heads=heads)",
    "not a count": "model = GPT(num_heads=True)",
    "not positive": "model = GPT(num_heads=0)",
    "of 4000 digits": f"model = GPT(num_heads={'9' * 4000})",
    "text": "model = GPT(num_heads='4')",
    "not text": ["model = GPT(num_heads=4)"],
    "a tensor": torch.ones(3),
    "longer than any script": "x = 1\n" * 200_000 + "GPT(num_heads=4)",
}


@pytest.mark.parametrize("code", CODES_THAT_TELL.values(), ids=CODES_THAT_TELL)
def test_heads_are_read_from_code(tmp_path, code):
    info, _ = inspect_checkpoint(tiny_file(tmp_path, "medium", code=code))
    assert (info["num_heads"], info["head_dim"], info["head_count_from"]) == (4, 4, "code")


@pytest.mark.parametrize("code", CODES_THAT_DO_NOT.values(), ids=CODES_THAT_DO_NOT)
def test_heads_are_asked_for_where_code_does_not_tell(tmp_path, capsys, code):
    path = tiny_file(tmp_path, "medium", code=code)
    assert_refused(path, "number of heads can't be told.*`n_head`", capsys)
    info, _ = inspect_checkpoint(path, num_heads=4)
    assert (info["num_heads"], info["head_count_from"]) == (4, "n_head")


def test_what_python_warns_of_in_code_is_not_said(tmp_path):
    path = tiny_file(tmp_path, "medium", code="'\\d'\nGPT(num_heads=4)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert inspect_checkpoint(path)[0]["num_heads"] == 4


def test_code_is_read_and_never_run(tmp_path):
    witness = tmp_path / "witness"
    code = f"open({str(witness)!r}, 'w').close()\n" + gpt_call(12, 4, 16)
    info, _ = inspect_checkpoint(tiny_file(tmp_path, "medium", code=code))
    assert info["num_heads"] == 4
    assert not witness.exists()


def test_heads_of_sizes_in_use_need_no_code(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_HEADS, ("medium", 12, 16), 4)
    info, _ = inspect_checkpoint(tiny_file(tmp_path, "medium", code=""))
    assert (info["num_heads"], info["head_count_from"]) == (4, "sizes in use")


def test_code_is_believed_before_the_sizes_in_use(tmp_path, monkeypatch):
    monkeypatch.setitem(KNOWN_HEADS, ("medium", 12, 16), 4)
    info, _ = inspect_checkpoint(tiny_file(tmp_path, "medium"))
    assert (info["num_heads"], info["head_count_from"]) == (2, "code")


@pytest.mark.parametrize(
    "layers, dim, heads",
    [(16, 1024, 8), (24, 1152, 18), (36, 1280, 20), (20, 1280, 10), (24, 1536, 12)],
)
def test_the_sizes_in_use_are_those_of_the_design(layers, dim, heads):
    assert KNOWN_HEADS["medium", layers, dim] == heads


def test_small_heads_are_always_of_128(tmp_path):
    state = random_state("small", 6, 2, 256, 100, seed=3)
    path = save_checkpoint(tmp_path / "file.pt", state)
    info, _ = inspect_checkpoint(path)
    assert (info["num_heads"], info["head_dim"], info["head_count_from"]) == (2, 128, "format")
    with pytest.raises(CheckpointError, match=r"2 \(format\).*4 \(n_head\)"):
        inspect_checkpoint(path, num_heads=4)


def test_small_of_a_width_without_heads_of_128_is_refused(tmp_path, capsys):
    path = save_checkpoint(tmp_path / "file.pt", random_state("small", 6, 1, 64, 100, seed=3))
    assert_refused(path, "width of 64, expected a multiple of 128", capsys)


@pytest.mark.parametrize("code, source", [(gpt_call(12, 4, 16), "code"), ("", "sizes in use")])
def test_a_contradicted_head_count_names_both_values(tmp_path, monkeypatch, code, source):
    monkeypatch.setitem(KNOWN_HEADS, ("medium", 12, 16), 4)
    path = tiny_file(tmp_path, "medium", code=code)
    with pytest.raises(CheckpointError, match=rf"4 \({source}\).*2 \(n_head\)") as caught:
        inspect_checkpoint(path, num_heads=2)
    assert str(path) in str(caught.value)


def test_a_head_count_that_does_not_divide_the_width_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="3 heads do not cut a width of 16"):
        inspect_checkpoint(tiny_file(tmp_path, "medium", code=""), num_heads=3)


@pytest.mark.parametrize(
    "code, match",
    [
        (gpt_call(13, 2, 16), "num_layers=13, but its weights have 12"),
        (gpt_call(12, 2, 32), "model_dim=32, but its weights have 16"),
    ],
)
def test_code_that_contradicts_the_weights_is_refused(tmp_path, capsys, code, match):
    assert_refused(tiny_file(tmp_path, "medium", code=code), match, capsys)


INFO = {"file": "x.pt", "vocab_size": 50048, "num_layers": 12, "num_heads": 6, "model_dim": 768}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"n_layer": 12, "n_head": 6, "n_embd": 768},
        {"vocab_size": 50048},
        {"vocab_size": 50000},
        {"vocab_size": 49921},
    ],
)
def test_flags_that_agree_with_the_file_pass(flags):
    assert check_flags_against_file(INFO, **flags) == []


@pytest.mark.parametrize(
    "flags, values",
    [
        ({"n_layer": 16}, ("--n_layer 16", "has 12")),
        ({"n_head": 8}, ("--n_head 8", "has 6")),
        ({"n_embd": 1024}, ("--n_embd 1024", "has 768")),
        ({"vocab_size": 49920}, ("--vocab_size 49920", "has 50048")),
        ({"vocab_size": 50049}, ("--vocab_size 50049", "has 50048")),
    ],
)
def test_a_flag_that_contradicts_the_file_names_both_values(flags, values):
    (problem,) = check_flags_against_file(INFO, **flags)
    assert all(value in problem for value in (*values, "x.pt"))


def test_every_contradicting_flag_is_told_at_once():
    problems = check_flags_against_file(INFO, n_layer=1, n_head=1, n_embd=1, vocab_size=1)
    assert len(problems) == 4


@pytest.mark.parametrize("layers", [12, 16])
@pytest.mark.parametrize("fmt, other", [("small", "medium"), ("medium", "small")])
def test_the_scalars_of_another_family_are_reported(tmp_path, capsys, fmt, other, layers):
    size = dict(layers=layers, heads=1, dim=128 if fmt == "small" else 16, vocab=100, seed=4)
    state = random_state(fmt, **size, world_size=1)
    state["scalars"] = random_state(other, **size, world_size=1)["scalars"]
    path = save_checkpoint(tmp_path / "file.pt", state, code=gpt_call(layers, 1, size["dim"]))
    assert_refused(path, f"keys are of format {fmt}, but training moved", capsys)


@pytest.mark.parametrize("index, name", [(0, r"skip_weights\[0\]"), (45, r"sa_lambdas\[4,1\]")])
def test_a_scalar_that_training_cannot_have_moved_is_named(tmp_path, capsys, index, name):
    state = tiny_state("medium")
    state["scalars"] = state["scalars"].clone()
    state["scalars"][index] = 0.7
    assert_refused(tiny_file(tmp_path, "medium", state), f"moved {name}", capsys)


@BOTH
def test_untrained_scalars_are_said(tmp_path, fmt):
    layers = TINY[fmt]["layers"]
    state = tiny_state(fmt) | {"scalars": initial_scalars(layers)}
    info, _ = inspect_checkpoint(tiny_file(tmp_path, fmt, state))
    assert info["fingerprint"]["verdict"] == "not trained"


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


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=HANG_S
    )


class Saboteur:
    """Leaves a file behind when it is unpickled for real."""

    def __init__(self, witness: Path):
        self.witness = str(witness)

    def __setstate__(self, state: dict) -> None:
        Path(state["witness"]).touch()


def test_a_class_in_the_file_is_never_looked_up_nor_run(tmp_path):
    witness = tmp_path / "witness"
    path = tiny_file(tmp_path, "medium", optimizers=[{"own": Saboteur(witness)}])
    assert inspect_checkpoint(path)[0]["num_layers"] == 12
    assert not witness.exists()
    torch.load(path, weights_only=False)
    assert witness.exists(), "the case must be one that would run"


def test_a_dataclass_of_main_and_a_namespace_do_not_prevent_loading(tmp_path, monkeypatch):
    settings = type("ParamConfig", (), {"__module__": "__main__"})
    slotted = type("Slotted", (), {"__module__": "__main__", "__slots__": ("lr",)})
    with monkeypatch.context() as patch:
        for own in (settings, slotted):
            patch.setattr(sys.modules["__main__"], own.__name__, own, raising=False)
        first, second = settings(), slotted()
        first.lr = second.lr = torch.ones(2)
        path = tiny_file(
            tmp_path,
            "medium",
            optimizers=[{"configs": [first, second]}],
            args=argparse.Namespace(lr=0.1, seed=None),
        )
    trunk, _, _ = load_pretrained_checkpoint(path)
    assert torch.equal(trunk.scalars, tiny_state("medium")["scalars"])


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


@pytest.mark.parametrize("call, name", CALLS.values(), ids=CALLS)
def test_a_call_that_the_weights_need_is_refused(tmp_path, capsys, call, name):
    witness = tmp_path / "witness"
    path = tiny_file(tmp_path, "medium", tiny_state("medium") | {"extra": call(witness)})
    assert_refused(path, f"its pickle calls .*({name}).*nothing .* is executed", capsys)
    assert not witness.exists()


@pytest.mark.parametrize("place", ["top level", "optimizers"])
@pytest.mark.parametrize("call, name", CALLS.values(), ids=CALLS)
def test_a_call_beside_the_weights_is_not_executed(tmp_path, place, call, name):
    witness = tmp_path / "witness"
    malice = call(witness)
    others = {"extra": malice} if place == "top level" else {"optimizers": [{"state": malice}]}
    trunk, _, checkpoint = load_pretrained_checkpoint(tiny_file(tmp_path, "medium", **others))
    assert_holds(trunk, "medium", tiny_state("medium"))
    found = checkpoint["extra"] if place == "top level" else checkpoint["optimizers"][0]["state"]
    assert re.search(f"<.*({name}).*, not executed>", repr(found))
    assert not witness.exists()


class Beside(NamedTuple):
    lr: float


BESIDE = {
    "numpy": [
        np.float64(0.5),
        np.arange(3),
        np.array(["a"]),
        np.dtype("f4"),
        np.random.get_state(),
    ],
    "random states": [random.getstate(), torch.get_rng_state(), np.random.RandomState(0)],
    "generator": np.random.default_rng(0),
    "sets": [{1, "a"}, frozenset([2]), {(1, 2)}],
    "paths": [pathlib.PurePosixPath("/a"), Path("b")],
    "dates": [datetime.datetime(2025, 1, 2, 3), datetime.date(2025, 1, 2), datetime.timedelta(1)],
    "mappings": [collections.defaultdict(list, a=[1]), collections.Counter("ab")],
    "ordered": collections.OrderedDict([("a", collections.OrderedDict())]),
    "deque": collections.deque([1, 2], maxlen=3),
    "slices": [slice(1, 2), range(3), ...],
    "numbers": [3 + 4j, Fraction(1, 3), decimal.Decimal("0.1"), 1 << 3000, -1, 1e300, np.nan],
    "keys": {(1, 2): 3, (("a", "b"), "c"): 4, 5: 6, None: 7, b"x": 8, frozenset([1]): 9},
    "bytes": [b"abc", bytearray(b"abc"), memoryview(b"abc").tobytes()],
    "torch": [torch.device("cpu"), torch.float32, torch.Size([2]), torch.strided, torch.qint8],
    "tensors": [torch.ones(2).to_sparse(), torch.ones(3, dtype=torch.complex64), torch.ones(0)],
    "types": [dict, Path, argparse.Namespace(a=Path("b")), Beside(0.1), string.Template("x")],
    "functions": [len, functools.partial(int, base=2), operator.itemgetter(1)],
    "uint16": torch.ones(3).to(torch.uint16),
    "float8": torch.ones(4).to(torch.float8_e4m3fn),
    "quantized": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "module": torch.nn.Linear(2, 2),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "error": ValueError("x"),
    "enumeration": [signal.SIGTERM, re.compile("x"), uuid.UUID(int=1), Tokenizer(models.BPE())],
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_what_stands_beside_the_weights_does_not_matter(tmp_path, beside, protocol):
    content = {"model": tiny_state("medium"), "code": gpt_call(12, 2, 16), "beside": beside}
    torch.save(content, tmp_path / "file.pt", pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trunk, _, checkpoint = load_pretrained_checkpoint(tmp_path / "file.pt")
    assert_holds(trunk, "medium", tiny_state("medium"))
    assert "beside" in checkpoint


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert_refused(tmp_path / "none.pt", "no such file", capsys)


def test_a_name_too_long_for_the_file_system(tmp_path, capsys):
    with pytest.raises(CheckpointError, match="can't be read"):
        inspect_checkpoint(tmp_path / ("x" * 300))
    assert main([str(tmp_path / ("x" * 300))]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_directory(tmp_path, capsys):
    assert_refused(tmp_path, "a folder, not a file, and without a .*pt in it", capsys)
    for count, told in ((1, "give the checkpoint in it, .*step0.pt"), (2, "with 2 checkpoints")):
        (tmp_path / f"step{count - 1}.pt").touch()
        assert_refused(tmp_path, told, capsys)


def test_several_files_as_a_shell_makes_of_a_glob(tmp_path, capsys):
    assert main(["a_val1.pt", "b_val2.pt", "c.pt", "--json"]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert not out and line.startswith(
        "error: 3 checkpoints (a_val1.pt, b_val2.pt, c.pt): name one"
    )
    assert "the glob into quotes" in line


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04" + bytes(200), pickle.dumps({"model": {}})]
)
def test_a_file_that_is_not_a_zip(tmp_path, capsys, content):
    path = tmp_path / "file.pt"
    path.write_bytes(content)
    match = "not the zip that torch.save writes" if content else "an empty file; copy it again"
    assert_refused(path, match, capsys)


@pytest.mark.parametrize("members", [[], ["a/b.txt"], ["a/data.pkl", "b/data.pkl"]])
def test_a_zip_that_torch_did_not_write(tmp_path, capsys, members):
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, b"N.")
    assert_refused(path, "not one that torch.save wrote", capsys)


@pytest.mark.parametrize("content", [[1, 2], torch.ones(3), None])
def test_a_file_without_a_dict(tmp_path, capsys, content):
    path = tmp_path / "file.pt"
    torch.save(content, path)
    assert_refused(path, "expected the dict", capsys)


def test_a_compressed_zip(tmp_path, capsys):
    path = rewritten(
        tiny_file(tmp_path, "medium"), lambda _, data: data, compression=zipfile.ZIP_DEFLATED
    )
    assert_refused(path, "compressed", capsys)


def test_a_zip_rewritten_without_compression_loads(tmp_path):
    """So that the other rewritten files fail by what was changed in them."""
    path = rewritten(tiny_file(tmp_path, "medium"), lambda _, data: data)
    assert inspect_checkpoint(path)[0]["num_layers"] == 12


def test_a_big_endian_file(tmp_path, capsys):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: b"big" if name.endswith("byteorder") else data,
    )
    assert_refused(path, "big-endian", capsys)


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_storage_shorter_than_its_tensor(tmp_path, capsys, keep):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: data[:keep] if name.endswith("data/0") else data,
    )
    assert_refused(path, "embed.weight .* needs 5328 values, and its storage has", capsys)


@pytest.mark.parametrize(
    "old, new, match",
    [
        (b"M\x4d\x01K\x10\x86", b"M\x4e\x01K\x10\x86", "needs 5344 values"),
        (b"M\xd0\x14", b"M\xd1\x14", "its storage has 5328"),
        (b"K\x10K\x01\x86", b"K\x11K\x01\x86", "needs 5660 values"),
        (b"K\x10K\x01\x86", b"J\xf0\xff\xff\xffK\x01\x86", "impossible shape"),
        (b"M\x4d\x01K\x10\x86", b"M\x4d\x01\x85", "impossible shape"),
        (b"M\x4d\x01K\x10\x86", b"M\x4d\x01", "damaged|impossible shape"),
        (b"M\x4d\x01K\x10\x86", b"\x8a\xff" + b"\x7f" * 255 + b"K\x10\x86", "impossible shape"),
    ],
    ids=["rows", "numel", "stride", "negative stride", "one dimension", "size no tuple", "vast"],
)
def test_a_tensor_that_does_not_fit_its_storage(tmp_path, capsys, old, new, match):
    def alter(name: str, data: bytes) -> bytes:
        assert old in data or not name.endswith("data.pkl")
        return data.replace(old, new, 1) if name.endswith("data.pkl") else data

    assert_refused(rewritten(tiny_file(tmp_path, "medium"), alter), match, capsys)


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b".",
        b"}",
        b"}q\x00.x",
        b"r\xff\xff\xff\xff.",
        b"cos\nsystem\n(S'ls'\ntR.",
        b"\x80\x63.",
    ],
)
def test_a_pickle_of_any_bytes(tmp_path, capsys, pickled):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: pickled if name.endswith("data.pkl") else data,
    )
    assert_refused(path, "pickle|no weights|can't load", capsys)


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


def test_a_truncated_file(tmp_path):
    path = tiny_file(tmp_path, "medium")
    whole = path.read_bytes()
    ends = [*range(0, len(whole), len(whole) // 60), *range(len(whole) - 30, len(whole))]
    for end in ends:
        path.write_bytes(whole[:end])
        assert load_or_refuse(path) is None, end


def test_a_flipped_bit_in_any_storage_of_the_model(tmp_path):
    path = tiny_file(tmp_path, "medium")
    whole, generator = path.read_bytes(), random.Random(0)
    spans = storage_spans(path)
    assert len(spans) == len(tiny_state("medium"))
    for span in spans.values():
        damaged = bytearray(whole)
        damaged[generator.choice(span)] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="bytes of .* are damaged"):
            inspect_checkpoint(path)


def test_damage_in_the_optimizer_states_does_not_matter(tmp_path):
    moments = {"state": {0: {"exp_avg": torch.ones(500), "exp_avg_sq": torch.ones(500)}}}
    sound = storage_spans(tiny_file(tmp_path, "medium"))
    path = tiny_file(tmp_path, "medium", optimizers=[moments])
    damaged = bytearray(path.read_bytes())
    spans = [span for name, span in storage_spans(path).items() if name not in sound]
    assert [len(span) for span in spans] == [2000, 2000]
    for span in spans:
        damaged[span.start : span.stop] = bytes(len(span))
    path.write_bytes(damaged)
    trunk, _, checkpoint = load_pretrained_checkpoint(path)
    assert_exactly_right(checkpoint["model"])
    assert_holds(trunk, "medium", tiny_state("medium"))


def assert_holds(trunk: GPTBatched, fmt: str, state: dict[str, Tensor]) -> None:
    """The trunk has exactly the weights of `state`, in memory of its own."""
    found = trunk.state_dict() | {"lm_head.weight": trunk.lm_head_weight}
    expected = converted_state(fmt, state)
    expected["scalars"] = expected["scalars"][: trunk.scalars.numel()]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].is_contiguous() for name in expected)
    storages = {tensor.untyped_storage().data_ptr() for tensor in found.values()}
    assert len(storages) == len(found)


@BOTH
@pytest.mark.parametrize("piece_bytes", [64, 1000, 1 << 20])
def test_pieces_of_any_size_give_the_same_weights(tmp_path, monkeypatch, fmt, piece_bytes):
    monkeypatch.setattr(storages, "PIECE_BYTES", piece_bytes)
    state = tiny_state(fmt)
    state["embed.weight"] = state["embed.weight"].double()
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt, state))
    assert_holds(trunk, fmt, state)


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


def test_far_more_weights_than_stored_values(tmp_path, capsys):
    state = tiny_state("medium")
    buffer = torch.ones(max(tensor.numel() for tensor in state.values()))
    shared = {n: buffer[: t.numel()].view(t.shape) for n, t in state.items() if n != "scalars"}
    match = r"\d+ weights of only 6204 stored values"
    assert_refused(tiny_file(tmp_path, "medium", state | shared), match, capsys)


def test_a_value_that_stands_for_many(tmp_path, capsys):
    state = tiny_state("medium")
    rows = {n: t[:1, :1].clone().expand(t.shape) for n, t in state.items() if "embed" in n}
    trunk, _, _ = load_pretrained_checkpoint(tiny_file(tmp_path, "medium", state | rows))
    assert_holds(trunk, "medium", state | rows)
    many = {n: t.clone()[:1, :1].expand(1 << 40, 16) for n, t in state.items() if "embed" in n}
    many["lm_head_w"] = many["embed.weight"]
    assert_refused(tiny_file(tmp_path, "medium", state | many), "weights of only", capsys)


def test_a_tensor_that_is_not_just_its_storage(tmp_path, capsys):
    """What torch negates when it is used is stored as it was before."""
    negated = torch._neg_view(tiny_state("medium")["embed.weight"])
    path = tiny_file(tmp_path, "medium", tiny_state("medium") | {"embed.weight": negated})
    assert_refused(path, "not just its storage's values", capsys)


@pytest.mark.parametrize("start", [b"x" * 100, bytes(4096)])
def test_bytes_before_the_zip(tmp_path, start):
    path = tiny_file(tmp_path, "medium")
    path.write_bytes(start + path.read_bytes())
    state = load_or_refuse(path)
    if state is not None:
        assert_exactly_right(state)


def test_names_that_differ_in_case_alone(tmp_path, capsys):
    """torch takes any of them, zipfile the one that is asked for."""
    path = tiny_file(tmp_path, "medium")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("medium/DATA.PKL", archive.read("medium/data.pkl"))
    assert_refused(path, "not one that torch.save wrote", capsys)


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_of_any_protocol(tmp_path, protocol):
    content = {"model": tiny_state("medium"), "code": gpt_call(12, 2, 16), "ids": {1, 2}}
    content |= {"raw": b"x", "bytes": bytearray(b"y"), "names": frozenset("ab"), "n": 1 << 3000}
    torch.save(content, tmp_path / "file.pt", pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trunk, _, _ = load_pretrained_checkpoint(tmp_path / "file.pt")
    assert_holds(trunk, "medium", tiny_state("medium"))


NESTED = b")" + b"q\x00h\x00\x86" * 60  # a tuple of a tuple twice, and so on


@pytest.mark.parametrize(
    "pickled, match",
    [
        (b"}" + NESTED + b"Ns.", "found <a key"),
        (b"}(" + NESTED + b"Nu.", "found <a key"),
        (b"}X\x05\x00\x00\x00model" + NESTED + b"s.", "no weights under 'model'"),
        (
            b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + NESTED + b"NK\x02tQ.",
            "without a name",
        ),
        (b"Nr\xff\xff\xff\x0f.", "expected the dict"),
        (b"ctorch\nTensor\nJ\xff\xff\xff\x7f\x85\x81.", "holds a torch.Tensor"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85\x81.", "an object of builtins.bytearray"),
        (b"ctorch\nfloat32\n}b.", "pickle is damaged .fills a dtype"),
        (b"\x82\xf1.", "pickle is damaged .unregistered extension code"),
        (b"c\x1b[31m\nx\n)R.", r"an object of \\x1b\[31m\.x"),
        (b"\x96" + b"\xff" * 7 + b"\x3f.", "pickle is damaged"),
    ],
    ids="key keys value storage memo tensor bytes dtype extension color array".split(),
)
def test_a_pickle_that_asks_for_hours_or_gigabytes(tmp_path, capsys, pickled, match):
    path = rewritten(
        tiny_file(tmp_path, "medium"),
        lambda name, data: b"\x80\x02" + pickled if name.endswith("data.pkl") else data,
    )
    assert_refused(path, match, capsys)


def test_a_storage_of_two_kinds(tmp_path, capsys):
    """torch goes by the first, and the other's checksum would be of other values."""
    fifth = b"X\x01\x00\x00\x004"

    def alter(name: str, data: bytes) -> bytes:
        assert fifth in data or not name.endswith("data.pkl")
        return data.replace(fifth, fifth[:-1] + b"0") if name.endswith("data.pkl") else data

    path = rewritten(tiny_file(tmp_path, "medium"), alter)
    assert_refused(path, "pickle is damaged .storage 0 is of two kinds", capsys)


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


def other_weights(path: Path) -> None:
    """Puts another run's file of the same sizes at `path`, as an atomic save does."""
    state = random_state(**TINY["medium"] | {"seed": 2})
    os.replace(save_checkpoint(path.with_name("new.pt"), state, code=gpt_call(12, 2, 16)), path)


def other_step(path: Path) -> None:
    """The same weights with other scalars around them."""
    state = tiny_state("medium")
    os.replace(save_checkpoint(path.with_name("new.pt"), state, step=7, code=""), path)


CHANGES = {
    "other weights": other_weights,
    "other step": other_step,
    "touched": lambda path: os.utime(path, ns=(0, 0)),
    "deleted": Path.unlink,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
}


@pytest.mark.parametrize("before_weights", [True, False])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changes_while_it_is_read(tmp_path, monkeypatch, change, before_weights):
    path, read_weights = tiny_file(tmp_path, "medium"), loader.read_weights

    def read(*args):
        if before_weights:
            change(path)
        weights = read_weights(*args)
        if not before_weights:
            change(path)
        return weights

    monkeypatch.setattr(loader, "read_weights", read)
    match = "changed while|damaged|can't|truncated|number of heads"
    with pytest.raises(CheckpointError, match=match):
        load_pretrained_checkpoint(path)


def byte_tokenizer(path: Path) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_takes_the_weights_that_it_inspected(tmp_path, change):
    """And so reads the file once, and can't be given other weights than those it checked."""
    path = tiny_file(tmp_path, "medium")
    words = f"--pretrained_ckpt_path {path} --cache_dir {tmp_path} --out_dir {tmp_path}".split()
    words += ["--tokenizer_name", str(byte_tokenizer(tmp_path / "t.json")), "--dataset", "demo"]
    config, problems = finetune.COMMAND.parse([*words, "--device", "cpu"])
    inputs = finetune.check_inputs(config, problems)
    change(path)
    model = finetune.build_model(inputs.info, 3, seed=0)
    finetune.put_trunk(model, inputs.take_trunk(), config, inputs.device)
    assert_holds(model.pretrained_model, "medium", tiny_state("medium"))
    assert inputs.trunk is None, "else it would outlive the model"


def test_a_flipped_bit_elsewhere_never_gives_wrong_weights(tmp_path):
    path = tiny_file(tmp_path, "medium", args=argparse.Namespace(lr=0.1))
    whole, generator = path.read_bytes(), random.Random(0)
    in_storages = {i for span in storage_spans(path).values() for i in span}
    elsewhere = [i for i in range(len(whole)) if i not in in_storages]
    outcomes = {"loaded": 0, "refused": 0}
    for position in generator.sample(elsewhere, 400):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        state = load_or_refuse(path)
        outcomes["refused" if state is None else "loaded"] += 1
        if state is not None:
            assert_exactly_right(state)
    assert outcomes["refused"] > 100, "headers, directory and pickle must have been hit"


def without(state: dict, pattern: str) -> dict:
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


def with_value(state: dict, name: str, value: float) -> dict:
    changed = state[name].clone()
    changed.view(-1)[-1] = value
    return state | {name: changed}


STATE_ERRORS = {
    "no weights": (lambda fmt, s: {}, "no weights under 'model'"),
    "a number for a tensor": (lambda fmt, s: s | {"extra": 3}, "extra is no tensor"),
    "a nested dict": (lambda fmt, s: {"nested": s}, "nested is no tensor"),
    "a name that is a number": (lambda fmt, s: s | {3: s["scalars"]}, "3 is no tensor"),
    "embedding missing": (lambda fmt, s: without(s, "^embed"), "missing embed.weight"),
    "scalars missing": (lambda fmt, s: without(s, "scalars"), "missing scalars"),
    "head missing": (lambda fmt, s: without(s, "lm_head"), "missing lm_head"),
    "value table missing": (lambda fmt, s: without(s, r"embeds\.1"), r"missing value_embeds\.1"),
    "a weight missing": (
        lambda fmt, s: without(s, re.escape(block_key(fmt, 2, "fc"))),
        r"missing blocks\.2\.mlp",
    ),
    "middle block missing": (lambda fmt, s: without(s, r"blocks\.4\."), r"missing blocks\.4\."),
    "last block missing": (
        lambda fmt, s: without(s, r"blocks\.7\." if fmt == "small" else r"blocks\.11\."),
        "even number|padding of ones",
    ),
    "last two blocks missing": (
        lambda fmt, s: without(s, r"blocks\.[67]\." if fmt == "small" else r"blocks\.1[01]\."),
        "padding of ones",
    ),
    "attention of block 5 missing": (
        lambda fmt, s: without(s, r"blocks\.5\.attn"),
        r"missing blocks\.5\.attn",
    ),
    "left over": (lambda fmt, s: s | {"blocks.0.attn.gate": s["scalars"]}, "unknown blocks.0.attn"),
    "leading zero": (
        lambda fmt, s: s | {block_key(fmt, 0, "fc").replace("0", "00"): s["scalars"]},
        r"unknown blocks\.00",
    ),
    "fourth value table": (
        lambda fmt, s: s | {"value_embeds.3.weight": s["embed.weight"]},
        r"unknown value_embeds\.3",
    ),
    "transposed": (
        lambda fmt, s: s | {block_key(fmt, 2, "fc"): s[block_key(fmt, 2, "fc")].T.contiguous()},
        r"blocks\.2\.mlp.* expected \(\d+, \d+\)",
    ),
    "value table of other rows": (
        lambda fmt, s: s | {"value_embeds.1.weight": s["embed.weight"][:-1].clone()},
        r"value_embeds\.1\.weight is .* expected",
    ),
    "embedding flat": (
        lambda fmt, s: s | {"embed.weight": s["embed.weight"].flatten()},
        "expected a matrix",
    ),
    "integers": (
        lambda fmt, s: s | {"embed.weight": s["embed.weight"].long()},
        "embed.weight is torch.int64, expected floating point",
    ),
    "NaN": (lambda fmt, s: with_value(s, block_key(fmt, 1, "fc"), torch.nan), r"NaN.*blocks\.1"),
    "infinity": (lambda fmt, s: with_value(s, "embed.weight", torch.inf), "infinity.*embed"),
    "NaN scalar": (lambda fmt, s: with_value(s, "scalars", torch.nan), "NaN.*scalars"),
    "too few scalars": (
        lambda fmt, s: s | {"scalars": s["scalars"][: 5 * TINY[fmt]["layers"] - 1].clone()},
        "scalars, expected at least",
    ),
    "padding that is no padding": (
        lambda fmt, s: s | {"scalars": torch.cat([s["scalars"], torch.zeros(4)])},
        "padding of ones",
    ),
    "both formats": (
        lambda fmt, s: s | without(tiny_state("small"), "x") | without(tiny_state("medium"), "x"),
        "keys are of both small and medium",
    ),
    "one key of the other": (
        lambda fmt, s: s | {"lm_head_w" if fmt == "small" else "lm_head.weight": s["embed.weight"]},
        "keys are of both small and medium",
    ),
    "a name of two lines": (lambda fmt, s: s | {"a\nb": s["scalars"]}, r"unknown a\\nb"),
    "a name that is no text": (lambda fmt, s: s | {"\ud800": s["scalars"]}, r"unknown \\ud800"),
    "a long name": (lambda fmt, s: s | {"x" * 9999: s["scalars"]}, "unknown x{200}…; every key"),
    "a block of many digits": (
        lambda fmt, s: s | {f"blocks.{'9' * 5000}.attn.qkvo_w": s["scalars"]},
        "unknown blocks.9",
    ),
    "neither format": (lambda fmt, s: {"conv.weight": s["scalars"]}, "of none of small, medium"),
    "fine-tuned": (
        lambda fmt, s: {f"pretrained_model.{name}": tensor for name, tensor in s.items()},
        "a fine-tuned checkpoint",
    ),
    "with and without prefix": (
        lambda fmt, s: s | {f"_orig_mod.{name}": tensor for name, tensor in s.items()},
        "with and without a wrapper's prefix",
    ),
    "one key under two prefixes": (
        lambda fmt, s: s | {"module.scalars": s["scalars"]},
        "with and without a wrapper's prefix",
    ),
}


@BOTH
@pytest.mark.parametrize("change, match", STATE_ERRORS.values(), ids=STATE_ERRORS)
def test_weights_that_are_not_a_whole_model_are_refused(tmp_path, capsys, fmt, change, match):
    # Without code, so that what is missing shows in the weights alone.
    path = tiny_file(tmp_path, fmt, change(fmt, tiny_state(fmt)), code="")
    assert_refused(path, match, capsys, num_heads=TINY[fmt]["heads"])


@BOTH
def test_attention_missing_from_the_only_block_without_is_noticed(tmp_path, capsys, fmt):
    """Block 7 has its attention and block 5 lost it: by keys alone, 5 is the one without."""
    size = TINY[fmt]
    state = without(random_state(**size, no_attention=99), r"blocks\.5\.attn")
    path = tiny_file(tmp_path, fmt, state)
    assert_refused(path, "attention of block 5 is missing", capsys)


@BOTH
@pytest.mark.parametrize("block", [4, 99])
def test_the_block_without_attention_is_found_wherever_it_is(tmp_path, fmt, block):
    size = TINY[fmt]
    path = tiny_file(tmp_path, fmt, random_state(**size, no_attention=block))
    info, _ = inspect_checkpoint(path)
    assert info["attention_layers"] == [i for i in range(size["layers"]) if i != block]


EXAMPLES_OF_OTHER_FAMILIES = {
    "the records of early December 2024, with one wide table of values": "transformer.vte.weight",
    "Pythia and GPT-NeoX": "gpt_neox.layers.0.attention.dense.weight",
    "litgpt": "transformer.h.0.attn.qkv.weight",
    "later scripts with a smear gate": "smear_gate.weight",
    "later scripts with gated value embeddings": "value_embed_gate.weight",
    "later scripts that keep their weights in banks": "attn_bank",
    "later scripts with a second embedding": "embed2.weight",
    "a GPT-2 of another script, such as the first speed runs": "transformer.h.0.attn.c_attn.weight",
}


@pytest.mark.parametrize("family", [family for _, family in OTHER_FAMILIES])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_another_family_is_named(tmp_path, capsys, family, prefix):
    key = EXAMPLES_OF_OTHER_FAMILIES[family]
    state = {prefix + name: t for name, t in (tiny_state("medium") | {key: torch.ones(2)}).items()}
    match = f"has {re.escape(key)}, as {re.escape(family)}: .*not supported"
    assert_refused(tiny_file(tmp_path, "medium", state), match, capsys)


MEDIUM = FORMATS["medium"]
# Formats with medium's names: what their tables have instead of, or besides, its rules.
GATED = TensorRule("blocks.{i}.mlp.gate", ("D",), {})
TURNED = TensorRule("blocks.{i}.mlp.fc_w", ("D", "4D"), {"blocks.{i}.mlp.c_fc.weight": None})
LIKE_MEDIUM = {
    "gated": (*MEDIUM, GATED),
    "turned": tuple(TURNED if rule.name == TURNED.name else rule for rule in MEDIUM),
}


def register(monkeypatch, name: str, rules: tuple, like: str, **facts: object) -> None:
    """A format and its family, for one test."""
    monkeypatch.setitem(FORMATS, name, rules)
    family = dataclasses.replace(FAMILIES[like], **facts)
    monkeypatch.setitem(FAMILIES, name, family)


@pytest.fixture
def relatives(monkeypatch):
    for name, rules in LIKE_MEDIUM.items():
        register(monkeypatch, name, rules, "medium")


def state_of_relative(name: str) -> dict[str, Tensor]:
    state = tiny_state("medium")
    if name == "gated":
        dim = TINY["medium"]["dim"]
        gates = {f"blocks.{i}.mlp.gate": torch.ones(dim) for i in range(TINY["medium"]["layers"])}
        return state | gates
    return {k: t.T.contiguous() if k.endswith("mlp.fc_w") else t for k, t in state.items()}


@BOTH
def test_a_format_is_told_from_others_with_its_names(tmp_path, relatives, fmt):
    trunk, info, _ = load_pretrained_checkpoint(tiny_file(tmp_path, fmt))
    assert info["checkpoint_format"] == fmt
    assert_holds(trunk, fmt, tiny_state(fmt))


@pytest.mark.parametrize("name", LIKE_MEDIUM)
def test_a_format_with_the_names_of_another_is_told(tmp_path, relatives, name):
    path = tiny_file(tmp_path, "medium", state_of_relative(name))
    assert inspect_checkpoint(path)[0]["checkpoint_format"] == name


@pytest.mark.parametrize("change, match", STATE_ERRORS.values(), ids=STATE_ERRORS)
def test_beside_formats_with_its_names_a_file_is_refused_as_before(
    tmp_path, capsys, relatives, change, match
):
    path = tiny_file(tmp_path, "medium", change("medium", tiny_state("medium")), code="")
    if match.startswith("unknown "):
        # Of a file that could be of several formats there is no number of blocks to tell.
        name = match.removeprefix("unknown ").removesuffix("; every key")
        match = f"{match}|of none of small, medium, gated, turned: {name}"
    assert_refused(path, match, capsys, num_heads=2)


def test_scalars_tell_formats_with_the_same_keys_and_shapes(tmp_path, monkeypatch):
    skips = {
        "other weights": lambda layers: [(9, 6, 1), (10, 4, 3)],
        "more weights": lambda layers: [(9, 6, 6), (10, 4, 4), (11, 2, 2), (8, 5, 5)],
    }
    for name, of_layers in skips.items():
        register(monkeypatch, name, MEDIUM, "medium", skips=of_layers)
    state = tiny_state("medium")
    base = initial_scalars(TINY["medium"]["layers"])
    for name, read in {"medium": (2, 4, 6), "other weights": (1, 3)}.items():
        scalars = base.clone()
        scalars[list(read)] = 0.7
        path = tiny_file(tmp_path, "medium", state | {"scalars": scalars})
        assert inspect_checkpoint(path)[0]["checkpoint_format"] == name


@pytest.mark.parametrize("trained", [True, False])
def test_what_no_fact_tells_apart_is_not_guessed(tmp_path, capsys, monkeypatch, trained):
    facts = {} if trained else {"skips": lambda layers: [(9, 6, 1)]}
    register(monkeypatch, "twin", MEDIUM, "medium", **facts)
    state = tiny_state("medium")
    if not trained:
        state["scalars"] = initial_scalars(TINY["medium"]["layers"])
    assert_refused(tiny_file(tmp_path, "medium", state), "of medium and twin alike", capsys)
    assert inspect_checkpoint(tiny_file(tmp_path, "small"))[0]["checkpoint_format"] == "small"


def test_what_is_wrong_with_a_file_of_two_formats_is_said_of_both(tmp_path, capsys, relatives):
    state = without(tiny_state("medium"), r"blocks\.2\.mlp\.fc_w")
    match = r"of format medium .*missing blocks\.2\.mlp.*of format turned .*missing blocks\.2\.mlp"
    assert_refused(tiny_file(tmp_path, "medium", state), match, capsys)


def test_a_format_that_is_known_is_not_refused_by_a_name_of_unknown_ones(tmp_path, monkeypatch):
    gate = TensorRule("blocks.{i}.attn.attn_gate", ("D",), {})
    register(monkeypatch, "with gates", (*MEDIUM, gate), "medium")
    state = tiny_state("medium")
    dim = TINY["medium"]["dim"]
    state |= {n.replace("qkvo_w", "attn_gate"): torch.ones(dim) for n in state if "qkvo_w" in n}
    info, _ = inspect_checkpoint(tiny_file(tmp_path, "medium", state))
    assert info["checkpoint_format"] == "with gates"


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


def test_a_fine_tuned_checkpoint_of_ours_is_named(tmp_path, capsys):
    path = tmp_path / "file.pt"
    torch.save({"kind": FINE_TUNED_KIND, "weights": tiny_state("medium")}, path)
    assert_refused(path, "fine-tuned checkpoint of this project.*--eval_only", capsys)


def test_a_file_without_model_says_what_it_has(tmp_path, capsys):
    path = tmp_path / "file.pt"
    torch.save({"step": 1, "weights": tiny_state("medium")}, path)
    assert_refused(path, "no weights under 'model' .found step, weights", capsys)


def touched(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    "names, best",
    [
        (["s_step000009.pt", "s_step000100.pt", "s_step000020.pt"], "s_step000100.pt"),
        (["s_step000100_val1.3.pt", "s_step000050_val1.2727.pt"], "s_step000050_val1.2727.pt"),
        (["s_step000900.pt", "s_step000001_val9.5.pt"], "s_step000001_val9.5.pt"),
        (["s_step1_val10.1.pt", "s_step2_val9.9.pt"], "s_step2_val9.9.pt"),
        (["s_step1_val2.0.pt", "s_step2_val2.0.pt"], "s_step2_val2.0.pt"),
    ],
)
def test_the_best_of_a_glob(tmp_path, names, best):
    touched(tmp_path, *names)
    assert resolve_checkpoint_path(str(tmp_path / "s_*.pt")) == tmp_path / best


def test_the_best_of_several_patterns(tmp_path):
    touched(tmp_path, "a_val3.1.pt", "a_val3.0.pt", "b_val2.9.pt")
    patterns = [str(tmp_path / "a_*.pt"), str(tmp_path / "b_val2.9.pt")]
    assert resolve_checkpoint_path(patterns).name == "b_val2.9.pt"


def test_a_literal_path_may_hold_glob_characters(tmp_path):
    touched(tmp_path, "run[1].pt", "run1.pt")
    assert resolve_checkpoint_path(str(tmp_path / "run[1].pt")).name == "run[1].pt"


@pytest.mark.parametrize("name, match", [("none_*.pt", "matches no file"), ("none.pt", "no such")])
def test_a_pattern_that_matches_nothing_is_named_among_others(tmp_path, capsys, name, match):
    touched(tmp_path, "there.pt")
    pattern = str(tmp_path / name)
    with pytest.raises(CheckpointError, match=match) as caught:
        resolve_checkpoint_path([str(tmp_path / "there.pt"), pattern])
    assert pattern in str(caught.value)
    assert main([pattern]) == 2
    assert pattern in capsys.readouterr().err


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


def test_the_inspector_prints_every_field(tmp_path, capsys):
    path = tiny_file(tmp_path, "medium")
    info, _ = inspect_checkpoint(path)
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(info)[:-1]
    assert list(info)[-1] == "config", "the facts of the network are for programs"
    network = f"format medium, {info['num_layers']} layers, {info['num_heads']} heads, width "
    assert lines[-1].startswith(f"  in short: {path}: {network}{info['model_dim']}")
    assert main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == info


@pytest.mark.parametrize("flag", ["--n_head", "--lm_row_length", "--lm_rows"])
def test_the_inspector_wants_positive_numbers(capsys, flag):
    assert main(["file.pt", flag, "0"]) == 2
    assert capsys.readouterr().err == f"error: {flag} 0: expected at least 1\n"


def test_the_inspector_wants_a_file(capsys):
    assert main(["--json"]) == 2
    assert capsys.readouterr().err.startswith("error: CKPT is needed: ")


def test_the_inspector_as_a_command(tmp_path):
    path = tiny_file(tmp_path, "medium")
    done = run_python("load_checkpoint_helper.py", str(tmp_path / "med*.pt"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["file"] == str(path)


def assert_an_error(path: Path, code: int, stdout: str, stderr: str) -> None:
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {path}: ") and stderr.count("\n") == 1


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_errors_of_the_inspector(tmp_path, capsys, damage):
    path = tiny_file(tmp_path, "medium")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert_an_error(path, main([str(path)]), *capsys.readouterr())


def test_a_hostile_file_and_the_inspector_as_a_command(tmp_path):
    state = tiny_state("medium") | {"extra": Calls(os.system, "true")}
    path = tiny_file(tmp_path, "medium", state)
    done = run_python("load_checkpoint_helper.py", str(path))
    assert_an_error(path, done.returncode, done.stdout, done.stderr)
