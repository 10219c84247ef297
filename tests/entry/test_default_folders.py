"""Folders that a command makes where no flag names another one."""

import subprocess
from pathlib import Path

import pytest
from shell import ROOT

import evaluate_hindi_xnli as evaluate
import finetune_hindi_xnli as finetune
import predict_hindi_xnli as predict
from xnli_gpt.options import Flag

MADE = ("out_dir", "cache_dir")


def folders_by_default() -> dict[str, str]:
    """Where every command writes, by the command and its flag."""
    flags: dict[str, Flag] = {
        f"{command.__name__} --{flag.name}": flag
        for command in (finetune, evaluate, predict)
        for group in command.COMMAND.flags.values()
        for flag in group
    }
    return {name: f.default for name, f in flags.items() if f.name in MADE and f.default}


FOLDERS = folders_by_default()


def test_commands_write_into_folders():
    assert {name.split()[0] for name in FOLDERS} == {finetune.__name__, evaluate.__name__}
    assert len(FOLDERS) == 4


@pytest.mark.parametrize("name", FOLDERS)
def test_git_ignores_what_a_command_writes(name):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout of git")
    words = ["git", "check-ignore", "--no-index", f"{FOLDERS[name]}/results.json"]
    try:
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no git")
    if done.returncode == 128:
        pytest.skip(done.stderr)
    assert done.returncode == 0, f"{FOLDERS[name]} is not ignored"


@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_is_called_as_a_module(name):
    for part in Path(FOLDERS[name]).parts[:1]:
        assert not (ROOT / f"{part}.py").exists() and not (ROOT / part / "__init__.py").exists()
