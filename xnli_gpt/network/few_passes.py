"""Norm, rotation and relu² with gradients written by hand, for a CPU that runs them uncompiled.

There every operation is a pass over memory, and torch's own derivatives of these three make more of
them. The compiler fuses the plain formulas by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


def runs_one_by_one(x: Tensor) -> bool:
    """Return whether operations on x run one by one on a CPU."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


class RMSNormInFewPasses(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) over the last dimension."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, eps: float) -> Tensor:
        """Normalise x [..., D], computed in float32 at least."""
        wide = _wide(x)
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)  # [..., 1]
        factor = length.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, factor)
        return (wide * factor).type_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        """Return factor · (grad - x · factor² · mean(grad · x)), with the factor of x."""
        x, factor = ctx.saved_tensors
        wide, wide_grad = _wide(x), _wide(grad)
        share = (wide_grad * wide).sum(-1, keepdim=True).mul_(factor.square()).div_(-x.size(-1))
        return torch.addcmul(wide_grad, wide, share).mul_(factor).type_as(x), None


class RotationInFewPasses(torch.autograd.Function):
    """The rotation of pairs of channels, (x_i, x_{i + d/2}), by angles of which cos and sin are
    given; its gradient is rotated back."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [B, T, H, d] by cos and sin [T, 1, d/2]."""
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient by the same angles in the other direction."""
        return _rotated(grad, *ctx.saved_tensors, -1), None, None


class ReluSquaredInFewPasses(torch.autograd.Function):
    """relu(x)²."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        """Return relu(x)², in the shape of x."""
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        """Return 2 · relu(x) · grad."""
        (positive,) = ctx.saved_tensors
        return (grad * positive).mul_(2)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    wide = _wide(x)
    rotated = torch.empty_like(wide, memory_format=torch.contiguous_format)
    (x1, x2), (y1, y2) = wide.chunk(2, dim=-1), rotated.chunk(2, dim=-1)  # [B, T, H, d/2] each
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=direction)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=-direction)
    return rotated.type_as(x)
