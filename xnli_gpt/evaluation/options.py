"""Options about the evaluations while a model is fine-tuned, and of an evaluation by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.choices import RESAMPLES, SPLITS
from xnli_gpt.data.options import RowOptions
from xnli_gpt.data.request import LABEL_COLUMN, TEXT_COLUMNS
from xnli_gpt.evaluation.metrics import main_metrics
from xnli_gpt.machine import InferenceOptions
from xnli_gpt.options import group, option


@dataclass(frozen=True)
class ValidationOptions:
    """When the validation split is scored, and what its metrics decide."""

    eval_interval: int | None = option(None, "steps; default four times an epoch", low=1)
    best_metric: str = option("accuracy", "that picks the checkpoint", choices=main_metrics())
    early_stopping: int = option(0, "evaluations without a better one; 0 never", low=0)
    best_per_set: bool = option(False, "of several datasets, also keep the best model of each")


@dataclass(frozen=True)
class ScoredOptions:
    """The models or predictions that are scored and compared."""

    checkpoint: tuple[str, ...] | None = option(
        None,
        "NAME-ckpt.pt of a run, or the run's folder; of several seeds, each",
        must_exist=True,
        is_path=True,
    )
    predictions: tuple[str, ...] | None = option(
        None,
        "instead of checkpoints: predictions.jsonl, or folders that hold one",
        must_exist=True,
        is_path=True,
    )
    compare: tuple[str, ...] | None = option(
        None,
        "checkpoints or predictions of another recipe, for a paired comparison",
        must_exist=True,
        is_path=True,
    )
    names: tuple[str, str] | None = option(
        None, "of the two sides of --compare; default what differs between their paths"
    )
    hypothesis_only: bool = option(False, "also train a baseline that never sees a premise")


@dataclass(frozen=True)
class ScoredDataOptions:
    """The rows that are scored."""

    dataset: tuple[str, ...] | None = option(
        None,
        "one or several: hindi_xnli, xnli_LANG, xnli_all, demo, a folder (./NAME where it has "
        "one of these names), or a name on the Hub; default the data that the checkpoint was "
        "fine-tuned on, with predictions alone what they hold",
        metavar="NAME",
        is_path=True,
    )
    split: str = option("test", "the split that is scored", choices=SPLITS)
    dataset_config: str | None = option(None, "configuration of a Hub dataset")
    data_dir: str | None = option(
        None, "folder that holds the datasets, or a copy of a repository", is_path=True
    )
    text_column: tuple[str, str] | None = option(
        None,
        f"columns of premise, hypothesis; default {' '.join(TEXT_COLUMNS)}, without --dataset "
        "those of the run",
    )
    label_column: str | None = option(
        None, f"column of the label; default {LABEL_COLUMN}, without --dataset that of the run"
    )
    block_size: int | None = option(
        None,
        "tokens of a row at most, premises are cut; default the checkpoint's, which other "
        "languages may exceed",
        low=8,
        high=1 << 16,
    )
    cache_dir: Path = option(Path("cache"), "folder of the tokenised data")


@dataclass(frozen=True)
class IntervalOptions:
    """How intervals are drawn."""

    bootstrap_samples: int = option(RESAMPLES, "draws of premises", low=100, high=10**6)
    seed: int = option(0, "of the draws", low=0, high=2**32 - 1)


@dataclass(frozen=True)
class EvaluationOutputOptions:
    """What is left, and where."""

    out_dir: Path = option(Path("out/evaluation"), "folder of results.json, predictions.jsonl")
    report: bool = option(True, "write report.html, report.md and figures there")


@dataclass(frozen=True)
class Evaluation:
    """The configuration of an evaluation."""

    scored: ScoredOptions = group(ScoredOptions, "what is scored")
    data: ScoredDataOptions = group(ScoredDataOptions, "data")
    rows: RowOptions = group(RowOptions, "rows")
    intervals: IntervalOptions = group(IntervalOptions, "intervals")
    machine: InferenceOptions = group(InferenceOptions, "machine")
    output: EvaluationOutputOptions = group(EvaluationOutputOptions, "output")
