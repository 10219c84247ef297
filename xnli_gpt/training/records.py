"""What a run leaves while it trains: steps.jsonl, metrics.jsonl, best models, saves, loggers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from xnli_gpt.files import save_atomically, save_checkpoint
from xnli_gpt.training.run_folder import RunFolder, keep_as_earlier
from xnli_gpt.training.state import TrainState

# Who follows a run with `tail -f` sees its steps so late at most.
SECONDS_BETWEEN_WRITES = 10.0
# Takes scalars by their names, and their step.
Logger = Callable[[Mapping[str, float], int], None]


class Records:
    """What a run leaves; this base class, of other ranks than the main process, leaves nothing."""

    def add_step(self, step: int, numbers: Mapping[str, object]) -> None:
        """Write one step's numbers; None for those that are not finite."""

    def add_evaluation(self, state: TrainState, line: dict) -> None:
        """Write the line of one evaluation."""

    def keep_best(self, state: TrainState, metrics: dict) -> None:
        """Write the best model so far."""

    def write_save(self, content: Mapping[str, object]) -> None:
        """Write a save to resume from."""

    def flush(self, to_disk: bool = False) -> None:
        """Write what waits; `to_disk`, so that it outlives a power cut."""


@dataclass
class RunRecords(Records):
    """The records of a run in its folder, with every model that is the best so far.

    `in_checkpoints` and `in_saves` are what every fine-tuned checkpoint and every save holds
    besides weights and state. With `is_better`, the best model of each dataset is kept, too;
    with `keeps_earlier`, also the best before an evaluation that a longer run would not have had.
    """

    folder: RunFolder
    model: nn.Module
    in_checkpoints: Mapping[str, object]
    in_saves: Mapping[str, object]
    loggers: list[Logger] = field(default_factory=list)
    logged_metrics: Sequence[str] = ()
    is_better: Callable[[dict, dict | None], bool] | None = None
    keeps_earlier: bool = False

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self.writer = ModelWriter(device, in_background=device.type == "cuda")

    def begin(self, state: TrainState) -> None:
        """Bring the files to where the run goes on from: what comes after will be written again."""
        earlier = "".join(map(_as_json_line, state.lines))
        save_atomically(self.folder.metrics, lambda partial: partial.write_text(earlier))
        self.steps = StepLog(self.folder.steps, self.loggers)
        self.steps.begin(state.step)

    def add_step(self, step: int, numbers: Mapping[str, object]) -> None:
        """Write one step's numbers; None for those that are not finite."""
        self.steps.add(step, numbers)

    def add_evaluation(self, state: TrainState, line: dict) -> None:
        """Write the line of one evaluation, and keep the best model of each dataset."""
        metrics = line["validation"]
        if self.is_better is not None:
            self._keep_best_of_sets(state, metrics.get("sets", {}))
        # r+ raises where the file has vanished with its folder; a would begin an empty one.
        with open(self.folder.metrics, "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.write(_as_json_line(line))
        scalars = {key: value for key, value in line.items() if isinstance(value, int | float)}
        scalars |= {f"validation/{name}": metrics[name] for name in self.logged_metrics}
        for log in self.loggers:
            log(scalars, state.step)

    def keep_best(self, state: TrainState, metrics: dict) -> None:
        """Write the best model so far, with everything that using it needs."""
        self._keep(self.folder.best(), state, metrics)

    def write_save(self, content: Mapping[str, object]) -> None:
        """Write a save to resume from."""
        self.folder.saves.write({**content, **self.in_saves})

    def flush(self, to_disk: bool = False) -> None:
        """Write what waits; `to_disk`, so that it outlives a power cut."""
        self.steps.flush(to_disk)
        if to_disk:
            self.writer.wait()

    def _keep(self, path: Path, state: TrainState, metrics: dict) -> None:
        if self.keeps_earlier and state.before_last is not None:
            # The earlier one may still be written.
            self.writer.wait()
            keep_as_earlier(path)
        others = {**self.in_checkpoints, "step": state.step, "metrics": metrics}
        self.writer.write(path, self.model.state_dict(), others)

    def _keep_best_of_sets(self, state: TrainState, sets: Mapping[str, dict]) -> None:
        for name, metrics in sets.items():
            best = state.best_of_sets.get(name)
            if self.is_better(metrics, best and best["metrics"]):
                self._keep(self.folder.best(name), state, metrics)
                state.best_of_sets[name] = {"step": state.step, "metrics": metrics}


class ModelWriter:
    """Writes models as they are when they are handed over.

    In the background a thread writes a copy on the device, which takes as much memory again; a file
    takes seconds, for which training would stand still.
    """

    def __init__(self, device: torch.device, in_background: bool):
        self.thread = ThreadPoolExecutor(1) if in_background else None
        # The thread's copies to the host would else wait for the steps that are queued.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.begun: Future | None = None

    def write(self, path: Path, state: Mapping[str, Tensor], others: Mapping[str, object]) -> None:
        """Write a checkpoint of a model's `state` and `others`, or begin to."""
        self.wait()
        copied = None if self.thread is None else _copied(state)
        if copied is None:
            save_checkpoint(path, {**others, "model": state})
            return
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream())
        self.begun = self.thread.submit(self._save, path, {**others, "model": copied})

    def wait(self) -> None:
        """Wait until the last file is written; raise what went wrong with it."""
        begun, self.begun = self.begun, None
        if begun is not None:
            begun.result()

    def _save(self, path: Path, content: Mapping[str, object]) -> None:
        with torch.cuda.stream(self.stream):
            save_checkpoint(path, content)


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return copies of tensors; None where memory does not suffice."""
    try:
        return {name: tensor.clone() for name, tensor in state.items()}
    except torch.OutOfMemoryError:
        return None


class StepLog:
    """steps.jsonl: a line of JSON a step, in the order of the steps.

    Lines are kept in memory until `flush`, or for some seconds. `loggers` get every step's numbers
    at once. `path` is made by `begin`.
    """

    def __init__(self, path: Path, loggers: list[Logger]):
        self.path, self.loggers = path, loggers
        self._waiting: list[str] = []
        self._last_write = time.monotonic()

    def begin(self, step: int) -> None:
        """Cut off what was written after `step`, from where the run goes on; 0 for a new run.

        What is left is a prefix of the file, so a kill leaves the old file or the new one.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        with open(descriptor, "r+b") as file:
            kept = 0
            for line in file:
                if _step_of(line) is None or _step_of(line) > step:
                    break
                kept += len(line)
            file.truncate(kept)

    def add(self, step: int, numbers: Mapping[str, object]) -> None:
        """Note one step's numbers; None for those that are not finite."""
        self._waiting.append(_as_json_line({"step": step, **numbers}))
        scalars = {name: v for name, v in numbers.items() if isinstance(v, float)}
        for log in self.loggers:
            log(scalars, step)
        if time.monotonic() - self._last_write >= SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self, to_disk: bool = False) -> None:
        """Write what waits; `to_disk`, so that it outlives a power cut."""
        text, self._waiting = "".join(self._waiting), []
        self._last_write = time.monotonic()
        # r+ raises where the file has vanished with its folder; a would begin an empty one.
        with open(self.path, "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.write(text)
            file.flush()
            if to_disk:
                os.fsync(file.fileno())


def _as_json_line(line: Mapping[str, object]) -> str:
    return json.dumps(line) + "\n"


def _step_of(line: bytes) -> int | None:
    """Return the step of a line; None for half a line, and what is none of ours."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
