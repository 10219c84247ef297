"""Where logits come from: fine-tuned checkpoints, or rows that were predicted before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from xnli_gpt.checkpoints.fine_tuned import FINE_TUNED_ENDING, fine_tuned_file, read_fine_tuned
from xnli_gpt.data.own_data import OwnData, own_data_of
from xnli_gpt.data.row_files import TEXT_KINDS, kind_of
from xnli_gpt.data.tokenizer import PairEncoding, encoding_of_saved
from xnli_gpt.errors import PredictionsError, RunError, UsageError
from xnli_gpt.evaluation.other_predictions import is_of_another_tool, read_other_predictions
from xnli_gpt.evaluation.predictions import (
    PREDICTIONS_FILE,
    PredictedRows,
    logits_in_order,
    read_predictions,
)
from xnli_gpt.evaluation.rows import Rows
from xnli_gpt.network.config import GPTConfig

# What other tools don't say: which dataset they predicted.
ANY_DATASET = "predictions"
# What seeds of one recipe have in common, by the names of a checkpoint's facts.
RECIPE_FACTS = ("config", "tokenizer_sha256", "template", "block_size", "pretrained_step")
# Makes the model of a fine-tuned checkpoint's content; its path is for messages.
ModelOf = Callable[[dict, Path], nn.Module]


@dataclass(frozen=True)
class LogitSource:
    """A checkpoint, or predictions of one run; `facts` are for results.json."""

    path: Path
    facts: dict
    classes: tuple[str, ...]
    encoding: PairEncoding | None = None  # of a checkpoint
    own_data: OwnData | None = None  # what a checkpoint was fine-tuned on
    predicted: Mapping[str, PredictedRows] | None = None  # per dataset


@dataclass(frozen=True)
class SourceReader:
    """Reads sources; `block_size` replaces that of checkpoints, `split` is that of predictions."""

    model_of: ModelOf
    split: str
    block_size: int | None = None
    label_names: tuple[str, ...] | None = None  # of numbers in predictions of other tools

    def checkpoint(self, path: Path) -> list[LogitSource]:
        """Return a fine-tuned checkpoint without its weights: only one model at a time is in
        memory."""
        path = fine_tuned_file(path)
        saved = self._read_saved(path)
        self.model_of(saved, path)
        encoding = encoding_of_saved(saved, path)
        facts = {
            "file": str(path),
            "sha256": _sha256_of(path),
            "step": saved["step"],
            "pretrained": saved["pretrained"],
            "pretrained_step": saved["pretrained"]["step"],
            "format": saved["config"]["family"],
            # With what configurations of older versions leave to defaults.
            "config": GPTConfig.from_dict(saved["config"]).to_dict(),
            "classes": list(saved["classes"]),
            "template": saved["template"],
            "block_size": saved["block_size"],
            "tokenizer_sha256": encoding.tokenizer_hash,
        }
        own_data = own_data_of(path, saved)
        return [LogitSource(path, facts, tuple(saved["classes"]), encoding, own_data)]

    def predictions(self, path: Path) -> list[LogitSource]:
        """Return a source for every run that the file holds."""
        path = path / PREDICTIONS_FILE if path.is_dir() else path
        if path.exists() and is_of_another_tool(path):
            runs = [{ANY_DATASET: read_other_predictions(path, self.label_names)}]
        else:
            runs = read_predictions(path, self.split)
        sha256 = _sha256_of(path)
        sources = []
        for number, predicted in enumerate(runs, start=1):
            classes = next(iter(predicted.values())).classes
            facts = {"file": str(path), "sha256": sha256, "run": number, "classes": list(classes)}
            sources.append(LogitSource(path, facts, classes, predicted=predicted))
        return sources

    def either(self, path: Path, prefers_predictions: bool) -> list[LogitSource]:
        """Return what a path holds; of a run's folder, which has both, what is preferred."""
        is_run = path.is_dir() and any(path.glob(f"*{FINE_TUNED_ENDING}"))
        has_predictions = (path / PREDICTIONS_FILE).is_file()
        if is_run and not (prefers_predictions and has_predictions):
            return self.checkpoint(path)
        if path.is_dir() or kind_of(path) in (*TEXT_KINDS, "txt"):
            return self.predictions(path)
        return self.checkpoint(path)

    def model(self, source: LogitSource) -> nn.Module:
        """Return the model of a checkpoint that was read before; raises RunError where the file is
        another meanwhile."""
        saved = self._read_saved(source.path)
        if saved["step"] != source.facts["step"]:
            raise RunError(f"{source.path}: was overwritten meanwhile; wait until training ends")
        return self.model_of(saved, source.path)

    def _read_saved(self, path: Path) -> dict:
        """Return a fine-tuned checkpoint; its network is made for any length of rows asked for."""
        saved = read_fine_tuned(path)
        if self.block_size is not None:
            saved["block_size"] = saved["config"]["max_seq_len"] = self.block_size
        return saved


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_one_recipe(sources: Sequence[LogitSource]) -> None:
    """Raise UsageError where sources are not seeds of one recipe.

    Seeds differ in their weights only; a mean over anything else says nothing.
    """
    seen: dict[object, LogitSource] = {}
    for source in sources:
        identity = (source.facts["sha256"], source.facts.get("run"))
        if identity in seen:
            raise UsageError([f"{source.path} and {seen[identity].path}: the same twice"])
        seen[identity] = source
    for source in sources:
        for name in RECIPE_FACTS:
            if source.facts.get(name) != sources[0].facts.get(name):
                raise UsageError(
                    [
                        f"{source.path}: another {name.replace('_', ' ')} than "
                        f"{sources[0].path}, so not a seed of the same recipe; compare recipes "
                        "by `compare`"
                    ]
                )


def require_same_classes(sources: Sequence[LogitSource]) -> None:
    """Raise UsageError where sources know other classes than the first."""
    for source in sources:
        if set(source.classes) != set(sources[0].classes):
            raise UsageError(
                [
                    f"{source.path}: classes {', '.join(source.classes)}, but {sources[0].path} "
                    f"has {', '.join(sources[0].classes)}"
                ]
            )


def predicted_logits(
    source: LogitSource, name: str, rows: Rows, classes: tuple[str, ...]
) -> np.ndarray:
    """Return the logits [N, classes] that predictions hold for a dataset, in the order of its
    rows."""
    predicted = _predicted_for(source, name)
    if predicted is None:
        raise PredictionsError(
            f"{source.path}: no predictions for {name} (found {', '.join(source.predicted)})"
        )
    labels = [classes[label] for label in rows.labels]
    return logits_in_order(predicted, rows.ids, rows.premises, rows.hypotheses, labels, classes)


def _predicted_for(source: LogitSource, name: str) -> PredictedRows | None:
    """Return the rows that were predicted for a dataset; those of another tool are for any."""
    return source.predicted.get(name, source.predicted.get(ANY_DATASET))


def has_probabilities(source: LogitSource, name: str) -> bool:
    """Return whether a source tells more of a dataset's rows than its answers."""
    predicted = source.predicted and _predicted_for(source, name)
    return predicted is None or predicted.has_probabilities
