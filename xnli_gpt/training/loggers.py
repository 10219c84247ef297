"""Loggers that show a run elsewhere: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from xnli_gpt.errors import UsageError
from xnli_gpt.training.options import RunOptions
from xnli_gpt.training.records import Logger


def require_loggers(options: RunOptions) -> None:
    """Raise UsageError for a logger that is asked for and not installed."""
    needed = {"tensorboard": options.tensorboard, "wandb": options.wandb_log}
    missing = [name for name, on in needed.items() if on and not importlib.util.find_spec(name)]
    if missing:
        raise UsageError([f"{name} is not installed: pip install {name}" for name in missing])


def open_loggers(
    options: RunOptions, configuration: Mapping[str, object], first_step: int
) -> list[Logger]:
    """Return the loggers asked for; what they have beyond `first_step` comes again."""
    loggers = []
    if options.tensorboard:
        loggers.append(_tensorboard(options.out_dir / "tensorboard", first_step))
    if options.wandb_log:
        import wandb

        folder = str(options.out_dir)
        run = wandb.init(project="hindi-xnli", dir=folder, config=dict(configuration))
        loggers.append(lambda scalars, step: run.log(scalars, step=step))
    return loggers


def _tensorboard(folder: Path, first_step: int) -> Logger:
    from torch.utils.tensorboard import SummaryWriter

    resumed = {"purge_step": first_step + 1} if first_step else {}
    writer = SummaryWriter(str(folder), **resumed)

    def log(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
        # Steps are written by the library, some minutes late.
        if "train_loss" in scalars:
            writer.flush()

    return log
