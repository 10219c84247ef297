"""Rotary tables that a file holds beside its weights: they are computed anew, and must agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import shown
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.layers import Rotary

_NAME = re.compile(r"(?:.+\.)?rotary(?:_emb)?\.(cos|sin)(?:_cached)?")
# How far a table in each type may be from the one that is computed in float32.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def without_rotary_buffers(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors that are weights, and the rotary tables among them."""
    buffers = {name: tensor for name, tensor in weights.items() if _NAME.fullmatch(name)}
    return {name: t for name, t in weights.items() if name not in buffers}, buffers


def check_rotary_buffers(path: Path, buffers: Mapping[str, Tensor], config: GPTConfig) -> None:
    """Raise CheckpointError for tables that are not those that the network computes."""
    for name, table in buffers.items():
        half = config.head_dim // 2
        rows = table.numel() // half if half else 0
        fits = (
            table.dtype in TOLERANCES and table.numel() == rows * half and table.shape[-1] == half
        )
        if fits:
            rotary = Rotary(replace(config, max_seq_len=rows))
            expected = rotary.cos if _NAME.fullmatch(name)[1] == "cos" else rotary.sin
            difference = (table.float().reshape(rows, half) - expected).abs().max()
            fits = float(difference) <= TOLERANCES[table.dtype]
        if not fits:
            raise CheckpointError(
                f"{path}: its rotary table {shown(name)} {tuple(table.shape)} is another than "
                f"heads of {config.head_dim} have in this format: it was pretrained with another "
                "network"
            )
