"""Settings that every test needs before torch is imported."""

import os

# Tiny tensors on a shared machine: threads that wait for each other cost ten times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")
