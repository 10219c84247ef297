"""From a run's configuration and data to its trainer, and what decides its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from xnli_gpt.choices import AUTO
from xnli_gpt.data.encoded import JoinedDatasets
from xnli_gpt.data.loading import pick_training_examples
from xnli_gpt.data.packing import packed_rows, rows_sharing_premises
from xnli_gpt.data.premises import premises_of
from xnli_gpt.data.tokenizer import first_end_of_text
from xnli_gpt.devices import emulation_warning, words_about_precision
from xnli_gpt.evaluation.logits import Inference
from xnli_gpt.evaluation.metrics import main_metrics
from xnli_gpt.evaluation.validation import Validation
from xnli_gpt.files import FINE_TUNED_KIND
from xnli_gpt.fine_tuning.attention import require_within_windows
from xnli_gpt.fine_tuning.configuration import FineTuning
from xnli_gpt.fine_tuning.inputs import Run
from xnli_gpt.options import plain_values
from xnli_gpt.training.compiling import is_compiled
from xnli_gpt.training.config_file import data_flags
from xnli_gpt.training.graphs import step_graphs_of
from xnli_gpt.training.loggers import open_loggers
from xnli_gpt.training.memory import compile_ahead, find_max_tokens
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.options import TrainingMachineOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import (
    Recipe,
    class_weights_of,
    eval_interval_of,
    number_of_steps,
    steps_per_epoch,
)
from xnli_gpt.training.records import RunRecords
from xnli_gpt.training.resumption import Identity, Resumption, examples_per_rank, examples_per_step
from xnli_gpt.training.trainer import Trainer

# What a step is in examples is compared by itself: ranks have a part in it.
STEP_OPTIONS = ("batch_size", "gradient_accumulation_steps")
# Options of other groups than the recipe and the evaluation that decide the result; what the others
# name is compared by its content.
OTHER_DECISIVE_OPTIONS = (
    *("text_column", "label_column", "template", "block_size", "max_train_examples"),
    *("random_init", "embedding_update", "where", "label_names", "bad_rows", "quotes"),
    "validation_split",
)


def identity_of(run: Run) -> Identity:
    """Return what decides the result of a run: what it must have in common with the run that it
    goes on with."""
    config, inputs = run.config, run.inputs
    options, defaults = plain_values(config), plain_values(FineTuning())
    of_groups = plain_values(config.recipe) | plain_values(config.validation)
    names = [name for name in of_groups if name not in STEP_OPTIONS]
    names += OTHER_DECISIVE_OPTIONS
    return Identity(
        {name: options[name] for name in names}
        | {
            "dtype": inputs.precision.name,
            "pretrained weights": inputs.info["weights_id"],
            "tokenizer": inputs.encoding.tokenizer_hash,
            "data": [dataset.content_hash for dataset in run.data.sets.values()],
            "classes": list(run.data.classes),
            "end-of-text token": inputs.encoding.end_of_text_token,
        },
        {name: defaults[name] for name in names}
        | {"end-of-text token": first_end_of_text(inputs.encoding.tokenizer)},
        inputs.encoding.file_hash,
        len(training_positions(config, run.data)),
    )


def find_save(run: Run) -> Resumption:
    """Return what the run goes on from, in the precision of its save."""
    config, inputs = run.config, run.inputs
    keeps_precision = config.machine.dtype == AUTO
    resumption = Resumption(
        run.folder,
        config.run.resume,
        identity_of(run),
        inputs.precision,
        keeps_precision,
        inputs.ranks,
    )
    resumption.find()
    if resumption.precision != inputs.precision:
        inputs.precision = resumption.precision
        print(words_about_precision(AUTO, inputs.precision, inputs.device))
        if warning := emulation_warning(inputs.precision.name, inputs.device):
            print(warning)
    return resumption


def training_positions(config: FineTuning, data: JoinedDatasets) -> np.ndarray:
    """Return the positions of the examples that are trained on."""
    return pick_training_examples(config.data.max_train_examples, config.recipe.seed, data.train)


def training_examples(
    config: FineTuning, data: JoinedDatasets, shares_premises: bool = False
) -> Examples:
    """Return the examples to train on, in the order of their rows; with `shares_premises` the
    premise that neighbours in a batch have in common stands once."""
    split, chosen, recipe = data.train, training_positions(config, data), config.recipe
    row_of = rows_sharing_premises if shares_premises else packed_rows
    return Examples(
        split.lengths[chosen],
        np.asarray(split.labels)[chosen],
        lambda positions: row_of(split, chosen[positions]),
        positions_of_sets(data.train_sets[chosen]) if recipe.sampling == "even" else None,
        premises_of(split, chosen) if recipe.group_premises else None,
    )


def positions_of_sets(sets: np.ndarray) -> list[np.ndarray]:
    """Return for numbers of sets [N] the positions of each set."""
    return [np.flatnonzero(sets == number) for number in np.unique(sets)]


def make_recipe(
    config: FineTuning, labels: np.ndarray, num_classes: int, dtype: torch.dtype, per_step: int
) -> Recipe:
    """Return the recipe of a run on examples with `labels` [N], `per_step` of them a step.

    Raises UsageError where a drawn subset lacks a class.
    """
    options, epoch_steps = config.recipe, steps_per_epoch(len(labels), per_step)
    return Recipe(
        **vars(options),
        examples_per_step=per_step,
        num_steps=number_of_steps(options.max_steps, options.num_epochs, epoch_steps),
        eval_interval=eval_interval_of(config.validation.eval_interval, epoch_steps),
        weight_of_class=class_weights_of(options, labels, num_classes),
        early_stopping=config.validation.early_stopping,
        dtype=dtype,
    )


def make_optimizer(
    model: nn.Module, config: FineTuning, dtype: torch.dtype
) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
    """Return a model's optimizer, and the scaler that only float16 needs."""
    device, recipe = next(model.parameters()).device, config.recipe
    optimizer = configure_optimizers(
        device.type,
        model,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        backbone_lr_scale=recipe.backbone_lr_scale,
        embedding_update=config.machine.embedding_update,
    )
    return optimizer, torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)


