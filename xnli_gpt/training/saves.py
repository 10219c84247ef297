"""Saves: when they are written, their two files, and the states of random generators."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from xnli_gpt.errors import RunError
from xnli_gpt.files import SAVE_KIND, read_whole, sync_folder, torch_writer, written_beside
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.mixing import split_scalars

SECONDS_BETWEEN_SAVES = 600


class SaveTimes:
    """When a save is due: every `interval` steps, or for None every ten minutes."""

    def __init__(self, interval: int | None, step: int):
        self.interval = interval
        self.note(step)

    def note(self, step: int) -> None:
        """Count from here: a save was written."""
        self.last_step, self.last_time = step, time.monotonic()

    def due_at(self, step: int) -> bool:
        """Return whether a save is due at a step."""
        if step == self.last_step:
            return False
        if self.interval is not None:
            return step % self.interval == 0
        return time.monotonic() - self.last_time >= SECONDS_BETWEEN_SAVES


def random_states() -> dict:
    """Return the state of every generator there is, in types that load with `weights_only=True`."""
    words = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (words[0], words[1].tolist(), *words[2:]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_states(states: Mapping[str, object]) -> None:
    """Put every generator where `random_states` found it."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])


class Saves:
    """NAME-last.pt in a run's folder, and the one before it as NAME-prev.pt."""

    def __init__(self, folder: Path, name: str):
        self.last, self.previous = folder / f"{name}-last.pt", folder / f"{name}-prev.pt"

    def write(self, content: Mapping[str, object]) -> None:
        """Write `content` as NAME-last.pt. At every instant one of the two is whole."""
        partial = written_beside(self.last, torch_writer({"kind": SAVE_KIND} | dict(content)))
        if self.last.exists():
            os.replace(self.last, self.previous)
        os.replace(partial, self.last)
        sync_folder(self.last.parent)

    def newest(self) -> tuple[Path, dict] | None:
        """Return the newest whole save and its content; say so where one is damaged.

        None where there is no save. Raises RunError where all that there are are damaged.
        """
        damages = []
        for path in (self.last, self.previous):
            try:
                if path.exists():
                    return path, read_save(path)
            except RunError as error:
                print(f"note: {error}; looking for the save before it")
                damages.append(path.name)
        if damages:
            raise RunError(
                f"{self.last.parent}: no save is whole ({', '.join(damages)}): remove them to "
                "begin anew"
            )
        return None


def read_save(path: Path) -> dict:
    """Return the content of a save. Raises RunError where it is damaged, or no save."""
    content = read_whole(path)
    if not isinstance(content, dict) or content.get("kind") != SAVE_KIND:
        raise RunError(f"{path}: not a save to resume from")
    return content


def moments_by_names(save: Mapping, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Return the optimizer's state that a save holds.

    Older versions had the mixing weights of the trunk in one tensor, `scalars`, the first of its
    group, whose moments are split here as its values are.
    """
    saved = save["optimizer"]
    if "pretrained_model.scalars" not in save["model"]:
        return saved
    trunk = model.pretrained_model
    names = {id(getattr(trunk, name)): name for name in trunk.config.mixing_weights}
    groups, moments = [], []
    for own, earlier in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        begin, numbers = len(moments), list(earlier["params"])
        parts = [names[id(parameter)] for parameter in own["params"] if id(parameter) in names]
        if parts:
            of_scalars = saved["state"].get(numbers.pop(0), {})
            moments += [_part_of(of_scalars, name, trunk.config) for name in parts]
        moments += [saved["state"].get(number, {}) for number in numbers]
        groups.append({**earlier, "params": list(range(begin, len(moments)))})
    state = {number: of_one for number, of_one in enumerate(moments) if of_one}
    return {"state": state, "param_groups": groups}


def _part_of(moments: Mapping[str, Tensor], name: str, config: GPTConfig) -> dict[str, Tensor]:
    """Return the moments of one part of `scalars`, and the number of updates as it is."""
    return {
        key: split_scalars(value, config)[name] if value.dim() else value.clone()
        for key, value in moments.items()
    }
