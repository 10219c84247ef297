"""Weights that are not a whole model, and formats that share names: told apart, or refused."""

import re

import pytest
import torch
from loader_parts import (
    BOTH,
    TINY,
    assert_holds,
    assert_refused,
    block_key,
    register,
    tiny_file,
    tiny_state,
    with_value,
    without,
)
from made_checkpoints import initial_scalars, random_state
from torch import Tensor

from load_checkpoint_helper import (
    inspect_checkpoint,
    load_pretrained_checkpoint,
)
from xnli_gpt.checkpoints.formats import FORMATS, OTHER_FAMILIES
from xnli_gpt.checkpoints.rules import TensorRule
from xnli_gpt.files import FINE_TUNED_KIND

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


def test_a_fine_tuned_checkpoint_of_ours_is_named(tmp_path, capsys):
    path = tmp_path / "file.pt"
    torch.save({"kind": FINE_TUNED_KIND, "weights": tiny_state("medium")}, path)
    assert_refused(path, "fine-tuned checkpoint of this project.*evaluate_hindi_xnli", capsys)


def test_a_file_without_model_says_what_it_has(tmp_path, capsys):
    path = tmp_path / "file.pt"
    torch.save({"step": 1, "weights": tiny_state("medium")}, path)
    assert_refused(path, "no weights under 'model' .found step, weights", capsys)
