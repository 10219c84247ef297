"""A line of a family's table: one tensor of the file, and what it becomes in the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Of a `place`: behind the parts of the same tensor that stand before it in the table.
BEHIND = "behind"
Place = int | slice | str | None


@dataclass(frozen=True)
class TensorRule:
    """One line of a format's table; `{i}` in a name stands for a block, `{t}` for a table.

    Letters in `shape`: D model width, 4D, I = heads × head size, V embedding rows, R head rows, L
    layers, 6L+2, and any others, which one file must use for one number. `targets` maps our name to
    the part of the tensor it gets (None: all of it); without any the tensor is known and not read.
    Where tensors of several rules are stacked into one of ours, `place` is where in it this rule's
    part stands. `is_turned` is for matrices that the file holds [in, out]. `when(block, blocks)`
    says which blocks have it; `is_optional` ones may be missing.
    """

    name: str
    shape: tuple[int | str, ...]
    targets: Mapping[str, int | slice | None] = field(default_factory=dict)
    place: Place = None
    is_turned: bool = False
    is_optional: bool = False
    when: Callable[[int, int], bool] | None = None


def same(name: str, *shape: int | str) -> TensorRule:
    """Return the rule of a tensor that has the same name in the network."""
    return TensorRule(name, shape, {name: None})


def renamed(name: str, ours: str, *shape: int | str, **more: object) -> TensorRule:
    """Return the rule of a tensor that has another name in the network."""
    return TensorRule(name, shape, {ours: None}, **more)
