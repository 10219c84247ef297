"""README and docs say what is there: files, flags, and the functions on the way of a pair."""

import ast
import re
from functools import cache

import pytest
from shell import ROOT

import evaluate_hindi_xnli
import finetune_hindi_xnli
import load_checkpoint_helper
import predict_hindi_xnli
from xnli_gpt.flags import flags_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (finetune_hindi_xnli, evaluate_hindi_xnli, predict_hindi_xnli, load_checkpoint_helper)
# Of the shell scripts, SLURM, torchrun and the benchmark.
OTHER_FLAGS = {
    *("with-slurm", "with-browser", "install", "only", "size", "kills", "help", "config"),
    *("account", "partition", "signal", "gres", "nodes", "ntasks-per-node", "mem", "export"),
    *("gpus-per-task", "kill-on-bad-exit", "nproc_per_node"),
}
FOLDERS = ("xnli_gpt", "benchmarks", "scripts", "tests", "docs")
SOURCES = [*ROOT.glob("*.*"), *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.*"))]
NAMES = {path.relative_to(ROOT).as_posix() for path in SOURCES}


@cache
def flags() -> set[str]:
    of_commands = (flag.name for command in COMMANDS for flag in flags_of(command.COMMAND.flags))
    return {*of_commands, *OTHER_FLAGS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_are_there(page):
    named = re.findall(
        r"(?<![\w-])--(?:no-)?([a-z][a-z_-]+[a-z])", page.read_text(encoding="utf-8")
    )
    assert not set(named) - flags()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    """A name may leave out the folder that its line has named before."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`|\]\((?:docs/)?(\w+\.md)\)", text)
    for name in filter(None, (part for parts in named for part in parts)):
        assert any(f"/{path}".endswith(f"/{name}") for path in NAMES), name


def functions_of(path: str) -> set[str]:
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            members = node.body if isinstance(node, ast.ClassDef) else ()
            found |= {f"{node.name}.{m.name}" for m in members if isinstance(m, ast.FunctionDef)}
    return found


def test_the_way_of_a_pair_names_functions_that_are_there():
    text = (ROOT / "docs/changing.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\d+\. .*", text.split("## The way of a pair")[1], re.M)
    assert len(steps) == 10
    for step in steps:
        words = re.findall(r"`([\w./]+)`", step)
        files = [word for word in words if word.endswith(".py")]
        paths = [p for p in NAMES for file in files if f"/{p}".endswith(f"/{file}")]
        there = set().union(*map(functions_of, paths)) | functions_of("model.py")
        functions = [word for word in words if not word.endswith(".py")]
        assert functions and not set(functions) - there, step


def test_the_readme_is_for_somebody_in_a_hurry():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
