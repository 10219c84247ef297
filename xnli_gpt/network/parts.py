"""What the families of the line do in different ways: norms of the stream, MLPs, and smears."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.layers import CastedLinear, relu_squared, rms_norm


class RMSNorm(nn.RMSNorm):
    """RMS normalisation with gain, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., D] normalised, in its dtype."""
        return super().forward(x.float()).type_as(x)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation with gain, and with bias or without, computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., D] normalised, in its dtype."""
        return super().forward(x.float()).type_as(x)


NORMS: dict[str, Callable[[GPTConfig], Callable[[Tensor], Tensor]]] = {
    "rms": lambda config: rms_norm,
    "rms gain": lambda config: RMSNorm(config.model_dim, eps=config.norm_eps),
    "layer": lambda config: LayerNorm(config.model_dim, eps=config.norm_eps, bias=config.biases),
}


class TrainingScriptMLP(nn.Module):
    """W_proj · f(W_fc · x), where f is relu², or a GELU."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.mlp_dim or 4 * config.model_dim
        self.activation = ACTIVATIONS[config.mlp]
        self.c_fc = CastedLinear(config.model_dim, width, bias=config.biases)
        self.c_proj = CastedLinear(width, config.model_dim, bias=config.biases)
        nn.init.zeros_(self.c_proj.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's share of the stream, x [B, T, D] -> [B, T, D]."""
        return self.c_proj(self.activation(self.c_fc(x)))


class GatedMLP(nn.Module):
    """W_proj · (silu(W_gate · x) · W_fc · x): SwiGLU (Shazeer 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        width = config.mlp_dim or 4 * config.model_dim
        self.c_gate, self.c_fc = (CastedLinear(config.model_dim, width) for _ in range(2))
        self.c_proj = CastedLinear(width, config.model_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's share of the stream, x [B, T, D] -> [B, T, D]."""
        return self.c_proj(F.silu(self.c_gate(x)) * self.c_fc(x))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu2": relu_squared,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
}
MLPS: dict[str, Callable[[GPTConfig], nn.Module]] = {
    **dict.fromkeys(ACTIVATIONS, TrainingScriptMLP),
    "swiglu": GatedMLP,
}


def token_before(x: Tensor, position_ids: Tensor, before: Tensor | None = None) -> Tensor:
    """Return what x [B, T, D] has of the token before, and zeros where `position_ids` [T], counted
    from the beginning of each example, say that there is none. It stands one place before, or at
    `before` [T]."""
    shifted = F.pad(x[:, :-1], (0, 0, 1, 0)) if before is None else x[:, before]
    return shifted * (position_ids > 0)[:, None].type_as(x)


class Smear(nn.Module):
    """Adds to every token some of the one before it, by a gate that reads the first channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.gate = CastedLinear(channels, 1)
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, position_ids: Tensor, before: Tensor | None = None) -> Tensor:
        """Add to x [B, T, D] its share of `token_before`."""
        gate = torch.sigmoid(self.gate(x[..., : self.gate.in_features]))  # [B, T, 1]
        return x + self.weight.type_as(x) * gate * token_before(x, position_ids, before)
