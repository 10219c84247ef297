"""What a run shows of its progress: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from xnli_gpt.training.state import TrainState

# Without a terminal a line comes this often, and in a run of hours up to so rarely.
SECONDS_BETWEEN_LINES = (10.0, 60.0)
# A run of ten minutes has a line every 20 seconds.
LINE_INTERVALS_OF_A_RUN = 30


class LineTimes:
    """When a line of progress is due where there is no terminal."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.started = self.last_line = self.last_step = clock()
        self.has_steps = False

    def is_due_after_step(self) -> bool:
        """Return whether a line is due after a step: the first has one, and then there is none
        before it would be late; a step that takes longer than the interval has a line of its
        own."""
        now = self.clock()
        step_seconds, self.last_step = now - self.last_step, now
        first, self.has_steps = not self.has_steps, True
        shortest, longest = SECONDS_BETWEEN_LINES
        interval = min(longest, max(shortest, (now - self.started) / LINE_INTERVALS_OF_A_RUN))
        return first or now + step_seconds - self.last_line >= interval

    def note_line(self) -> None:
        """Count from here: a line was said."""
        self.last_line = self.last_step = self.clock()


class ProgressLine:
    """A bar on a terminal; elsewhere plain lines, at the times of `LineTimes`."""

    def __init__(self, num_steps: int, first_step: int):
        self.num_steps, self.first_step = num_steps, first_step
        self.bar = tqdm(
            total=num_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True
        )
        self.times = LineTimes()
        self.started = time.perf_counter()
        self.evaluation_seconds: float | None = None
        # The last one looked at: showing must not make the host wait for a GPU.
        self.loss: float | None = None

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, state: TrainState, epoch: float) -> None:
        """Show how far training is: on a terminal in its bar, else as a line now and then."""
        speed, rate = state.recent.examples_per_second, state.learning_rate
        self.loss = state.losses[-1] if state.losses else self.loss
        # No loss yet is no loss of nan.
        loss = "" if self.loss is None else f"loss {self.loss:.4f}, "
        if not self.bar.disable:
            self.bar.update()
            self.bar.set_postfix_str(f"{loss}lr {rate:.1e}, {speed:.0f} examples/s", refresh=False)
        elif self.times.is_due_after_step() or state.step == self.num_steps:
            elapsed = time.perf_counter() - self.started
            own_steps = state.step - self.first_step
            left = elapsed / own_steps * (self.num_steps - state.step)
            self.say(
                f"step {state.step}/{self.num_steps}, epoch {epoch:.2f}: "
                f"{loss}lr {rate:.2e}, {speed:.1f} examples/s, {left:.0f} s left"
            )

    @contextlib.contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Say that an evaluation begins, where it may be long: the first, or as the last was."""
        seconds = self.evaluation_seconds
        if seconds is None:
            self.say(f"step {step}: evaluating on the validation split")
        elif seconds >= SECONDS_BETWEEN_LINES[0]:
            self.say(f"step {step}: evaluating on the validation split, about {seconds:.0f} s")
        started = time.perf_counter()
        yield
        self.evaluation_seconds = time.perf_counter() - started

    def say(self, sentence: str) -> None:
        """Print a line, above the bar where there is one."""
        self.bar.write(sentence, file=sys.stdout)
        sys.stdout.flush()
        self.times.note_line()
