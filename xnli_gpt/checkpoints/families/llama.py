"""LLaMA in a folder of Hugging Face: RMSNorm with gains, SwiGLU, grouped keys and values.

Everything but the shapes is in its config.json: without that a file is not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from xnli_gpt.checkpoints.families.spec import Clues, Family, facts_without_extras
from xnli_gpt.checkpoints.rules import BEHIND, renamed

BLOCK, OURS = "model.layers.{i}.", "blocks.{i}."
RULES = (
    renamed("model.embed_tokens.weight", "embed.weight", "V", "D"),
    renamed("lm_head.weight", "lm_head.weight", "R", "D", is_optional=True),
    renamed("model.norm.weight", "final_norm.weight", "D"),
    renamed(f"{BLOCK}input_layernorm.weight", f"{OURS}attn.norm.weight", "D"),
    renamed(f"{BLOCK}self_attn.q_proj.weight", f"{OURS}attn.qkv_w", "I", "D", place=BEHIND),
    renamed(f"{BLOCK}self_attn.k_proj.weight", f"{OURS}attn.qkv_w", "K", "D", place=BEHIND),
    renamed(f"{BLOCK}self_attn.v_proj.weight", f"{OURS}attn.qkv_w", "K", "D", place=BEHIND),
    renamed(f"{BLOCK}self_attn.o_proj.weight", f"{OURS}attn.c_proj.weight", "D", "I"),
    renamed(f"{BLOCK}post_attention_layernorm.weight", f"{OURS}norm.weight", "D"),
    renamed(f"{BLOCK}mlp.gate_proj.weight", f"{OURS}mlp.c_gate.weight", "F", "D"),
    renamed(f"{BLOCK}mlp.up_proj.weight", f"{OURS}mlp.c_fc.weight", "F", "D"),
    renamed(f"{BLOCK}mlp.down_proj.weight", f"{OURS}mlp.c_proj.weight", "D", "F"),
)


def _heads(clues: Clues) -> int | None:
    return clues.setting("num_attention_heads")


def _rope(clues: Clues) -> Mapping[str, object]:
    found = clues.setting("rope_parameters", "rope_scaling")
    return found if isinstance(found, Mapping) else {}


def _facts(clues: Clues) -> dict[str, object]:
    head_dim = clues.setting("head_dim") or clues.sizes["I"] // _heads(clues)
    base = _rope(clues).get("rope_theta") or clues.setting("rope_theta") or 10_000.0
    return {
        **facts_without_extras(
            clues.sizes["L"], clues.setting("max_position_embeddings"), head_dim
        ),
        "head_dim": head_dim,
        "norm": "rms gain",
        "norm_eps": clues.setting("rms_norm_eps"),
        "norm_embedding": False,
        "norm_heads": False,
        "rotary": "full",
        "rotary_base": float(base),
        "rotary_sign": -1,
        "num_kv_heads": clues.sizes["K"] // head_dim,
        "mlp": "swiglu",
        "mlp_dim": clues.sizes["F"],
        "tied_head": "lm_head.weight" not in clues.tensors,
    }


def _objection(clues: Clues) -> str | None:
    if clues.setting("model_type") is None:
        return "has no config.json beside it, which tells its heads, positions and norms"
    if clues.setting("model_type") != "llama":
        return f"is a {clues.setting('model_type')} by its config.json, which is not supported"
    if _rope(clues).get("rope_type", _rope(clues).get("type", "default")) != "default":
        return "its config.json scales its rotary positions, which is not supported"
    if clues.setting("hidden_act") not in (None, "silu"):
        return f"its config.json says the activation {clues.setting('hidden_act')}, expected silu"
    return None


def _finish(state: dict[str, Tensor], clues: Clues) -> None:
    """Tie the head where the file leaves it out."""
    state.setdefault("lm_head.weight", state["embed.weight"])


LLAMA_FAMILIES = (Family("LLaMA", RULES, _facts, _heads, _objection, _finish),)
