"""The training scripts' self-attention, around the one operation that looks across tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.layers import (
    CastedLinear,
    RotaryTables,
    init_as_the_scripts_do,
    linear,
    rms_norm,
    rotate,
)
from xnli_gpt.network.parts import NORMS

# (q, k, v [B, T, H, d], the number of the layer) -> [B, T, H, d]
AttentionFn = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class TrainingScriptAttention(nn.Module):
    """Self-attention with the parameter names of `train_gpt_small.py`, up to and after the one
    operation that looks across tokens."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.config = config
        inner_dim = config.num_heads * config.head_dim
        rows = inner_dim + 2 * config.kv_dim
        shape = (rows,) if config.flat_qkv else (3, inner_dim)
        self.qkv_w = nn.Parameter(torch.empty(*shape, config.model_dim))
        self.qkv_b = nn.Parameter(torch.zeros(rows)) if config.biases else None
        self.c_proj = CastedLinear(inner_dim, config.model_dim, bias=config.biases)
        self.norm = NORMS[config.norm](config)
        self.gate = self.value_gate = None
        if config.attention_gate is not None:
            self.gate = CastedLinear(config.attention_gate, config.num_heads)
        if config.value_gate is not None and layer in dict(config.value_embed_layers):
            num_kv_heads = config.kv_dim // config.head_dim
            self.value_gate = CastedLinear(config.value_gate[1], num_kv_heads)
        init_as_the_scripts_do(self.qkv_w)
        nn.init.zeros_(self.c_proj.weight)

    def forward(
        self,
        x: Tensor,
        value_embedding: Tensor | None,
        sa_lambdas: Tensor | None,
        rotary: RotaryTables | None,
        pooled: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
        """Return q, k, v [B, T, H, d] of x [B, T, D], value_embedding [B, T, kv] or None and
        sa_lambdas [2] or None, and the gate [B, T, H] of what attention gives, if there is one.

        With `pooled` [P] there are queries at these places alone: q [B, P, H, d].
        """
        if self.config.norm_attention_input:
            x = self.norm(x)
        x_of_queries = x if pooled is None else x[:, pooled]
        q, k, v = self._projections(x, x_of_queries)
        is_early = self.config.rotates_before_norm
        if self.config.norm_heads and not is_early:
            q, k = rms_norm(q), rms_norm(k)
        if rotary is not None:
            of_q = rotary if pooled is None else (rotary[0][pooled], rotary[1][pooled])
            q, k = rotate(q, of_q), rotate(k, rotary)
        if is_early:
            q, k = rms_norm(q), rms_norm(k)
        v = self._mixed_values(x, v, value_embedding, sa_lambdas)
        gate = None
        if self.gate is not None:
            gate = torch.sigmoid(self.gate(x_of_queries[..., : self.config.attention_gate]))
        v = v.type_as(q)
        groups = q.size(2) // k.size(2)
        if groups > 1:
            k, v = (heads.repeat_interleave(groups, dim=2) for heads in (k, v))
        return (q, k, v), gate

    def output(self, y: Tensor, gate: Tensor | None) -> Tensor:
        """Project the heads' outputs [B, T, H, d] -> [B, T, D]."""
        if gate is not None:
            y = y * gate[..., None]
        return self.c_proj(y.flatten(start_dim=2))

    def _projections(self, x: Tensor, x_of_queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x [B, T, D] to k, v [B, T, Hkv, d], and the queries' inputs [B, P, D] to q
        [B, P, H, d]."""
        sizes = (self.config.num_heads * self.config.head_dim, *[self.config.kv_dim] * 2)
        weight, bias = self.qkv_w.flatten(end_dim=-2), self.qkv_b  # [(H + 2 Hkv)·d, D]
        if x_of_queries is x:
            q, k, v = linear(x, weight, bias).split(sizes, dim=-1)
        else:
            first = sizes[0]
            of_q, of_others = (None, None) if bias is None else (bias[:first], bias[first:])
            q = linear(x_of_queries, weight[:first], of_q)
            k, v = linear(x, weight[first:], of_others).split(sizes[1:], dim=-1)
        return tuple(heads.unflatten(2, (-1, self.config.head_dim)) for heads in (q, k, v))

    def _mixed_values(
        self, x: Tensor, v: Tensor, value_embedding: Tensor | None, sa_lambdas: Tensor | None
    ) -> Tensor:
        """Return v [B, T, Hkv, d] with the value embedding mixed in, where there is one."""
        if self.config.norm_values:
            v = rms_norm(v)
        if self.value_gate is not None:
            scale, channels = self.config.value_gate
            gate = scale * torch.sigmoid(self.value_gate(x[..., :channels]))  # [B, T, Hkv]
            return v + gate[..., None] * value_embedding.view_as(v)
        of_first_layer = self.config.value_of_first_layer and value_embedding is None
        if sa_lambdas is None or of_first_layer:
            return v
        v = sa_lambdas[0] * v
        return v if value_embedding is None else v + sa_lambdas[1] * value_embedding.view_as(v)


def with_values_kept(attend: AttentionFn) -> tuple[AttentionFn, dict[int, Tensor]]:
    """Return `attend`, and the values [B, T, H, d] of the first layer once it has attended."""
    values: dict[int, Tensor] = {}

    def keeping(q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        if layer == 0:
            values[0] = v
        return attend(q, k, v, layer)

    return keeping, values
