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

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xnli_gpt.choices import RESAMPLES, SPLITS
from xnli_gpt.commands import Command, exit_code_of
from xnli_gpt.data.names import (
    KNOWN_NAMES,
    dataset_names,
    notes_of_datasets,
    problems_of_datasets,
    short_name,
)
from xnli_gpt.errors import UsageError
from xnli_gpt.evaluation.metrics import METRICS
from xnli_gpt.machine import InferenceOptions
from xnli_gpt.options import group, option
from xnli_gpt.processors import set_up_libraries

TEXT_COLUMNS, LABEL_COLUMN = ["premise", "hypothesis"], "label"
PREDICTIONS_FILE = "predictions.jsonl"
PACKAGES = ("torch", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn")
# What seeds of one recipe have in common, by the names of a checkpoint's facts.
RECIPE_FACTS = ("config", "tokenizer_sha256", "template", "block_size", "pretrained_step")
EXIT_INTERRUPTED = 130


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
class OutputOptions:
    """What is left, and where."""

    out_dir: Path = option(Path("out/evaluation"), "folder of results.json, predictions.jsonl")
    report: bool = option(True, "write report.html, report.md and figures there")


@dataclass(frozen=True)
class Evaluation:
    """The configuration of an evaluation."""

    scored: ScoredOptions = group(ScoredOptions, "what is scored")
    data: ScoredDataOptions = group(ScoredDataOptions, "data")
    intervals: IntervalOptions = group(IntervalOptions, "intervals")
    machine: InferenceOptions = group(InferenceOptions, "machine")
    output: OutputOptions = group(OutputOptions, "output")


def problems_of_names(config: Evaluation) -> list[str]:
    """What is wrong with names that only a table of names knows."""
    return problems_of_datasets(config.data.dataset, config.data.data_dir)


COMMAND = Command(
    "Score fine-tuned checkpoints or predictions, with intervals and comparisons.",
    Evaluation,
    problems_of_names,
)

if __name__ == "__main__":
    COMMAND.refuse_wrong_words()
    set_up_libraries()

import numpy as np
import torch
from tqdm import tqdm

from inference import (
    FINE_TUNED_ENDING,
    device_of,
    encoding_of_saved,
    fine_tuned_file,
    model_of_saved,
    precision_of,
    read_fine_tuned,
    split_logits,
    words_about_precision,
)
from xnli_gpt.data import demo_grammar
from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.encoded import EncodedDataset, EncodedSplit
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import PairEncoding
from xnli_gpt.devices import Precision
from xnli_gpt.errors import DataError, EvaluationError, PredictionsError, RunError
from xnli_gpt.evaluation.answers import one_class_warning, only_answers
from xnli_gpt.evaluation.baseline import hypothesis_only
from xnli_gpt.evaluation.comparison import compare
from xnli_gpt.evaluation.intervals import over_seeds
from xnli_gpt.evaluation.predictions import (
    PredictedRows,
    logits_in_order,
    read_predictions,
    write_predictions,
)
from xnli_gpt.evaluation.scored_split import SCORES, ScoredSplit, scores_of_models
from xnli_gpt.evaluation.scores import macro_average, split_metrics
from xnli_gpt.evaluation.sides import names_of_sides
from xnli_gpt.evaluation.slices import language_of
from xnli_gpt.files import own_folder, save_atomically, save_json
from xnli_gpt.own_data import OwnData, own_data_of
from xnli_gpt.provenance import code_commit

BUILTIN_DATASETS = {"demo": demo_grammar.nli_splits}


@dataclass(frozen=True)
class Source:
    """Where logits come from: a checkpoint, or rows that were predicted before."""

    path: Path
    facts: dict  # for results.json
    classes: tuple[str, ...]
    encoding: PairEncoding | None = None
    own_data: OwnData | None = None  # what a checkpoint was fine-tuned on
    predicted: dict[str, PredictedRows] | None = None


@dataclass(frozen=True)
class Rows:
    """The rows of one dataset's split that are scored."""

    ids: Sequence[int]
    premises: list[str]
    hypotheses: list[str]
    labels: np.ndarray  # [N] int64
    request: DataRequest | None  # None where the rows are those of predictions


@dataclass(frozen=True)
class Inputs:
    """What is scored, read and checked before any long work."""

    device: torch.device
    precision: Precision
    first: list[Source]
    second: list[Source]  # those of --compare
    rows: dict[str, Rows]
    encoded: dict[tuple, EncodedDataset]

    @property
    def classes(self) -> tuple[str, ...]:
        """Those of the first source; the others have the same, perhaps in another order."""
        return self.first[0].classes


def check_inputs(config: Evaluation, problems: Sequence[str]) -> Inputs:
    """Everything that can be found wrong before scoring.

    `problems` are those already found in the command line. Raises UsageError with all that is
    wrong with the flags and what they name, then DataError or PredictionsError for the rows.
    """
    problems = [*problems, *_problems_of_choice(config)]

    def attempt(action: Callable[..., object], *arguments: object) -> object:
        try:
            return action(*arguments)
        except UsageError as error:
            problems.extend(error.problems)
        except (DataError, RunError, PredictionsError) as error:
            problems.append(str(error))
        return None

    device = attempt(device_of, config.machine.device)
    attempt(_check_out_dir, Path(config.output.out_dir))
    if config.data.dataset is not None:
        attempt(dataset_names, config.data.dataset)
    readers = {"checkpoint": _checkpoint_sources, "predictions": _prediction_sources}
    first = [
        attempt(read, Path(path), config)
        for flag, read in readers.items()
        for path in getattr(config, flag) or ()
    ]
    second = [
        attempt(_compared_sources, Path(path), config) for path in config.scored.compare or ()
    ]
    if problems:
        raise UsageError(problems)
    first, second = [sum(group, []) for group in (first, second)]
    _set_data(config, [*first, *second])
    for group in (first, second):
        _require_one_recipe(group)
    _require_same_classes(first + second)
    rows = _load_rows(config, first, second)
    encoded = _encode_for(config, first + second, rows)
    return Inputs(device, precision_of(config.machine.dtype, device), first, second, rows, encoded)


def _problems_of_choice(config: Evaluation) -> list[str]:
    problems = []
    if config.scored.checkpoint is None and config.scored.predictions is None:
        problems.append("--checkpoint or --predictions is needed: what is to be scored")
    if config.scored.checkpoint is not None and config.scored.predictions is not None:
        problems.append("--checkpoint and --predictions: expected one of them; see --compare")
    if config.scored.names is not None and config.scored.compare is None:
        problems.append("--names: needs --compare, whose two sides it names")
    if config.scored.names is not None and config.scored.names[0] == config.scored.names[1]:
        problems.append(f"--names {' '.join(config.scored.names)}: the same name for both sides")
    if (
        config.scored.hypothesis_only
        and config.scored.checkpoint is None
        and config.data.dataset is None
    ):
        problems.append("--hypothesis_only: needs --dataset, whose train split it learns from")
    return problems


def _check_out_dir(folder: Path) -> None:
    """Nothing is made yet. A training run's results.json must not be overwritten by ours."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise UsageError([f"--out_dir {folder}: can't be made, {nearest} is a file"])
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError([f"--out_dir {folder}: {nearest} is not writable"])
    if any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        raise UsageError(
            [
                f"--out_dir {folder}: holds a fine-tuning run, whose results.json would be "
                f"overwritten; use another folder, for instance {folder / 'evaluation'}"
            ]
        )


def _compared_sources(path: Path, config: Evaluation) -> list[Source]:
    """What --compare names may be either; of a run's folder, what the other side is."""
    is_run = path.is_dir() and any(path.glob(f"*{FINE_TUNED_ENDING}"))
    has_predictions = (path / PREDICTIONS_FILE).is_file()
    if is_run and not (config.scored.predictions and has_predictions):
        return _checkpoint_sources(path, config)
    if path.is_dir() or path.suffix == ".jsonl":
        return _prediction_sources(path, config)
    return _checkpoint_sources(path, config)


def _checkpoint_sources(path: Path, config: Evaluation) -> list[Source]:
    """A fine-tuned checkpoint without its weights: only one model at a time is in memory."""
    path = fine_tuned_file(path)
    saved = _read_saved(path, config.data.block_size)
    model_of_saved(saved, path)
    encoding = encoding_of_saved(saved, path)
    facts = {
        "file": str(path),
        "sha256": _sha256_of(path),
        "step": saved["step"],
        "pretrained": saved["pretrained"],
        "pretrained_step": saved["pretrained"]["step"],
        "format": saved["config"]["family"],
        "config": saved["config"],
        "classes": list(saved["classes"]),
        "template": saved["template"],
        "block_size": saved["block_size"],
        "tokenizer_sha256": encoding.tokenizer_hash,
    }
    own_data = own_data_of(path, saved)
    return [Source(path, facts, tuple(saved["classes"]), encoding, own_data)]


def _set_data(config: Evaluation, sources: Sequence[Source]) -> None:
    """Fill in what --dataset and its like leave open: the data that the checkpoints were
    fine-tuned on, then the defaults. Raises DataError where that is not known, or not one."""
    fine_tuned = [source for source in sources if source.own_data is not None]
    if config.data.dataset is None and fine_tuned:
        own = fine_tuned[0].own_data
        for source in fine_tuned[1:]:
            if source.own_data != own:
                raise DataError(
                    f"{source.path}: was fine-tuned on other data than {fine_tuned[0].path}; say "
                    "by --dataset what they are scored on"
                )
        config.data.dataset = _own_datasets(own, fine_tuned[0].path, config.data.data_dir)
        for name in ("dataset_config", "data_dir", "text_column", "label_column"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(own, name))
        print(f"note: no --dataset, so the run's own data: {' '.join(config.data.dataset)}")
    config.data.text_column = config.data.text_column or TEXT_COLUMNS
    config.data.label_column = config.data.label_column or LABEL_COLUMN


def _own_datasets(own: OwnData, path: Path, data_dir: str | None) -> list[str]:
    """The names of a run's data, found where they were; within `data_dir`, where it is given."""
    if data_dir is not None:
        return [short_name(name) for name in own.dataset]
    for name in own.dataset:
        if own.data_dir is not None or name in KNOWN_NAMES:
            continue
        if not own.is_recorded:
            raise DataError(
                f"{path}: was fine-tuned on {name}, and does not say where that is; name it by "
                "--dataset"
            )
        if os.path.isabs(name) and not Path(name).is_dir():
            raise DataError(
                f"{path}: was fine-tuned on {name}, which is no folder here; say by --dataset "
                "where the data is"
            )
    return own.dataset


def _read_saved(path: Path, block_size: int | None) -> dict:
    """A fine-tuned checkpoint; its network is made for any length of rows that is asked for."""
    saved = read_fine_tuned(path)
    if block_size is not None:
        saved["block_size"] = saved["config"]["max_seq_len"] = block_size
    return saved


def _prediction_sources(path: Path, config: Evaluation) -> list[Source]:
    """One for every run that the file holds."""
    path = path / PREDICTIONS_FILE if path.is_dir() else path
    runs = read_predictions(path, config.data.split)
    sha256 = _sha256_of(path)
    sources = []
    for number, predicted in enumerate(runs, start=1):
        classes = next(iter(predicted.values())).classes
        facts = {"file": str(path), "sha256": sha256, "run": number, "classes": list(classes)}
        sources.append(Source(path, facts, classes, predicted=predicted))
    return sources


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_one_recipe(sources: Sequence[Source]) -> None:
    """Seeds differ in their weights only; a mean over anything else says nothing."""
    seen: dict[object, Source] = {}
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
                        "by --compare"
                    ]
                )


