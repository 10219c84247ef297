"""How the libraries use the processors; to be set before torch, which looks once."""

from __future__ import annotations

import os


def set_up_libraries() -> None:
    """Set what makes a step on a CPU faster, where the user has not; before torch is imported.

    - Large pages for large tensors.
    - Room for the code that oneDNN generates for every shape: its default of 1024 is just too few.
    - Threads that wait fall asleep after some tenths of a millisecond. Spinning longer, they keep
      the processor from the very threads that they wait for, wherever neighbours compute too;
      asleep at once, they are late for the next of many small operations.
    - As many threads as the job may use processors. torch goes by the processors that it may run
      on, and not by the share of them that a container is given.
    """
    # With numpy, which a command with wrong words does not need.
    from joblib.externals.loky import cpu_count

    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU's library counts turns, that of LLVM and Intel milliseconds.
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
        os.environ.setdefault("KMP_BLOCKTIME", "1")
    share = cpu_count()
    if share < _processors_to_run_on():
        os.environ.setdefault("OMP_NUM_THREADS", str(share))


def _processors_to_run_on() -> int:
    # macOS binds no process to processors.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
