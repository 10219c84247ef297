"""Runs that are stopped, and what they leave."""

import hashlib
import shutil
from pathlib import Path

import pytest
import small_run
import torch

import finetune_hindi_xnli as finetune

PROJECT = Path(finetune.__file__).parent
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")


BASE = ("--max_steps", 12, "--eval_interval", 4, "--save_interval", 3)
# What must come through a save besides the plain recipe's state.
RECIPES = {
    "plain": (),
    "lazy": ("--embedding_update", "lazy"),
    "float16": ("--dtype", "float16"),
    "grouped": ("--group_premises",),
    "weighted": ("--class_weights", "balanced", "--label_smoothing", 0.1, "--dropout", 0.4),
    "frozen": ("--freeze_backbone",),
    "patient": ("--early_stopping", 2, "--best_metric", "loss"),
}


def run(assets, out_dir: Path, *changes: object) -> int:
    return finetune.main(small_run.command(assets, out_dir, *BASE, *changes))


def stopped_run(assets, out_dir: Path, signal_at, step: int, *changes: object) -> Path:
    signal_at(step)
    assert run(assets, out_dir, *changes) == finetune.EXIT_STOPPED
    signal_at(0)
    return out_dir


def save_of(out_dir: Path, which: str = "last") -> dict:
    (path,) = out_dir.glob(f"*-{which}.pt")
    return torch.load(path, weights_only=True)


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file but the lock, which holds a process's number."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def error_line(capsys, words: list, code: int = 2) -> str:
    assert finetune.main([str(word) for word in words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line