def _require_same_classes(sources: Sequence[Source]) -> None:
    for source in sources:
        if set(source.classes) != set(sources[0].classes):
            raise UsageError(
                [
                    f"{source.path}: classes {', '.join(source.classes)}, but {sources[0].path} "
                    f"has {', '.join(sources[0].classes)}"
                ]
            )


def _load_rows(
    config: Evaluation,
    first: Sequence[Source],
    second: Sequence[Source],
) -> dict[str, Rows]:
    """The rows of every dataset, in the data's order."""
    if config.data.dataset is None:
        return _rows_of_predictions(first[0])
    classes = first[0].classes
    names = dataset_names(config.data.dataset)
    for note in notes_of_datasets(names, config.data.data_dir):
        print(note)
    rows = {}
    for dataset in names:
        request = _request(config, dataset, classes, (config.data.split,))
        texts = _texts_of(request, config.data.cache_dir, first[0].path)[config.data.split]
        absent = ", ".join(name for i, name in enumerate(classes) if i not in texts.labels)
        if absent:
            print(f"note: {dataset}: no row of {absent} in {config.data.split}: 0 in macro figures")
        rows[short_name(dataset)] = Rows(
            range(len(texts.labels)), texts.premises, texts.hypotheses, texts.labels, request
        )
    return rows


