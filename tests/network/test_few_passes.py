"""Gradients written by hand are those that torch derives from the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from xnli_gpt.network.config import RMS_EPS
from xnli_gpt.network.few_passes import runs_one_by_one
from xnli_gpt.network.layers import relu_squared, rms_norm, rotate

T, H, D = 7, 3, 16


def angles() -> torch.Tensor:
    return torch.rand(T, 1, D // 2, generator=torch.Generator().manual_seed(1)) * 6


def plain_rotation(x: torch.Tensor) -> torch.Tensor:
    cos, sin = angles().cos(), angles().sin()
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)


BY_HAND_AND_PLAIN = {
    "norm": (rms_norm, lambda x: F.rms_norm(x, (D,), eps=RMS_EPS)),
    "rotation": (lambda x: rotate(x, (angles().cos(), angles().sin())), plain_rotation),
    "relu squared": (relu_squared, lambda x: F.relu(x).square()),
}


def random_input(dtype: torch.dtype, name: str = "") -> torch.Tensor:
    x = torch.randn(2, T, 2 * H, D, generator=torch.Generator().manual_seed(0))
    x[0, 0] *= 1e-4  # where eps counts
    # A piece of a larger tensor, as of queries, keys and values.
    return x.to(dtype)[:, :, H:]


def output_and_gradient(function, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    y.backward(weights)
    return y.detach(), x.grad


@pytest.mark.parametrize("name", BY_HAND_AND_PLAIN)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-6), (torch.bfloat16, 2**-7), (torch.float16, 2**-10)],
)
def test_outputs_and_gradients_are_those_of_the_plain_formula(name, dtype, tolerance):
    by_hand, plain = BY_HAND_AND_PLAIN[name]
    x = random_input(dtype)
    for ours, theirs in zip(
        output_and_gradient(by_hand, x), output_and_gradient(plain, x.double()), strict=True
    ):
        assert ours.dtype is dtype
        scale = theirs.abs().amax(dim=-1, keepdim=True).clamp(min=1e-2)
        assert ((ours.double() - theirs).abs() / scale).max() <= tolerance


@pytest.mark.parametrize("name", BY_HAND_AND_PLAIN)
def test_gradients_are_right_by_differences(name):
    x = random_input(torch.float64)[:1, :, :1].clone().requires_grad_()
    if name == "rotation":
        # Its tables are float32; so large a step makes their rounding small.
        assert torch.autograd.gradcheck(BY_HAND_AND_PLAIN[name][0], x, eps=1e-3, atol=1e-6)
        return
    # Not across relu's kink, and not where eps bends the norm.
    x = (x.detach().sign() * (x.detach().abs() + 0.1)).requires_grad_()
    assert torch.autograd.gradcheck(BY_HAND_AND_PLAIN[name][0], x)


def test_compiled_and_exported_code_has_the_plain_formulas():
    class Network(torch.nn.Module):
        def forward(self, x):
            seen.append(runs_one_by_one(x))
            return relu_squared(rms_norm(x))

    seen: list[bool] = []
    x = torch.randn(4, D)
    torch.export.export(Network(), (x,))
    assert seen == [False]
    Network()(x)
    assert seen == [False, True]
