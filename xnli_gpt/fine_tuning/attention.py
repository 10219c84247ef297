"""How attention is computed: what a device, a precision or a window allows, and what is fastest."""

from __future__ import annotations

import torch
from torch import nn

from xnli_gpt.choices import AUTO
from xnli_gpt.devices import AMPERE, precision_of
from xnli_gpt.errors import UsageError
from xnli_gpt.fine_tuning.configuration import FineTuning
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.training.options import RecipeOptions, TrainingMachineOptions

# Of FlashAttention.
MOST_HEAD_DIM = 256


def set_up(
    trunk: nn.Module,
    config: FineTuning,
    device: torch.device,
    dtype: torch.dtype,
    longest: int | None = None,
) -> None:
    """Set how a trunk computes, which changes no result; `longest` is the longest row of the data,
    in tokens, where it is known."""
    trunk.gradient_checkpointing = config.machine.gradient_checkpointing
    trunk.row_attention = config.machine.attention
    if config.machine.attention == AUTO:
        network = trunk.config
        trunk.row_attention = fastest_attention(
            network, config.recipe, device, dtype, longest or network.max_seq_len
        )


def fastest_attention(
    network: GPTConfig,
    recipe: RecipeOptions,
    device: torch.device,
    dtype: torch.dtype,
    longest: int,
) -> str | None:
    """Return how the attention of short pairs is computed fastest on a device, where the longest
    row has `longest` tokens; None is the device's own way.

    On a GPU that is varlen, twice as fast as flex, wherever it gives the same: FlashAttention needs
    half precision and Ampere, knows no windows, and no premises of several pairs.
    """
    suits = (
        device.type == "cuda"
        and dtype.itemsize == 2
        and torch.cuda.get_device_capability(device) >= AMPERE
        and longest <= network.tokens_within_windows
        and network.head_dim % 8 == 0
        and network.head_dim <= MOST_HEAD_DIM
        and not recipe.group_premises
    )
    return "varlen" if suits else None


def require_attention(machine: TrainingMachineOptions, device: torch.device | None) -> None:
    """Raise UsageError for a way of computing attention that the device or precision lacks."""
    name, problems = machine.attention, []
    if device is None:
        return
    if name in ("flex", "varlen") and device.type == "cpu":
        problems.append(f"`attention` {name}: has no backward pass on a CPU; leave the flag out")
    if name == "varlen" and precision_of(machine.dtype, device).dtype is torch.float32:
        problems.append("`attention` varlen: needs `dtype` bfloat16 or float16")
    if problems:
        raise UsageError(problems)


def require_within_windows(attention: str, trunk: nn.Module, longest: int) -> None:
    """Raise UsageError where a row is longer than a window, which varlen does not know."""
    within = trunk.config.tokens_within_windows
    if attention == "varlen" and longest > within:
        raise UsageError(
            [
                f"`attention` varlen: a pair of {longest} tokens, beyond the window of {within}; "
                "use flex, or a smaller `block_size`"
            ]
        )
