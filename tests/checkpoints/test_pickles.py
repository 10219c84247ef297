"""Pickles that call, nest or lie: nothing is executed, and what is refused is named."""

import argparse
import collections
import datetime
import decimal
import functools
import operator
import pathlib
import pickle
import random
import re
import signal
import string
import sys
import uuid
import warnings
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from loader_parts import (
    CALLS,
    assert_holds,
    assert_refused,
    rewritten,
    scalars_of,
    tiny_file,
    tiny_state,
)
from made_checkpoints import gpt_call
from tokenizers import Tokenizer, models

from load_checkpoint_helper import (
    inspect_checkpoint,
    load_pretrained_checkpoint,
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
    assert torch.equal(scalars_of(trunk), tiny_state("medium")["scalars"])


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
