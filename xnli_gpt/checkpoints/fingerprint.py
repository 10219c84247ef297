"""What the scalars say of a file's family: training moves just those that the network reads."""

from __future__ import annotations

from itertools import product
from pathlib import Path

from torch import Tensor

from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed
from xnli_gpt.network.config import FAMILIES, GPTConfig
from xnli_gpt.network.mixing import join_scalars

Place = tuple[str | int, ...]


def check_scalars(path: Path, fmt: str, config: GPTConfig, scalars: Tensor) -> dict:
    """Compare the scalars that no block reads with their initial values; training never moves
    them, so they tell the family. Raises CheckpointError where they contradict the keys."""
    needed = config.num_scalars
    if scalars.numel() < needed:
        raise CheckpointError(
            f"{path}: {scalars.numel()} scalars, expected at least {needed} for "
            f"{config.num_layers} layers; save the whole model of the pretraining script"
        )
    if not bool((scalars[needed:] == 1).all()):
        raise CheckpointError(
            f"{path}: its {scalars.numel()} scalars don't end in a padding of ones after the "
            f"{needed} of {config.num_layers} layers: a block may be missing; save it again"
        )
    initial = join_scalars({}, config)
    places = _places(config)
    moved = {places[i] for i in (scalars[:needed].float() != initial).nonzero().flatten().tolist()}
    _check_lost_attention(path, config, moved)
    contradiction = _fingerprint_contradiction(config, moved)
    if contradiction:
        raise CheckpointError(
            f"{path}: its keys are of format {fmt}, but {contradiction}: the file was converted or "
            "mixed; give the pretraining script's own file"
        )
    read_skips = {("skip_weights", weight) for _, _, weight in config.skips}
    confirmed = bool(read_skips) and read_skips <= moved
    return {"moved_scalars": len(moved), "verdict": "confirmed" if confirmed else "not trained"}


def _places(config: GPTConfig) -> list[Place]:
    """Return the place of every scalar: the name of its part, and its indices there."""
    return [
        (name, *indices)
        for name, shape in config.scalar_shapes.items()
        for indices in product(*map(range, shape))
    ]


def _check_lost_attention(path: Path, config: GPTConfig, moved: set[Place]) -> None:
    for layer in set(range(config.num_layers)) - set(config.attention_layers):
        if moved & {("value_lambdas", layer, 0), ("value_lambdas", layer, 1)}:
            raise CheckpointError(
                f"{path}: the attention of block {layer} is missing, though its scalars were "
                "trained; save the whole model of the pretraining script"
            )


def _fingerprint_contradiction(config: GPTConfig, moved: set[Place]) -> str | None:
    """Return what speaks against `config` in the set of scalars that training moved, if
    anything."""
    never = moved - _read_scalars(config)
    unread = [place for place in _places(config) if place in never]
    if unread:
        names = listed(map(_shown, unread))
        return f"training moved {names}, which that format never reads"
    own = {weight for _, _, weight in config.skips}
    moved_skips = {place[1] for place in moved if place[0] == "skip_weights"}
    for other, facts in FAMILIES.items():
        theirs = {weight for _, _, weight in facts.skips(config.num_layers)}
        if other != config.family and moved_skips and moved_skips == theirs != own:
            return f"training moved just the skip weights of format {other}, {sorted(theirs)}"
    return None


def _read_scalars(config: GPTConfig) -> set[Place]:
    skips = {("skip_weights", weight) for _, _, weight in config.skips}
    values = {("value_lambdas", i, 0) for i in config.attention_layers}
    value_embeds = {("value_lambdas", i, 1) for i, _ in config.value_embed_layers}
    of_layers = ("skip_weights", "value_lambdas")
    others = {place for place in _places(config) if place[0] not in of_layers}
    return skips | values | value_embeds | others


def _shown(place: Place) -> str:
    """Return a scalar's place as the scripts write it."""
    name, *indices = place
    name = {"block_lambdas": "lambdas", "value_lambdas": "sa_lambdas"}.get(name, name)
    return f"{name}[{','.join(map(str, indices))}]"
