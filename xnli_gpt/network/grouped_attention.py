"""A packed row's attention as a batch per group of like length, by matrix products: for CPUs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from xnli_gpt.network.config import GPTConfig, next_multiple
from xnli_gpt.network.masks import attention_rule, dense_mask, window_of
from xnli_gpt.network.packed_row import PackedRow


@dataclass(frozen=True)
class _Group:
    """Examples of like length, padded to one width; the only padding there is."""

    examples: Tensor  # [B], their numbers
    width: int
    real: Tensor  # [B, T], False on padding


class GroupedAttention:
    """A packed row's attention as a batch per group of like length: what suits a CPU."""

    def __init__(self, config: GPTConfig, row: PackedRow):
        self.config, self.shares = config, row.places is not None
        device = row.input_ids.device
        lengths = torch.tensor(row.seq_lens)
        starts = lengths.cumsum(0) - lengths
        shared = None if row.places is None else row.places.cpu()
        self.groups = _groups_of_like_length(lengths)
        # A row [N, H, d] is read as N·H rows of d, in the order of a batch [B, H, T, d].
        heads = torch.arange(config.num_heads)[:, None]  # [H, 1]
        places, real = [], []
        for group in self.groups:
            tokens = starts[group.examples, None] + torch.arange(group.width)  # [B, T]
            tokens = torch.where(group.real, tokens, 0)
            if shared is not None:
                tokens = shared[tokens]
            tokens = tokens[:, None]  # [B, 1, T]
            places.append((tokens * config.num_heads + heads).flatten())  # [B·H·T]
            real.append(group.real[:, None].expand(-1, config.num_heads, -1).flatten())
        index, real = torch.cat(places), torch.cat(real)
        size = len(row.input_ids) * config.num_heads
        copies = real.nonzero()[:, 0]
        if self.shares:
            # A beginning that examples share has a copy in each of them, with the same queries
            # and outputs: the output of the first copy is taken.
            copies = copies[index[copies].argsort(stable=True)]
            counts = torch.bincount(index[copies], minlength=size)
            firsts = counts.cumsum(0) - counts  # [N·H]
            self.copies, self.firsts = copies.to(device), firsts.to(device)
            copies = copies[firsts]
        inverse = torch.empty(size, dtype=torch.int64)
        inverse[index[copies]] = copies
        has_output = torch.zeros_like(real).index_fill_(0, copies, True)
        self.index, self.inverse = index.to(device), inverse.to(device)
        self.index_of_grad = torch.where(has_output, index, size).to(device)

    # Its batches change with every row: compiled code would be made anew each time.
    def __call__(self, q: Tensor, k: Tensor, v: Tensor, layer: int) -> Tensor:
        """Attend: q, k, v [1, N, H, d] -> [1, N, H, d]; q [1, B, H, d] are queries of last tokens
        alone."""
        window = window_of(self.config, layer)
        if q.size(1) != k.size(1):
            return self._from_last_tokens(q, k, v, window)
        return _GroupedProducts.apply(q, k, v, self, window)

    def gathered(self, x: Tensor) -> Tensor:
        """Gather [1, N, H, d] -> [B·H·T of all groups, d], padding filled with anything."""
        return x.reshape(-1, x.size(-1)).index_select(0, self.index)

    def scattered(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Do the inverse of `gathered`."""
        return x.index_select(0, self.inverse).view(shape)

    def summed(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Return the gradient [1, N, H, d] of what `gathered` has copied into x [B·H·T, d]."""
        if not self.shares:
            return self.scattered(x, shape)
        return F.embedding_bag(self.copies, x, self.firsts, mode="sum").view(shape)

    def batches(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield every group's part [B·H, T, d] of each gathered tensor."""
        H = self.config.num_heads
        sizes = [group.real.numel() * H for group in self.groups]
        parts = zip(*(x.split(sizes) for x in tensors), strict=True)
        for group, xs in zip(self.groups, parts, strict=True):
            yield tuple(x.view(len(group.examples) * H, group.width, -1) for x in xs)

    def _from_last_tokens(self, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        H, outputs = self.config.num_heads, []
        gathered = (_Gather.apply(x, self) for x in (k, v))
        for group, (k_group, v_group) in zip(self.groups, self.batches(*gathered), strict=True):
            last = group.real.sum(1, keepdim=True) - 1  # [B, 1]
            keys = torch.arange(group.width)  # [T]
            block = self.config.window_block
            near = keys // block > last // block - window
            masked = ~((keys <= last) & near)  # [B, T]
            masked = masked.repeat_interleave(H, dim=0)[:, None].to(q.device)  # [B·H, 1, T]
            # The filler has no query; any query in its place keeps the batch whole.
            examples = group.examples.clamp(max=q.size(1) - 1).to(q.device)
            queries = q[0, examples].flatten(end_dim=1)[:, None]  # [B·H, 1, d]
            scores = (queries @ k_group.mT).float() * self.config.softmax_scale  # [B·H, 1, T]
            weights = scores.masked_fill(masked, -torch.inf).softmax(-1).type_as(q)
            outputs.append((weights @ v_group).view(len(examples), H, -1))  # [B, H, d]
        order = torch.cat([group.examples for group in self.groups]).argsort()
        return torch.cat(outputs)[order[: q.size(1)].to(q.device)][None]


class _Gather(torch.autograd.Function):
    """`gathered`, with the sum over copies as the backward pass: nothing flows back from
    padding."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, grouped: GroupedAttention) -> Tensor:
        ctx.grouped, ctx.shape = grouped, x.shape
        return grouped.gathered(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.grouped.summed(grad, ctx.shape), None


class _GroupedProducts(torch.autograd.Function):
    """Attention of many short examples, by matrix products.

    For some dozen tokens the scores are smaller than the queries, so keeping them costs nothing;
    the backward pass of the CPU's `scaled_dot_product_attention` takes many times as long.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, q: Tensor, k: Tensor, v: Tensor, grouped: GroupedAttention, window: int
    ) -> Tensor:
        """Attend: q, k, v [1, N, H, d] -> [1, N, H, d]."""
        config, scale = grouped.config, grouped.config.softmax_scale
        gathered = [grouped.gathered(x) for x in (q, k, v)]
        y, weights = torch.empty_like(gathered[0]), []
        for q_group, k_group, v_group, y_group in grouped.batches(*gathered, y):  # [B·H, T, d]
            mask = _score_mask(q_group.size(1), window, config.window_block, q.dtype, q.device)
            scores = torch.baddbmm(mask, q_group, k_group.mT, alpha=scale)  # [B·H, T, T]
            attended = scores.softmax(-1)
            torch.bmm(attended, v_group, out=y_group)
            if any(ctx.needs_input_grad):
                weights.append(attended)
        ctx.grouped = grouped
        ctx.save_for_backward(*gathered, *weights)
        return grouped.scattered(y, q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        grouped, shape = ctx.grouped, grad.shape
        scale = grouped.config.softmax_scale
        # With nothing coming back to it, a padding query sends nothing to real keys.
        zero_row = F.pad(grad.reshape(-1, grad.size(-1)), (0, 0, 0, 1))  # [N·H + 1, d]
        grad = zero_row.index_select(0, grouped.index_of_grad)
        grads = [torch.empty_like(x) for x in (q, k, v)]
        batches = grouped.batches(q, k, v, grad, *grads)
        for attended, (q, k, v, grad, grad_q, grad_k, grad_v) in zip(weights, batches, strict=True):
            torch.bmm(attended.mT, grad, out=grad_v)
            grad_scores = torch.ops.aten._softmax_backward_data(
                grad @ v.mT, attended, -1, attended.dtype
            )  # [B·H, T, T]
            # beta 0: what stands in grad_q and grad_k before is not read.
            torch.baddbmm(grad_q, grad_scores, k, beta=0, alpha=scale, out=grad_q)
            torch.baddbmm(grad_k, grad_scores.mT, q, beta=0, alpha=scale, out=grad_k)
        grad_q, grad_k, grad_v = grads
        return (
            grouped.scattered(grad_q, shape),
            grouped.summed(grad_k, shape),
            grouped.summed(grad_v, shape),
            *(None, None),
        )


@lru_cache(maxsize=64)
def _score_mask(
    width: int, window: int, block: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return what is added to the scores [T, T] of one example: 0 where a query sees a key."""
    allowed = dense_mask(attention_rule(None, window, block=block), width, device)
    return torch.zeros(width, width, dtype=dtype, device=device).masked_fill(~allowed, -torch.inf)


def _groups_of_like_length(lengths: Tensor) -> list[_Group]:
    """Return the examples in groups of one width each, one of a few widths: every shape that a
    matrix product has not met yet costs a CPU's library some milliseconds of code generation."""
    order = lengths.argsort(descending=True, stable=True)
    widths = [_group_width(int(lengths[example])) for example in order]
    groups = []
    for width in dict.fromkeys(widths):
        examples = order[[i for i, other in enumerate(widths) if other == width]]
        real = torch.arange(width) < lengths[examples, None]  # [B, T]
        groups.append(_Group(examples, width, real))
    return groups


def _group_width(length: int) -> int:
    """Round up to 16, 32 and so on to 128, then 160, 192, 224, 256, 320 and so on."""
    return next_multiple(length, max(16, 1 << max(0, (length - 1).bit_length() - 3)))


@cache
def leave_groups_uncompiled() -> None:
    """Keep the compiler out: its shapes are another in every row. The decorator would import the
    compiler for everybody who imports this file."""
    GroupedAttention.__call__ = torch.compiler.disable(GroupedAttention.__call__)
