"""Classification heads by name; each is a row of `HEADS` and a name in `choices.HEADS`."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MLPHead(nn.Module):
    """The group's head: Linear(D, D/2), ReLU, dropout, Linear(D/2, classes)."""

    def __init__(self, model_dim: int, num_classes: int):
        super().__init__()
        self.hidden = nn.Linear(model_dim, model_dim // 2)
        self.output = nn.Linear(model_dim // 2, num_classes)

    def forward(self, pooled: Tensor, dropout_mask: Tensor | None = None) -> Tensor:
        """Return logits [B, classes] of pooled features [B, D]; dropout_mask [B, D/2]."""
        hidden = F.relu(self.hidden(pooled))  # [B, D/2]
        if dropout_mask is not None:
            hidden = hidden * dropout_mask
        return self.output(hidden)


# Made of the width D and the number of classes. The last layer is called `output`; its inputs are
# what dropout masks.
HEADS: dict[str, type[nn.Module]] = {"mlp": MLPHead}
