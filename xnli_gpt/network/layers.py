"""The small parts of the network: norm, rotary positions, linear layers, caps of logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnli_gpt.network.config import RMS_EPS, GPTConfig
from xnli_gpt.network.few_passes import (
    ReluSquaredInFewPasses,
    RMSNormInFewPasses,
    RotationInFewPasses,
    runs_one_by_one,
)

RotaryTables = tuple[Tensor, Tensor]  # cos, sin


def _sigmoid_cap(logits: Tensor, model_dim: int) -> Tensor:
    return 30 * torch.sigmoid(logits / (7.5 * math.sqrt(model_dim)))


def _algebraic_cap(logits: Tensor, model_dim: int) -> Tensor:
    return 15 * logits * torch.rsqrt(logits.square() + 225)


LOGIT_CAPS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "sigmoid": _sigmoid_cap,
    "algebraic": _algebraic_cap,
    "none": lambda logits, _: logits,
    "sigmoid 7.5": lambda logits, _: 30 * torch.sigmoid(logits / 7.5),
    "tanh 15": lambda logits, _: 15 * torch.tanh(logits / 15),
    "tanh 20": lambda logits, _: 20 * torch.tanh(logits / 20),
    "tanh 30": lambda logits, _: 30 * torch.tanh(logits / 30),
}


def rms_norm(x: Tensor) -> Tensor:
    """Return x / sqrt(mean(x²) + 2^-23) over the last dimension, without gain."""
    if runs_one_by_one(x):
        return RMSNormInFewPasses.apply(x, RMS_EPS)
    return F.rms_norm(x, (x.size(-1),), eps=RMS_EPS)


class Rotary(nn.Module):
    """Rotary position embedding as a config says, computed in float32.

    "half" has half of its frequencies zero, and 1 / base to the power of the others; "full" is the
    textbook's.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        cos, sin = self._tables()
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def reset_parameters(self) -> None:
        """Fill the tables anew, where a library has put memory without values in their place."""
        for table, values in zip((self.cos, self.sin), self._tables(), strict=True):
            table.copy_(values)

    def _tables(self) -> RotaryTables:
        """Return cos and sin [max_seq_len, d/2], on the CPU: the same on every machine."""
        # An explicit device keeps the tables real when the model is built on the meta device.
        positions = torch.arange(self.config.max_seq_len, dtype=torch.float32, device="cpu")
        theta = torch.outer(positions, self._frequencies())  # [max_seq_len, d/2]
        tables = theta.cos(), self.config.rotary_sign * theta.sin()
        if self.config.rotary_is_rounded:
            return tuple(table.bfloat16().float() for table in tables)
        return tables

    def _frequencies(self) -> Tensor:
        """Return the frequencies [d/2]."""
        options = {"dtype": torch.float32, "device": "cpu"}
        base, head_dim = self.config.rotary_base, self.config.head_dim
        if self.config.rotary_frequencies is not None:
            return torch.tensor(self.config.rotary_frequencies, **options)
        if self.config.rotary == "full":
            return 1.0 / (base ** (torch.arange(0, head_dim, 2, **options) / head_dim))
        frequencies = (1 / base) ** torch.linspace(0, 1, steps=head_dim // 4, **options)
        return torch.cat([frequencies, frequencies.new_zeros(head_dim // 4)])

    def forward(self, position_ids: Tensor) -> RotaryTables:
        """Return cos, sin [T, 1, d/2], float32, of position_ids [T]."""
        return self.cos[position_ids, None], self.sin[position_ids, None]


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Return x [B, T, H, d] rotated by position, in its shape and dtype."""
    cos, sin = tables  # [T, 1, d/2] each
    if runs_one_by_one(x):
        return RotationInFewPasses.apply(x, cos, sin)
    x1, x2 = x.float().chunk(2, dim=-1)  # [B, T, H, d/2] each
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1).type_as(x)


def relu_squared(x: Tensor) -> Tensor:
    """Return relu(x)²."""
    if runs_one_by_one(x):
        return ReluSquaredInFewPasses.apply(x)
    return F.relu(x).square()


def init_as_the_scripts_do(weight: Tensor) -> None:
    """Fill uniformly with a standard deviation of 0.5 / sqrt(inputs), as the scripts do."""
    bound = math.sqrt(3) * 0.5 * weight.size(-1) ** -0.5
    nn.init.uniform_(weight, -bound, bound)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x [..., in] · weightᵀ [in, out] + bias [out], in the dtype of x."""
    return F.linear(x, weight.type_as(x), None if bias is None else bias.type_as(x))


class Embedding(nn.Embedding):
    """torch's, which on the meta device draws no values: its normal distribution there would
    import torch's compiler, for a second."""

    def reset_parameters(self) -> None:
        """Fill the weight with random values where it has values."""
        if not self.weight.is_meta:
            super().reset_parameters()


class TokenEmbedding(Embedding):
    """A table with a row for every token, of which a step reads few."""


class CastedLinear(nn.Linear):
    """A linear layer that computes in its input's dtype, by default without bias."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weight as the scripts do."""
        init_as_the_scripts_do(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)
