"""Ask a fine-tuned checkpoint about pairs of sentences, or export it for transformers.

    python predict_hindi_xnli.py --checkpoint out/hindi_xnli-ckpt.pt --premise "…" --hypothesis "…"
    python predict_hindi_xnli.py --checkpoint … --input pairs.jsonl --output predictions.jsonl
    some_command | python predict_hindi_xnli.py --checkpoint … > predictions.tsv
    python predict_hindi_xnli.py --checkpoint … --export DIR

The checkpoint is all it needs. Exit codes: 0 done (also where the reader of a pipe has seen
enough), 1 the model's numbers are not finite or memory does not suffice, 2 what was asked can't be
done (said in lines that begin with "error:"), 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from xnli_gpt.commands import Command
from xnli_gpt.data.row_files import QUOTES, TEXT_KINDS, kind_of
from xnli_gpt.errors import UsageError
from xnli_gpt.machine import InferenceOptions
from xnli_gpt.options import group, option
from xnli_gpt.processors import set_up_libraries

# Pairs that are in memory at once; the first chunk is small, so that a pipe soon gives something.
FIRST_CHUNK, LARGEST_CHUNK = 64, 4096


@dataclass(frozen=True)
class ModelOptions:
    """The model, and whether it is exported."""

    checkpoint: Path | None = option(
        None, "NAME-ckpt.pt of a run, or its folder; all that is needed", must_exist=True
    )
    export: Path | None = option(
        None, "write a folder that transformers loads, and predict nothing"
    )


@dataclass(frozen=True)
class PairOptions:
    """One pair to predict."""

    premise: str | None = option(None, "its premise")
    hypothesis: str | None = option(None, "its hypothesis")


@dataclass(frozen=True)
class FileOptions:
    """Many pairs to predict, from a file or a pipe."""

    input: Path | None = option(
        None,
        "a .jsonl, .json, .csv or .tsv file, or one of them with .gz; default what is piped in: "
        "jsonl, tsv with a header, or lines of premise, tab, hypothesis",
        must_exist=True,
    )
    output: Path | None = option(None, "a .jsonl, .csv or .tsv file; default standard output")
    text_column: tuple[str, str] = option(
        ("premise", "hypothesis"), "columns of premise, hypothesis"
    )
    quotes: str | None = option(
        None, "in tsv, a quotation mark is a letter (text), or quotes a field (csv)", choices=QUOTES
    )
    bad_rows: str = option(
        "error",
        "rows that can't be used: error, or skip: name them and go on",
        choices=("error", "skip", "stop"),  # "stop" is what older versions called "error"
    )


@dataclass(frozen=True)
class PredictionOutputOptions:
    """How predictions are printed."""

    json: bool = option(False, "a JSON object a pair on standard output")


@dataclass(frozen=True)
class Predicting:
    """The configuration of a prediction."""

    model: ModelOptions = group(ModelOptions, "model")
    pair: PairOptions = group(PairOptions, "one pair")
    files: FileOptions = group(FileOptions, "many pairs")
    output: PredictionOutputOptions = group(PredictionOutputOptions, "output")
    machine: InferenceOptions = group(InferenceOptions, "machine")


COMMAND = Command(
    "Predict the classes of premise-hypothesis pairs with a fine-tuned checkpoint.", Predicting
)

if __name__ == "__main__":
    COMMAND.refuse_wrong_words()
    set_up_libraries()

from tqdm import tqdm

import model
from inference import Prediction, XNLIClassifier, model_of_saved
from xnli_gpt.checkpoints.fine_tuned import fine_tuned_file, read_fine_tuned
from xnli_gpt.data.tokenizer import encoding_of_saved
from xnli_gpt.devices import device_of, emulation_warning
from xnli_gpt.errors import DataError
from xnli_gpt.export.folder import FineTuned, require_new, write_folder
from xnli_gpt.files import save_atomically
from xnli_gpt.prediction.output import OUTPUT_KINDS, json_line, row_writer, standard_output
from xnli_gpt.prediction.pairs import BadRows, PairReader, PairSource, Row


def check_request(config: Predicting, problems: Sequence[str]) -> None:
    """Raise UsageError with all that is wrong before anything is loaded."""
    problems = [*problems, *_problems_of_task(config), *_problems_of_files(config)]
    if config.model.checkpoint is None:
        problems.append("--checkpoint is needed: the NAME-ckpt.pt of a fine-tuning run")
    try:
        device_of(config.machine.device)
    except UsageError as error:
        problems += error.problems
    if problems:
        raise UsageError(problems)


def _problems_of_task(config: Predicting) -> list[str]:
    one_pair = [
        name for name in ("premise", "hypothesis") if getattr(config.pair, name) is not None
    ]
    files = [name for name in ("input", "output") if getattr(config.files, name) is not None]
    if config.model.export is not None:
        others = one_pair + files
        return [f"--{name}: nothing is predicted with --export" for name in others]
    if one_pair:
        problems = [f"--{name}: goes with many pairs, not with --{one_pair[0]}" for name in files]
        if len(one_pair) == 1:
            problems.append(f"--{one_pair[0]}: give both, --premise and --hypothesis")
        return problems
    if config.files.input is None and (sys.stdin is None or sys.stdin.isatty()):
        return ["nothing to predict: give --premise and --hypothesis, --input, or pipe pairs in"]
    return []


def _problems_of_files(config: Predicting) -> list[str]:
    problems = []
    for name, kinds in (("input", TEXT_KINDS), ("output", OUTPUT_KINDS)):
        path = getattr(config.files, name)
        if path is not None and kind_of(path) not in kinds:
            endings = ", ".join(f".{kind}" for kind in kinds)
            problems.append(f"--{name} {path}: expected a file that ends in {endings}")
    if config.files.input is not None and not Path(config.files.input).is_file():
        problems.append(f"--input {config.files.input}: no such file")
    if config.files.output is not None:
        problems += _problems_of_output(config)
    return problems


def _problems_of_output(config: Predicting) -> list[str]:
    output, problems = Path(config.files.output), []
    if not output.parent.is_dir():
        problems.append(f"--output {output}: no folder {output.parent}; make it first")
    elif output.is_dir():
        problems.append(f"--output {output}: is a folder, expected a file")
    elif not os.access(output.parent, os.W_OK | os.X_OK):
        problems.append(f"--output {output}: {output.parent} is not writable")
    elif config.files.input is not None and output.exists() and Path(config.files.input).exists():
        if output.samefile(config.files.input):
            problems.append(f"--output {output}: is the input; name another file")
    if config.output.json and kind_of(output) != "jsonl":
        problems.append(f"--json: goes with standard output; name --output {output.stem}.jsonl")
    return problems


def predicted_chunks(
    classifier: XNLIClassifier, rows: Iterator[Row], bad: BadRows
) -> Iterator[list[tuple[Row, Prediction]]]:
    """Yield rows with their predictions, in order, as many at once as memory should hold."""
    size = FIRST_CHUNK
    while chunk := list(islice(rows, size)):
        size = min(2 * size, LARGEST_CHUNK)
        try:
            encoded = classifier.encode([row.pair for row in chunk])
        except DataError:
            chunk = list(_usable(classifier, chunk, bad))
            encoded = classifier.encode([row.pair for row in chunk])
        yield list(zip(chunk, classifier.predict_encoded(encoded), strict=True))


def _usable(classifier: XNLIClassifier, rows: Iterable[Row], bad: BadRows) -> Iterator[Row]:
    for row in rows:
        problem = classifier.problem_of(row.pair)
        if problem is None:
            yield row
        else:
            bad(row.where, problem)


def predict_one(config: Predicting, classifier: XNLIClassifier, out: TextIO) -> None:
    """Write the classes of one pair, the most probable first."""
    pair = (config.pair.premise, config.pair.hypothesis)
    if problem := classifier.problem_of(pair):
        raise DataError(problem)
    (prediction,) = classifier.predict([pair])
    if config.output.json:
        fields = {"premise": config.pair.premise, "hypothesis": config.pair.hypothesis}
        out.write(json_line(fields, prediction))
        return
    by_probability = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    out.writelines(f"{name} {probability:.4f}\n" for name, probability in by_probability)


def predict_many(
    config: Predicting, classifier: XNLIClassifier, source: PairSource, bad: BadRows
) -> int:
    """Predict all pairs of the source, to the output file or standard output; return how many went
    to a file."""
    if config.files.output is None:
        with standard_output() as out:
            _write_predictions(config, classifier, source, bad, out)
        return 0
    counts = []

    def write(partial: Path) -> None:
        # A lone surrogate in a field that is merely handed on is written as its JSON escape.
        options = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        with open(partial, "w", **options) as out:
            counts.append(_write_predictions(config, classifier, source, bad, out))

    save_atomically(Path(config.files.output), write)
    return counts[0]


def _write_predictions(
    config: Predicting,
    classifier: XNLIClassifier,
    source: PairSource,
    bad: BadRows,
    out: TextIO,
) -> int:
    kind = source.kind
    if config.files.output is not None:
        kind = kind_of(Path(config.files.output))
    elif config.output.json:
        kind = "jsonl"
    write, written = row_writer(kind, out, source.columns, classifier.classes), 0
    with _progress_bar(source, out) as bar:
        for chunk in predicted_chunks(classifier, source.rows, bad):
            for row, prediction in chunk:
                write(row, prediction)
            out.flush()
            written += len(chunk)
            bar.set_postfix_str(f"{written} pairs, {bad.count} skipped", refresh=False)
            bar.update(len(chunk) if source.bytes_read is None else source.bytes_read() - bar.n)
    if not written:
        found = f"none of {bad.count} rows can be used" if bad.count else "no pairs"
        raise DataError(f"{source.name}: {found}, expected at least one")
    return written


def _progress_bar(source: PairSource, out: TextIO) -> tqdm:
    """Show progress on a terminal, unless the predictions go there; of a file by its bytes."""
    unit = {"unit": " pairs"} if source.bytes_read is None else {"unit": "B", "unit_scale": True}
    hidden = True if out.isatty() else None
    return tqdm(total=source.num_bytes, desc="predicting", disable=hidden, **unit)


def export_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write a folder that transformers loads, for a fine-tuned checkpoint or that of a run.

    Raises ExportError for a folder that holds something already or can't be made, and RunError
    for a file that is damaged or no fine-tuned checkpoint.
    """
    require_new(folder)
    path = fine_tuned_file(checkpoint)
    saved = read_fine_tuned(path)
    # Weights that fit no model must not leave as if they did.
    model_of_saved(saved, path)
    fine_tuned = FineTuned(path, saved, encoding_of_saved(saved, path))
    write_folder(folder, fine_tuned, Path(model.__file__))


def run(config: Predicting) -> None:
    """Do what a checked command line asks for."""
    if config.model.export is not None:
        export_checkpoint(config.model.checkpoint, config.model.export)
        print(f"exported: {config.model.export} (model, tokenizer, code and model card)")
        return
    classifier = XNLIClassifier.load(
        config.model.checkpoint,
        config.machine.device,
        config.machine.dtype,
        config.machine.max_tokens_per_batch,
        mapped=config.pair.premise is not None,
    )
    if warning := emulation_warning(config.machine.dtype, device_of(config.machine.device)):
        print(warning, file=sys.stderr)
    if config.pair.premise is not None:
        with standard_output() as out:
            predict_one(config, classifier, out)
        return
    files = config.files
    bad = BadRows(files.bad_rows == "skip")
    with PairReader(files.text_column, files.quotes, bad).opened(files.input) as source:
        written = predict_many(config, classifier, source, bad)
    if config.files.output is not None:
        skipped = f", {bad.count} rows skipped" if bad.count else ""
        print(f"predictions: {config.files.output} ({written} pairs{skipped})")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""

    def work() -> None:
        config, problems = COMMAND.parse(argv)
        check_request(config, problems)
        run(config)

    return COMMAND.exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
