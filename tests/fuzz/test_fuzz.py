"""Odd, damaged and hostile inputs by the thousand: `fuzzing.py` makes them and judges."""

import random
import subprocess
import sys
import threading

import checkpoint_writer
import fuzz_commands
import fuzzing
import hostile_pickles
import made_checkpoints
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import HANG_S

import load_checkpoint_helper as loader
from xnli_gpt.checkpoints import formats, storages
from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data import cache, labels, selection

# What a second or two of one core are good for, beside the imports.
CASES = {
    "checkpoint": 150,
    "hostile": 120,
    "tokenizer": 400,
    "dataset": 60,
    "cache": 80,
    "shard": 1200,
    "flags": 300,
}


def assert_no_failures(report: fuzzing.Report) -> None:
    assert not report.failures, "\n".join(map(str, report.failures))


@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_inputs_by_the_hundred_and_thousand(kind):
    report = fuzzing.fuzz(kind, first_seed=0, cases=CASES[kind])
    assert_no_failures(report)
    assert report.outcomes.total() == CASES[kind]


# About a quarter of a minute each; by number and not by time, so that every machine sees the same.
MANY_MORE = {
    "checkpoint": 600,
    "hostile": 400,
    "tokenizer": 5000,
    "dataset": 800,
    "cache": 500,
    "shard": 10000,
    "flags": 1200,
}


@pytest.mark.long
@pytest.mark.parametrize("kind", fuzzing.KINDS)
def test_many_more_inputs(kind):
    assert_no_failures(fuzzing.fuzz(kind, first_seed=1_000_000, cases=MANY_MORE[kind]))


NAMES = st.sampled_from([f"--{name}" for name in fuzz_commands.FLAGS])
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NUMBERS = st.one_of(st.integers(), st.floats()).map(str)


@settings(max_examples=150)
@given(st.lists(st.one_of(NAMES, NAMES, WORDS, NUMBERS), max_size=8))
def test_any_command_line_is_right_or_told(words):
    fuzz_commands.check_arguments([word for word in words if word not in ("-h", "--help")])


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
VALUES = st.recursive(
    st.one_of(PLAIN, st.binary(max_size=4), st.dates(), st.datetimes()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(PLAIN, inner)),
    max_leaves=6,
)
KEYS = st.one_of(st.sampled_from(list(fuzz_commands.FLAGS)), PLAIN)


