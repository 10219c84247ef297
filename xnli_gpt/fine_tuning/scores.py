"""Scores of a run's best models on validation and test, its report, and results.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from xnli_gpt.checkpoints.fine_tuned import read_fine_tuned
from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.loading import Wanted
from xnli_gpt.data.names import dataset_names, short_name
from xnli_gpt.evaluation.answers import one_class_warning, only_answers, other_order_warning
from xnli_gpt.evaluation.logits import split_logits
from xnli_gpt.evaluation.scored_split import ScoredSplit
from xnli_gpt.evaluation.slices import language_of
from xnli_gpt.evaluation.validation import score
from xnli_gpt.files import save_json
from xnli_gpt.fine_tuning.inputs import Run
from xnli_gpt.messages import with_flags
from xnli_gpt.options import plain_values
from xnli_gpt.training.run_folder import RunFolder
from xnli_gpt.training.state import TrainState


def load_best(run: Run, model: nn.Module, path: Path) -> None:
    """Give a model the weights of a run's fine-tuned checkpoint.

    The main process alone reads it: another might still see the file's predecessor.
    """
    if run.inputs.ranks.is_main_process:
        model.load_state_dict(read_fine_tuned(path)["model"])
    run.inputs.ranks.broadcast_model(model)


def score_best(run: Run, model: nn.Module) -> dict[str, dict]:
    """Return validation and test metrics of a run's best model."""
    splits = {split: run.data.scored_splits(split) for split in ("validation", "test")}
    there = [split for split, of_sets in splits.items() if of_sets]
    print(f"scoring the best model on {' and '.join(there)}")
    return {
        split: score(model, splits[split], run.data.classes, run.inference, split)
        for split in there
    }


def score_best_of_sets(run: Run, model: nn.Module, state: TrainState) -> dict[str, dict]:
    """Return per dataset the step of its own best model, and that model's test metrics on it.

    `model` is left with the weights of the last of them.
    """
    best = run.inputs.ranks.broadcast_object(lambda: state.best_of_sets)
    scores = {}
    for name, kept in best.items():
        load_best(run, model, run.folder.best(name))
        scores[name] = {"best_step": kept["step"]}
        if name in run.data.scored_splits("test"):
            splits = {name: run.data.scored_splits("test")[name]}
            title = f"best for {name}, test"
            scores[name]["test"] = score(model, splits, run.data.classes, run.inference, title)
    return scores


def write_report_of(
    run: Run, model: nn.Module, state: TrainState, found: Mapping[str, object]
) -> tuple[str, dict[str, dict]]:
    """Write the report and the predictions of the test split, with `found` of config.yaml; where
    no test split has labels, of validation.

    Returns the split that it is about, and on the main process the metrics per dataset with their
    intervals.
    """
    split = "test" if run.data.scored_splits("test") else "validation"
    print(f"writing the report: intervals, figures and every prediction on {split}")
    is_scored = run.data.scored_splits(split)
    unlabelled = run.data.splits("test").keys() - run.data.scored_splits("test").keys()
    scored, others = {}, {}
    for name in dataset_names(run.config.data.dataset):
        short = short_name(name)
        if short in is_scored:
            scored[short] = _predicted_split(run, model, name, split)
        if short in unlabelled:
            others[short] = _predicted_split(run, model, name, "test")
    if not run.inputs.ranks.is_main_process:
        return split, {}
    # Only here: matplotlib takes seconds to import.
    from xnli_gpt.report.run_report import FinishedRun, write_run_report

    finished = FinishedRun(run.folder, plain_values(run.config), found, state, split)
    return split, write_run_report(finished, scored, others)


def _predicted_split(run: Run, model: nn.Module, name: str, split: str) -> ScoredSplit:
    """Return the rows of a dataset's split with their texts and the model's logits."""
    data, options = run.data, run.config.data
    of_set = data.sets[short_name(name)]
    request = Wanted(options, run.config.rows, (split,), data.classes).request(name)
    request = replace(request, optional=(split,))
    texts = load_texts(request, options.cache_dir)[0][split]
    logits, rows = split_logits(model, of_set.splits[split], len(data.classes), run.inference)
    carried = dict(texts.carried)
    if leaked := of_set.leaked.get(split):
        stands_in_train = np.isin(np.arange(len(texts.labels)), leaked)
        carried["in_train"] = np.where(stands_in_train, "in train, too", "not in train").tolist()
    return ScoredSplit(
        rows,
        texts.premises,
        texts.hypotheses,
        texts.labels,
        logits.numpy()[None],
        data.classes,
        language_of(short_name(name), texts.hypotheses),
        carried,
    )


def write_results(
    run: Run,
    state: TrainState,
    scores: Mapping[str, dict],
    best_of_sets: Mapping[str, dict],
    check: dict | None,
) -> None:
    """Write results.json of a finished run."""
    results = {
        **scores,
        **({"best_per_set": best_of_sets} if best_of_sets else {}),
        "best_metric": run.config.validation.best_metric,
        "best_step": state.best_step,
        "steps": state.step,
        "skipped_steps": state.skipped,
        "examples": state.examples,
        "examples_per_second": state.examples_per_second,
        "train_seconds": state.train_seconds,
        "seed": run.config.recipe.seed,
        "self_check": check,
    }
    save_json(run.folder.results, results)


def outcome(folder: RunFolder) -> str:
    """Return where the results of a scored run are; warn of a model that answers one class."""
    results = folder.read_results()
    answers = {
        f"{split} of {name}" if name else split: answer
        for split in ("validation", "test")
        for name, answer in only_answers(results.get(split, {}), "").items()
    }
    warnings = [one_class_warning(answers)]
    for split in ("validation", "test"):
        of_sets = results.get(split, {}).get("sets", {split: results.get(split, {})})
        warnings += [other_order_warning(metrics, name) for name, metrics in of_sets.items()]
    for warning in filter(None, warnings):
        print(with_flags(warning))
    places = {"results": folder.results, "report": folder.report, "model": folder.best()}
    return ", ".join(f"{what}: {path}" for what, path in places.items() if path.exists())
