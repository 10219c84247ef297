"""The other records of modded-nanogpt: tracks 1 (R…) and 2 (M…), by date.

Source: `records/` of the repository; R11 and M2 are the names in docs/families.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from xnli_gpt.checkpoints.families.spec import Clues, Family
from xnli_gpt.checkpoints.rules import TensorRule, renamed, same
from xnli_gpt.network.mixing import initial_weight

TRACK_1, TRACK_2 = "LSSSLSSLSSSL", "LSSSLSSSSSSLSSSL"
# Head sizes of all records.
HEAD_DIM = 128

CAPS = (
    (r"sigmoid\(logits / \(7\.5", "sigmoid"),
    (r"torch\.rsqrt\(logits\.square\(\) \+ 225\)", "algebraic"),
    (r"30 \* torch\.sigmoid\(logits / 7\.5\)", "sigmoid 7.5"),
    (r"30 \* torch\.tanh\(logits / 30\)", "tanh 30"),
    (r"15 \* torch\.tanh\(logits / 15\)", "tanh 15"),
)


def cap_of(clues: Clues, otherwise: str) -> str:
    """Return the cap of the language-model logits that the script's source tells; features don't
    depend on it."""
    return next((cap for pattern, cap in CAPS if re.search(pattern, clues.code)), otherwise)


def heads_of(clues: Clues) -> int | None:
    """Return the number of heads of 128."""
    width = clues.sizes["D"]
    return width // HEAD_DIM if width % HEAD_DIM == 0 else None


def ends(num_layers: int, tables: int) -> tuple[tuple[int, int], ...]:
    """Return the tables of the first and of the last layers."""
    last = num_layers - tables
    return tuple((i, i) for i in range(tables)) + tuple((last + i, i) for i in range(tables))


def facts_of(clues: Clues, pattern: str, tables: int = 3, **others: object) -> dict[str, object]:
    """Return the facts that all records since December 2024 have in common.

    Raises ValueError for fewer layers than their scripts need.
    """
    L, without = clues.sizes["L"], clues.sizes.get("no_attention")
    least = max(2 * tables, 1 + others.get("final_layer", 0))
    if L < least:
        raise ValueError(f"{L} layers, of which its script needs {least} or more")
    layers = tuple(i for i in range(L) if i != without)
    return {
        "norm_attention_input": True,
        "norm_values": False,
        "skips": tuple((i, L - 1 - i, i - L // 2) for i in range(L // 2, L)),
        "attention_layers": layers,
        "value_embed_layers": tuple((i, t) for i, t in ends(L, tables) if i in layers),
        "long_window_layers": tuple(i for i in range(L) if pattern[i % len(pattern)] == "L"),
        "windows": (14, 7),
        "logit_cap": cap_of(clues, "sigmoid 7.5"),
        **others,
    }


def stack_parts(state: dict[str, Tensor], clues: Clues) -> None:
    """Stack the lambdas of blocks, each a tensor of its own, and put the skip weights where the
    network has them; what a block lacks is never read, and stays at its initial value."""
    L = clues.sizes["L"]
    device = next(iter(state.values())).device
    skips = initial_weight("skip_weights", (L,)).to(device)
    blocks, values = (
        initial_weight(name, (L, 2)).to(device) for name in ("block_lambdas", "value_lambdas")
    )
    for i in range(L):
        for name, stacked in (("lambdas", blocks), ("sa_lambdas", values)):
            if (found := state.pop(f"{name}.{i}", None)) is not None:
                stacked[i] = found
        if (share := state.pop(f"lamb.{i}", None)) is not None:
            values[i] = torch.stack([1 - share, share])
    if "skip_weights" in state:
        skips[: len(state["skip_weights"])] = state["skip_weights"]
        state["skip_weights"] = skips
    state |= {"block_lambdas": blocks, "value_lambdas": values}


ENDS = (same("embed.weight", "V", "D"), same("lm_head.weight", "R", "D"))
LAMBDAS = (
    renamed("skip_weights", "skip_weights", "L/2"),
    renamed("blocks.{i}.lambdas", "lambdas.{i}", 2),
    renamed("blocks.{i}.attn.lambdas", "sa_lambdas.{i}", 2),
)
MATRICES = (
    same("blocks.{i}.attn.c_proj.weight", "D", "I"),
    same("blocks.{i}.mlp.c_fc.weight", "4D", "D"),
    same("blocks.{i}.mlp.c_proj.weight", "D", "4D"),
)


def apart(prefix: str) -> tuple[TensorRule, ...]:
    """Return the rules of c_q, c_k and c_v, which stand apart."""
    ours = "blocks.{i}.attn.qkv_w"
    return tuple(
        renamed(f"{prefix}.attn.c_{letter}.weight", ours, "I", "D", place=place)
        for place, letter in enumerate("qkv")
    )


OLD_TABLES = renamed("value_embeds.embed.{t}.weight", "value_embeds.{t}.weight", "V", "D")
TABLES = same("value_embeds.{t}.weight", "V", "D")
STACKED = same("blocks.{i}.attn.qkv_w", 3, "I", "D")
TRANSPOSED_MLP = (
    renamed("blocks.{i}.mlp.c_fc", "blocks.{i}.mlp.c_fc.weight", "D", "4D", is_turned=True),
    renamed("blocks.{i}.mlp.c_proj", "blocks.{i}.mlp.c_proj.weight", "D", "4D"),
)
FOUR = TensorRule(
    "blocks.{i}.attn.qkvo_w",
    (4, "I", "D"),
    {"blocks.{i}.attn.qkv_w": slice(0, 3), "blocks.{i}.attn.c_proj.weight": 3},
)
MEDIUM_BODY = (
    *(TABLES, FOUR, renamed("lm_head_w", "lm_head.weight", "R", "D")),
    renamed("blocks.{i}.mlp.fc_w", "blocks.{i}.mlp.c_fc.weight", "4D", "D"),
    renamed("blocks.{i}.mlp.proj_w", "blocks.{i}.mlp.c_proj.weight", "D", "4D"),
)
TWO_EMBEDDINGS = (
    renamed("embed1.weight", "embed.weight", "V", "D"),
    renamed("embed2.weight", "more_embeds.0.weight", "V", "D"),
)


def only(*layers: int) -> object:
    """Return an objection to any other number of layers, by which tracks differ."""

    def objection(clues: Clues) -> str | None:
        L = clues.sizes["L"]
        if L in layers:
            return None
        told = " or ".join(map(str, layers))
        return f"has {L} layers, and the records with these names {told}"

    return objection


def _inverse_root(clues: Clues) -> float:
    return HEAD_DIM**-0.5


def _december(clues: Clues) -> dict[str, object]:
    scale = _inverse_root(clues)
    return facts_of(clues, "L", softmax_scale=scale, logit_cap=cap_of(clues, "tanh 30"))


LIKE_MEDIUM = {
    "norm_attention_input": False,
    "norm_values": True,
    "skips": tuple((i, j, j) for i, j in ((9, 6), (10, 4), (11, 2))),
}


def _m2(clues: Clues) -> dict[str, object]:
    return facts_of(clues, TRACK_2, **LIKE_MEDIUM)


def _m4(clues: Clues, **others: object) -> dict[str, object]:
    facts = LIKE_MEDIUM | {"windows": (27, 13), "logit_cap": cap_of(clues, "algebraic")} | others
    return facts_of(clues, TRACK_2, tables=5, **facts)


def _r8(clues: Clues) -> dict[str, object]:
    """Six tables, mirrored; the frequencies that the file holds are those that it was trained
    with, rounded as they are."""
    L = clues.sizes["L"]
    stored = next(t for name, t in clues.tensors.items() if name.endswith("rotary.inv_freq"))
    tables = tuple((i, min(i, L - 1 - i)) for i in range(L))
    return facts_of(clues, "L") | {
        "value_embed_layers": tables,
        "softmax_scale": _inverse_root(clues),
        "logit_cap": cap_of(clues, "tanh 30"),
        "rotary_frequencies": tuple(stored.float().tolist()),
    }


def _old(clues: Clues, **others: object) -> dict[str, object]:
    """Return the facts of the records of October and November 2024."""
    return facts_of(clues, "L", tables=0) | {
        "softmax_scale": _inverse_root(clues),
        "rotary": "full",
        "rotary_base": 10_000.0,
        "rotary_is_rounded": True,
        "logit_cap": cap_of(clues, "none"),
        "skips": (),
        "mixes": False,
        **others,
    }


def _is_tied(clues: Clues) -> bool:
    head, table = clues.tensors["lm_head.weight"], clues.tensors["transformer.wte.weight"]
    return head.shape == table.shape and bool((head == table).all())


def _objection_to_old(tied: bool) -> object:
    def objection(clues: Clues) -> str | None:
        if clues.setting("sequence_len") is not None:
            return "has the configuration of nanochat beside it"
        if not clues.code:
            return "holds no source text, which alone tells it from nanochat"
        if clues.is_called_with(r"\bv1\b"):
            return "mixes values of the first layer by a constant of its source, not by weights"
        if _is_tied(clues) != tied:
            return f"its head {'is not' if tied else 'is'} its embedding"
        return None

    return objection


def _old_rules(*more: TensorRule) -> tuple[TensorRule, ...]:
    body = [
        ("attn.c_proj.weight", "D", "I"),
        ("mlp.c_fc.weight", "4D", "D"),
        ("mlp.c_proj.weight", "D", "4D"),
    ]
    return (
        renamed("transformer.wte.weight", "embed.weight", "V", "D"),
        same("lm_head.weight", "R", "D"),
        *apart("transformer.h.{i}"),
        *(renamed(f"transformer.h.{{i}}.{n}", f"blocks.{{i}}.{n}", *shape) for n, *shape in body),
        *more,
    )


OLD_LAMBDAS = (
    renamed("transformer.h.{i}.lambdas", "lambdas.{i}", 2),
    renamed("transformer.h.{i}.attn.lamb", "lamb.{i}"),
)


MIXED = {"heads": heads_of, "finish": stack_parts}


def _of_2024() -> Iterable[Family]:
    """Return a family with separate q, k and v, before there were value embeddings."""
    yield Family(
        "R2",
        _old_rules(),
        lambda c: _old(c, norm_embedding=False, tied_head=True, rotates_before_norm=True),
        objection=_objection_to_old(tied=True),
        heads=heads_of,
    )
    untied = _objection_to_old(tied=False)
    yield Family("R3", _old_rules(), _old, objection=untied, heads=heads_of)
    mixing = {"mixes": True, "value_of_first_layer": True}
    yield Family("R4", _old_rules(*OLD_LAMBDAS), lambda c: _old(c, **mixing), **MIXED)
    skipping = renamed("skip_weights", "skip_weights", "L/2")
    yield Family(
        "R5",
        _old_rules(*OLD_LAMBDAS, skipping),
        lambda c: _old(c, **mixing, skips=facts_of(c, "L")["skips"]),
        **MIXED,
    )


def _with_value_embeddings() -> Iterable[Family]:
    """Return a family of both tracks with lambdas in every block."""
    lone = {"has_lone_block": True, **MIXED}
    inverse = TensorRule("blocks.{i}.attn.rotary.inv_freq", ("F",))
    r8 = (*ENDS, OLD_TABLES, *LAMBDAS, *apart("blocks.{i}"), *MATRICES, inverse)
    yield Family("R8", r8, _r8, tables=6, **MIXED)
    r9 = (*ENDS, OLD_TABLES, *LAMBDAS, *apart("blocks.{i}"), *MATRICES)
    yield Family("R9", r9, _december, objection=only(12), **lone)
    yield Family("M1", r9, _december, objection=only(16), **lone)
    r10 = (*ENDS, OLD_TABLES, *LAMBDAS, STACKED, *MATRICES)
    yield Family("R10", r10, lambda c: facts_of(c, TRACK_1), objection=only(12), **lone)
    yield Family(
        "M1 of January 2025", r10, lambda c: facts_of(c, TRACK_2), objection=only(16), **lone
    )
    r11 = (*ENDS, TABLES, *LAMBDAS, STACKED, *MATRICES)
    yield Family("R11", r11, lambda c: facts_of(c, TRACK_1), objection=only(12), **lone)
    yield Family(
        "M1 of February 2025", r11, lambda c: facts_of(c, TRACK_2), objection=only(16), **lone
    )
    record = TensorRule("blocks.{i}.record", (3,))
    yield Family("M2", (*r11, record), _m2, objection=only(16), **lone)


def _with_scalars() -> Iterable[Family]:
    """Return a family of both tracks with all mixing weights in one tensor."""
    lone = {"has_lone_block": True, "heads": heads_of}
    r13 = (*ENDS, TABLES, same("scalars", "S"), FOUR, *TRANSPOSED_MLP)
    sqrt = {"logit_cap": "sigmoid"}
    yield Family("R13", r13, lambda c: facts_of(c, TRACK_1, **sqrt), **lone)
    m4 = (same("embed.weight", "V", "D"), same("scalars", "S"), *MEDIUM_BODY)
    yield Family("M4", m4, _m4, tables=5, **lone)
    two = {"num_embeddings": 2}
    mixing_two = two | {"final_layer": 11}
    for name, size, facts in (
        ("M5", "6L", two),
        ("M6", "6L+2", mixing_two),
        ("M6b", "6L+3", mixing_two | {"final_smear": True}),
    ):
        yield Family(
            name,
            (*TWO_EMBEDDINGS, same("scalars", size), *MEDIUM_BODY),
            partial(_m4, **facts),
            objection=only(16),
            tables=5,
            **lone,
        )
    gate = renamed("blocks.{i}.attn.attn_gate.weight", "blocks.{i}.attn.gate.weight", "H", 12)
    yield Family(
        "R14",
        (*r13, gate),
        lambda c: facts_of(c, TRACK_1, attention_gate=12),
        **lone,
    )


SPEEDRUN_FAMILIES = (*_of_2024(), *_with_value_embeddings(), *_with_scalars())
