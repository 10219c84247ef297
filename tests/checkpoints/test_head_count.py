"""The number of heads, the flags and the scalars: read from the file, or asked for."""

import warnings

import pytest
import torch
from loader_parts import BOTH, TINY, assert_refused, tiny_file, tiny_state
from made_checkpoints import gpt_call, initial_scalars, random_state, save_checkpoint

from load_checkpoint_helper import (
    check_flags_against_file,
    inspect_checkpoint,
)
from xnli_gpt.checkpoints.formats import KNOWN_HEADS
from xnli_gpt.errors import CheckpointError

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
