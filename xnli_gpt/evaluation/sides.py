"""Names for the two sides of a comparison, by which a reader tells them apart."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from xnli_gpt.checkpoints.fine_tuned import run_name


def names_of_sides(first: Sequence[Path], second: Sequence[Path]) -> list[str]:
    """Return two names, made of what differs between the paths of the two sides' files.

    `out/lr1e-4/seed1/x-ckpt.pt` and more seeds beside it, against `out/lr5e-5/seed1/x-ckpt.pt`,
    are lr1e-4 and lr5e-5. Folders come first; the files' names count where folders do not tell.
    """
    sides = [[Path(os.path.abspath(path)) for path in side] for side in (first, second)]
    by_folder = [[path.parent.parts for path in side] for side in sides]
    by_file = [
        [(*path.parent.parts, run_name(path.name.removesuffix(".pt"))) for path in side]
        for side in sides
    ]
    for parts in (by_folder, by_file):
        names = _differing(*(_common_parts(side) for side in parts))
        if all(names) and names[0] != names[1]:
            return names
    for parts in (by_folder, by_file):
        names = _differing(parts[0][0], parts[1][0])
        counted = [
            f"{name} and {len(side) - 1} more" if len(side) > 1 else name
            for name, side in zip(names, parts, strict=True)
        ]
        if all(names) and counted[0] != counted[1]:
            return counted
    return ["first", "second"]


def _common_parts(paths: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the parts of the first path that stand in all the others too."""
    return tuple(part for part in paths[0] if all(part in other for other in paths[1:]))


def _differing(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return what is left of two paths without the parts that they begin and end with together.

    Where one of them lies within the other, the folder that they share stays.
    """
    shared = os.path.commonprefix([list(first), list(second)])
    rests = [list(parts[len(shared) :]) for parts in (first, second)]
    while all(rests) and rests[0][-1] == rests[1][-1]:
        rests = [rest[:-1] for rest in rests]
    if not all(rests) and any(rests):
        rests = [shared[-1:] + rest for rest in rests]
    return ["/".join(rest) for rest in rests]
