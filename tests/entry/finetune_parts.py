"""What the tests of the fine-tuning command share: its words, and the files that it leaves."""

import json
import os
from pathlib import Path

import torch

import finetune_hindi_xnli as finetune

PROJECT = Path(finetune.__file__).parent
FLAGS = [flag for group in finetune.COMMAND.flags.values() for flag in group]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(out_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


def load_saved(out_dir: Path) -> dict:
    (path,) = out_dir.glob("*-ckpt.pt")
    return torch.load(path, weights_only=True)


def scores_in(results: dict) -> dict:
    return {split: results[split] for split in ("validation", "test")}


def error_lines(argv: list[str], capsys, code: int = 2) -> list[str]:
    """The lines on stderr of a command that must fail, each of them an error."""
    assert finetune.main([str(word) for word in argv]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), lines
    return lines


def subprocess_environment(**others: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | others


def weights_of(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_saved(out_dir)["model"]
