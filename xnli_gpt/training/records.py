"""What a run writes down of every step: steps.jsonl, and how fast the recent ones were."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

# Who follows a run with `tail -f` sees its steps so late at most.
SECONDS_BETWEEN_WRITES = 10.0
# The rate that is shown is that of so much time of training.
RECENT_SECONDS = 60.0


class StepLog:
    """steps.jsonl: a line of JSON a step, in the order of the steps.

    Lines are kept in memory until `flush`, or for some seconds. `sinks` get every step's numbers
    at once. `path` is made with the first flush.
    """

    def __init__(self, path: Path, sinks: list[Callable[[Mapping[str, float], int], None]]):
        self.path, self.sinks = path, sinks
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
        self._waiting.append(json.dumps({"step": step, **numbers}) + "\n")
        scalars = {name: v for name, v in numbers.items() if isinstance(v, float)}
        for sink in self.sinks:
            sink(scalars, step)
        if time.monotonic() - self._last_write >= SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self, to_disk: bool = False) -> None:
        """Write what waits; `to_disk`, so that it outlives a power cut."""
        text, self._waiting = "".join(self._waiting), []
        self._last_write = time.monotonic()
        # Not made anew where it has vanished with its folder: that is an error.
        with open(self.path, "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.write(text)
            file.flush()
            if to_disk:
                os.fsync(file.fileno())


def _step_of(line: bytes) -> int | None:
    """Return the step of a line; None for half a line, and what is none of ours."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


class RecentRate:
    """Examples per second of the last steps of this process: what an earlier process took, or the
    compiling of the first step, is soon forgotten."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()
        self._seconds, self._examples = 0.0, 0

    def add(self, seconds: float, examples: int) -> None:
        """Take in a step."""
        self._steps.append((seconds, examples))
        self._seconds += seconds
        self._examples += examples
        while len(self._steps) > 1 and self._seconds - self._steps[0][0] >= RECENT_SECONDS:
            old_seconds, old_examples = self._steps.popleft()
            self._seconds -= old_seconds
            self._examples -= old_examples

    @property
    def examples_per_second(self) -> float:
        """0 before the first step."""
        return self._examples / self._seconds if self._seconds > 0 else 0.0
