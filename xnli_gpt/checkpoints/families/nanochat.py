"""nanochat's checkpoints: five forwards by date, told apart by tensors and meta_NNNNNN.json.

Source: nanochat/gpt.py of 2025-10-13, 2026-01-11, 2026-01-16, 2026-03-09 and 2026-03-14. Its own
loader fills missing tensors and runs the newest forward on all of them; here each gets its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xnli_gpt.checkpoints.families.spec import Clues, Family, facts_without_extras
from xnli_gpt.checkpoints.rules import BEHIND, TensorRule, renamed, same

FLAT = "blocks.{i}.attn.qkv_w"
BODY = (
    renamed("transformer.wte.weight", "embed.weight", "V", "D"),
    same("lm_head.weight", "R", "D"),
    renamed("transformer.h.{i}.attn.c_q.weight", FLAT, "I", "D", place=BEHIND),
    renamed("transformer.h.{i}.attn.c_k.weight", FLAT, "K", "D", place=BEHIND),
    renamed("transformer.h.{i}.attn.c_v.weight", FLAT, "K", "D", place=BEHIND),
    *(
        renamed(f"transformer.h.{{i}}.{name}", f"blocks.{{i}}.{name}", *shape)
        for name, *shape in (
            ("attn.c_proj.weight", "D", "I"),
            ("mlp.c_fc.weight", "4D", "D"),
            ("mlp.c_proj.weight", "D", "4D"),
        )
    ),
)
LAMBDAS = (
    renamed("resid_lambdas", "resid_lambdas", "L"),
    renamed("x0_lambdas", "x0_lambdas", "L"),
)


def _has_value_embedding(layer: int, num_layers: int) -> bool:
    return layer % 2 == (num_layers - 1) % 2


def _value_rules(channels: int) -> tuple[TensorRule, ...]:
    gate, when = "transformer.h.{i}.attn.ve_gate.weight", _has_value_embedding
    return (
        renamed("value_embeds.{i}.weight", "of_layer.{i}", "V", "K", when=when),
        renamed(gate, "blocks.{i}.attn.value_gate.weight", "G", channels, when=when),
    )


SMEAR = (
    renamed("smear_gate.weight", "smear.gate.weight", 1, 24),
    renamed("smear_lambda", "smear.weight", 1),
    renamed("backout_lambda", "backout", 1),
)


def _heads(clues: Clues) -> int | None:
    return clues.setting("n_head")


def _facts(clues: Clues, short: int | None, base: float, gain: float = 1.0) -> dict[str, object]:
    """Return what all have in common; `short` is the part of the longest row that a short window
    is, None for networks without windows."""
    L, length = clues.sizes["L"], clues.setting("sequence_len")
    pattern = str(clues.setting("window_pattern") or "L").upper() if short else "L"
    windows = length
    if short:
        windows = length // 2 if short == 2 else -(-length // short // 128) * 128
    long = [i for i in range(L) if pattern[i % len(pattern)] == "L" or i == L - 1]
    head_dim = clues.sizes["D"] // _heads(clues)
    return {
        **facts_without_extras(L, length, head_dim),
        "long_window_layers": tuple(long),
        # Theirs count the tokens before the query.
        "windows": (length + 1, windows + 1),
        "logit_cap": "tanh 15",
        "softmax_scale": gain**2 * head_dim**-0.5,
        "rotary": "full",
        "rotary_base": base,
        # Until its embeddings got a type of their own the tables were in bfloat16.
        "rotary_is_rounded": base == 1e4,
        "rotates_before_norm": True,
        "num_kv_heads": clues.sizes["K"] // head_dim,
        "mixes": "resid_lambdas" in clues.tensors,
    }


def _with_values(scale: float, channels: int, clues: Clues) -> dict[str, object]:
    layers = [i for i in range(clues.sizes["L"]) if _has_value_embedding(i, clues.sizes["L"])]
    tables = tuple((layer, table) for table, layer in enumerate(layers))
    return {"value_embed_layers": tables, "value_gate": (scale, channels)}


def _finish(state: dict[str, Tensor], clues: Clues) -> None:
    """Put the lambdas where the network has them, and number the tables by their order."""
    L = clues.sizes["L"]
    if "resid_lambdas" in state:
        lambdas = [state.pop("resid_lambdas"), state.pop("x0_lambdas")]
        state["block_lambdas"] = torch.stack(lambdas, dim=1)  # [L, 2]
        # Its values are mixed by gates alone.
        state["value_lambdas"] = lambdas[0].new_tensor([1.0, 0.5]).repeat(L, 1)
    layers = [i for i in range(L) if f"of_layer.{i}" in state]
    for table, layer in enumerate(layers):
        state[f"value_embeds.{table}.weight"] = state.pop(f"of_layer.{layer}")


def _objection(clues: Clues) -> str | None:
    if clues.setting("sequence_len") is None or clues.setting("n_head") is None:
        return "has no meta_NNNNNN.json beside it, which tells its heads and windows"
    return None


def _family(date: str, rules: tuple[TensorRule, ...], facts: object) -> Family:
    return Family(f"nanochat of {date}", rules, facts, _heads, _objection, _finish)


NANOCHAT_FAMILIES = (
    _family("2025-10", BODY, lambda c: _facts(c, None, 1e4)),
    _family("2026-01-11", (*BODY, *LAMBDAS), lambda c: _facts(c, 2, 1e4)),
    _family(
        "2026-01-16",
        (*BODY, *LAMBDAS, *_value_rules(32)),
        lambda c: _facts(c, 2, 1e4) | _with_values(2.0, 32, c),
    ),
    _family(
        "2026-03-09",
        (*BODY, *LAMBDAS, *_value_rules(12)),
        lambda c: _facts(c, 3, 1e5, 1.15) | _with_values(3.0, 12, c),
    ),
    _family(
        "2026-03-14",
        (*BODY, *LAMBDAS, *_value_rules(12), *SMEAR),
        lambda c: (
            _facts(c, 4, 1e5, 1.2) | _with_values(3.0, 12, c) | {"smear": 24, "backout": True}
        ),
    ),
)
