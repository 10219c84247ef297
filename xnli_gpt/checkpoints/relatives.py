"""Which family beside small and medium a file is of: the only one that knows every name, whose
shapes fit, and against which no clue speaks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from xnli_gpt.checkpoints.families import RELATIVES, Clues, Family
from xnli_gpt.checkpoints.families.spec import LONE_BLOCK
from xnli_gpt.checkpoints.formats import STORED_DTYPES
from xnli_gpt.checkpoints.rules import TensorRule
from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed

_BLOCK = re.compile(r"(?:blocks|h|layers)\.(0|[1-9][0-9]{0,3})\.")
# A size that follows from another one, such as 4D or 6L+2.
_PRODUCT = re.compile(r"([0-9])([A-Z])(?:\+([0-9]))?")


def find_relative(
    path: Path, state: Mapping[str, Tensor], beside: Mapping[str, object], wanted: str | None
) -> tuple[Family, Clues] | None:
    """Return the family that a file is of, and its clues; None where no family knows all names.

    Raises CheckpointError where several families do and nothing tells which, and where clues or
    shapes speak against all of them. `wanted` chooses among families that clues can't tell apart.
    """
    knowing = [family for family in RELATIVES.values() if _knows_all(family, state)]
    if wanted is not None:
        chosen = [family for family in knowing if family.name == wanted]
        if not chosen:
            names = listed(family.name for family in knowing) or "none of these families"
            raise CheckpointError(f"{path}: `family` {wanted}: by its names it is of {names}")
        family = chosen[0]
        return family, _clues(path, family, state, beside)
    fitting, objections = [], []
    for family in knowing:
        try:
            clues = _clues(path, family, state, beside)
        except CheckpointError as error:
            objections.append(str(error).removeprefix(f"{path}: "))
            continue
        objection = family.objection(clues)
        if objection is None:
            fitting.append((family, clues))
        else:
            objections.append(f"{family.name}: {objection}")
    if len(fitting) > 1:
        names = " and ".join(family.name for family, _ in fitting)
        raise CheckpointError(
            f"{path}: its names are those of {names} alike, whose features differ, and nothing in "
            "it tells which: say it by `family`"
        )
    if knowing and not fitting:
        names = listed(family.name for family in knowing)
        raise CheckpointError(
            f"{path}: its names are those of {names}, but {'; '.join(objections)}; `family` says "
            "which it is where that is known"
        )
    return fitting[0] if fitting else None


def nearest_relative(state: Mapping[str, Tensor], below: int) -> str | None:
    """Return what is wrong with the names of a file that is nearly of one family, of which less
    than `below` names are wrong; None where there is none."""
    found = {}
    for family in RELATIVES.values():
        missing, unknown = _differing(family, state)
        if len(missing) + len(unknown) <= min(below - 1, _most_wrong(state)):
            found.setdefault((tuple(missing), tuple(unknown)), []).append(family.name)
    if not found:
        return None
    (missing, unknown), names = min(found.items(), key=lambda item: sum(map(len, item[0])))
    problems = [f"missing {listed(missing)}"] if missing else []
    problems += [f"unknown {listed(unknown)}"] if unknown else []
    return f"of format {' or '.join(names)}, but keys are {' and '.join(problems)}"


def lacks_names_alone(state: Mapping[str, Tensor]) -> bool:
    """Return whether a family has every name of a file, most of whose names are there."""
    differing = (_differing(family, state) for family in RELATIVES.values())
    return any(not unknown and len(missing) <= _most_wrong(state) for missing, unknown in differing)


def _most_wrong(state: Mapping[str, Tensor]) -> int:
    """Return how many names may be wrong in a file that is nearly of a family."""
    return len(state) // 10


def _num_blocks(state: Mapping[str, Tensor]) -> int:
    return 1 + max((int(m[1]) for name in state if (m := _BLOCK.search(name))), default=-1)


def _names_of(family: Family, num_blocks: int, is_lone: bool) -> Iterator[tuple[str, TensorRule]]:
    """Yield every name that a file of a family has, with its rule."""
    for rule in family.rules:
        if "{i}" in rule.name:
            for i in range(num_blocks):
                without = is_lone and i == LONE_BLOCK and ".attn." in rule.name
                if not without and (rule.when is None or rule.when(i, num_blocks)):
                    yield rule.name.format(i=i), rule
        elif "{t}" in rule.name:
            yield from ((rule.name.format(t=t), rule) for t in range(family.tables))
        else:
            yield rule.name, rule


def _is_lone(family: Family, state: Mapping[str, Tensor]) -> bool:
    """Return whether the block that scripts leave without attention has none."""
    found = (name for name in state if re.search(rf"\.{LONE_BLOCK}\.attn\.", name))
    return family.has_lone_block and next(found, None) is None


def _differing(family: Family, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Return the names that a file lacks, and those that the family does not know."""
    expected = dict(_names_of(family, _num_blocks(state), _is_lone(family, state)))
    missing = [n for n, rule in expected.items() if not rule.is_optional and n not in state]
    return missing, [name for name in state if name not in expected]


