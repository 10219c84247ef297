"""Whether a run is compiled, and whether the machine can compile at all."""

from __future__ import annotations

import torch

from xnli_gpt.devices import keep_compiled_code_apart
from xnli_gpt.errors import UsageError
from xnli_gpt.messages import reason_of

# Compiling takes about a minute; shorter runs are done sooner without it.
STEPS_WORTH_COMPILING = 300


def is_compiled(choice: str, device: torch.device, num_steps: int) -> bool:
    """Return whether a run of so many steps is compiled; `choice` is auto, always or never.

    Raises UsageError where it was asked for and can't be.
    """
    if choice == "never" or (choice == "auto" and num_steps < STEPS_WORTH_COMPILING):
        return False
    reason = _why_not_compile(device)
    if reason is not None and choice == "always":
        raise UsageError(
            [f"`compile` always: {reason}; install a compiler (g++ for a CPU) or say never"]
        )
    if reason is not None:
        print(f"note: not compiled ({reason}): slower, with the same result")
    return reason is None


def _why_not_compile(device: torch.device) -> str | None:
    """Return what goes wrong when a small function is compiled; None where nothing does."""
    if device.type == "cpu":
        keep_compiled_code_apart()
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.ones(64, device=device))
    # Whatever the compiler and its tools raise: without it the run goes on.
    except Exception as error:
        return f"torch.compile fails here: {reason_of(error)}"
    return None
