"""What every error that a command tells its user has in common, and the exit codes of commands."""

from __future__ import annotations

from collections.abc import Sequence

EXIT_FAILED, EXIT_REFUSED = 1, 2
# What a shell says of a process that Ctrl-C ended.
EXIT_INTERRUPTED = 130


class XNLIError(Exception):
    """What was asked can't be done, or did not succeed; the message says why and what to do.

    A command prints the message as a line that begins with "error:" and ends with `exit_code`; the
    name of an option in backticks is printed as its flag.
    """

    exit_code = EXIT_REFUSED

    @property
    def problems(self) -> list[str]:
        """Return the messages, one a line."""
        return [str(self)]


class UsageError(XNLIError, ValueError):
    """What was asked can't be done; one problem a line."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self._problems = list(problems)

    @property
    def problems(self) -> list[str]:
        """Return the messages, one a line."""
        return self._problems


class TrainingError(XNLIError, RuntimeError):
    """Training can't go on; the message says what was seen and what to try."""

    exit_code = EXIT_FAILED


class EvaluationError(XNLIError, ValueError):
    """A model can't be scored; the message says what was seen and what to try."""

    exit_code = EXIT_FAILED


class RunError(XNLIError, ValueError):
    """A save, an output folder or a group of processes can't be used; the message says why."""


class PredictionsError(XNLIError, ValueError):
    """Predictions that can't be used, or are not of the data they are matched with."""


class DataError(XNLIError, ValueError):
    """Data or tokenizer can't be used; the message says where, what was found and what to do."""


class CheckpointError(XNLIError, ValueError):
    """A checkpoint can't be used; the message says the file, what was found and what to do."""


class ExportError(XNLIError, ValueError):
    """A checkpoint can't be exported; the message says why and what to do."""
