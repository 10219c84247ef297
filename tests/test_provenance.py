"""The commit of the code: of its own checkout, marked where files differ, else none."""

import subprocess
from pathlib import Path

from xnli_gpt.provenance import code_commit


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def checkout(folder: Path) -> str:
    """A repository with one file and a tag; returns its commit."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("first\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "--quiet", "--message", "first")
    git(folder, "tag", "v1")
    return git(folder, "rev-parse", "HEAD")


def test_a_changed_file_marks_the_commit_and_a_new_one_does_not(tmp_path):
    commit = checkout(tmp_path / "code")
    (tmp_path / "code" / "results.json").write_text("{}")
    assert code_commit(tmp_path / "code") == commit
    (tmp_path / "code" / "code.py").write_text("second\n")
    assert code_commit(tmp_path / "code") == f"{commit}-dirty"


def test_a_folder_within_another_repository_has_no_commit(tmp_path):
    checkout(tmp_path / "outer")
    (tmp_path / "outer" / "site-packages").mkdir()
    assert code_commit(tmp_path / "outer" / "site-packages") is None


def test_another_repository_in_the_environment_is_not_taken(tmp_path, monkeypatch):
    commit = checkout(tmp_path / "code")
    checkout(tmp_path / "other")
    (tmp_path / "other" / "code.py").write_text("second\n")
    git(tmp_path / "other", "commit", "--quiet", "--all", "--message", "second")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert code_commit(tmp_path / "code") == commit


def test_without_git_and_in_a_broken_checkout_there_is_none(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert code_commit(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_commit(tmp_path) is None
