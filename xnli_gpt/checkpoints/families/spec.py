"""What a family of checkpoints is: its table, its facts, and the clues that tell it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from xnli_gpt.checkpoints.pickles import Inert
from xnli_gpt.checkpoints.rules import TensorRule

# The block that scripts of the line leave without attention.
LONE_BLOCK = 7


@dataclass(frozen=True)
class Clues:
    """What a file tells beside its names: sizes by their letters, the tensors themselves, what
    stands beside the weights in the file, and the JSON files beside it."""

    sizes: Mapping[str, int]
    tensors: Mapping[str, Tensor]
    beside: Mapping[str, object]

    @property
    def code(self) -> str:
        """Return the script's source text, or nothing."""
        code = self.beside.get("code")
        return code if isinstance(code, str) else ""

    def setting(self, *names: str) -> object:
        """Return a value of a configuration beside the weights, by the first name that it has."""
        for place in ("config", "model_args", "model_config", "config.json"):
            found = self.beside.get(place)
            # An object of the script's, of which its attributes are left.
            found = found.state if isinstance(found, Inert) else found
            for name in names:
                if isinstance(found, Mapping) and found.get(name) is not None:
                    return found[name]
        return None

    def is_called_with(self, pattern: str) -> bool:
        """Return whether a pattern stands in the script's source."""
        return re.search(pattern, self.code) is not None


def facts_without_extras(num_layers: int, longest: int, head_dim: int) -> dict[str, object]:
    """Return the facts of a network without skips, value embeddings, windows and mixes."""
    layers = tuple(range(num_layers))
    return {
        "norm_attention_input": True,
        "norm_values": False,
        "skips": (),
        "attention_layers": layers,
        "value_embed_layers": (),
        "long_window_layers": layers,
        "windows": (longest, longest),
        "window_block": 1,
        "logit_cap": "none",
        "softmax_scale": head_dim**-0.5,
        "flat_qkv": True,
        "mixes": False,
    }


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    `facts` gives the fields of `GPTConfig` in which it differs from small, of the clues, or raises
    ValueError for a size that its script can't have trained;
    `objection` a sentence why a file with all its names is not of it, or None; `heads` the number
    of heads, or None where nothing tells: then heads are of `usual_head_dim`, unless a user says
    otherwise. `tables` counts value embeddings of `{t}` in names.
    `finish` makes of converted tensors what the network has, where that is more than a renaming.
    """

    name: str
    rules: tuple[TensorRule, ...]
    facts: Callable[[Clues], dict[str, object]]
    heads: Callable[[Clues], int | None]
    objection: Callable[[Clues], str | None] = lambda clues: None
    finish: Callable[[dict[str, Tensor], Clues], None] = lambda state, clues: None
    tables: int = 3
    has_lone_block: bool = False
    usual_head_dim: int | None = None