def _request(
    config: Evaluation, dataset: str, classes: tuple[str, ...], splits: tuple[str, ...]
) -> DataRequest:
    return DataRequest(
        dataset=dataset,
        dataset_config=config.data.dataset_config,
        data_dir=config.data.data_dir,
        text_columns=tuple(config.data.text_column),
        label_column=config.data.label_column,
        splits=splits,
        classes=classes,
    )


def _texts_of(request: DataRequest, cache_dir: str, model: Path) -> dict:
    """The texts by split. Where the data can be used, but not with the model's classes, the
    error tells both."""
    try:
        return load_texts(request, cache_dir, BUILTIN_DATASETS)[0]
    except DataError as error:
        try:
            _, found = load_texts(replace(request, classes=None), cache_dir, BUILTIN_DATASETS)
        except DataError:
            raise error from None
        raise DataError(
            f"--dataset {request.dataset}: classes {', '.join(found)}, but {model} knows "
            f"{', '.join(request.classes)}; use a model that was fine-tuned on the data's classes"
        ) from error


def _rows_of_predictions(source: Source) -> dict[str, Rows]:
    """The rows that predictions hold themselves, by their ids."""
    rows = {}
    for name, predicted in source.predicted.items():
        numbers = {label: number for number, label in enumerate(source.classes)}
        for row, label in zip(predicted.ids, predicted.labels, strict=True):
            if label not in numbers:
                raise PredictionsError(
                    f"{predicted.where}: id {row} has the label {label}, expected "
                    f"{', '.join(numbers)}; labels of the data are taken with --dataset"
                )
        order = np.argsort(predicted.ids, kind="stable")
        labels = np.array([numbers[label] for label in predicted.labels])
        rows[name] = Rows(
            [predicted.ids[i] for i in order],
            [predicted.premises[i] for i in order],
            [predicted.hypotheses[i] for i in order],
            labels[order],
            request=None,
        )
    return rows


