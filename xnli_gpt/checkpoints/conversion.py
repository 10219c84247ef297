"""A format's tensors under our names: where each part comes from, and what it is stacked with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from xnli_gpt.checkpoints.formats import matches
from xnli_gpt.checkpoints.rules import BEHIND

_Place = int | slice | None


def parts_by_target(
    fmt: str, state: Mapping[str, Tensor]
) -> Iterator[tuple[str, str, Tensor, _Place]]:
    """Return our name, the name in the file, what of its tensor is ours, and where in ours it
    stands."""
    filled: dict[str, int] = defaultdict(int)
    for rule, name, numbers in matches(fmt, state):
        for target, part in rule.targets.items():
            target, tensor, place = target.format(**numbers), part_of(state[name], part), rule.place
            if rule.is_turned:
                tensor = tensor.mT
            if place == BEHIND:
                place = slice(filled[target], filled[target] + len(tensor))
                filled[target] += len(tensor)
            yield target, name, tensor, place


def part_of(tensor: Tensor, part: _Place) -> Tensor:
    """Return a part of a tensor along its first dimension, or all of it."""
    return tensor if part is None else tensor[part]


def empty_targets(
    parts: Iterable[tuple[str, str, Tensor, _Place]], device: str | torch.device
) -> dict[str, Tensor]:
    """Return our tensors, still to be filled: each like its only part, or a stack of several."""
    by_target: dict[str, list[tuple[Tensor, _Place]]] = defaultdict(list)
    for target, _, part, place in parts:
        by_target[target].append((part, place))
    return {
        target: torch.empty(_joined_shape(target, of_it), dtype=torch.float32, device=device)
        for target, of_it in by_target.items()
    }


def _joined_shape(target: str, parts: Sequence[tuple[Tensor, _Place]]) -> tuple[int, ...]:
    """Return the shape of one of our tensors. Raises ValueError for a table whose parts overlap,
    leave a gap or don't fit: what is not filled would keep whatever was in memory."""
    first, its_place = parts[0]
    if len(parts) == 1 and its_place is None:
        return tuple(first.shape)
    rows = sorted(row for _, place in parts for row in _rows_of(place))
    row_shape = first.shape if isinstance(its_place, int) else first.shape[1:]
    whole = torch.empty(len(rows), *row_shape, device="meta")
    fit = rows == list(range(len(rows))) and all(
        part_of(whole, place).shape == part.shape for part, place in parts
    )
    if not fit:
        raise ValueError(f"{target}: its parts in the format's table do not make one tensor")
    return tuple(whole.shape)


def _rows_of(place: _Place) -> Sequence[int]:
    if isinstance(place, int):
        return [place]
    return [] if place is None else range(place.start, place.stop)
