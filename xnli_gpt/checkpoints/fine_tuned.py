"""The file of a fine-tuned model: which one a path means, and its content."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from xnli_gpt.errors import RunError
from xnli_gpt.files import FINE_TUNED_KIND, SAVE_KIND, read_whole

# Of the file that holds a run's best model.
FINE_TUNED_ENDING = "-ckpt.pt"


def fine_tuned_file(path: Path) -> Path:
    """Return the NAME-ckpt.pt that a path means: itself, the one in a run's folder, or the one
    beside a save to resume from.

    Raises RunError where a folder has none or several, and for a save without its model.
    """
    if path.is_dir():
        return _fine_tuned_file_of_run(path)
    match = re.fullmatch(r"(.+)-(last|prev)\.pt", path.name)
    if match is None:
        return path
    best = path.with_name(f"{match[1]}{FINE_TUNED_ENDING}")
    if not best.is_file():
        raise RunError(
            f"{path}: a save to resume from, and the model would be {best}, which is not there: "
            "the run has not been evaluated yet"
        )
    print(f"note: {path} is a save to resume from; {best} is its best model", file=sys.stderr)
    return best


def _fine_tuned_file_of_run(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{FINE_TUNED_ENDING}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise RunError(f"{folder}: a folder with several models ({names}): name one of them")
    begun = any(folder.glob("*-last.pt")) or (folder / "config.yaml").exists()
    why = "its run has not been evaluated yet" if begun else "expected the folder of a run"
    raise RunError(f"{folder}: a folder without a model (NAME{FINE_TUNED_ENDING}): {why}")


def read_fine_tuned(path: Path, mapped: bool = False) -> dict:
    """Return the content of a NAME-ckpt.pt; `mapped` as of `read_whole`. Raises RunError where it
    is damaged, or another file."""
    saved = read_whole(path, mapped)
    if isinstance(saved, dict) and saved.get("kind") == SAVE_KIND:
        raise RunError(
            f"{path}: a save to resume from, not a model; give the NAME{FINE_TUNED_ENDING} that "
            "its run left"
        )
    if not isinstance(saved, dict) or saved.get("kind") != FINE_TUNED_KIND:
        raise RunError(f"{path}: not a fine-tuned checkpoint of this project")
    return saved


def datasets_in_name(checkpoint: Path) -> list[str]:
    """Return the sets that a file was fine-tuned on by its name: NAME-ckpt.pt, or
    NAME+NAME-ckpt.pt."""
    return run_name(checkpoint.stem).split("+")


def run_name(stem: str) -> str:
    """Return NAME of NAME-ckpt, a file's name without its ending."""
    return stem.removesuffix("-ckpt")


def content_error(error: Exception, path: Path) -> RunError:
    """Return what to raise where the content of a fine-tuned checkpoint does not fit together."""
    lines = str(error).splitlines()
    reason = f"no {error}" if isinstance(error, KeyError) else lines[0]
    return RunError(f"{path}: its parts do not fit together ({reason}); fine-tune anew")