def _encode_for(
    config: Evaluation, sources: Sequence[Source], rows: Mapping[str, Rows]
) -> dict[tuple, EncodedDataset]:
    """The rows as token ids, once for all checkpoints that make the same ids of them; for
    predictions only whether they are of these rows."""
    encoded = {}
    for source in sources:
        for name, of_set in rows.items():
            if source.predicted is not None:
                _predicted_logits(source, name, of_set, sources[0].classes)
            elif (key := _encoding_key(source, name)) not in encoded:
                request = replace(of_set.request, classes=source.classes)
                encoded[key] = load_encoded(
                    request, source.encoding, config.data.cache_dir, BUILTIN_DATASETS
                )
    return encoded


def _encoding_key(source: Source, name: str) -> tuple:
    encoding = source.encoding
    return name, encoding.tokenizer_hash, encoding.template, encoding.block_size


def _predicted_logits(
    source: Source, name: str, rows: Rows, classes: tuple[str, ...]
) -> np.ndarray:
    """[N, classes] in the order of the rows."""
    if name not in source.predicted:
        raise PredictionsError(
            f"{source.path}: no predictions for {name} (found {', '.join(source.predicted)})"
        )
    labels = [classes[label] for label in rows.labels]
    return logits_in_order(
        source.predicted[name], rows.ids, rows.premises, rows.hypotheses, labels, classes
    )


