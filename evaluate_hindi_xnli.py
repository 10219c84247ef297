"""Score fine-tuned checkpoints, or predictions, on one dataset or many.

    python evaluate_hindi_xnli.py --checkpoint out/hindi_xnli-ckpt.pt --dataset xnli_all --out_dir E
    python evaluate_hindi_xnli.py --predictions E --out_dir again
    python evaluate_hindi_xnli.py --checkpoint a/seed*/*-ckpt.pt --compare b/seed*/*-ckpt.pt

Several checkpoints are seeds of one recipe, and every figure is the mean of theirs; --compare
takes those of a second recipe. Leaves results.json, predictions.jsonl and a report in --out_dir.
Exit codes: 0 done, 1 the model's numbers are not finite or memory does not suffice, 2 what was
asked can't be done (said in lines that begin with "error:"), 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xnli_gpt.commands import Command, Problems
from xnli_gpt.data.names import dataset_names, problems_of_datasets
from xnli_gpt.evaluation.options import Evaluation, ScoredOptions
from xnli_gpt.options import plain_values
from xnli_gpt.processors import set_up_libraries


def problems_of_names(config: Evaluation) -> list[str]:
    """Return what is wrong with names that only a table of names knows."""
    return problems_of_datasets(config.data.dataset, config.data.data_dir)


COMMAND = Command(
    "Score fine-tuned checkpoints or predictions, with intervals and comparisons.",
    Evaluation,
    problems_of_names,
)

if __name__ == "__main__":
    COMMAND.refuse_wrong_words()
    set_up_libraries()

from inference import model_of_saved
from xnli_gpt.devices import Precision, device_of, precision_of, words_about_precision
from xnli_gpt.errors import UsageError
from xnli_gpt.evaluation.logits import Inference
from xnli_gpt.evaluation.predictions import PREDICTIONS_FILE, write_predictions
from xnli_gpt.evaluation.results import Side, facts_of, results_of
from xnli_gpt.evaluation.rows import data_of_models, load_rows, rows_of_predictions
from xnli_gpt.evaluation.scoring import Scorer, encode_rows, hypothesis_only_baselines
from xnli_gpt.evaluation.sources import (
    LogitSource,
    SourceReader,
    require_one_recipe,
    require_same_classes,
)
from xnli_gpt.evaluation.tables import print_results
from xnli_gpt.files import own_folder, problem_of_folder, save_atomically, save_json


@dataclass(frozen=True)
class Inputs:
    """What is scored, read and checked before any long work."""

    config: Evaluation  # what it leaves open about the data is filled in
    precision: Precision
    first: list[LogitSource]
    second: list[LogitSource]  # what the first are compared with
    scorer: Scorer


def check_inputs(config: Evaluation, problems: Sequence[str]) -> Inputs:
    """Read and check everything that can be found wrong before scoring.

    `problems` are those already found in the command line. Raises UsageError with all that is
    wrong with the flags and what they name, then DataError or PredictionsError for the rows.
    """
    found = Problems([*problems, *problems_of_choice(config)])
    device = found.attempt(device_of, config.machine.device)
    found.attempt(require_no_run_in, config.output.out_dir)
    if config.data.dataset is not None:
        found.attempt(dataset_names, config.data.dataset)
    data = config.data
    reader = SourceReader(model_of_saved, data.split, data.block_size, config.rows.label_names)
    first, second = read_sources(config.scored, reader, found)
    if found:
        raise UsageError(found)
    sources = [*first, *second]
    own = [(source.path, source.own_data) for source in sources if source.own_data is not None]
    data, reading = data_of_models(config.data, config.rows, own)
    config = replace(config, data=data, rows=reading)
    require_one_recipe(first)
    require_one_recipe(second)
    require_same_classes(sources)
    classes = first[0].classes
    if config.data.dataset is None:
        rows = rows_of_predictions(first[0].predicted, classes)
    else:
        rows = load_rows(config.data, config.rows, classes, first[0].path)
    encoded = encode_rows(sources, rows, config.data.cache_dir)
    precision = precision_of(config.machine.dtype, device)
    inference = Inference(precision.dtype, config.machine.max_tokens_per_batch)
    scorer = Scorer(reader, rows, classes, encoded, inference, device)
    return Inputs(config, precision, first, second, scorer)


def read_sources(
    scored: ScoredOptions, reader: SourceReader, problems: Problems
) -> tuple[list[LogitSource], list[LogitSource]]:
    """Return the sources that are scored, and those that they are compared with; what is wrong
    with them is added to `problems`."""
    prefers_predictions = bool(scored.predictions)
    first = [problems.attempt(reader.checkpoint, Path(path)) for path in scored.checkpoint or ()]
    first += [problems.attempt(reader.predictions, Path(path)) for path in scored.predictions or ()]
    second = [
        problems.attempt(reader.either, Path(path), prefers_predictions)
        for path in scored.compare or ()
    ]
    return sum(filter(None, first), []), sum(filter(None, second), [])


def problems_of_choice(config: Evaluation) -> list[str]:
    """Return what is wrong with the flags taken together."""
    scored, problems = config.scored, []
    if scored.checkpoint is None and scored.predictions is None:
        problems.append("--checkpoint or --predictions is needed: what is to be scored")
    if scored.checkpoint is not None and scored.predictions is not None:
        problems.append("--checkpoint and --predictions: expected one of them; see --compare")
    if scored.names is not None and scored.compare is None:
        problems.append("--names: needs --compare, whose two sides it names")
    if scored.names is not None and scored.names[0] == scored.names[1]:
        problems.append(f"--names {' '.join(scored.names)}: the same name for both sides")
    if scored.hypothesis_only and scored.checkpoint is None and config.data.dataset is None:
        problems.append("--hypothesis_only: needs --dataset, whose train split it learns from")
    return problems


def require_no_run_in(folder: Path) -> None:
    """Raise UsageError for a folder that can't be made or written, or holds a training run, whose
    results.json must not be overwritten. Nothing is made yet."""
    if problem := problem_of_folder(folder):
        raise UsageError([f"--out_dir {folder}: {problem}"])
    if any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        raise UsageError(
            [
                f"--out_dir {folder}: holds a fine-tuning run, whose results.json would be "
                f"overwritten; use another folder, for instance {folder / 'evaluation'}"
            ]
        )


def run(inputs: Inputs) -> None:
    """Do one evaluation, from checked inputs to results.json."""
    config, scorer = inputs.config, inputs.scorer
    machine, output, split = config.machine, config.output, config.data.split
    if words := words_about_precision(machine.dtype, inputs.precision, scorer.device):
        print(words)
    with own_folder(output.out_dir):
        baselines = {}
        if config.scored.hypothesis_only:
            baselines = hypothesis_only_baselines(scorer.rows, config.data.cache_dir)
        first = Side(inputs.first, scorer.score(inputs.first))
        second = Side(inputs.second, scorer.score(inputs.second)) if inputs.second else None
        results = {
            "split": split,
            **results_of(first, second, config.scored.names, config.intervals, baselines),
            **facts_of(scorer, inputs.first[0]),
        }
        save_atomically(
            output.out_dir / PREDICTIONS_FILE,
            lambda path: write_predictions(path, {split: first.scored}),
        )
        if output.report:
            write_report_of(inputs, results)
        save_json(output.out_dir / "results.json", results)
    print_results(results)
    print(places(output.out_dir, output.report))


def write_report_of(inputs: Inputs, results: dict) -> None:
    """Write the report into the folder of the results."""
    # Only here: matplotlib takes seconds to import.
    from xnli_gpt.report.evaluation_report import write_evaluation_report

    config = inputs.config
    write_evaluation_report(
        config.output.out_dir, results, inputs.first, inputs.second, plain_values(config)
    )


def places(out_dir: Path, has_report: bool) -> str:
    """Return where results are, in words."""
    files = {"results": "results.json", "predictions": PREDICTIONS_FILE}
    if has_report:
        files["report"] = "report.html"
    return ", ".join(f"{what}: {out_dir / name}" for what, name in files.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def work() -> None:
        config, problems = COMMAND.parse(argv)
        run(check_inputs(config, problems))

    return COMMAND.exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
