"""The trunk through torch.compile."""

from __future__ import annotations

import torch
from torch import nn

from xnli_gpt.devices import keep_compiled_code_apart
from xnli_gpt.network.grouped_attention import leave_groups_uncompiled
from xnli_gpt.network.row_attention import allow_recompiling


def compile_trunk(trunk: nn.Module) -> None:
    """Let torch.compile fuse what stands between the matrix products; nothing else changes.

    Every block is compiled around its attention: blocks of a kind share their code, which takes
    half the time of compiling the walk through all. Lengths are symbols, so that no length compiles
    anything anew.
    """
    allow_recompiling()
    leave_groups_uncompiled()
    if trunk.embed.weight.device.type == "cpu":
        keep_compiled_code_apart()
    for block in trunk.blocks:
        block.before_attention = torch.compile(block.before_attention, dynamic=True)
        block.after_attention = torch.compile(block.after_attention, dynamic=True)
