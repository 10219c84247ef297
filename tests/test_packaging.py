"""What `pip install .` installs: every module, what it needs, and the files beside the modules."""

import os
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import small_run
from shell import ROOT, copy_of_tree

import finetune_hindi_xnli as finetune

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAIR = ("राम ने आम ख़रीदा", "राम के पास आम है")


def requirements() -> list[str]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def without_torch(entries: list[str]) -> list[str]:
    return sorted(entry for entry in entries if not entry.startswith("torch"))


def test_a_package_needs_what_requirements_list():
    dependencies = PROJECT["project"]["dependencies"]
    assert without_torch(dependencies) == without_torch(requirements())
    assert "torch>=2.11,<2.15" in dependencies and "torch==2.13.0" in requirements()


def test_every_module_is_packaged():
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert set(PROJECT["tool"]["setuptools"]["py-modules"]) == modules


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The bin folder of a fresh venv that sees this interpreter's packages and has the project."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    paths = sysconfig.get_paths()
    (packages / "packages.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n")
    python = folder / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, copy_of_tree(folder / "source")], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return python.parent


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory) -> tuple[Path, Path]:
    """A fine-tuned checkpoint and its dataset."""
    assets = small_run.make_assets(tmp_path_factory.mktemp("assets"))
    out_dir = assets.folder / "out"
    assert finetune.main(small_run.command(assets, out_dir, "--max_steps", 1)) == 0
    return out_dir / "pairs-ckpt.pt", assets.dataset


def environment() -> dict[str, str]:
    """Without a path to the sources."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(folder: Path, *words: object) -> str:
    """What a command prints that is started in `folder`."""
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(installed: Path, name: str) -> tuple[object, ...]:
    """As a module: a script of setuptools imports torch before it looks at the words."""
    return installed / "python", "-m", f"{name}_hindi_xnli"


IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    print(importlib.import_module(name).__file__)
"""
PREDICTS = """
import sys
from inference import XNLIClassifier
(prediction,) = XNLIClassifier.load(sys.argv[1]).predict([tuple(sys.argv[2:])])
print(prediction.label)
"""


@pytest.mark.long
def test_installed_modules_are_imported_from_anywhere(installed, tmp_path):
    modules = PROJECT["tool"]["setuptools"]["py-modules"]
    places = run(tmp_path, installed / "python", "-c", IMPORTS, *modules).split()
    assert len(places) == len(modules)
    assert all(Path(place).is_relative_to(installed.parent) for place in places), places


@pytest.mark.long
def test_installed_code_predicts_scores_and_exports(installed, fine_tuned, tmp_path):
    checkpoint, dataset = fine_tuned
    label = run(tmp_path, installed / "python", "-c", PREDICTS, checkpoint, *PAIR).strip()
    assert label in small_run.LABELS
    predict = (*command(installed, "predict"), "--checkpoint", checkpoint, "--device", "cpu")
    told = run(tmp_path, *predict, "--premise", PAIR[0], "--hypothesis", PAIR[1])
    assert label in told
    run(tmp_path, *predict, "--export", "exported")
    written = (tmp_path / "exported/modeling_xnli_gpt.py").read_text(encoding="utf-8")
    source = ROOT / "xnli_gpt/export/modeling_xnli_gpt.py.txt"
    assert written == source.read_text(encoding="utf-8")
    assert (tmp_path / "exported/grouped_attention.py").exists()
    evaluate = (*command(installed, "evaluate"), "--checkpoint", checkpoint, "--device", "cpu")
    run(tmp_path, *evaluate, "--dataset", dataset, "--out_dir", "scores")
    assert (tmp_path / "scores/report.html").stat().st_size > 0


@pytest.mark.long
def test_installed_commands_have_a_help(installed, tmp_path):
    for name in ("finetune", "evaluate", "predict"):
        assert run(tmp_path, *command(installed, name), "--help").startswith("usage: ")
