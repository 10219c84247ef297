"""The report of a fine-tuning run about its test split, or where that has no labels about
validation."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.evaluation.metrics import figures_in_words
from xnli_gpt.evaluation.predictions import PREDICTIONS_FILE, prediction_lines, write_predictions
from xnli_gpt.evaluation.scored_split import ScoredSplit
from xnli_gpt.evaluation.scores import macro_average, split_metrics
from xnli_gpt.files import save_atomically
from xnli_gpt.report.content import ReportContent
from xnli_gpt.report.curves import read_steps
from xnli_gpt.report.wording import duration
from xnli_gpt.report.writing import write_report
from xnli_gpt.training.run_folder import RunFolder
from xnli_gpt.training.state import TrainState


@dataclass(frozen=True)
class FinishedRun:
    """A run whose training has ended: where it is, its flags, and what it found (config.yaml)."""

    folder: RunFolder
    flags: Mapping[str, object]
    found: Mapping[str, object]
    state: TrainState
    split: str = "test"  # that the report is about


def write_run_report(
    run: FinishedRun,
    scored: Mapping[str, ScoredSplit],
    unlabelled: Mapping[str, ScoredSplit],
) -> dict[str, dict]:
    """Write report.html, report.md, figures and predictions.jsonl about a split; the predictions
    are also of test splits without labels.

    Returns the metrics per dataset with their intervals.
    """
    out_dir, state = run.folder.path, run.state
    splits = {run.split: scored} | ({"test": unlabelled} if unlabelled else {})
    save_atomically(out_dir / PREDICTIONS_FILE, lambda path: write_predictions(path, splits))
    metrics = {name: split_metrics(one) for name, one in scored.items()}
    file = Path(run.found["checkpoint"]["file"]).name
    trunk = "random trunk" if run.flags["random_init"] else file
    content = ReportContent(
        f"{run.folder.name}: {trunk}, fine-tuned",
        results=metrics,
        split=run.split,
        macro_average=macro_average(metrics, scored) if len(metrics) > 1 else None,
        history=state.lines,
        steps=read_steps(run.folder.steps),
        best_step=state.best_step,
        predictions=_lines_of(run.split, scored),
        facts=_facts(run),
        recipe=run.flags,
    )
    write_report(out_dir, content)
    return metrics


def _lines_of(split: str, scored: Mapping[str, ScoredSplit]) -> Iterator[dict]:
    for name, one in scored.items():
        yield from prediction_lines(name, split, one)


def _facts(run: FinishedRun) -> dict[str, object]:
    """Return what the report says was run; config.yaml has all of it."""
    flags, found, state = run.flags, run.found, run.state
    info = found["checkpoint"]
    return {
        "command": found["command"],
        "best validation": _best_validation(state),
        "training": f"{state.step} steps, {state.examples} examples",
        "duration": f"{duration(state.train_seconds)} of training, "
        f"{state.examples_per_second:.1f} examples/s",
        "pretrained checkpoint": info["file"],
        "its weights": info["weights_id"],
        "its format": info["checkpoint_format"],
        "its step": info["step"],
        "network": f"{info['num_layers']} layers, {info['num_heads']} heads, width "
        f"{info['model_dim']}, {info['vocab_size']} embedding rows",
        "trunk at the start": "random" if flags["random_init"] else "pretrained",
        "data": found["data"]["content_sha256"],
        "notes on the data": _notes(found["data"]["notes"]),
        "tokenizer": f"{flags['tokenizer_name']} ({found['tokenizer']['sha256']})",
        "commit": found["commit"],
        "seed": flags["seed"],
        "machine": f"{platform.node()}, {found['device']}",
        "precision": found["dtype"],
        "processes": found["processes"],
        "versions": found["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }


def _notes(notes: Sequence[str]) -> str | None:
    """Return what was said of the data before training, as sentences."""
    said = (note.split(": ", 1)[1].replace("`", "") for note in notes)
    return "; ".join(said) or None


def _best_validation(state: TrainState) -> str | None:
    if state.best is None:
        return None
    return f"{figures_in_words(state.best)}, at step {state.best_step} of {state.step}"
