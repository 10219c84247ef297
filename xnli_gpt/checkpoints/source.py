"""The script's source that a checkpoint carries, read by ast and never run; and the number of heads
as that, the sizes in use and the user tell it."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from pathlib import Path

from xnli_gpt.checkpoints.formats import KNOWN_HEADS, SMALL_HEAD_DIM
from xnli_gpt.errors import CheckpointError

# Of a script's source text; parsing takes some hundred times as much memory.
LONGEST_CODE = 1 << 20


def head_count(
    path: Path, fmt: str, sizes: Mapping[str, int], code: object, given: int | None
) -> tuple[int, str]:
    """Return the number of heads, and where it was found: in code, in the sizes in use, or
    given."""
    L, D = sizes["L"], sizes["D"]
    call = _gpt_call(code) if isinstance(code, str) else {}
    for key, actual in (("num_layers", L), ("model_dim", D)):
        if call.get(key, actual) != actual:
            raise CheckpointError(
                f"{path}: its code says {key}={call[key]}, but its weights have {actual}; "
                "part of the model is missing, or the code is another run's: save it again"
            )
    known = KNOWN_HEADS.get((fmt, L, D))
    if fmt == "small":
        known = D // SMALL_HEAD_DIM if D % SMALL_HEAD_DIM == 0 else None
        if known is None:
            raise CheckpointError(
                f"{path}: of format small with a width of {D}, expected a multiple of "
                f"{SMALL_HEAD_DIM}, its head size"
            )
    sources = {
        "code": call.get("num_heads"),
        "format" if fmt == "small" else "sizes in use": known,
        "n_head": given,
    }
    if fmt != "small" and sources["code"] is not None:
        sources["sizes in use"] = None
    told = {source: value for source, value in sources.items() if value is not None}
    if len(set(told.values())) > 1:
        values = ", ".join(f"{value} ({source})" for source, value in told.items())
        raise CheckpointError(
            f"{path}: contradicting numbers of heads: {values}; leave `n_head` out or correct it"
        )
    if not told:
        raise CheckpointError(
            f"{path}: the number of heads can't be told from {L} layers of width {D} and there is "
            "no usable code in the file: give it as `n_head` (num_heads=… in Python)"
        )
    source, heads = next(iter(told.items()))
    return heads, source


def _gpt_call(code: str) -> dict[str, int]:
    """Return the sizes in the call `GPT(…)` of a training script, read and never run.

    Only what is a literal, or a name or attribute that the script sets to one literal, is told;
    calls that contradict each other tell nothing.
    """
    if len(code) > LONGEST_CODE:
        return {}
    try:
        with warnings.catch_warnings():
            # Of a script that is not the user's to mend.
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    constants = _constants(tree)
    positions = ("vocab_size", "num_layers", "num_heads", "model_dim", "max_seq_len")
    found: dict[str, set[int]] = {}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or _last_name(node.func) != "GPT":
            continue
        arguments = dict(zip(positions, node.args, strict=False))
        arguments |= {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        for key, value in arguments.items():
            number = _constant(value, constants)
            if number is not None:
                found.setdefault(key, set()).add(number)
    return {key: values.pop() for key, values in found.items() if len(values) == 1}


def _constants(tree: ast.AST) -> dict[str, set[int | None]]:
    constants: dict[str, set[int | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.AugAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        plain = not isinstance(node, ast.AugAssign) and isinstance(value, ast.Constant)
        for target in targets:
            name = _last_name(target)
            if name:
                constants.setdefault(name, set()).add(value.value if plain else None)
    return constants


def _last_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def _constant(node: ast.AST, constants: Mapping[str, set[int | None]]) -> int | None:
    if isinstance(node, ast.Constant):
        values = {node.value}
    else:
        values = constants.get(_last_name(node) or "", set())
    value = next(iter(values)) if len(values) == 1 else None
    return value if type(value) is int and 0 < value < 1 << 31 else None
