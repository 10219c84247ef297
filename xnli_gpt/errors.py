"""What every error that a command tells its user has in common, and the exit codes of commands."""

from __future__ import annotations

EXIT_FAILED, EXIT_REFUSED = 1, 2


class XNLIError(Exception):
    """What was asked can't be done, or did not succeed; the message says why and what to do.

    A command prints the message as a line that begins with "error:" and ends with `exit_code`.
    """

    exit_code = EXIT_REFUSED


class CheckpointError(XNLIError, ValueError):
    """A checkpoint can't be used; the message says the file, what was found and what to do."""
