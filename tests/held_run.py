"""Runs a script of the project that waits for a signal when a step is done, and then goes on.

    HOLD_AT=5 python tests/held_run.py finetune_hindi_xnli.py [arguments]

So what a test sends meets a run that is under way, on a fast machine and on a slow one. A job that
SLURM has started again does not wait.
"""

import os
import runpy
import select
import signal
import sys
from pathlib import Path

# As where Python is given the script itself.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from xnli_gpt.training.trainer import Trainer  # noqa: E402

SIGNALLED, on_signal = os.pipe()


def hold_after(step: int) -> None:
    """Let training wait, when `step` is done, until this process has had a signal."""
    count = Trainer._count

    def count_and_hold(trainer, *others):
        count(trainer, *others)
        if trainer.state.step == step:
            print(f"step {step} is done; waiting for a signal", flush=True)
            select.select([SIGNALLED], [], [])

    Trainer._count = count_and_hold


def main() -> None:
    os.set_blocking(on_signal, False)
    signal.set_wakeup_fd(on_signal)
    if not int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        hold_after(int(os.environ["HOLD_AT"]))
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
