"""The formats as tables: every tensor's name and shape, and the names it gets in `model.py`; and
the check of a file's keys and shapes against a table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from xnli_gpt.checkpoints.families import RELATIVES
from xnli_gpt.checkpoints.rules import TensorRule, same
from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed
from xnli_gpt.network.config import NUM_VALUE_EMBEDS, next_multiple

# What torch.compile and DistributedDataParallel put into a name, in front of it or within.
WRAPPERS = ("_orig_mod", "module")
# What weights may be stored as. Those in float8 need scales, which no script of the line stores.
STORED_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


EMBEDDING_RULES = (
    same("embed.weight", "V", "D"),
    same("value_embeds.{t}.weight", "V", "D"),
)

FORMATS: dict[str, tuple[TensorRule, ...]] = {
    "small": (
        *EMBEDDING_RULES,
        same("blocks.{i}.attn.qkv_w", 3, "I", "D"),
        same("blocks.{i}.attn.c_proj.weight", "D", "I"),
        same("blocks.{i}.mlp.c_fc.weight", "4D", "D"),
        same("blocks.{i}.mlp.c_proj.weight", "D", "4D"),
        same("lm_head.weight", "R", "D"),
        same("scalars", "S"),
    ),
    "medium": (
        *EMBEDDING_RULES,
        TensorRule(
            "blocks.{i}.attn.qkvo_w",
            (4, "I", "D"),
            {"blocks.{i}.attn.qkv_w": slice(0, 3), "blocks.{i}.attn.c_proj.weight": 3},
        ),
        TensorRule("blocks.{i}.mlp.fc_w", ("4D", "D"), {"blocks.{i}.mlp.c_fc.weight": None}),
        TensorRule("blocks.{i}.mlp.proj_w", ("D", "4D"), {"blocks.{i}.mlp.c_proj.weight": None}),
        TensorRule("lm_head_w", ("R", "D"), {"lm_head.weight": None}),
        same("scalars", "S"),
    ),
}

# The head counts of the sizes in use, for files whose `code` doesn't tell: (format, L, D) -> H.
KNOWN_HEADS = {
    ("medium", 16, 1024): 8,
    ("medium", 24, 1152): 18,
    ("medium", 36, 1280): 20,
    ("medium", 20, 1280): 10,
    ("medium", 24, 1536): 12,
}
SMALL_HEAD_DIM = 128

# Families that are not supported, by a name that tells them.
OTHER_FAMILIES = (
    (r"\bvte\.weight$", "the records of early December 2024, with one wide table of values"),
    (r"\bgpt_neox\.", "Pythia and GPT-NeoX"),
    (r"\battn\.(?:qkv|attn|proj)\.weight$", "litgpt"),
    (r"\bsmear_gate\b", "later scripts with a smear gate"),
    (r"\bvalue_embed_gate\b", "later scripts with gated value embeddings"),
    (r"_bank$", "later scripts that keep their weights in banks"),
    (r"\bembed2\b", "later scripts with a second embedding"),
    (r"\bc_attn\b.*|rotary\.inv_freq$", "a GPT-2 of another script, such as the first speed runs"),
)


def without_wrappers(name: str) -> str:
    """Return a tensor's name without what torch.compile and DistributedDataParallel put into it,
    around the whole model or around one of its modules."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    return ".".join(parts) or name


def first_prefix(weights: Mapping[str, Tensor]) -> str:
    """Return what wrappers put in front of the first name."""
    name = next(iter(weights))
    parts = list(itertools.takewhile(lambda part: part in WRAPPERS, name.split(".")))
    return "".join(f"{part}." for part in parts)


_BLOCK = re.compile(r"blocks\.([0-9]{1,4})\.")


def _name_pattern(name: str) -> re.Pattern[str]:
    escaped = re.escape(name)
    # At most four digits, and no leading zero: "blocks.007" is not a name that a script writes.
    number = r"0|[1-9][0-9]{0,3}"
    return re.compile(re.sub(r"\\{(\w)\\}", rf"(?P<\1>{number})", escaped))


def rules_of(fmt: str) -> tuple[TensorRule, ...]:
    """Return the table of a format."""
    return FORMATS[fmt] if fmt in FORMATS else RELATIVES[fmt].rules


