"""Settings that every test needs before torch is imported."""

import os

from hypothesis import HealthCheck, settings

# Tiny tensors on a shared machine: threads that wait for each other cost ten times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no failure.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