def baselines(config: Evaluation, inputs: Inputs) -> dict[str, dict]:
    """For each dataset what a classifier of the hypothesis alone reaches, where it is asked for."""
    if not config.scored.hypothesis_only:
        return {}
    figures = {}
    for name, rows in inputs.rows.items():
        request = replace(rows.request, splits=("train",))
        train = load_texts(request, config.data.cache_dir, BUILTIN_DATASETS)[0]["train"]
        if len(np.unique(train.labels)) < 2:
            raise DataError(f"--hypothesis_only: train of {name} has only one class")
        language = language_of(name, rows.hypotheses)
        figures[name] = hypothesis_only(
            train.hypotheses, train.labels, rows.hypotheses, rows.labels, language
        )
    return figures


def score(config: Evaluation, inputs: Inputs, sources: Sequence[Source]) -> dict[str, ScoredSplit]:
    """Every dataset's rows with the logits of all sources."""
    logits: dict[str, list[np.ndarray]] = {name: [] for name in inputs.rows}
    total = len(sources) * len(inputs.rows)
    with tqdm(total=total, desc="scoring", unit="split", disable=None) as progress:
        for source in sources:
            model = None if source.encoding is None else _model_of(config, inputs, source)
            for name, rows in inputs.rows.items():
                if model is None:
                    logits[name].append(_predicted_logits(source, name, rows, inputs.classes))
                else:
                    split = inputs.encoded[_encoding_key(source, name)].splits[config.data.split]
                    logits[name].append(_computed_logits(config, inputs, source, model, split))
                progress.update()
    return {
        name: ScoredSplit(
            rows.ids,
            rows.premises,
            rows.hypotheses,
            rows.labels,
            np.stack(logits[name]),
            inputs.classes,
            language_of(name, rows.hypotheses),
        )
        for name, rows in inputs.rows.items()
    }


def _model_of(config: Evaluation, inputs: Inputs, source: Source) -> torch.nn.Module:
    saved = _read_saved(source.path, config.data.block_size)
    if saved["step"] != source.facts["step"]:
        raise RunError(f"{source.path}: was overwritten meanwhile; wait until training ends")
    return model_of_saved(saved, source.path).to(inputs.device)


def _computed_logits(
    config: Evaluation,
    inputs: Inputs,
    source: Source,
    model: torch.nn.Module,
    split: EncodedSplit,
) -> np.ndarray:
    """[N, classes] with the classes in the order of the first source."""
    logits, _ = split_logits(
        model,
        split,
        len(source.classes),
        inputs.precision.dtype,
        config.machine.max_tokens_per_batch,
    )
    if not bool(torch.isfinite(logits).all()):
        raise EvaluationError(f"{source.path}: logits are not finite; use --dtype float32")
    return logits.numpy()[:, [source.classes.index(name) for name in inputs.classes]]


def results_of(
    config: Evaluation,
    inputs: Inputs,
    scored: dict[str, ScoredSplit],
    compared: dict[str, ScoredSplit] | None,
    hypothesis_only: dict[str, dict],
) -> dict:
    """The content of results.json."""
    draws = {"resamples": config.intervals.bootstrap_samples, "seed": config.intervals.seed}
    metrics = {name: split_metrics(one, **draws) for name, one in scored.items()}
    for name, figures in hypothesis_only.items():
        metrics[name]["hypothesis_only"] = figures
    results = {
        "split": config.data.split,
        "datasets": metrics,
        "macro_average": macro_average(metrics, scored, **draws),
        "checkpoint": inputs.first[0].facts,
    }
    if len(inputs.first) > 1:
        results["seeds"] = _seeds(inputs.first, scored)
    if compared is not None:
        results["comparison"] = {
            "names": config.scored.names
            or names_of_sides(*([s.path for s in side] for side in (inputs.first, inputs.second))),
            "checkpoints": [source.facts for source in inputs.second],
            **compare(scored, compared, **draws),
        }
        if len(inputs.second) > 1:
            results["comparison"]["seeds"] = _seeds(inputs.second, compared)
    return results | {
        "data": _data_facts(config, inputs),
        "bootstrap": draws,
        "device": str(inputs.device),
        "dtype": inputs.precision.name,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "command": sys.argv,
    }