def make_trainer(
    run: Run,
    resumption: Resumption,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    check: dict | None,
) -> Trainer:
    """Return the trainer of a run, where its save left off, if it has one.

    `check` is what the self-check found, for the saves.
    """
    config, inputs, data = run.config, run.inputs, run.data
    ranks, save, dtype = inputs.ranks, resumption.save, inputs.precision.dtype
    require_within_windows(config.machine.attention, model.pretrained_model, data.longest_row)
    per_step = examples_per_step(config.recipe, ranks.world_size, save)
    groups_premises = config.recipe.group_premises
    if groups_premises and not model.shares_beginnings:
        print("note: premises are drawn whole, but this attention computes each for all its pairs")
    examples = training_examples(config, data, groups_premises and model.shares_beginnings)
    trainer = Trainer(
        model,
        optimizer,
        scaler,
        make_recipe(config, examples.labels, len(data.classes), dtype, per_step),
        examples,
        Validation(
            data.splits("validation"),
            data.classes,
            config.validation.best_metric,
            Inference(dtype, ranks=ranks, stop=inputs.stop),
        ),
        save_interval=config.run.save_interval,
        ranks=ranks,
        stop=inputs.stop,
    )
    if save is not None:
        trainer.load_state_dict(save)
        if resumption.is_longer and trainer.state.before_last is not None:
            trainer.state.take_back_last_evaluation()
        ranks.broadcast_object(lambda: run.folder.forget_best_of_other_steps(trainer.state))
    if ranks.is_main_process:
        trainer.records = _records_of(run, resumption, trainer, check)
    return trainer


def _records_of(
    run: Run, resumption: Resumption, trainer: Trainer, check: dict | None
) -> RunRecords:
    config, inputs, validation = run.config, run.inputs, run.config.validation
    in_saves = {
        "decisive": resumption.decisive,
        "self_check": check,
        "tokenizer_file": inputs.encoding.file_hash,
        "examples_per_step": trainer.recipe.examples_per_step,
        "examples_per_rank": examples_per_rank(config.recipe),
    }
    records = RunRecords(
        run.folder,
        trainer.model,
        _in_checkpoints(run, trainer.model),
        in_saves,
        open_loggers(config.run, plain_values(config), trainer.state.step),
        main_metrics(),
        trainer.validation.is_better if validation.best_per_set else None,
        keeps_earlier=config.recipe.lr_schedule == "constant",
    )
    records.begin(trainer.state)
    return records


def _in_checkpoints(run: Run, model: nn.Module) -> dict[str, object]:
    """Return what every fine-tuned checkpoint of a run holds besides weights and metrics."""
    encoding, info = run.inputs.encoding, run.inputs.info
    return {
        "kind": FINE_TUNED_KIND,
        "config": model.config.to_dict(),
        "classes": list(run.data.classes),
        "tokenizer": encoding.tokenizer.to_str(),
        "end_of_text": encoding.end_of_text_token,
        "template": encoding.template,
        "block_size": encoding.block_size,
        "datasets": list(run.data.sets),
        "data": data_flags(run.config.data, run.config.rows),
        "pretrained": {
            "file": info["file"],
            "step": info["step"],
            "weights_id": info["weights_id"],
            "random_init": run.config.pretrained.random_init,
        },
    }


def fit_to_machine(
    trainer: Trainer, machine: TrainingMachineOptions, compile_trunk: Callable[[nn.Module], None]
) -> bool:
    """Compile where that is worth while, find the token budget, and run the validation's longest
    rows once. Returns whether the trunk was compiled."""
    model, recipe, examples = trainer.model, trainer.recipe, trainer.examples
    compiled = is_compiled(machine.compile, next(model.parameters()).device, recipe.num_steps)
    if compiled:
        print("compiling: about a minute, several on a busy machine", flush=True)
        compile_trunk(model.pretrained_model)
        compile_ahead(model, recipe, examples)
    trainer.optimizer.allocate()
    budget = machine.max_tokens_per_batch or find_max_tokens(model, recipe, examples)
    # The same on all ranks: the smallest.
    budget = min(trainer.ranks.all_gather_object(budget))
    trainer.state.max_tokens_per_batch = budget
    trainer.graphs = step_graphs_of(
        machine, model, trainer.optimizer, recipe, examples, trainer.ranks
    )
    inference = replace(trainer.validation.inference, max_tokens=budget)
    trainer.validation = replace(trainer.validation, inference=inference)
    trainer.validation.evaluate(model, max_batches=2)
    return compiled
