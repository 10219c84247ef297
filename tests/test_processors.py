"""How the libraries are told to use the processors: before torch, and not over the user's head."""

import os

import joblib.externals.loky
import pytest

from xnli_gpt import processors

SET_HERE = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    before = dict(os.environ)
    for name in SET_HERE:
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


def share(monkeypatch, of_container, to_run_on):
    monkeypatch.setattr(joblib.externals.loky, "cpu_count", lambda: of_container)
    monkeypatch.setattr(processors, "_processors_to_run_on", lambda: to_run_on)


def test_a_share_of_the_processors_is_that_many_threads(monkeypatch):
    """A container with two processors' time on a host of 64."""
    share(monkeypatch, of_container=2, to_run_on=64)
    processors.set_up_libraries()
    assert os.environ["OMP_NUM_THREADS"] == "2"


def test_torch_counts_the_processors_of_a_whole_job(monkeypatch):
    """It leaves out the second threads of a core, which we do not know of."""
    share(monkeypatch, of_container=8, to_run_on=8)
    processors.set_up_libraries()
    assert "OMP_NUM_THREADS" not in os.environ


def test_what_the_user_has_set_stays(monkeypatch):
    share(monkeypatch, of_container=2, to_run_on=64)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    processors.set_up_libraries()
    assert os.environ["OMP_NUM_THREADS"] == "5"
    assert "GOMP_SPINCOUNT" not in os.environ and "KMP_BLOCKTIME" not in os.environ


def test_threads_do_not_spin_for_long():
    processors.set_up_libraries()
    assert int(os.environ["GOMP_SPINCOUNT"]) < 300_000, "the default of GNU's library"
