"""A whole state dict under our names, as loading makes it tensor by tensor."""

from collections.abc import Mapping

from torch import Tensor

from xnli_gpt.checkpoints.conversion import empty_targets, part_of, parts_by_target


def converted_state(fmt: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a format's tensors under our names, as float32 copies."""
    parts = list(parts_by_target(fmt, state))
    converted = empty_targets(parts, "cpu")
    for target, _, part, place in parts:
        part_of(converted[target], place).copy_(part)
    return converted
