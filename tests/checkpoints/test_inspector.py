"""The inspector as a command."""

import json
import os
from pathlib import Path

import pytest
from loader_parts import Calls, run_python, tiny_file, tiny_state

from load_checkpoint_helper import (
    inspect_checkpoint,
    main,
)


def test_the_inspector_prints_every_field(tmp_path, capsys):
    path = tiny_file(tmp_path, "medium")
    info, _ = inspect_checkpoint(path)
    assert main([str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[0] != " "] == list(info)[:-1]
    assert list(info)[-1] == "config", "the facts of the network are for programs"
    network = f"format medium, {info['num_layers']} layers, {info['num_heads']} heads, width "
    assert lines[-1].startswith(f"  in short: {path}: {network}{info['model_dim']}")
    assert main([str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == info


@pytest.mark.parametrize("flag", ["--n_head", "--lm_row_length", "--lm_rows"])
def test_the_inspector_wants_positive_numbers(capsys, flag):
    assert main(["file.pt", flag, "0"]) == 2
    assert capsys.readouterr().err == f"error: {flag} 0: expected at least 1\n"


def test_the_inspector_wants_a_file(capsys):
    assert main(["--json"]) == 2
    assert capsys.readouterr().err.startswith("error: CKPT is needed: ")


def test_the_inspector_as_a_command(tmp_path):
    path = tiny_file(tmp_path, "medium")
    done = run_python("load_checkpoint_helper.py", str(tmp_path / "med*.pt"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["file"] == str(path)


def assert_an_error(path: Path, code: int, stdout: str, stderr: str) -> None:
    assert (code, stdout) == (2, "")
    assert stderr.startswith(f"error: {path}: ") and stderr.count("\n") == 1


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_errors_of_the_inspector(tmp_path, capsys, damage):
    path = tiny_file(tmp_path, "medium")
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert_an_error(path, main([str(path)]), *capsys.readouterr())


def test_a_hostile_file_and_the_inspector_as_a_command(tmp_path):
    state = tiny_state("medium") | {"extra": Calls(os.system, "true")}
    path = tiny_file(tmp_path, "medium", state)
    done = run_python("load_checkpoint_helper.py", str(path))
    assert_an_error(path, done.returncode, done.stdout, done.stderr)