def _knows_all(family: Family, state: Mapping[str, Tensor]) -> bool:
    missing, unknown = _differing(family, state)
    return not missing and not unknown


def _clues(
    path: Path, family: Family, state: Mapping[str, Tensor], beside: Mapping[str, object]
) -> Clues:
    """Return a file's clues; raises CheckpointError for shapes that contradict each other."""
    L, is_lone = _num_blocks(state), _is_lone(family, state)
    sizes: dict[str, int] = {"L": L, "L/2": L // 2}
    if is_lone:
        sizes["no_attention"] = LONE_BLOCK
    for name, rule in _names_of(family, L, is_lone):
        if name not in state:
            continue
        tensor = state[name]
        if rule.targets and tensor.dtype not in STORED_DTYPES:
            raise CheckpointError(
                f"{path}: {name} is {tensor.dtype}, expected floating point of 16, 32 or 64 bits"
            )
        expected = _bound(rule.shape, tuple(tensor.shape), sizes)
        if expected is not None:
            raise CheckpointError(
                f"{path}: of format {family.name}, but {name} is {tuple(tensor.shape)}, expected "
                f"{expected}; save the model again"
            )
    clues = Clues(sizes, state, beside)
    heads = family.heads(clues)
    return replace(clues, sizes=sizes | ({"H": heads} if heads else {}))


def _bound(
    shape: tuple[int | str, ...], found: tuple[int, ...], sizes: dict[str, int]
) -> tuple | None:
    """Give letters that are met for the first time their number; return the shape that is
    expected where the one found is another."""
    if len(shape) != len(found):
        return shape
    for letter, number in zip(shape, found, strict=True):
        if isinstance(letter, str) and letter not in sizes and not _PRODUCT.fullmatch(letter):
            sizes[letter] = number
    expected = tuple(_number(letter, sizes) for letter in shape)
    return None if expected == found else expected


def _number(letter: int | str, sizes: Mapping[str, int]) -> int | str:
    if isinstance(letter, int):
        return letter
    if (match := _PRODUCT.fullmatch(letter)) is None:
        return sizes[letter]
    factor, of, more = match.groups(default="0")
    return int(factor) * sizes[of] + int(more) if of in sizes else letter


def heads_or_refuse(path: Path, family: Family, clues: Clues, given: int | None) -> int:
    """Return the number of heads. Raises CheckpointError where nothing tells it, or where it is
    not the one given."""
    heads, usual = clues.sizes.get("H"), family.usual_head_dim
    if heads is None and given is None and usual and clues.sizes["D"] % usual == 0:
        return clues.sizes["D"] // usual
    if heads is None and given is None:
        raise CheckpointError(
            f"{path}: the number of heads can't be told from a {family.name} of width "
            f"{clues.sizes['D']}: give it as `n_head` (num_heads=… in Python)"
        )
    if heads is not None and given not in (None, heads):
        raise CheckpointError(
            f"{path}: contradicting numbers of heads: {heads} (its own), {given} (n_head); leave "
            "`n_head` out or correct it"
        )
    return heads or given
