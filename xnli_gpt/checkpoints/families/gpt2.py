"""GPT-2, as Hugging Face, nanoGPT and build-nanogpt store it.

The first has its matrices [in, out], the others [out, in]; nanoGPT's GELU is exact, that of the
others is the tanh approximation: `model_args` beside the weights, or a config.json, tell.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from xnli_gpt.checkpoints.families.spec import Clues, Family, facts_without_extras
from xnli_gpt.checkpoints.pickles import Inert
from xnli_gpt.checkpoints.rules import TensorRule, renamed

# GPT-2's own, in all its sizes.
HEAD_DIM = 64


def _rules(prefix: str, is_turned: bool) -> tuple[TensorRule, ...]:
    """Return the table of names that begin with `prefix`; biases are in it where a file has any."""
    block = f"{prefix}h.{{i}}."
    matrices = (
        ("attn.c_attn", "attn.qkv", ("3D", "D")),
        ("attn.c_proj", "attn.c_proj", ("D", "D")),
        ("mlp.c_fc", "mlp.c_fc", ("4D", "D")),
        ("mlp.c_proj", "mlp.c_proj", ("D", "4D")),
    )
    rules = [
        renamed(f"{prefix}wte.weight", "embed.weight", "V", "D"),
        renamed(f"{prefix}wpe.weight", "positions.weight", "P", "D"),
        renamed("lm_head.weight", "lm_head.weight", "R", "D", is_optional=True),
        # The masks of old files.
        TensorRule(f"{block}attn.bias", (1, 1, "M", "M"), is_optional=True),
        TensorRule(f"{block}attn.masked_bias", (), is_optional=True),
    ]
    for theirs, ours, shape in matrices:
        weight, bias = ("_w", "_b") if ours == "attn.qkv" else (".weight", ".bias")
        shape_there = shape[::-1] if is_turned else shape
        name = f"{block}{theirs}"
        rules.append(
            renamed(
                f"{name}.weight", f"blocks.{{i}}.{ours}{weight}", *shape_there, is_turned=is_turned
            )
        )
        rules.append(
            renamed(f"{name}.bias", f"blocks.{{i}}.{ours}{bias}", shape[0], is_optional=True)
        )
    for theirs, ours in (
        (f"{block}ln_1", "blocks.{i}.attn.norm"),
        (f"{block}ln_2", "blocks.{i}.norm"),
        (f"{prefix}ln_f", "final_norm"),
    ):
        rules.append(renamed(f"{theirs}.weight", f"{ours}.weight", "D"))
        rules.append(renamed(f"{theirs}.bias", f"{ours}.bias", "D", is_optional=True))
    return tuple(rules)


def _heads(clues: Clues) -> int | None:
    return clues.setting("n_head", "num_attention_heads")


def _facts(clues: Clues, activation: str) -> dict[str, object]:
    head_dim = clues.sizes["D"] // clues.sizes["H"]
    return {
        **facts_without_extras(clues.sizes["L"], clues.sizes["P"], head_dim),
        "norm": "layer",
        "norm_eps": clues.setting("layer_norm_epsilon") or 1e-5,
        "norm_embedding": False,
        "norm_heads": False,
        "rotary": "none",
        "learned_positions": True,
        "mlp": activation,
        "biases": any(name.endswith("ln_f.bias") for name in clues.tensors),
        "tied_head": True,
    }


HUGGING_FACE_ACTIVATIONS = {
    "gelu_new": "gelu tanh",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu tanh",
}


def _of_hugging_face(clues: Clues) -> dict[str, object]:
    return _facts(clues, HUGGING_FACE_ACTIVATIONS[_activation(clues)])


def _activation(clues: Clues) -> str:
    return str(clues.setting("activation_function") or "gelu_new")


def _objection_of_hugging_face(clues: Clues) -> str | None:
    if _activation(clues) not in HUGGING_FACE_ACTIVATIONS:
        return f"its config.json says the activation {_activation(clues)}, which is not known"
    if clues.setting("scale_attn_by_inverse_layer_idx"):
        return "its config.json says scale_attn_by_inverse_layer_idx, which is not supported"
    return None


def _objection_of_nanogpt(clues: Clues) -> str | None:
    if isinstance(clues.beside.get("model_args"), Mapping):
        return None
    return "holds no model_args, which tell nanoGPT from build-nanogpt, whose GELU is another"


def _objection_of_build_nanogpt(clues: Clues) -> str | None:
    if isinstance(clues.beside.get("config"), Inert):
        return None
    return "holds no pickled GPTConfig, which tells it from nanoGPT, whose GELU is another"


def _finish(state: dict[str, Tensor], clues: Clues) -> None:
    """Tie the head where the file leaves it out."""
    state.setdefault("lm_head.weight", state["embed.weight"])


def _family(name: str, rules: tuple[TensorRule, ...], facts: object, objection: object) -> Family:
    return Family(name, rules, facts, _heads, objection, _finish, usual_head_dim=HEAD_DIM)


NANOGPT = _rules("transformer.", is_turned=False)
GPT2_FAMILIES = (
    _family(
        "GPT-2 of Hugging Face",
        _rules("transformer.", is_turned=True),
        _of_hugging_face,
        _objection_of_hugging_face,
    ),
    _family(
        "GPT-2 of Hugging Face without prefix",
        _rules("", is_turned=True),
        _of_hugging_face,
        _objection_of_hugging_face,
    ),
    _family("nanoGPT", NANOGPT, lambda c: _facts(c, "gelu"), _objection_of_nanogpt),
    _family(
        "build-nanogpt", NANOGPT, lambda c: _facts(c, "gelu tanh"), _objection_of_build_nanogpt
    ),
)
