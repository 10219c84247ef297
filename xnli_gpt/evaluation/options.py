"""Options about the evaluations while a model is fine-tuned."""

from __future__ import annotations

from dataclasses import dataclass

from xnli_gpt.evaluation.metrics import main_metrics
from xnli_gpt.options import option


@dataclass(frozen=True)
class ValidationOptions:
    """When the validation split is scored, and what its metrics decide."""

    eval_interval: int | None = option(None, "steps; default four times an epoch", low=1)
    best_metric: str = option("accuracy", "that picks the checkpoint", choices=main_metrics())
    early_stopping: int = option(0, "evaluations without a better one; 0 never", low=0)
    best_per_set: bool = option(False, "of several datasets, also keep the best model of each")