def matches(fmt: str, names: Iterable[str]) -> Iterator[tuple[TensorRule, str, dict[str, str]]]:
    """Yield every rule with every name that is one of its tensors', and the numbers in the name."""
    names = list(names)
    for rule in rules_of(fmt):
        pattern = _name_pattern(rule.name)
        for name in names:
            if match := pattern.fullmatch(name):
                yield rule, name, match.groupdict()


def check_tensors(path: Path, fmt: str, state: Mapping[str, Tensor]) -> dict[str, int | None]:
    """Return the sizes L, D, I, V, R, S of a file whose every key and shape is as the table says,
    and `no_attention`, the block without attention."""
    blocks = [int(m[1]) for name in state if (m := _BLOCK.match(name))]
    L = max(blocks, default=-1) + 1
    no_attention = _layer_without_attention(L, state)
    expected = dict(_expected_shapes(fmt, L, no_attention))
    unknown = [name for name in state if name not in expected]
    missing = [name for name in expected if name not in state]
    problems = [f"missing {listed(missing)}"] if missing else []
    problems += [f"unknown {listed(unknown)}"] if unknown else []
    if problems:
        raise CheckpointError(
            f"{path}: of format {fmt} with {L} blocks, but keys are {' and '.join(problems)}; "
            "every key must be known and there: save the whole model of the pretraining script"
        )
    sizes = _read_sizes(path, fmt, state) | {"L": L, "no_attention": no_attention}
    wrong = [
        f"{name} is {tuple(state[name].shape)}, expected {wanted}"
        for name, shape in expected.items()
        if tuple(state[name].shape) != (wanted := tuple(_resolve(d, sizes) for d in shape))
    ]
    wrong += [
        f"{name} is {tensor.dtype}, expected floating point of 16, 32 or 64 bits"
        for name, tensor in state.items()
        if tensor.dtype not in STORED_DTYPES
    ]
    if wrong:
        raise CheckpointError(f"{path}: of format {fmt}, but {listed(wrong)}; save the model again")
    return sizes


def _expected_shapes(
    fmt: str, num_layers: int, no_attention: int | None
) -> Iterator[tuple[str, tuple[int | str, ...]]]:
    for rule in FORMATS[fmt]:
        if "{t}" in rule.name:
            yield from ((rule.name.format(t=t), rule.shape) for t in range(NUM_VALUE_EMBEDS))
        elif "{i}" in rule.name:
            for i in range(num_layers):
                if not (i == no_attention and ".attn." in rule.name):
                    yield rule.name.format(i=i), rule.shape
        else:
            yield rule.name, rule.shape


def _layer_without_attention(num_layers: int, state: Iterable[str]) -> int | None:
    """Return the one block that the scripts leave without attention; any further one is a loss."""
    blocks = ((name, _BLOCK.match(name)) for name in state)
    with_attention = {int(m[1]) for name, m in blocks if m and name.startswith("attn", m.end())}
    without = [i for i in range(num_layers) if i not in with_attention]
    if 7 in without:
        return 7
    return without[0] if len(without) == 1 else None


def _read_sizes(path: Path, fmt: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    head = state[next(rule.name for rule in FORMATS[fmt] if "lm_head.weight" in rule.targets)]
    embed, scalars = state["embed.weight"], state["scalars"]
    if embed.dim() != 2 or head.dim() != 2 or scalars.dim() != 1:
        raise CheckpointError(
            f"{path}: embed.weight {tuple(embed.shape)}, head {tuple(head.shape)}, scalars "
            f"{tuple(scalars.shape)}: expected a matrix, a matrix, a vector; save the model again"
        )
    V, D = embed.shape
    R = head.shape[0]
    if R not in (V, next_multiple(V, 128)):
        raise CheckpointError(
            f"{path}: {V} embedding rows, but {R} rows in the language-model head, expected "
            f"{V} or {next_multiple(V, 128)}; save the model again"
        )
    return {"V": V, "D": D, "I": D, "R": R, "S": scalars.shape[0]}


def _resolve(dimension: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dimension, int):
        return dimension
    return 4 * sizes["D"] if dimension == "4D" else sizes[dimension]
