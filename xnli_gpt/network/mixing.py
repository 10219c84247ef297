"""The learned weights of skips and mixes, by their names and as the `scalars` of the scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

from xnli_gpt.network.config import GPTConfig

# What every row of them is before training.
INITIAL = {
    "skip_weights": (1.0,),
    "block_lambdas": (1.0, 0.0, 0.0),
    "value_lambdas": (0.5, 0.5),
    "final_smear": (0.0,),
    "final_lambdas": (1.0, 0.0),
}


def initial_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return one of them before training."""
    of_row = INITIAL[name][: shape[-1]]
    values = list(of_row) * (shape[-1] // len(of_row))
    # Made of plain numbers: on the meta device `expand` and `clone` would import torch's compiler.
    return torch.tensor([values] * shape[0] if len(shape) == 2 else values)


def initial_weights(config: GPTConfig) -> dict[str, Tensor]:
    """Return those that a network reads, before training."""
    shapes = config.scalar_shapes
    return {name: initial_weight(name, shapes[name]) for name in config.mixing_weights}


def split_scalars(scalars: Tensor, config: GPTConfig) -> dict[str, Tensor]:
    """Return what stands in `scalars` [N, with any padding] by its names."""
    shapes = config.scalar_shapes
    parts = scalars[: config.num_scalars].split([math.prod(shape) for shape in shapes.values()])
    named = dict(zip(shapes, parts, strict=True))
    return {name: named[name].view(shapes[name]).clone() for name in config.mixing_weights}


def join_scalars(weights: Mapping[str, Tensor], config: GPTConfig) -> Tensor:
    """Return `scalars` of what has names; what the network does not read is as before training."""
    device = next((weight.device for weight in weights.values()), None)
    parts = [
        weights[name] if name in weights else initial_weight(name, shape).to(device)
        for name, shape in config.scalar_shapes.items()
    ]
    return torch.cat([part.flatten() for part in parts])


def name_scalars(state: MutableMapping[str, Tensor], config: GPTConfig, prefix: str = "") -> None:
    """Put in the place of `scalars`, where a state dict has it, what stands there by its names."""
    scalars = state.pop(f"{prefix}scalars", None)
    if scalars is not None:
        state |= {f"{prefix}{name}": part for name, part in split_scalars(scalars, config).items()}
