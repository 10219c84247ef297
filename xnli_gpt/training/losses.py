"""The losses that a recipe can name; each is a row of `LOSSES` and a name in `choices.LOSSES`."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

# The label of an example that counts nothing, which `F.cross_entropy` leaves out of the sum.
IGNORED_LABEL = -100


def cross_entropy(
    logits: Tensor, labels: Tensor, class_weights: Tensor | None, label_smoothing: float
) -> Tensor:
    """Return the summed cross-entropy of logits [B, classes] and labels [B], each example times
    the weight of its class."""
    return F.cross_entropy(
        logits, labels, class_weights, label_smoothing=label_smoothing, reduction="sum"
    )


# logits [B, classes], labels [B], weights [classes] or None, smoothing -> the sum over the
# examples, without those of IGNORED_LABEL
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor | None, float], Tensor]] = {
    "cross_entropy": cross_entropy,
}
