"""What starts the tests: test.sh installs what it is told to, venv.sh finds a Python."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from shell import ROOT, stub

TOOLS = ("cat", "cksum", "dirname", "env", "grep", "id", "mkdir", "rm", "tail", "uname")
BASH = shutil.which("bash")


def record(name: str, then: str = "exit 0") -> str:
    return f'echo "{name} $*" >> "$CALLS"\n{then}'


@pytest.fixture
def bin_folder(tmp_path) -> Path:
    """The only folder of PATH: plain tools, and stand-ins for all that installs, lints or tests."""
    folder = tmp_path / "bin"
    for name in ("ruff", "pytest", "apt-get", "bash"):
        stub(folder, name, record(name))
    for name in TOOLS:
        (folder / name).symlink_to(shutil.which(name))
    return folder


def finished_venv(folder: Path) -> Path:
    """What scripts/venv.sh takes for a .venv that is installed."""
    folder.mkdir()
    words = [BASH, "-c", "cat requirements*.txt requirements-dev.txt | cksum"]
    wanted = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (folder / "installed-requirements-dev.txt").write_text(wanted)
    (folder / "bin").mkdir()
    (folder / "bin/activate").write_text("")
    return folder


def run(bin_folder: Path, *words: str) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Run test.sh; what came of it, and the commands that it called."""
    calls = bin_folder.parent / "calls"
    environment = {"PATH": str(bin_folder), "CALLS": str(calls), "PYTHON": "python3"}
    environment["VENV"] = str(finished_venv(bin_folder.parent / "venv"))
    done = subprocess.run(
        [BASH, ROOT / "scripts/test.sh", *words], env=environment, capture_output=True, text=True
    )
    return done, calls.read_text().splitlines()


LINT = ["ruff check .", "ruff format --check ."]
QUICK = "pytest -q -n auto -m not long"
LONG = "pytest -q -n auto --dist loadfile -rs -m long"
BROWSER = ["apt-get update", "apt-get install -y --no-install-recommends chromium"]
START, STOP = (f"bash scripts/slurm_cluster.sh {word}" for word in ("start --install", "stop"))


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        ([], [*LINT, QUICK, LONG]),
        (
            ["tests/test_cuda.py", "-k", "a b"],
            [*LINT, "pytest -rs tests/test_cuda.py -k a b"],
        ),
        (["--with-browser"], [*LINT, *BROWSER, QUICK, LONG]),
        (["--with-slurm"], [*LINT, START, QUICK, LONG, STOP]),
        (["-x", "--with-slurm", "a"], [*LINT, START, "pytest -rs -x a", STOP]),
    ],
)
def test_only_what_is_asked_for_is_installed(words, calls, bin_folder):
    done, called = run(bin_folder, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert called == calls


@pytest.mark.parametrize("failing", ["ruff", "pytest", "bash"])
def test_a_part_that_fails_makes_the_whole_fail_and_the_others_run(failing, bin_folder):
    stub(bin_folder, failing, record(failing, "echo no luck >&2; exit 1"))
    done, called = run(bin_folder, "--with-slurm")
    assert done.returncode == 1
    assert called == [*LINT, START, QUICK, LONG, STOP]


def test_what_can_not_be_had_is_said_and_its_tests_are_skipped(bin_folder):
    no_cluster = "[[ $2 == stop ]] || { echo no SLURM cluster: no root >&2; exit 3; }"
    stub(bin_folder, "bash", record("bash", no_cluster))
    stub(bin_folder, "apt-get", record("apt-get", "exit 100"))
    stub(bin_folder, "pytest", 'echo "the tests know: $SLURM_CLUSTER_PROBLEM"')
    done, _ = run(bin_folder, "--with-slurm", "--with-browser")
    assert done.returncode == 0
    assert "--with-slurm: no SLURM cluster: no root\n" in done.stdout
    assert "--with-browser: apt-get can't install chromium" in done.stdout
    assert "the tests know: no SLURM cluster: no root\n" in done.stdout


def test_ci_gives_both_flags(bin_folder):
    stub(bin_folder, "bash", record("bash"))
    environment = {"PATH": str(bin_folder), "CALLS": str(bin_folder.parent / "calls")}
    subprocess.run([BASH, ".ci/run"], cwd=ROOT, env=environment, check=True)
    called = (bin_folder.parent / "calls").read_text()
    assert called.endswith("scripts/test.sh --with-slurm --with-browser\n")


def start_cluster(bin_folder: Path, *words: str) -> subprocess.CompletedProcess:
    variables = {"PATH": str(bin_folder), "CALLS": str(bin_folder.parent / "calls")}
    return subprocess.run(
        [BASH, ROOT / "scripts/slurm_cluster.sh", "start", *words],
        env=variables | {"SLURM_CLUSTER": str(bin_folder.parent / "cluster")},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a cluster")
def test_a_cluster_installs_slurm_only_where_told(bin_folder):
    done = start_cluster(bin_folder)
    assert done.returncode == 3 and "start --install installs them" in done.stderr
    assert not (bin_folder.parent / "calls").exists()
    stub(bin_folder, "apt-get", record("apt-get", "echo no such package; exit 100"))
    done = start_cluster(bin_folder, "--install")
    assert done.returncode == 3 and "apt-get could not install munge" in done.stderr
    assert "no such package" in done.stderr
    assert (bin_folder.parent / "calls").exists()


def python_found(bin_folder: Path) -> subprocess.CompletedProcess:
    finished_venv(bin_folder.parent / "venv")
    return subprocess.run(
        [BASH, "-c", 'source scripts/venv.sh requirements-dev.txt; echo "$PYTHON"'],
        cwd=ROOT,
        env={"PATH": str(bin_folder), "VENV": str(bin_folder.parent / "venv")},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("there", "found"),
    [
        ({"python3": 0, "python3.12": 0}, "python3"),
        ({"python3": 1, "python3.11": 0, "python3.13": 0}, "python3.13"),
        ({"python3": 1, "python3.14": 0}, "python3.14"),
    ],
)
def test_a_python_that_serves_is_found(there, found, bin_folder):
    for name, code in there.items():
        stub(bin_folder, name, f"exit {code}")
    assert python_found(bin_folder).stdout == f"{found}\n"


def test_no_python_is_one_line(bin_folder):
    done = python_found(bin_folder)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: needs Python 3.11 or later")
    assert done.stderr.count("\n") == 1