@settings(max_examples=150)
@given(st.one_of(st.dictionaries(KEYS, VALUES, max_size=4), VALUES))
def test_any_recipe_is_right_or_told(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    fuzz_commands.check_arguments(["--config", str(path)])


# The fuzzer itself: what it can't find, it does not test.


def without_checksums(monkeypatch):
    expected = threading.local()
    pieces, take_in = storages._pieces, storages._take_in

    def remember(storage):
        expected.crc = storage.crc
        return pieces(storage)

    monkeypatch.setattr(storages, "_pieces", remember)
    monkeypatch.setattr(storages, "_take_in", lambda *args: (expected.crc, *take_in(*args)[1:]))


def output_projection_transposed(monkeypatch):
    parts = storages.parts_by_target

    def turned(*args):
        for target, name, part, place in parts(*args):
            yield target, name, part.T if "attn.c_proj" in target else part, place

    monkeypatch.setattr(storages, "parts_by_target", turned)


def any_values_let_through(monkeypatch):
    for module in (loader, storages):
        monkeypatch.setattr(module, "check_finite", lambda path, state: None)


def unknown_keys_let_through(monkeypatch):
    check, expected = loader.check_tensors, dict(formats._expected_shapes("medium", 12, 7))

    def lenient(path, fmt, state):
        known = {name: tensor for name, tensor in state.items() if name in expected}
        return check(path, fmt, known if fmt == "medium" else state)

    monkeypatch.setattr(loader, "check_tensors", lenient)


def texts_stripped(monkeypatch):
    usable = selection._UsableRows
    texts = usable.texts
    monkeypatch.setattr(usable, "texts", lambda *args: [text.strip() for text in texts(*args)])


def labels_by_order(monkeypatch):
    monkeypatch.setattr(labels, "NLI_CLASSES", ("neutral", "entailment", "contradiction"))


def caches_believed(monkeypatch):
    monkeypatch.setattr(cache, "_crc_of_file", lambda path: 0)


def template_without_its_first_token(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "documents", TEMPLATES["documents"][1:])


@pytest.mark.parametrize(
    "kind, break_it",
    [
        ("checkpoint", without_checksums),
        ("checkpoint", output_projection_transposed),
        ("checkpoint", any_values_let_through),
        ("checkpoint", unknown_keys_let_through),
        ("dataset", texts_stripped),
        ("dataset", labels_by_order),
        ("cache", caches_believed),
        ("tokenizer", template_without_its_first_token),
    ],
)
def test_a_broken_reader_is_found_out(tmp_path, monkeypatch, kind, break_it):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    cases = fuzzing.kind_class(kind)(tmp_path)
    break_it(monkeypatch)
    # What is let through may also be too much for the code behind it.
    with pytest.raises((fuzzing.Wrong, RuntimeError)):
        for seed in range(MANY_MORE[kind]):
            cases.run(random.Random(f"{kind} {seed}"))


RUN_PAYLOAD = """
import pickle, sys
try:
    thing = pickle.loads(sys.stdin.buffer.read())
    thing.wait() if hasattr(thing, "wait") else None
except Exception:
    pass
"""


def test_payloads_would_run(tmp_path):
    marker, ran = tmp_path / "marker", set()
    wanted = {"system", "mkdir", "eval", "exec", "open", "FileIO", "check_output", "loads"}
    for module, name, arguments in hostile_pickles.payloads(marker):
        if module not in ("nt", "__builtin__", "_pickle") and name in wanted:
            call = f"c{module}\n{name}\n".encode() + hostile_pickles.value_ops(arguments) + b"R."
            command = [sys.executable, "-c", RUN_PAYLOAD]
            subprocess.run(command, input=call, capture_output=True, timeout=HANG_S)
            if marker.exists():
                ran.add(name)
                marker.rmdir() if marker.is_dir() else marker.unlink()
    assert ran == wanted


def test_the_files_of_the_fuzzer_are_those_that_torch_reads(tmp_path):
    size = checkpoint_writer.SIZES["medium"]
    state = made_checkpoints.random_state(**size)
    content = checkpoint_writer.content_of(state, size["layers"], size["heads"], size["dim"])
    path = tmp_path / "file.pt"
    path.write_bytes(checkpoint_writer.file_of(content))
    loaded = torch.load(path, weights_only=True)["model"]
    assert loaded.keys() == state.keys()
    assert all(loaded[name].equal(tensor) for name, tensor in state.items())


SLEEPS = "import time; time.sleep(3600)"
ENDS = {
    "words": ("print('x', flush=True)", "said on stdout or stderr: x"),
    "warning": ("import warnings; warnings.warn('x')", "warned: x"),
    "memory": ("b'x' * (500 << 20)", "MiB of memory were used"),
    "another exception": ("1 / 0", "ZeroDivisionError"),
    "hang": (SLEEPS, "Timeout"),
    "dead process": ("import os; os.abort()", "the process ended"),
}


@pytest.mark.parametrize("code, said", ENDS.values(), ids=ENDS)
def test_what_a_case_may_not_do_is_a_failure(tmp_path, monkeypatch, code, said):
    """The second of three cases does it; the others are still run."""
    module = tmp_path / "fuzz_own.py"
    module.write_text(OWN_KIND.format(code=code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FUZZ_HANG_SECONDS", "10")
    report = fuzzing.fuzz("own:fuzz_own.Own", first_seed=0, cases=3)
    assert report.outcomes == {"fine, own": 2}
    (failure,) = report.failures
    assert failure.seed == 1 and said in failure.what


OWN_KIND = """
from fuzzing import Kind

class Own(Kind):
    doing, number = "own", 0
    def __init__(self, folder):
        pass
    def run(self, generator):
        if generator.random() == __import__("random").Random("own:fuzz_own.Own 1").random():
            {code}
        return "fine"
"""


@pytest.mark.parametrize(
    ("kind", "seed"), [("dataset", 1000412), ("dataset", 1000485), ("dataset", 1001725)]
)
def test_what_was_once_read_wrong(kind, seed):
    """A split's name with a line end; labels that become JSON; numbers that become texts."""
    assert_no_failures(fuzzing.fuzz(kind, first_seed=seed, cases=1))
