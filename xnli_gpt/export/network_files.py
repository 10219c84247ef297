"""The network's own files, to travel with its weights: copied, their imports made relative."""

from __future__ import annotations

import ast
from pathlib import Path

NETWORK = Path(__file__).parents[1] / "network"
WRAPPER = Path(__file__).with_name("modeling_xnli_gpt.py.txt")
# What stands beside the wrapper in a folder: the library finds files of one folder alone.
ROOMS = (
    *("attention", "config", "few_passes", "grouped_attention", "heads", "layers", "masks"),
    *("mixing", "packed_row", "parts", "row_attention"),
)


def network_files(model: Path) -> dict[str, str]:
    """Return the text of every file by its name: `model` (model.py), the rooms that it imports, and
    what makes of them a model of the transformers library."""
    sources = [model, *(NETWORK / f"{room}.py" for room in ROOMS)]
    files = {source.name: _with_relative_imports(source) for source in sources}
    return files | {WRAPPER.name.removesuffix(".txt"): WRAPPER.read_text(encoding="utf-8")}


def _with_relative_imports(source: Path) -> str:
    """Return a file's text with its imports of this project's network as those of neighbours."""
    text = source.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("xnli_gpt."):
            room = node.module.rpartition(".")[2]
            assert node.module == f"xnli_gpt.network.{room}", f"{source} imports {node.module}"
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module} ", f"from .{room} ", 1)
    return "".join(lines)
