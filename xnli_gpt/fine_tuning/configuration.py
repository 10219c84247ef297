"""The configuration of a fine-tuning run, from groups of options."""

from __future__ import annotations

from dataclasses import dataclass

from xnli_gpt.checkpoints.options import PretrainedOptions
from xnli_gpt.data.options import DataOptions, RowOptions
from xnli_gpt.evaluation.options import ValidationOptions
from xnli_gpt.options import group
from xnli_gpt.training.options import RecipeOptions, RunOptions, TrainingMachineOptions


@dataclass(frozen=True)
class FineTuning:
    """The configuration of a run, by the groups of its options."""

    data: DataOptions = group(DataOptions, "data")
    rows: RowOptions = group(RowOptions, "rows")
    pretrained: PretrainedOptions = group(PretrainedOptions, "checkpoint and tokenizer")
    recipe: RecipeOptions = group(RecipeOptions, "recipe")
    validation: ValidationOptions = group(ValidationOptions, "evaluation")
    machine: TrainingMachineOptions = group(TrainingMachineOptions, "machine")
    run: RunOptions = group(RunOptions, "run")
