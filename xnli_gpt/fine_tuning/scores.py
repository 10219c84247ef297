"""Scores of a run's best models on validation and test, its report, and results.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from xnli_gpt.checkpoints.fine_tuned import read_fine_tuned
from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.loading import request_of
from xnli_gpt.data.names import dataset_names, short_name
from xnli_gpt.evaluation.answers import one_class_warning, only_answers
from xnli_gpt.evaluation.logits import split_logits
from xnli_gpt.evaluation.scored_split import ScoredSplit
from xnli_gpt.evaluation.slices import language_of
from xnli_gpt.evaluation.validation import score
from xnli_gpt.files import save_json
from xnli_gpt.fine_tuning.inputs import Run, read_best
from xnli_gpt.options import plain_values
from xnli_gpt.training.run_folder import RunFolder
from xnli_gpt.training.state import TrainState

# Makes a model of the content of a fine-tuned checkpoint, which the main process alone has.
ModelOf = Callable[[dict | None], nn.Module]


def score_best(run: Run, model_of: ModelOf) -> tuple[dict[str, dict], nn.Module]:
    """Return validation and test metrics of the saved best model, and the model."""
    saved = None
    if run.inputs.ranks.is_main_process:
        saved = run.inputs.saved or read_best(run.folder)
    model = model_of(saved)
    print("scoring the best model on validation and test")
    scores = {
        split: score(model, run.data.splits(split), run.data.classes, run.inference, split)
        for split in ("validation", "test")
    }
    return scores, model


def score_best_of_sets(run: Run, state: TrainState, model_of: ModelOf) -> dict[str, dict]:
    """Return per dataset the step of its own best model, and that model's test metrics on it."""
    best = run.inputs.ranks.broadcast_object(lambda: state.best_of_sets)
    scores = {}
    for name, kept in best.items():
        is_main = run.inputs.ranks.is_main_process
        model = model_of(read_fine_tuned(run.folder.best(name)) if is_main else None)
        splits = {name: run.data.splits("test")[name]}
        title = f"best for {name}, test"
        scores[name] = {
            "best_step": kept["step"],
            "test": score(model, splits, run.data.classes, run.inference, title),
        }
    return scores


def report_on_test(
    run: Run, model: nn.Module, state: TrainState, found: Mapping[str, object]
) -> dict[str, dict]:
    """Write the report and the predictions of the test split, with `found` of config.yaml.

    Returns the metrics per dataset with their intervals, on the main process.
    """
    print("writing the report: intervals, figures and every prediction on test")
    scored = {
        short_name(name): _scored_test(run, model, name)
        for name in dataset_names(run.config.data.dataset)
    }
    if not run.inputs.ranks.is_main_process:
        return {}
    # Only here: matplotlib takes seconds to import.
    from xnli_gpt.report.run_report import FinishedRun, write_run_report

    return write_run_report(FinishedRun(run.folder, plain_values(run.config), found, state), scored)


def _scored_test(run: Run, model: nn.Module, name: str) -> ScoredSplit:
    """Return the rows of a dataset's test split with their texts and the model's logits."""
    data, options = run.data, run.config.data
    request = request_of(options, name, ("test",), data.classes)
    texts = load_texts(request, options.cache_dir)[0]["test"]
    split = data.sets[short_name(name)].splits["test"]
    logits, rows = split_logits(model, split, len(data.classes), run.inference)
    return ScoredSplit(
        rows,
        texts.premises,
        texts.hypotheses,
        texts.labels,
        logits.numpy()[None],
        data.classes,
        language_of(short_name(name), texts.hypotheses),
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
    if warning := one_class_warning(answers):
        print(warning)
    places = {"results": folder.results, "report": folder.report, "model": folder.best()}
    return ", ".join(f"{what}: {path}" for what, path in places.items() if path.exists())