def _data_facts(config: Evaluation, inputs: Inputs) -> dict[str, dict]:
    """For each dataset the hash of its content and what was counted, as the first checkpoint
    reads it; nothing of predictions."""
    source = inputs.first[0]
    if source.encoding is None:
        return {}
    data = {name: inputs.encoded[_encoding_key(source, name)] for name in inputs.rows}
    return {
        name: {"content_sha256": one.content_hash, **one.statistics[config.data.split]}
        for name, one in data.items()
    }


def _seeds(sources: Sequence[Source], scored: Mapping[str, ScoredSplit]) -> dict:
    """Spread over models, by dataset and of the macro average."""
    of_sets = {name: scores_of_models(one) for name, one in scored.items()}
    macro = {
        name: np.mean([scores[name] for scores in of_sets.values()], axis=0) for name in SCORES
    }
    return {
        "checkpoints": [source.facts for source in sources],
        "datasets": {
            name: {score: over_seeds(values, score) for score, values in scores.items()}
            for name, scores in of_sets.items()
        },
        "macro_average": {score: over_seeds(values, score) for score, values in macro.items()},
    }


def write_report_of(config: Evaluation, inputs: Inputs, results: dict) -> None:
    """report.html, report.md and figures/ beside results.json."""
    # Only here: matplotlib takes seconds to import.
    from xnli_gpt.report import ReportContent, write_report

    comparison = results.get("comparison")
    title = _side(inputs.first) if comparison is None else " against ".join(comparison["names"])
    content = ReportContent(
        f"{title} on {', '.join(results['datasets'])} ({config.data.split})",
        results=results["datasets"],
        split=config.data.split,
        macro_average=results["macro_average"] if len(results["datasets"]) > 1 else None,
        random_trunk=_random_trunk(inputs, comparison),
        seeds=results.get("seeds"),
        comparison=comparison,
        predictions=_lines_of(Path(config.output.out_dir) / PREDICTIONS_FILE),
        facts=_facts(inputs, results),
        recipe={name: value for name, value in vars(config).items() if name != "config"},
    )
    write_report(config.output.out_dir, content)


def _random_trunk(inputs: Inputs, comparison: Mapping | None) -> dict[str, float]:
    """The accuracies of what is compared with, where that is a trunk of random weights."""
    second = [source.facts.get("pretrained") or {} for source in inputs.second]
    if comparison is None or not all(one.get("random_init") for one in second):
        return {}
    return {name: one["accuracy"]["second"] for name, one in comparison["datasets"].items()}


def _side(sources: Sequence[Source]) -> str:
    """What a recipe is called: the folder of its first checkpoint or predictions."""
    path = sources[0].path.resolve()
    name = path.parent.name if path.is_file() else path.name
    return name if len(sources) == 1 else f"{name} and {len(sources) - 1} more"


