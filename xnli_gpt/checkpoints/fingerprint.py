"""What the scalars say of a file's family: training moves just those that the network reads."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed
from xnli_gpt.network.config import FAMILIES, SCALARS_PER_LAYER, GPTConfig, initial_scalars


def check_scalars(path: Path, fmt: str, config: GPTConfig, scalars: Tensor) -> dict:
    """Compare the scalars that no block reads with their initial values; training never moves
    them, so they tell the family. Raises CheckpointError where they contradict the keys."""
    needed = SCALARS_PER_LAYER * config.num_layers
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
    initial = initial_scalars(config.num_layers)
    moved = {int(i) for i in (scalars[:needed].float() != initial).nonzero()}
    _check_lost_attention(path, config, moved)
    contradiction = _fingerprint_contradiction(config, moved)
    if contradiction:
        raise CheckpointError(
            f"{path}: its keys are of format {fmt}, but {contradiction}: the file was converted or "
            "mixed; give the pretraining script's own file"
        )
    read_skips = {weight for _, _, weight in config.skips}
    confirmed = bool(read_skips) and read_skips <= moved
    return {"moved_scalars": len(moved), "verdict": "confirmed" if confirmed else "not trained"}


def _check_lost_attention(path: Path, config: GPTConfig, moved: set[int]) -> None:
    for layer in set(range(config.num_layers)) - set(config.attention_layers):
        if moved & {3 * config.num_layers + 2 * layer, 3 * config.num_layers + 2 * layer + 1}:
            raise CheckpointError(
                f"{path}: the attention of block {layer} is missing, though its scalars were "
                "trained; save the whole model of the pretraining script"
            )


def _fingerprint_contradiction(config: GPTConfig, moved: set[int]) -> str | None:
    """What speaks against `config` in the set of scalars that training moved, if anything."""
    unread = sorted(moved - _read_scalars(config))
    if unread:
        names = listed(_scalar_name(i, config.num_layers) for i in unread)
        return f"training moved {names}, which that format never reads"
    own = {weight for _, _, weight in config.skips}
    moved_skips = {i for i in moved if i < config.num_layers}
    for other, facts in FAMILIES.items():
        theirs = {weight for _, _, weight in facts.skips(config.num_layers)}
        if other != config.family and moved_skips and moved_skips == theirs != own:
            return f"training moved just the skip weights of format {other}, {sorted(theirs)}"
    return None


def _read_scalars(config: GPTConfig) -> set[int]:
    L = config.num_layers
    skips = {weight for _, _, weight in config.skips}
    block_lambdas = set(range(L, 3 * L))
    value_lambdas = {3 * L + 2 * i for i in config.attention_layers}
    value_embed_lambdas = {3 * L + 2 * i + 1 for i, _ in config.value_embed_layers}
    return skips | block_lambdas | value_lambdas | value_embed_lambdas


def _scalar_name(index: int, num_layers: int) -> str:
    if index < num_layers:
        return f"skip_weights[{index}]"
    index -= num_layers
    kind = "lambdas" if index < 2 * num_layers else "sa_lambdas"
    return f"{kind}[{index % (2 * num_layers) // 2},{index % 2}]"
