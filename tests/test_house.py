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


CODE = [
    *FILES,
    *ROOT.glob("*.py"),
    *(ROOT / "benchmarks").glob("*.py"),
    *(ROOT / "scripts").glob("*.py"),
]
# Words that a noun phrase, a question or a fragment begins with.
NO_VERBS = set(
    "A All An And Any As At Beside Both But By Each Every For From How If In It Its No None Not Of"
    " On One Only Or Same Some That The There These They This Those To Two What When Where Whether"
    " Which Who Why With Without".split()
)


def begins_with_a_verb(docstring: str) -> bool:
    """Tell a verb in the imperative from other forms of it and from small words."""
    first = docstring.split()[0].strip(",.:;")
    other_form = (
        first.endswith("ing")
        and first != "Bring"
        or first.endswith("s")
        and not first.endswith("ss")
    )
    return first.isalpha() and first[0].isupper() and first not in NO_VERBS and not other_form


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_of_functions_begin_with_a_verb(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    docstrings = {node.name: ast.get_docstring(node) for node in functions}
    assert not {n: d for n, d in docstrings.items() if d and not begins_with_a_verb(d)}


@pytest.mark.parametrize(
    "docstring",
    ["The mean of x.", "Returns x.", "`x` of y.", "x [B, T].", "Whether x is y.", "[N] numbers."],
)
def test_other_docstrings_are_told(docstring):
    assert not begins_with_a_verb(docstring)
