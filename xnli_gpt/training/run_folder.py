"""The folder that a run leaves its files in."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.checkpoints.fine_tuned import FINE_TUNED_ENDING
from xnli_gpt.errors import RunError
from xnli_gpt.files import read_whole, save_atomically
from xnli_gpt.training.saves import Saves
from xnli_gpt.training.state import TrainState

# What an earlier run left, where it got as far as a model.
RUN_FILES = (f"*{FINE_TUNED_ENDING}", "*-last.pt", "*-prev.pt", "results.json")


@dataclass(frozen=True)
class RunFolder:
    """The files of a run by their names; `name` is that of its datasets."""

    path: Path
    name: str

    @property
    def results(self) -> Path:
        """Return results.json."""
        return self.path / "results.json"

    @property
    def config(self) -> Path:
        """Return config.yaml."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Return metrics.jsonl, a line an evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def steps(self) -> Path:
        """Return steps.jsonl, a line a step."""
        return self.path / "steps.jsonl"

    @property
    def report(self) -> Path:
        """Return report.html."""
        return self.path / "report.html"

    @property
    def saves(self) -> Saves:
        """Return the saves to resume from."""
        return Saves(self.path, self.name)

    def best(self, dataset: str | None = None) -> Path:
        """Return the file of the best model, or of the best for one of several datasets."""
        of_set = "" if dataset is None else f"-{dataset}"
        return self.path / f"{self.name}{of_set}{FINE_TUNED_ENDING}"

    def files(self) -> list[str]:
        """Return the names of what an earlier run left, where it got as far as a model."""
        return sorted(path.name for pattern in RUN_FILES for path in self.path.glob(pattern))

    def require_no_run(self) -> None:
        """Raise RunError where the folder holds a run."""
        if files := self.files():
            raise RunError(
                f"`out_dir` {self.path}: holds a run ({', '.join(files)}); go on with it by "
                "`resume` auto, or use another folder"
            )

    def read_results(self) -> dict:
        """Return the content of results.json; nothing where it is not there."""
        path = self.results
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def is_finished(self) -> bool:
        """Return whether training ended: scoring alone also writes results of an unfinished run."""
        return "steps" in self.read_results()

    def take_over(self, save: Path) -> None:
        """Copy what belongs to a save in another folder: its best model, and the steps so far."""
        best = self.best()
        for name in (best.name, earlier_path(best).name, self.steps.name):
            copy_if_there(save.with_name(name), self.path / name)

    def forget_best_of_other_steps(self, state: TrainState) -> None:
        """Forget a best so far whose file is not that of the save.

        It may be of a later step, which comes again, if not to the last bit on a GPU; or damaged.
        """
        if state.best is not None and not _is_of_step(self.best(), state.best_step):
            state.best, state.best_step = None, 0
        for name, kept in list(state.best_of_sets.items()):
            if not _is_of_step(self.best(name), kept["step"]):
                del state.best_of_sets[name]

    def remove_earlier_best(self) -> None:
        """Remove the models that were kept for a longer run."""
        for path in self.path.glob(f"*{FINE_TUNED_ENDING.removesuffix('.pt')}-earlier.pt"):
            path.unlink()


def earlier_path(best: Path) -> Path:
    """Return where the best model before the evaluation at the last step is kept."""
    return best.with_name(f"{best.stem}-earlier.pt")


def keep_as_earlier(best: Path) -> None:
    """Keep a best model that is about to be overwritten, without copying it where that can be."""
    if not best.exists():
        return
    earlier = earlier_path(best)
    earlier.unlink(missing_ok=True)
    try:
        os.link(best, earlier)
    except OSError:
        copy_if_there(best, earlier)


def copy_if_there(source: Path, target: Path) -> None:
    """Copy a file atomically; nothing where there is none."""
    if source.exists():
        save_atomically(target, lambda partial: shutil.copyfile(source, partial))


def _is_of_step(path: Path, wanted_step: int) -> bool:
    """Return whether the best model is that of a step, or was made so by the one kept before it."""
    step, earlier = _step_of(path), earlier_path(path)
    if step != wanted_step and _step_of(earlier) == wanted_step:
        copy_if_there(earlier, path)
        return True
    if step == wanted_step:
        return True
    found = "is not whole" if step is None else f"is of step {step}"
    print(
        f"note: {path} {found}, the best model of the save was of step {wanted_step}: "
        "the best is looked for from here on"
    )
    return False


def _step_of(path: Path) -> int | None:
    """Return the step of a fine-tuned checkpoint; None where it is not there, or damaged."""
    try:
        return read_whole(path)["step"]
    except (RunError, KeyError, TypeError):
        return None
