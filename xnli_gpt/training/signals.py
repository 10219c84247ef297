"""What asks a run to stop: signals, and the exception that they raise."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(BaseException):
    """A signal asked the run to stop. Like KeyboardInterrupt, no handler of errors catches it."""


class StopSignals:
    """SIGTERM, SIGUSR1 and Ctrl-C, within `with`: they raise Stopped at once, and inside of
    `deferred` they are only noted, for the next step boundary to look at."""

    def __init__(self) -> None:
        self.received: str | None = None
        self.raised: Stopped | None = None
        self._deferring = False
        self._earlier: dict = {}

    def __enter__(self) -> StopSignals:
        # Python gives signals to the main thread, and only it may set them.
        if threading.current_thread() is threading.main_thread():
            self._earlier = {s: signal.signal(s, self._receive) for s in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _: object) -> None:
        self.received = signal.Signals(number).name
        if not self._deferring:
            self.raised = Stopped(f"stopped by {self.received} outside of training")
            raise self.raised

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Note signals until the block ends; a second one is noted like the first, and breaks no
        save."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
