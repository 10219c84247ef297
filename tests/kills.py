"""Kills a run at random instants, resumes it each time, and compares it with one left alone.

    python tests/kills.py [--kills 50] [--seed 0] [--folder F]

A kill is a SIGKILL. It comes at a random moment of training, every other one while a file is
written. What has to be the same is every weight, metrics.jsonl, steps.jsonl and results.json, times
aside.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path

import small_run
import torch
from limits import HANG_S

PROJECT = Path(__file__).resolve().parents[1]
TIMES = ("examples_per_second", "train_seconds")
CHANGES = (
    *("--eval_interval", 5, "--save_interval", 2, "--batch_size", 3, "--seed", 5),
    *("--gradient_accumulation_steps", 3, "--max_tokens_per_batch", 200),
)
# Between two kills a run gets through some six steps.
STEPS_PER_KILL = 6


def command(assets: types.SimpleNamespace, out_dir: Path, kills: int) -> list[str]:
    """A run that is long enough for so many kills."""
    return small_run.command(assets, out_dir, *CHANGES, "--max_steps", STEPS_PER_KILL * kills)


def die_with_parent() -> None:
    """Let Linux kill this process when the one that started it ends: no run is left behind."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


def held_at(step: int) -> str:
    """What a run says that waits for a signal, because HOLD_AT was `step`."""
    return f"step {step} is done; waiting for a signal"


def start(words: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """The command as a user gives it, its output added to `log`; with HOLD_AT as held_run.py."""
    held = [PROJECT / "tests/held_run.py"] if "HOLD_AT" in environment else []
    with open(log, "ab") as output:
        return subprocess.Popen(
            [sys.executable, *held, PROJECT / "finetune_hindi_xnli.py", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment,
            preexec_fn=die_with_parent,
        )


def wait_for(text: str, log: Path, process: subprocess.Popen, start_at: int = 0) -> bool:
    """Whether `text` came into `log` before the process ended."""
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        if text.encode() in log.read_bytes()[start_at:]:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    raise TimeoutError(f"no {text!r} within {HANG_S} s:\n{log.read_text()}")


def wait_for_a_write(out_dir: Path, process: subprocess.Popen) -> None:
    while process.poll() is None and not next(out_dir.glob("*.partial"), None):
        time.sleep(0.0002)


def without_times(values: dict) -> dict:
    """What two runs must have in common of `values`."""
    return {key: value for key, value in values.items() if key not in TIMES}


def outcome(out_dir: Path) -> dict:
    """What two runs must have in common."""
    (checkpoint,) = out_dir.glob("*-ckpt.pt")
    (last,) = out_dir.glob("*-last.pt")
    lines = (out_dir / "metrics.jsonl").read_text().splitlines()
    steps = (out_dir / "steps.jsonl").read_text()
    return {
        "best": torch.load(checkpoint, weights_only=True)["model"],
        "last": torch.load(last, weights_only=True)["model"],
        "results": without_times(json.loads((out_dir / "results.json").read_text())),
        "metrics": [without_times(json.loads(line)) for line in lines],
        "steps": steps,
    }


def differences(one: dict, two: dict) -> list[str]:
    """Names of what is not the same to the last bit."""
    found = [key for key in ("results", "metrics", "steps") if one[key] != two[key]]
    for model in ("best", "last"):
        if one[model].keys() != two[model].keys():
            found.append(f"{model}: other weights")
        found += [
            f"{model}: {name}"
            for name, tensor in one[model].items()
            if not torch.equal(tensor, two[model].get(name))
        ]
    return found


def kill_and_resume(words: list[str], out_dir: Path, kills: int, seed: int) -> Counter:
    """Run to the end with `kills` SIGKILLs on the way; counts what the kills hit."""
    choice = random.Random(seed)
    log = out_dir.with_suffix(".log")
    log.touch()
    hits: Counter = Counter()
    while sum(hits.values()) < kills:
        begin = log.stat().st_size
        process = start(words, log)
        if wait_for("training on", log, process, begin):
            time.sleep(choice.uniform(0, 0.5))
            if choice.random() < 0.5:
                wait_for_a_write(out_dir, process)
        if process.poll() is not None:
            hits["found it finished"] += 1
            assert process.returncode == 0, log.read_text()
            continue
        process.kill()
        process.wait()
        writing = next(out_dir.glob("*.partial"), None)
        hits["while writing " + writing.name if writing else "between writes"] += 1
    process = start(words, log)
    assert process.wait() == 0, log.read_text()
    return hits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    folder.mkdir(parents=True, exist_ok=True)
    assets = small_run.make_assets(folder)
    whole = command(assets, folder / "whole", arguments.kills)
    assert start(whole, folder / "whole.log").wait() == 0, (folder / "whole.log").read_text()
    words = command(assets, folder / "killed", arguments.kills)
    hits = kill_and_resume(words, folder / "killed", arguments.kills, arguments.seed)
    found = differences(outcome(folder / "whole"), outcome(folder / "killed"))
    print(f"{sum(hits.values())} kills: {dict(hits)}")
    print(f"differences: {', '.join(found) or 'none'} ({folder})")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
