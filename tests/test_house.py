"""The plan of the house: no room imports a file of the upper floor, or a room that comes later."""

import ast
from pathlib import Path

import pytest
from shell import ROOT

# In the order in which they may import each other.
ROOMS = (
    *("errors", "messages", "choices", "files", "processors", "provenance", "devices"),
    *("spelling", "options", "flags", "commands", "machine"),
    *("network", "checkpoints", "data", "training", "evaluation", "report"),
    *("export", "prediction", "fine_tuning"),
)
UPPER_FLOOR = {path.stem for path in ROOT.glob("*.py")}
FILES = sorted((ROOT / "xnli_gpt").rglob("*.py"))


def imported_by(path: Path) -> set[str]:
    """The modules that a file imports, in functions too."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    named = {f"{node.module}.{alias.name}" for node in froms for alias in node.names}
    return plain | {node.module or "" for node in froms} | named


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_no_upper_floor_and_no_later_room(path):
    imported = imported_by(path)
    assert not {module.split(".")[0] for module in imported} & UPPER_FLOOR
    own = path.relative_to(ROOT / "xnli_gpt").parts[0].removesuffix(".py")
    if own != "__init__":
        rooms = {room_of(m) for m in imported if m.startswith("xnli_gpt.")}
        later = {room for room in rooms if ROOMS.index(room) > ROOMS.index(own)}
        assert not later
