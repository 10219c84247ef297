"""Settings that every test needs before torch is imported, and which tests keep together."""

import os

import pytest
from hypothesis import HealthCheck, settings

# Tiny tensors on a shared machine: threads that wait for each other cost ten times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no failure.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# Fixtures that take minutes to make, or that there can be only one of.
SHARED_FIXTURES = ("cluster", "demo", "installed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let one worker of pytest-xdist run all tests of a shared fixture (`--dist loadgroup`)."""
    for item in items:
        for name in SHARED_FIXTURES:
            if name in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(name))
