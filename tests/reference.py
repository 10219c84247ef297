"""The mathematics of the checkpoints, dense and slow, in float64, on a file's own keys.

Written from section 3 of the design and from nothing else, to be compared with `model.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

NO_WINDOWS = (10**9, 10**9)
WINDOW_PATTERNS = {"small": "LSSSLSSLSSSL", "medium": "LSSSLSSSSSSLSSSL"}


def features(
    fmt: str,
    state: Mapping[str, Tensor],
    heads: int,
    ids: Tensor,
    docs: Tensor | None = None,
    windows: tuple[int, int] = NO_WINDOWS,
) -> Tensor:
    """Final hidden states [T, D] of one row of ids [T]."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    scalars = weights["scalars"]
    lambdas = scalars[layers : 3 * layers].view(layers, 2)
    skips = _skips(fmt, layers)
    x = x0 = _rms(weights["embed.weight"][ids])
    outputs = []
    for i in range(layers):
        if i in skips:
            source, weight = skips[i]
            x = x + scalars[weight] * outputs[source]
        x = lambdas[i, 0] * x + lambdas[i, 1] * x0
        if any(name.startswith(f"blocks.{i}.attn.") for name in state):
            window = windows["LS".index(WINDOW_PATTERNS[fmt][i % len(WINDOW_PATTERNS[fmt])])]
            x = x + _attention(fmt, weights, heads, i, layers, x, ids, _mask(ids, docs, window))
        fc, proj = _mlp_weights(fmt, weights, i)
        x = x + (_rms(x) @ fc.T).relu() ** 2 @ proj.T
        outputs.append(x)
    return _rms(x)


def lm_loss(fmt: str, state: Mapping[str, Tensor], features: Tensor, targets: Tensor) -> float:
    """Mean cross-entropy in nats of the capped logits."""
    head = state["lm_head.weight" if fmt == "small" else "lm_head_w"].double()
    z = features @ head.T
    if fmt == "small":
        logits = 30 / (1 + torch.exp(-z / (7.5 * math.sqrt(features.shape[1]))))
    else:
        logits = 15 * z / torch.sqrt(z**2 + 225)
    of_target = logits[torch.arange(len(targets)), targets]
    return float((torch.log(torch.exp(logits).sum(dim=1)) - of_target).mean())


def _attention(
    fmt: str,
    weights: Mapping[str, Tensor],
    heads: int,
    i: int,
    layers: int,
    x: Tensor,
    ids: Tensor,
    mask: Tensor,
) -> Tensor:
    if fmt == "small":
        w_q, w_k, w_v = weights[f"blocks.{i}.attn.qkv_w"]
        w_o = weights[f"blocks.{i}.attn.c_proj.weight"]
        x = _rms(x)
    else:
        w_q, w_k, w_v, w_o = weights[f"blocks.{i}.attn.qkvo_w"]
    own, mixed = weights["scalars"][3 * layers :].view(-1)[2 * i : 2 * i + 2]
    table = i if i < 3 else i - (layers - 3)
    d = len(w_q) // heads
    of_heads = []
    for head in range(heads):
        rows = slice(head * d, (head + 1) * d)
        q, k, v = x @ w_q[rows].T, x @ w_k[rows].T, x @ w_v[rows].T
        q, k = _rotary(_rms(q)), _rotary(_rms(k))
        v = own * (v if fmt == "small" else _rms(v))
        if 0 <= table < 3:
            v = v + mixed * weights[f"value_embeds.{table}.weight"][ids][:, rows]
        scores = (0.12 * q @ k.T).masked_fill(~mask, -math.inf)
        of_heads.append(scores.softmax(dim=1) @ v)
    return torch.cat(of_heads, dim=1) @ w_o.T


def _mask(ids: Tensor, docs: Tensor | None, window: int) -> Tensor:
    """[T, T]: causal, same document, key block > query block - window."""
    position = torch.arange(len(ids))
    query, key = position[:, None], position[None, :]
    mask = (key <= query) & (key // 128 > query // 128 - window)
    return mask if docs is None else mask & (docs[:, None] == docs[None, :])


def _skips(fmt: str, layers: int) -> dict[int, tuple[int, int]]:
    """Block -> (source block, index of the skip weight)."""
    if fmt == "small":
        half = layers // 2
        return {i: (layers - 1 - i, i - half) for i in range(half, layers)}
    return {9: (6, 6), 10: (4, 4), 11: (2, 2)}


def _mlp_weights(fmt: str, weights: Mapping[str, Tensor], i: int) -> tuple[Tensor, Tensor]:
    names = ("c_fc.weight", "c_proj.weight") if fmt == "small" else ("fc_w", "proj_w")
    return tuple(weights[f"blocks.{i}.mlp.{name}"] for name in names)


def _rotary(x: Tensor) -> Tensor:
    """Rotate [T, d] by position; the second half of the frequencies is zero."""
    tokens, d = x.shape
    frequencies = torch.zeros(d // 2, dtype=torch.float64)
    for t in range(d // 4):
        frequencies[t] = 1024.0 ** -(t / (d // 4 - 1))
    theta = torch.arange(tokens)[:, None] * frequencies
    x1, x2 = x[:, : d // 2], x[:, d // 2 :]
    cos, sin = theta.cos(), theta.sin()
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=1)


def _rms(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + 2.0**-23)
