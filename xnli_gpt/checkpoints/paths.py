"""The path of one checkpoint: the best file of globs, and what to give instead of a folder."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed

CHECKPOINT_ENDINGS = ("*.pt", "*.pth", "*.bin", "*.safetensors", "*.ckpt")


def resolve_checkpoint_path(patterns: str | Path | Sequence[str | Path]) -> Path:
    """Return the best file of paths and globs: the lowest `_val…` in the name, without one the
    highest step. Raises CheckpointError where a pattern matches nothing."""
    patterns = [patterns] if isinstance(patterns, str | Path) else patterns
    candidates = []
    for pattern in map(str, patterns):
        # A literal path may hold glob characters.
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches:
            what = "matches no file" if glob.has_magic(pattern) else "no such file"
            raise CheckpointError(f"{pattern}: {what}; give the path of a pretrained checkpoint")
        candidates += [Path(match) for match in matches]
    return min(dict.fromkeys(candidates), key=_preference)


def _preference(path: Path) -> tuple[float, float]:
    loss = re.search(r"_val(\d+(?:\.\d+)?)", path.name)
    step = re.search(r"step(\d+)", path.name)
    return (
        float(loss[1]) if loss else float("inf"),
        -float(step[1]) if step else 0.0,
    )


def told_of_folder(folder: Path) -> str:
    """Return what to give instead of a folder."""
    if any(folder.glob("*.distcp")):
        return (
            f"{folder}: a distributed checkpoint of several ranks; make one file of it by "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pt"
        )
    names = sorted(path.name for ending in CHECKPOINT_ENDINGS for path in folder.glob(ending))
    if not names:
        found = ", ".join(CHECKPOINT_ENDINGS)
        return f"{folder}: a folder, not a file, and without a {found} in it; give a file's path"
    if len(names) == 1:
        return f"{folder}: a folder, not a file; give the checkpoint in it, {folder / names[0]}"
    return (
        f"{folder}: a folder, not a file, with {len(names)} checkpoints ({listed(names)}); give "
        f"one of them, or '{folder}/*.pt' in quotes for the best"
    )