def _facts(inputs: Inputs, results: dict) -> dict[str, object]:
    return {
        "command": results["command"],
        "commit": code_commit(),
        "scored": [f"{source.path} {source.facts.get('sha256', '')}" for source in inputs.first],
        "compared with": [str(source.path) for source in inputs.second] or None,
        "pretrained": inputs.first[0].facts.get("pretrained"),
        "format": inputs.first[0].facts.get("format"),
        "data": {name: one["content_sha256"] for name, one in results["data"].items()} or None,
        "tokenizer": inputs.first[0].facts.get("tokenizer_sha256"),
        "bootstrap": results["bootstrap"],
        "machine": f"{platform.node()}, {results['device']}, {results['dtype']}",
        "versions": results["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }


def _lines_of(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def table_of(results: Mapping) -> list[str]:
    """The cross-lingual table: a line a dataset, and their mean."""
    rows = dict(results["datasets"])
    if len(rows) > 1:
        rows["macro average"] = results["macro_average"]
    width = max(map(len, rows))
    others = {name: metric.title for name, metric in METRICS.items() if name != "accuracy"}
    titles = "".join(f"  {title:>6}" for title in others.values())
    lines = [f"{'':<{width}}   rows  {'accuracy [95 %]':<24}{titles}"]
    for name, metrics in rows.items():
        figures = "".join(f"  {metrics[key]:>{max(6, len(t))}.4f}" for key, t in others.items())
        baseline = metrics.get("hypothesis_only")
        beside = f"  (hypothesis only {baseline['accuracy']:.4f})" if baseline else ""
        lines.append(
            f"{name:<{width}}  {metrics.get('examples', ''):>5}  {metrics['accuracy']:.4f} "
            f"{_shown(metrics['intervals']['accuracy']):<17}{figures}{beside}"
        )
    return lines


def _shown(interval: Sequence[float] | None, sign: str = "") -> str:
    return (
        "[no interval]"
        if interval is None
        else f"[{interval[0]:{sign}.4f}, {interval[1]:{sign}.4f}]"
    )


def seed_lines(seeds: Mapping) -> list[str]:
    """Mean, standard deviation and interval of the accuracy over seeds, a line a dataset."""
    return [
        f"{name}: accuracy {figures['accuracy']['mean']:.4f} ± {figures['accuracy']['std']:.4f} "
        f"over {len(seeds['checkpoints'])} seeds, 95 % {_shown(figures['accuracy']['interval'])}"
        for name, figures in _with_macro(seeds)
    ]


def comparison_lines(comparison: Mapping) -> list[str]:
    """The difference in accuracy with its interval and p, and McNemar's test, a line a dataset."""
    first, second = comparison["names"]
    lines = [f"{first} against {second}:"]
    for name, figures in _with_macro(comparison):
        accuracy, test = figures["accuracy"], figures.get("mcnemar")
        p = "" if accuracy["p"] is None else f", p {accuracy['p']:.4f}"
        mcnemar = f"; McNemar ({test['variant']}) p {test['p']:.4f}" if test else ""
        lines.append(
            f"{name}: accuracy {first} {accuracy['first']:.4f}, {second} {accuracy['second']:.4f}, "
            f"difference {accuracy['difference']:+.4f} {_shown(accuracy['interval'], '+')}{p}"
            f"{mcnemar}"
        )
    return lines


def _with_macro(figures: Mapping) -> list[tuple[str, Mapping]]:
    macro = [("macro average", figures["macro_average"])] if len(figures["datasets"]) > 1 else []
    return [*figures["datasets"].items(), *macro]


def print_results(results: Mapping) -> None:
    """The tables of a run."""
    lines = table_of(results)
    if "seeds" in results:
        lines += seed_lines(results["seeds"])
    if "comparison" in results:
        lines += comparison_lines(results["comparison"])
    warnings = [
        one_class_warning(only_answers(metrics, name))
        for name, metrics in results["datasets"].items()
    ]
    print("\n".join([*lines, *filter(None, warnings)]))


def run(config: Evaluation, inputs: Inputs) -> None:
    """One evaluation, from checked inputs to results.json."""
    out_dir = Path(config.output.out_dir)
    if words := words_about_precision(config.machine.dtype, inputs.precision, inputs.device):
        print(words)
    with own_folder(out_dir):
        without_premises = baselines(config, inputs)
        scored = score(config, inputs, inputs.first)
        compared = score(config, inputs, inputs.second) if inputs.second else None
        results = results_of(config, inputs, scored, compared, without_premises)
        save_atomically(
            out_dir / PREDICTIONS_FILE,
            lambda path: write_predictions(path, config.data.split, scored),
        )
        if config.output.report:
            write_report_of(config, inputs, results)
        save_json(out_dir / "results.json", results)
    print_results(results)
    print(_places(config))


def _places(config: Evaluation) -> str:
    out_dir = Path(config.output.out_dir)
    places = {"results": "results.json", "predictions": PREDICTIONS_FILE}
    if config.output.report:
        places["report"] = "report.html"
    return ", ".join(f"{what}: {out_dir / name}" for what, name in places.items())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""

    def work() -> None:
        config, problems = COMMAND.parse(argv)
        run(config, check_inputs(config, problems))

    try:
        return exit_code_of(work)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
