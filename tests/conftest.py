"""Settings that every test needs before torch is imported."""

import os
import sys

from hypothesis import HealthCheck, settings

# Tiny tensors on a shared machine: threads that wait for each other cost ten times the work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow machine is no failure.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

import pytest  # noqa: E402
import small_run  # noqa: E402

from xnli_gpt import devices  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def float32_is_fastest():
    """What is compared digit by digit must not depend on what this machine is fast at.

    For the whole session: fixtures of modules load models, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_seconds_of_steps", lambda dtypes: [1.0, 2.0])
        yield


@pytest.fixture(autouse=True)
def nothing_is_timed():
    """What a test makes the fastest is forgotten with it."""
    devices._fastest_on_cpu.cache_clear()
    yield
    devices._fastest_on_cpu.cache_clear()


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A dataset, its tokenizer, and a small-format checkpoint of random weights, for one file."""
    return small_run.make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture
def exported_code_apart(tmp_path, monkeypatch):
    """Keep the code that transformers copies out of an exported folder in a folder of the test.

    Python keeps the package that it was imported as, and with it the folder: it is forgotten.
    """
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget_exported_code()
    yield
    forget_exported_code()


def forget_exported_code():
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
