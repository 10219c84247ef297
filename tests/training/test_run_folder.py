"""The folder of a run: one run at a time, full disks, folders that vanish."""

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys

import kills
import pytest
import small_run
from limits import HANG_S
from resume_parts import BASE, PROJECT, contents, error_line, run, stopped_run

from xnli_gpt.training.trainer import Trainer


def test_two_runs_in_one_folder_at_once(assets, tmp_path, capsys):
    holding = "import sys, pathlib; from xnli_gpt.files import own_folder\n"
    holding += "with own_folder(pathlib.Path(sys.argv[1])):\n"
    holding += "    print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", holding, tmp_path / "out"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    line = error_line(capsys, small_run.command(assets, tmp_path / "out", *BASE))
    assert f"process {other.pid} on" in line and "is running here" in line
    # What a kill leaves behind blocks nobody.
    other.kill()
    other.wait()
    assert (tmp_path / "out" / ".lock").exists()
    assert run(assets, tmp_path / "out", "--max_steps", 1) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_does_not_block(number, assets, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    assert run(assets, tmp_path, "--max_steps", 1) == 0
    assert f"note: {tmp_path} can't be locked" in capsys.readouterr().out


def within_file_size(limit: int, words: list[str]) -> subprocess.CompletedProcess:
    """The command where no file can become larger than `limit` bytes: as on a disk that fills."""
    return subprocess.run(
        [sys.executable, PROJECT / "finetune_hindi_xnli.py", *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        timeout=HANG_S,
    )


def test_a_disk_that_fills_while_saving_leaves_what_was_there(
    assets, tmp_path, signal_at, capsys, whole
):
    stopped_run(assets, tmp_path, signal_at, 5)
    before = contents(tmp_path)
    # More than the best model needs, less than a save does.
    best, last = ((tmp_path / f"pairs-{name}.pt").stat().st_size for name in ("ckpt", "last"))
    words = small_run.command(assets, tmp_path, *BASE)
    done = within_file_size((best + last) // 2, words)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {tmp_path}/pairs-last.pt.partial: File too large"]
    after = contents(tmp_path)
    assert after["pairs-last.pt"] == before["pairs-last.pt"]
    assert not list(tmp_path.glob("*.partial"))
    assert run(assets, tmp_path) == 0
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_folder_that_vanishes_is_one_line(assets, tmp_path, monkeypatch, capsys):
    counted = Trainer._count

    def count(trainer, *others):
        counted(trainer, *others)
        if trainer.state.step == 2:
            shutil.rmtree(tmp_path / "out")

    monkeypatch.setattr(Trainer, "_count", count)
    line = error_line(capsys, small_run.command(assets, tmp_path / "out", *BASE))
    assert "No such file or directory" in line and str(tmp_path / "out") in line


def test_a_failed_run_leaves_no_empty_folder(assets, tmp_path, capsys):
    error_line(
        capsys, small_run.command(assets, tmp_path / "out", "--label_column", "no_such_column")
    )
    assert not (tmp_path / "out").exists()
