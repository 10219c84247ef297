"""Fine-tune a pretrained checkpoint of the modded-nanogpt line on Hindi XNLI.

    python finetune_hindi_xnli.py --dataset hindi_xnli \\
        --pretrained_ckpt_path 'runs/*/best_state_*.pt' --tokenizer_name tokenizer.json

`run` is the table of contents of a run. Exit codes: 0 done, 1 training failed, 2 what was asked
can't be done (said in lines that begin with "error:"), 75 stopped by a signal with everything
saved: the same command goes on.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.choices import (
    AUTO,
    EMBEDDING_UPDATES,
    EVALUATION_TOKENS,
    ROW_ATTENTION,
    SCHEDULES,
    SPLITS,
    TEMPLATES,
)
from xnli_gpt.data.names import (
    KNOWN_NAMES,
    dataset_names,
    notes_of_datasets,
    problems_of_datasets,
    short_name,
)
from xnli_gpt.evaluation.metrics import METRICS, figures_in_words, main_metrics
from xnli_gpt.flags import (
    DEVICE_FLAGS,
    FOUND,
    Flag,
    FlagGroups,
    UsageError,
    exit_code_of,
    parse_flags,
    refuse_wrong_words,
)
from xnli_gpt.processors import set_up_libraries

METRICS_FILE, STEPS_FILE = "metrics.jsonl", "steps.jsonl"
SELF_CHECK_TEXTS = 256
# Compiling takes about a minute; shorter runs are done sooner without it.
STEPS_WORTH_COMPILING = 300
PACKAGES = ("torch", "tokenizers", "datasets", "numpy", "scikit-learn")
FOLDER_FLAGS = ("data_dir", "cache_dir", "tokenizer_dir", "out_dir")
# sysexits.h calls it EX_TEMPFAIL: to be tried again.
EXIT_STOPPED = 75


FLAGS: FlagGroups = {
    "data": (
        Flag(
            "dataset",
            Path,
            ["hindi_xnli"],
            "one or several: hindi_xnli, xnli_LANG, xnli_all, demo, a folder (./NAME where it has "
            "one of these names; train|validation|test as jsonl, csv, tsv or parquet; "
            "save_to_disk; a copy of a Hub repository), or a name on the Hub",
            count="+",
            metavar="NAME",
        ),
        Flag("dataset_config", str, None, "configuration of a Hub dataset"),
        Flag("data_dir", Path, None, "folder that holds the dataset, or a copy of its repository"),
        Flag(
            "text_column", str, ["premise", "hypothesis"], "columns of premise, hypothesis", count=2
        ),
        Flag("label_column", str, "label", "column of the label"),
        Flag("num_classes", int, None, "classes, checked against the data", low=2),
        Flag("template", str, "documents", "what a pair becomes", choices=tuple(TEMPLATES)),
        Flag(
            "block_size",
            int,
            1024,
            "tokens of a row at most; premises are cut",
            low=8,
            high=1 << 16,
        ),
        Flag("max_train_examples", int, None, "a seeded draw of so many", low=1),
        Flag("cache_dir", Path, "cache", "folder of the tokenised data"),
    ),
    "checkpoint and tokenizer": (
        Flag(
            "pretrained_ckpt_path",
            Path,
            None,
            "paths or globs; the lowest _val in the name wins, else the highest step",
            count="+",
            must_exist=True,
        ),
        Flag("tokenizer_name", Path, None, "path, or a name in --tokenizer_dir", metavar="NAME"),
        Flag("tokenizer_dir", Path, None, "folder of tokenizers"),
        Flag("n_layer", int, None, "detected; checked where given", low=1),
        Flag("n_head", int, None, "detected; needed only where the file does not tell", low=1),
        Flag("n_embd", int, None, "detected; checked where given", low=1),
        Flag("vocab_size", int, None, "detected; checked where given", low=1),
        Flag("random_init", bool, False, "baseline: the checkpoint's network with random weights"),
    ),
    "recipe": (
        Flag("batch_size", int, 16, "times --gradient_accumulation_steps: a step's pairs", low=1),
        Flag("gradient_accumulation_steps", int, 4, "see --batch_size", low=1),
        Flag("num_epochs", float, 3.0, "passes over the training data", above=0, high=1e6),
        Flag("max_steps", int, None, "steps at most, instead of --num_epochs", low=1),
        Flag("learning_rate", float, 1e-4, "peak rate", above=0),
        Flag("backbone_lr_scale", float, 1.0, "the trunk's share of the rate", low=0),
        Flag("weight_decay", float, 0.01, "on matrices, not on embeddings", low=0),
        Flag("warmup_ratio", float, 0.1, "share of the steps", low=0, high=1),
        Flag("lr_schedule", str, "linear", "decay to a tenth of the rate", choices=SCHEDULES),
        Flag("grad_clip", float, 1.0, "largest gradient norm; 0 clips nothing", low=0),
        Flag("dropout", float, 0.1, "in the head", low=0, high=0.99),
        Flag("class_weights", str, "none", "of the loss", choices=("none", "balanced")),
        Flag("label_smoothing", float, 0.0, "of the loss", low=0, high=0.99),
        Flag(
            "sampling",
            str,
            "proportional",
            "of several datasets; even: as many examples of each an epoch",
            choices=("proportional", "even"),
        ),
        Flag("freeze_backbone", bool, False, "train the head alone (a probe)"),
        Flag("seed", int, 0, "of head, order and dropout", low=0, high=2**32 - 1),
    ),
    "evaluation": (
        Flag("eval_interval", int, None, "steps; default four times an epoch", low=1),
        Flag("best_metric", str, "accuracy", "that picks the checkpoint", choices=main_metrics()),
        Flag("early_stopping", int, 0, "evaluations without a better one; 0 never", low=0),
        Flag("best_per_set", bool, False, "of several datasets, also keep the best model of each"),
    ),
    "machine": (
        *DEVICE_FLAGS,
        Flag(
            "max_tokens_per_batch",
            int,
            None,
            "of one forward pass, changes no result; default what memory holds",
            low=1,
        ),
        Flag(
            "compile",
            str,
            "auto",
            "torch.compile; auto: where a compiler is found and the run is long enough",
            choices=("auto", "always", "never"),
        ),
        Flag(
            "attention",
            str,
            "auto",
            "groups (CPU), flex or varlen (cuda)",
            choices=("auto", *ROW_ATTENTION),
        ),
        Flag("gradient_checkpointing", bool, False, "less memory for a third more time"),
        Flag(
            "embedding_update",
            str,
            "exact",
            "lazy: rows that a step does not meet rest (another result, see the README)",
            choices=EMBEDDING_UPDATES,
        ),
    ),
    "run": (
        Flag("out_dir", Path, "out", "folder of everything a run leaves"),
        Flag(
            "resume",
            Path,
            "auto",
            "auto: from the save in --out_dir, if any; never; or the path of a save",
            metavar="auto|never|PATH",
        ),
        Flag("save_interval", int, None, "steps; default every ten minutes", low=1),
        Flag("prepare_only", bool, False, "fetch and tokenise, where there is network; then stop"),
        Flag("eval_only", bool, False, "score the best checkpoint of --out_dir; no training"),
        Flag("report", bool, True, "write report.html, report.md, figures and predictions of test"),
        Flag("tensorboard", bool, False, "log to OUT_DIR/tensorboard"),
        Flag("wandb_log", bool, False, "log to Weights & Biases"),
    ),
}
DESCRIPTION = "Fine-tune a pretrained GPT checkpoint on Hindi XNLI."


def problems_of_names(args: argparse.Namespace) -> list[str]:
    """What is wrong with names that only a table of names knows."""
    return problems_of_datasets(args.dataset, args.data_dir)


if __name__ == "__main__":
    refuse_wrong_words(DESCRIPTION, FLAGS, problems_of_names)
    set_up_libraries()

import numpy as np
import torch
import yaml
from torch import Tensor

from inference import (
    device_of,
    emulation_warning,
    evaluate_split,
    packed_rows,
    precision_of,
    read_fine_tuned,
    split_logits,
    words_about_precision,
)
from load_checkpoint_helper import (
    check_flags_against_file,
    config_of,
    inspect_checkpoint,
    load_pretrained_checkpoint,
)
from model import GPTBatched, GPTClassification, compile_trunk
from xnli_gpt.checkpoints.archive import FINE_TUNED_KIND
from xnli_gpt.checkpoints.lm_check import lm_self_check
from xnli_gpt.checkpoints.paths import resolve_checkpoint_path
from xnli_gpt.data import demo_grammar
from xnli_gpt.data.cache import load_encoded, load_texts
from xnli_gpt.data.encoded import EncodedDataset, EncodedSplit, JoinedDatasets, joined
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import (
    PairEncoding,
    cuts_vowel_signs,
    find_tokenizer,
    load_pair_encoding,
    pair_encoding,
)
from xnli_gpt.devices import DTYPES, Precision, keep_compiled_code_apart
from xnli_gpt.errors import CheckpointError, DataError, RunError
from xnli_gpt.evaluation.answers import one_class_warning, only_answers
from xnli_gpt.evaluation.predictions import prediction_lines, write_predictions
from xnli_gpt.evaluation.scored_split import ScoredSplit
from xnli_gpt.evaluation.scores import macro_average, split_metrics
from xnli_gpt.evaluation.slices import language_of
from xnli_gpt.files import own_folder, read_whole, save_atomically, save_checkpoint, save_json
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.packed_row import PackedRow
from xnli_gpt.provenance import code_commit
from xnli_gpt.training.distributed import ALONE, Ranks, joined_ranks
from xnli_gpt.training.memory import compile_ahead, find_max_tokens
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.order import Examples, balanced_class_weights
from xnli_gpt.training.recipe import (
    Progress,
    Recipe,
    learning_rate_factor,
    steps_per_epoch,
    warmup_steps_of,
)
from xnli_gpt.training.records import StepLog
from xnli_gpt.training.resume import Saves, captured, read_save, restore
from xnli_gpt.training.signals import Stopped, StopSignals
from xnli_gpt.training.trainer import fine_tune, take_back_last_evaluation

BUILTIN_DATASETS = {"demo": demo_grammar.nli_splits}
DEFAULTS = {flag.name: flag.default for group in FLAGS.values() for flag in group}
# What a step is in examples is compared by itself: ranks have a part in it.
STEP_FLAGS = ("batch_size", "gradient_accumulation_steps")
# The other flags change no result, or what they name is compared by its content.
RESULT_FLAGS = [
    flag.name
    for group in ("recipe", "evaluation")
    for flag in FLAGS[group]
    if flag.name not in STEP_FLAGS
] + ["text_column", "label_column", "template", "block_size", "max_train_examples"]
RESULT_FLAGS += ["random_init", "embedding_update"]
# By these a run in the same folder may be made longer, see `_why_not_longer`.
LENGTH_FLAGS = ("--max_steps", "--num_epochs", "--warmup_ratio")


def parse_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, list[str]]:
    """Flags over YAML over defaults, and all that is wrong with them."""
    return parse_flags(DESCRIPTION, FLAGS, argv)


@dataclass
class Inputs:
    """What a run starts from, read and checked before any long work."""

    encoding: PairEncoding
    device: torch.device
    precision: Precision
    info: dict | None  # None with --prepare_only and no checkpoint
    saved: dict | None  # the fine-tuned checkpoint, with --eval_only
    trunk: GPTBatched | None  # the weights that `info` was read from, where the run needs them
    ranks: Ranks
    stop: StopSignals

    @property
    def dtype(self) -> torch.dtype:
        return self.precision.dtype

    def take_trunk(self) -> GPTBatched | None:
        """The trunk, handed over: what trains it must be the only one to keep it in memory."""
        trunk, self.trunk = self.trunk, None
        return trunk


def check_inputs(
    args: argparse.Namespace,
    problems: Sequence[str] = (),
    ranks: Ranks = ALONE,
    stop: StopSignals | None = None,
) -> Inputs:
    """Everything that can be found wrong without reading the data; UsageError with all of it.

    `problems` are those already found in the command line. The first rank names those of all.
    """
    problems = [*problems, *problems_of_names(args)]

    def attempt(action: Callable[[], object]) -> object:
        try:
            return action()
        except UsageError as error:
            problems.extend(error.problems)
        except (CheckpointError, DataError, RunError) as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{error.filename}: {error.strerror}")
        return None

    # The login node that fetches for a GPU job has no GPU itself.
    device = (
        torch.device("cpu") if args.prepare_only else attempt(lambda: device_of(args.device, ranks))
    )
    if device is not None and not args.prepare_only:
        attempt(lambda: _check_attention(args, device))
    attempt(lambda: _check_loggers(args))
    attempt(lambda: _check_folders(args))
    attempt(lambda: dataset_names(args.dataset))
    if args.resume == "never" and not (args.prepare_only or args.eval_only):
        attempt(lambda: _require_no_run(args))
    saved = attempt(lambda: _read_best(args)) if args.eval_only else None
    inspected = None if args.eval_only else attempt(lambda: _inspect_for(args))
    info, trunk = inspected or (None, None)
    encoding = attempt(lambda: _encoding_for(args, saved)) if saved or not args.eval_only else None
    if encoding is not None and info is not None and encoding.num_tokens > info["vocab_size"]:
        problems.append(
            f"--tokenizer_name {args.tokenizer_name}: {encoding.num_tokens} tokens, but "
            f"{info['file']} has {info['vocab_size']} embedding rows: not the tokenizer it was "
            "pretrained with"
        )
    everyones = dict.fromkeys(p for of_rank in ranks.gathered(problems) for p in of_rank)
    if everyones:
        raise UsageError(list(everyones) if ranks.is_first else [])
    # Timing may tell ranks different things.
    precision = ranks.from_first(lambda: precision_of(args.dtype, device))
    return Inputs(encoding, device, precision, info, saved, trunk, ranks, stop or StopSignals())


def _check_attention(args: argparse.Namespace, device: torch.device) -> None:
    problems = []
    if args.attention in ("flex", "varlen") and device.type == "cpu":
        problems.append(
            f"--attention {args.attention}: has no backward pass on a CPU; leave the flag out"
        )
    if args.attention == "varlen" and precision_of(args.dtype, device).dtype is torch.float32:
        problems.append("--attention varlen: needs --dtype bfloat16 or float16")
    if problems:
        raise UsageError(problems)


def _require_within_windows(args: argparse.Namespace, trunk: GPTBatched, longest: int) -> None:
    within = trunk.config.tokens_within_windows
    if args.attention == "varlen" and longest > within:
        raise UsageError(
            [
                f"--attention varlen: a pair of {longest} tokens, beyond the window of {within}; "
                "use flex, or a smaller --block_size"
            ]
        )


def _check_loggers(args: argparse.Namespace) -> None:
    needed = {"tensorboard": args.tensorboard, "wandb": args.wandb_log}
    missing = [name for name, on in needed.items() if on and not importlib.util.find_spec(name)]
    if missing:
        raise UsageError([f"{name} is not installed: pip install {name}" for name in missing])


def _check_folders(args: argparse.Namespace) -> None:
    """Nothing is made yet: a command line with a problem leaves no folders behind."""
    problems = []
    for name in ["cache_dir"] if args.prepare_only else ["cache_dir", "out_dir"]:
        folder = Path(getattr(args, name))
        nearest = next(place for place in (folder, *folder.parents) if place.exists())
        # A cache filled by somebody else needs only reading.
        must_write = name == "out_dir" or nearest != folder
        if not nearest.is_dir():
            problems.append(f"--{name} {folder}: can't be made, {nearest} is a file")
        elif must_write and not os.access(nearest, os.W_OK | os.X_OK):
            problems.append(f"--{name} {folder}: {nearest} is not writable")
    if problems:
        raise UsageError(problems)


def _require_matching_flags(args: argparse.Namespace, info: dict) -> None:
    flags = {name: getattr(args, name) for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
    problems = check_flags_against_file(info, **flags)
    if problems:
        raise UsageError(problems)


def _inspect_for(args: argparse.Namespace) -> tuple[dict | None, GPTBatched | None]:
    """The checkpoint's `info` and trunk, from one reading; None for what the run has no use for."""
    if args.pretrained_ckpt_path is None:
        if args.prepare_only:
            return None, None
        raise UsageError(["--pretrained_ckpt_path is needed: a path or a glob of checkpoints"])
    path = resolve_checkpoint_path(args.pretrained_ckpt_path)
    info, trunk = _inspected(args, path)
    _require_matching_flags(args, info)
    return info, trunk


def _inspected(args: argparse.Namespace, path: Path) -> tuple[dict, GPTBatched | None]:
    try:
        return _read_checkpoint(args, path, args.n_head)
    except CheckpointError as error:
        if args.n_head is None:
            raise
        # A wrong --n_head must not hide the other flags that contradict the file.
        try:
            return _read_checkpoint(args, path, None)
        except CheckpointError:
            raise error from None


def _read_checkpoint(
    args: argparse.Namespace, path: Path, n_head: int | None
) -> tuple[dict, GPTBatched | None]:
    if args.prepare_only or args.random_init:
        info, _ = inspect_checkpoint(path, num_heads=n_head, max_seq_len=args.block_size)
        return info, None
    trunk, info, _ = load_pretrained_checkpoint(path, num_heads=n_head, max_seq_len=args.block_size)
    return info, trunk


def _encoding_for(args: argparse.Namespace, saved: dict | None) -> PairEncoding:
    if saved is not None:
        return pair_encoding(saved["tokenizer"], saved["template"], saved["block_size"])
    if args.tokenizer_name is None:
        raise UsageError(["--tokenizer_name is needed: the tokenizer.json of the pretraining"])
    return load_pair_encoding(
        args.tokenizer_name,
        tokenizer_dir=args.tokenizer_dir,
        template=args.template,
        block_size=args.block_size,
    )


def _read_best(args: argparse.Namespace) -> dict:
    path = fine_tuned_path(args)
    if not path.exists():
        raise UsageError([f"--eval_only: no {path}; fine-tune first, or correct --out_dir"])
    return read_fine_tuned(path)


def run_name(args: argparse.Namespace) -> str:
    """NAME of the files in --out_dir: the dataset's name, or the last part of its path."""
    return "+".join(short_name(dataset) for dataset in args.dataset)


def fine_tuned_path(args: argparse.Namespace, name: str | None = None) -> Path:
    """Where the best model of a run is, or the best for one of its datasets."""
    of_set = "" if name is None else f"-{name}"
    return Path(args.out_dir) / f"{run_name(args)}{of_set}-ckpt.pt"


def _run_files(args: argparse.Namespace) -> list[str]:
    """Names of what an earlier run left in --out_dir, where it got as far as a model."""
    patterns = ("*-ckpt.pt", "*-last.pt", "*-prev.pt", "results.json")
    found = (path.name for pattern in patterns for path in Path(args.out_dir).glob(pattern))
    return sorted(found)


def _require_no_run(args: argparse.Namespace) -> None:
    if files := _run_files(args):
        raise RunError(
            f"--out_dir {args.out_dir}: holds a run ({', '.join(files)}); go on with it by "
            "--resume auto, or use another folder"
        )


def load_data(args: argparse.Namespace, inputs: Inputs) -> JoinedDatasets:
    """The encoded splits that this run needs, with what was counted printed."""
    splits = tuple(split for split in SPLITS if split != "train") if args.eval_only else SPLITS
    classes = None if inputs.saved is None else tuple(inputs.saved["classes"])

    def load(dataset: str) -> EncodedDataset:
        request = _request(args, dataset, splits, classes)
        return load_encoded(request, inputs.encoding, args.cache_dir, BUILTIN_DATASETS)

    names = dataset_names(args.dataset)
    for note in notes_of_datasets(names, args.data_dir):
        print(note)
    print(f"reading {', '.join(names)}; tokenised once, kept in {args.cache_dir}")
    sets = {short_name(name): inputs.ranks.in_turns(lambda name=name: load(name)) for name in names}
    data = joined(sets)
    _print_data(data, inputs.encoding)
    return data


def _request(
    args: argparse.Namespace,
    dataset: str,
    splits: tuple[str, ...],
    classes: tuple[str, ...] | None,
) -> DataRequest:
    return DataRequest(
        dataset=dataset,
        dataset_config=args.dataset_config,
        data_dir=args.data_dir,
        text_columns=tuple(args.text_column),
        label_column=args.label_column,
        num_classes=args.num_classes,
        splits=splits,
        classes=classes,
    )


def _print_data(data: JoinedDatasets, encoding: PairEncoding) -> None:
    print(f"classes: {', '.join(f'{i} {name}' for i, name in enumerate(data.classes))}")
    for name, dataset in data.sets.items():
        of_set = f"{name}, " if len(data.sets) > 1 else ""
        for split, counted in dataset.statistics.items():
            print(
                f"{of_set}{split}: {counted['rows']} pairs, {counted['tokens_per_pair']:.1f} "
                f"tokens a pair (longest {counted['longest_pair']}), "
                f"{counted['tokens_per_word']:.2f} tokens a word, {counted['cut_premises']} "
                f"premises cut at --block_size {encoding.block_size}"
            )
    if cuts_vowel_signs(encoding.tokenizer):
        print(
            "note: this tokenizer cuts Devanagari words at their vowel signs (the default "
            "byte-level pattern), which about doubles the tokens and the cost"
        )


def load_pretrained_model(
    args: argparse.Namespace, model: GPTClassification, inputs: Inputs | None = None
) -> tuple[GPTClassification, torch.optim.Optimizer, torch.amp.GradScaler]:
    """Set `model.pretrained_model` to the checkpoint's trunk, on the device of the run.

    The trunk is that of `inputs`, or without them read from the file. Flags that `args` lacks have
    their defaults. Raises CheckpointError for a file that can't be used and UsageError for a flag
    that contradicts it.
    """
    args = argparse.Namespace(**(DEFAULTS | vars(args)))
    if inputs is None:
        device = device_of(args.device)
        dtype = precision_of(args.dtype, device).dtype
        info, trunk = _inspect_for(args)
    else:
        device, dtype = inputs.device, inputs.dtype
        info, trunk = inputs.info, inputs.take_trunk()
    if args.random_init:
        torch.manual_seed(args.seed)
        trunk = GPTBatched(config_of(info))
    _set_up(args, trunk)
    model.pretrained_model = trunk.to(device).requires_grad_(not args.freeze_backbone)
    model.to(device)
    optimizer = configure_optimizers(
        device.type,
        model,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        backbone_lr_scale=args.backbone_lr_scale,
        embedding_update=args.embedding_update,
    )
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    return model, optimizer, scaler


def _set_up(args: argparse.Namespace, trunk: GPTBatched) -> None:
    trunk.gradient_checkpointing = args.gradient_checkpointing
    trunk.row_attention = None if args.attention == "auto" else args.attention


def build_model(args: argparse.Namespace, info: dict, num_classes: int) -> GPTClassification:
    """A classifier whose head is drawn from the seed, its trunk still without weights."""
    with torch.device("meta"):
        trunk = GPTBatched(config_of(info))
    torch.manual_seed(args.seed)
    return GPTClassification(trunk, num_classes)


def self_check(
    model: GPTClassification, train: EncodedSplit, encoding: PairEncoding
) -> dict | None:
    """Print how likely the trunk finds the fine-tuning texts, and warn where it looks wrong."""
    trunk = model.pretrained_model
    if trunk.lm_head_weight is None:
        print("self-check: left out, a random trunk has no language model")
        return None
    picked = np.linspace(0, len(train) - 1, num=min(SELF_CHECK_TEXTS, len(train)), dtype=int)
    start = np.array([encoding.end_of_text])
    texts = [np.concatenate([start, train.premise(i)]) for i in dict.fromkeys(picked.tolist())]
    print(f"self-check: the trunk's language model on {len(texts)} premises")
    check = lm_self_check(trunk, [text[: trunk.config.max_seq_len] for text in texts])
    print(
        f"self-check: language-model loss {check['lm_loss']:.3f} nats a token on the premises, "
        f"{check['shuffled_loss']:.3f} with their tokens shuffled"
    )
    if check["suspicious"]:
        print(
            "warning: the trunk hardly tells the texts from shuffled ones: the tokenizer is "
            "probably not the one of the pretraining, or the checkpoint is wrong"
        )
    return check


def pick_training_examples(args: argparse.Namespace, train: EncodedSplit) -> np.ndarray:
    """Positions of the examples to train on: all, or a seeded draw of --max_train_examples."""
    if args.max_train_examples is None or args.max_train_examples >= len(train):
        return np.arange(len(train))
    drawn = np.random.default_rng([args.seed, len(train)]).permutation(len(train))
    return np.sort(drawn[: args.max_train_examples])


def what_decides_the_result(
    args: argparse.Namespace, inputs: Inputs, data: JoinedDatasets
) -> dict[str, object]:
    """What a run must have in common with the one that it goes on with, by the names that a
    difference is told by."""
    flags = {f"--{name}": getattr(args, name) for name in RESULT_FLAGS}
    return flags | {
        "--dtype": inputs.precision.name,
        "pretrained weights": inputs.info["weights_id"],
        "tokenizer": inputs.encoding.tokenizer_hash,
        "data": [dataset.content_hash for dataset in data.sets.values()],
        "classes": list(data.classes),
    }


def find_save(
    args: argparse.Namespace, inputs: Inputs, decisive: dict, num_examples: int
) -> dict | None:
    """The content of the save that --resume asks for; None where the run starts anew.

    Raises RunError where --out_dir holds another run, or the save is of another command that is
    not the same but shorter.
    """
    own: list[dict] = []
    encoding = inputs.encoding

    def choose() -> Path | None:
        found = _newest_save(args)
        if found is None:
            earlier = _decisive_of_earlier(args)
            if earlier is not None:
                decided, tokenizer_file = earlier
                earlier = _in_todays_terms(decided, tokenizer_file, encoding)
            keep_precision(args, inputs, decisive, earlier)
            _require_same(decisive, earlier, f"--out_dir {args.out_dir}")
            return None
        path, content = found
        _bring_to_todays_terms(content, encoding)
        keep_precision(args, inputs, decisive, content["decisive"])
        why_not = _why_not_longer(decisive, content, num_examples)
        if why_not is not None:
            _require_same(decisive, content["decisive"], str(path), why_not)
        own.append(content)
        return path

    everyones = inputs.ranks.gathered(decisive)
    _require_same(decisive, everyones[0], "the first rank")
    path = inputs.ranks.from_first(choose)
    inputs.precision = inputs.ranks.gathered(inputs.precision)[0]
    decisive["--dtype"] = inputs.precision.name
    if path is None:
        return None
    if own:
        content = own[0]
    else:
        content = read_save(path)
        _bring_to_todays_terms(content, encoding)
    # A file system may show different ranks different saves for a while.
    steps = inputs.ranks.gathered(content["progress"]["step"])
    if len(set(steps)) > 1:
        raise RunError(f"{path}: the ranks see saves of different steps {steps}: start again")
    print(f"resuming {path} after step {content['progress']['step']}")
    return content


def keep_precision(
    args: argparse.Namespace, inputs: Inputs, decisive: dict, earlier: dict | None
) -> None:
    """With --dtype auto, go on in the precision that the earlier run has, on any machine."""
    name = (earlier or {}).get("--dtype")
    if args.dtype != AUTO or name not in DTYPES or name == inputs.precision.name:
        return
    inputs.precision = Precision(DTYPES[name], "that of the run which goes on")
    decisive["--dtype"] = name
    print(words_about_precision(AUTO, inputs.precision, inputs.device))
    if warning := emulation_warning(name, inputs.device):
        print(warning)


def _newest_save(args: argparse.Namespace) -> tuple[Path, dict] | None:
    folder = Path(args.out_dir)
    if args.resume == "never":
        _require_no_run(args)
        return None
    if args.resume == "auto":
        return Saves(folder, run_name(args)).newest()
    path = Path(args.resume)
    if path.resolve().parent != folder.resolve():
        _require_no_run(args)
        best = fine_tuned_path(args)
        for name in (best.name, _earlier_path(best).name, STEPS_FILE):
            _copy_where_there(path.with_name(name), Path(args.out_dir) / name)
    return path, read_save(path)


def _copy_where_there(source: Path, target: Path) -> None:
    if source.exists():
        save_atomically(target, lambda partial: shutil.copyfile(source, partial))


def _decisive_of_earlier(args: argparse.Namespace) -> tuple[dict, str | None] | None:
    """What decided a run that left files but no save, and the hash of its tokenizer's file where
    it is kept by itself; None where there was none."""
    if not _run_files(args):
        return None
    try:
        text = (Path(args.out_dir) / "config.yaml").read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        found = content.get(FOUND, content)
        return dict(found["decisive"]), found["tokenizer"].get("file_sha256")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError):
        return {}, None


def _bring_to_todays_terms(save: dict, encoding: PairEncoding) -> None:
    """Put what decided the run of a save as `_in_todays_terms` has it."""
    save["decisive"] = _in_todays_terms(save["decisive"], save.get("tokenizer_file"), encoding)


def _in_todays_terms(earlier: dict, tokenizer_file: str | None, encoding: PairEncoding) -> dict:
    """What decided an earlier run, its tokenizer by the hash that it has now, and flags that it
    did not have by their defaults.

    Older runs named the tokenizer by the hash of its file; that hash also tells it where another
    version of the tokenizers library writes the same tokenizer in another way.
    """
    if earlier:
        earlier = {f"--{name}": DEFAULTS[name] for name in RESULT_FLAGS} | earlier
    if encoding.file_hash in (tokenizer_file, earlier.get("tokenizer")):
        return earlier | {"tokenizer": encoding.tokenizer_hash}
    return earlier


def _is_longer(now: dict, save: dict, num_examples: int) -> bool:
    """Whether a run has more steps than the one that left the save."""
    before, after = _numbers_of_steps(now, save, num_examples)
    return after > before


def _numbers_of_steps(now: dict, save: dict, num_examples: int) -> list[int]:
    epoch_steps = steps_per_epoch(num_examples, save["examples_per_step"])
    return [
        number_of_steps(decided["--max_steps"], decided["--num_epochs"], epoch_steps)
        for decided in (save["decisive"], now)
    ]


def _why_not_longer(now: dict, save: dict, num_examples: int) -> str | None:
    """Why a run can't go on from a save of the same run with fewer steps; None where it can, and
    where nothing differs. Empty where something else differs than the number of steps.

    It can where every rate of the steps done is what the longer run would have had, so that it
    ends where one of as many steps from the start does.
    """
    earlier = save["decisive"]
    if now == earlier:
        return None
    names = (now.keys() | earlier.keys()) - set(LENGTH_FLAGS)
    if any(now.get(name) != earlier.get(name) for name in names):
        return ""
    before, after = _numbers_of_steps(now, save, num_examples)
    if after < before:
        return f"a run can be made longer, but not shorter ({before} steps there, {after} now)"
    if after == before and now["--warmup_ratio"] == earlier["--warmup_ratio"]:
        return None
    schedule, updates = now["--lr_schedule"], save["progress"]["updates"]
    if schedule != "constant":
        return (
            f"--lr_schedule {schedule} gives every step a learning rate by the number of steps, so "
            "only a run with a constant schedule can be made longer"
        )
    lengths = ((before, earlier["--warmup_ratio"]), (after, now["--warmup_ratio"]))
    rates = [
        [learning_rate_factor(schedule, update, *length) for update in range(updates)]
        for length in lengths
    ]
    if rates[0] != rates[1]:
        return _why_rates_differ(lengths)
    return _why_not_taken_back(now, save, num_examples)


def _why_rates_differ(lengths: Sequence[tuple[int, float]]) -> str:
    """Of a constant schedule, by the steps and warm-up ratios of the two runs."""
    (before, _), (after, _) = lengths
    was, would_be = (warmup_steps_of(*length) for length in lengths)
    # Half a step below, so that rounding up meets the number.
    ratio = float(f"{max(0.0, (was - 0.5) / after):.6g}")
    way_out = f"; --warmup_ratio {ratio:g} keeps it" if was else ""
    return (
        f"the warm-up is a share of the steps, {was} of {before} there and {would_be} of {after} "
        f"now{way_out}"
    )


def _why_not_taken_back(now: dict, save: dict, num_examples: int) -> str | None:
    """A longer run would not have been evaluated at the end of the shorter one, unless that is at
    its interval; saves of older versions do not tell what was before."""
    progress = save["progress"]
    epoch_steps = steps_per_epoch(num_examples, save["examples_per_step"])
    interval = eval_interval_of(now["--eval_interval"], epoch_steps)
    evaluated_off = progress["evaluated_step"] == progress["step"] and progress["step"] % interval
    if not evaluated_off or progress.get("before_last") or not _is_longer(now, save, num_examples):
        return None
    return (
        f"its evaluation at step {progress['step']} is not at the interval of {interval} steps, "
        "and this save of an older version does not tell what was before it"
    )


def _require_same(now: dict, earlier: dict | None, where: str, why_not: str = "") -> None:
    """Raises RunError that names every difference; `why_not` says more of them."""
    if earlier is None or now == earlier:
        return
    differences = [
        f"{name} {_shown(earlier[name])} there, {_shown(value)} now"
        for name, value in now.items()
        if name in earlier and earlier[name] != value
    ]
    differences += [
        f"{name} {_shown(value)} there, which is not known now"
        for name, value in earlier.items()
        if name not in now
    ]
    told = "; ".join(differences) or "it does not say which"
    because = f": {why_not}" if why_not else ""
    raise RunError(
        f"{where}: belongs to another run ({told}){because}; repeat its command, or use another "
        "--out_dir"
    )


def _shown(value: object) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"


def examples_per_step(args: argparse.Namespace, world_size: int, save: dict | None) -> int:
    """Examples of one optimizer step over all ranks; a resumed run keeps those of its save.

    Raises RunError where the flags ask for another step, or the ranks can't share it evenly.
    """
    per_rank = args.batch_size * args.gradient_accumulation_steps
    if save is None:
        return per_rank * world_size
    kept = save["examples_per_step"]
    if per_rank != save["examples_per_rank"] and per_rank * world_size != kept:
        raise RunError(
            f"--batch_size times --gradient_accumulation_steps: {per_rank} on {world_size} ranks, "
            f"but the save's steps have {kept} examples ({save['examples_per_rank']} a rank): "
            "repeat its flags"
        )
    if kept % world_size:
        raise RunError(
            f"a step of the save has {kept} examples, which {world_size} ranks can't share "
            "evenly: resume with a number of ranks that divides it"
        )
    if kept != per_rank * world_size:
        print(f"note: a step keeps the {kept} examples of the save, {kept // world_size} a rank")
    return kept


def number_of_steps(max_steps: int | None, num_epochs: float, epoch_steps: int) -> int:
    """Return the steps of a run by --max_steps, or without it by --num_epochs."""
    return max_steps or max(1, round(num_epochs * epoch_steps))


def eval_interval_of(eval_interval: int | None, epoch_steps: int) -> int:
    """Return the steps between evaluations, by default a quarter of an epoch."""
    return eval_interval or max(1, epoch_steps // 4)


def make_recipe(
    args: argparse.Namespace,
    labels: np.ndarray,
    num_classes: int,
    dtype: torch.dtype,
    examples_per_step: int,
) -> Recipe:
    """The flags as a recipe; raises UsageError where a drawn subset lacks a class."""
    missing = np.bincount(labels, minlength=num_classes) == 0
    if missing.any():
        raise UsageError(
            [f"--max_train_examples {args.max_train_examples}: no example of a class; raise it"]
        )
    epoch_steps = steps_per_epoch(len(labels), examples_per_step)
    num_steps = number_of_steps(args.max_steps, args.num_epochs, epoch_steps)
    balanced = args.class_weights == "balanced"
    return Recipe(
        examples_per_step=examples_per_step,
        num_steps=num_steps,
        eval_interval=eval_interval_of(args.eval_interval, epoch_steps),
        learning_rate=args.learning_rate,
        warmup_ratio=args.warmup_ratio,
        lr_schedule=args.lr_schedule,
        grad_clip=args.grad_clip,
        dropout=args.dropout,
        label_smoothing=args.label_smoothing,
        class_weights=balanced_class_weights(labels, num_classes) if balanced else None,
        early_stopping=args.early_stopping,
        seed=args.seed,
        dtype=dtype,
    )


def compile_where_worthwhile(args: argparse.Namespace, trunk: GPTBatched, num_steps: int) -> bool:
    """Compile the trunk as --compile says; returns whether it was done.

    Raises UsageError where it was asked for and can't be.
    """
    if args.compile == "never" or (args.compile == "auto" and num_steps < STEPS_WORTH_COMPILING):
        return False
    reason = _why_not_compile(trunk.scalars.device)
    if reason is not None and args.compile == "always":
        raise UsageError(
            [f"--compile always: {reason}; install a compiler (g++ for a CPU) or say never"]
        )
    if reason is not None:
        print(f"note: not compiled ({reason}): slower, with the same result")
        return False
    compile_trunk(trunk)
    return True


def _why_not_compile(device: torch.device) -> str | None:
    """What goes wrong when a small function is compiled on `device`; None where nothing does."""
    if device.type == "cpu":
        keep_compiled_code_apart()
    try:
        torch.compile(lambda x: x.relu() + 1)(torch.ones(64, device=device))
    # Whatever the compiler and its tools raise: without it the run goes on.
    except Exception as error:
        return f"torch.compile fails here: {str(error).strip().splitlines()[0]}"
    return None


def describe_run(
    args: argparse.Namespace, inputs: Inputs, data: JoinedDatasets, decisive: dict
) -> dict:
    """Return what config.yaml says beside the flags: the code, the machine, versions, and hashes
    of what went in."""
    return {
        "command": sys.argv,
        "commit": code_commit(),
        "device": _device_name(inputs.device),
        "dtype": inputs.precision.name,
        "processes": inputs.ranks.world_size,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "data": {
            "content_sha256": {name: one.content_hash for name, one in data.sets.items()},
            "classes": list(data.classes),
        },
        "tokenizer": {
            "sha256": inputs.encoding.tokenizer_hash,
            "file_sha256": inputs.encoding.file_hash,
        },
        "checkpoint": inputs.info,
        "decisive": decisive,
    }


def recipe_of(args: argparse.Namespace, checkpoint: str) -> dict[str, object]:
    """Return the flags that run this again, from any folder: paths are absolute, and of several
    pretrained checkpoints the one that was taken is named.

    A run that began with the save of another goes on in its own folder.
    """
    flags = {name: getattr(args, name) for name in DEFAULTS}
    flags |= {name: os.path.abspath(flags[name]) for name in FOLDER_FLAGS if flags[name]}
    flags["dataset"] = [_lasting_dataset(args, name) for name in args.dataset]
    flags["pretrained_ckpt_path"] = [os.path.abspath(checkpoint)]
    tokenizer = find_tokenizer(args.tokenizer_name, args.tokenizer_dir)
    flags["tokenizer_name"] = os.path.abspath(tokenizer)
    flags["resume"] = DEFAULTS["resume"]
    return {name: value for name, value in flags.items() if value is not None}


def _lasting_dataset(args: argparse.Namespace, name: str) -> str:
    """Return a dataset's name that means the same from another folder."""
    is_name = args.data_dir is not None or name in KNOWN_NAMES
    is_folder = not is_name and Path(name).is_dir()
    return os.path.abspath(name) if is_folder else name


def data_flags(args: argparse.Namespace) -> dict[str, object]:
    """Return the flags that say which rows a run is about, as its recipe has them."""
    folder = args.data_dir and os.path.abspath(args.data_dir)
    return {
        "dataset": [_lasting_dataset(args, name) for name in args.dataset],
        "dataset_config": args.dataset_config,
        "data_dir": folder,
        "text_column": list(args.text_column),
        "label_column": args.label_column,
    }


class _PlainDumper(yaml.SafeDumper):
    """YAML that a person reads: a list that stands twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def write_config(args: argparse.Namespace, run: dict) -> None:
    """Write config.yaml: the flags as a recipe for --config, and `describe_run` under one key."""
    content = recipe_of(args, run["checkpoint"]["file"]) | {FOUND: run}
    text = yaml.dump(content, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    path = Path(args.out_dir) / "config.yaml"
    save_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class Records:
    """What a run leaves while it trains: the best checkpoint, metrics.jsonl, and the loggers."""

    def __init__(
        self,
        args: argparse.Namespace,
        inputs: Inputs,
        data: JoinedDatasets,
        model: GPTClassification,
        progress: Progress,
    ):
        self.args, self.model = args, model
        self.checkpoint_path = fine_tuned_path(args)
        self.metrics_path = Path(args.out_dir) / METRICS_FILE
        # Lines after the save that the run goes on from will be written again.
        earlier = "".join(map(_as_json_line, progress.lines))
        save_atomically(self.metrics_path, lambda partial: partial.write_text(earlier))
        self.fixed = {
            "kind": FINE_TUNED_KIND,
            "config": model.pretrained_model.config.to_dict(),
            "classes": list(data.classes),
            "tokenizer": inputs.encoding.tokenizer.to_str(),
            "template": inputs.encoding.template,
            "block_size": inputs.encoding.block_size,
            "datasets": list(data.sets),
            "data": data_flags(args),
            "pretrained": {
                "file": inputs.info["file"],
                "step": inputs.info["step"],
                "weights_id": inputs.info["weights_id"],
                "random_init": args.random_init,
            },
        }
        self.loggers = _open_loggers(args, progress.step)
        self.steps = StepLog(Path(args.out_dir) / STEPS_FILE, self.loggers)
        self.steps.begin(progress.step)

    def save_best(self, progress: Progress, metrics: dict) -> None:
        """The best model so far, with everything that using it needs."""
        self._save(self.checkpoint_path, progress, metrics)

    def _save(self, path: Path, progress: Progress, metrics: dict) -> None:
        # A longer run would not have this evaluation, and the model before it would be its best.
        if progress.before_last is not None and self.args.lr_schedule == "constant":
            _keep_as_earlier(path)
        content = {"model": self.model.state_dict(), "step": progress.step, "metrics": metrics}
        save_checkpoint(path, self.fixed | content)

    def _save_best_of_sets(self, progress: Progress, sets: dict[str, dict]) -> None:
        metric = self.args.best_metric
        for name, metrics in sets.items():
            best = progress.best_of_sets.get(name)
            if METRICS[metric].is_better(metrics[metric], best and best["metrics"][metric]):
                self._save(fine_tuned_path(self.args, name), progress, metrics)
                progress.best_of_sets[name] = {"step": progress.step, "metrics": metrics}

    def add_line(self, progress: Progress, line: dict) -> None:
        """One evaluation: a line of metrics.jsonl, and the loggers' scalars."""
        if self.args.best_per_set:
            self._save_best_of_sets(progress, line["validation"].get("sets", {}))
        # Not made anew where it has vanished with its folder: that is an error.
        with open(self.metrics_path, "r+", encoding="utf-8") as file:
            file.seek(0, os.SEEK_END)
            file.write(_as_json_line(line))
        scalars = {key: value for key, value in line.items() if isinstance(value, int | float)}
        scalars |= {f"validation/{name}": line["validation"][name] for name in main_metrics()}
        for log in self.loggers:
            log(scalars, progress.step)


def _as_json_line(line: dict) -> str:
    return json.dumps(line) + "\n"


def _earlier_path(best: Path) -> Path:
    """Where the best model before the evaluation at the last step is kept."""
    return best.with_name(f"{best.stem}-earlier.pt")


def _keep_as_earlier(best: Path) -> None:
    """Keep a best model that is about to be overwritten, without copying it where that can be."""
    if not best.exists():
        return
    earlier = _earlier_path(best)
    earlier.unlink(missing_ok=True)
    try:
        os.link(best, earlier)
    except OSError:
        _copy_where_there(best, earlier)


def _open_loggers(
    args: argparse.Namespace, first_step: int
) -> list[Callable[[Mapping[str, float], int], None]]:
    """Functions of scalars and their step; what loggers have beyond `first_step` comes again."""
    loggers = []
    if args.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(Path(args.out_dir) / "tensorboard")
        resumed = {"purge_step": first_step + 1} if first_step else {}
        writer = SummaryWriter(folder, **resumed)

        def to_tensorboard(scalars: Mapping[str, float], step: int) -> None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
            # Steps are written by the library, some minutes late.
            if "train_loss" in scalars:
                writer.flush()

        loggers.append(to_tensorboard)
    if args.wandb_log:
        import wandb

        run = wandb.init(project="hindi-xnli", dir=args.out_dir, config=vars(args))
        loggers.append(lambda scalars, step: run.log(scalars, step=step))
    return loggers


def train(
    args: argparse.Namespace,
    inputs: Inputs,
    data: JoinedDatasets,
    model: GPTClassification,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    save: dict | None,
    kept: dict,
) -> Progress:
    """Fine-tune and keep the best checkpoint by --best_metric on the whole validation split.

    Goes on from the content of `save`, if any; `kept` is what else goes into every save.
    """
    split, validation = data.train, data.splits("validation")
    ranks, stop = inputs.ranks, inputs.stop
    chosen = pick_training_examples(args, split)
    lengths = [s.lengths.max() for one in data.sets.values() for s in one.splits.values()]
    longest = int(max(lengths))
    _require_within_windows(args, model.pretrained_model, longest)
    step_examples = examples_per_step(args, ranks.world_size, save)
    recipe = make_recipe(args, split.labels[chosen], len(data.classes), inputs.dtype, step_examples)
    progress = Progress()
    longer = False
    if save is not None:
        progress = restore(save, model, optimizer, scaler)
        longer = _is_longer(kept["decisive"], save, len(chosen))
        if longer and progress.before_last is not None:
            take_back_last_evaluation(progress)
        ranks.from_first(lambda: _require_best_of_save(args, progress))
    records = Records(args, inputs, data, model, progress) if ranks.is_first else None

    def get_batch(positions: np.ndarray) -> tuple[PackedRow, Tensor]:
        return packed_rows(split, chosen[positions])

    examples = Examples(
        split.lengths[chosen],
        np.asarray(split.labels)[chosen],
        get_batch,
        positions_of_sets(data.train_sets[chosen]) if args.sampling == "even" else None,
    )
    compiled = compile_where_worthwhile(args, model.pretrained_model, recipe.num_steps)
    if compiled:
        print("compiling: about a minute, several on a busy machine", flush=True)
        compile_ahead(model, recipe, examples)
    max_tokens = args.max_tokens_per_batch or find_max_tokens(model, recipe, examples)
    progress.max_tokens_per_batch = max_tokens = min(ranks.gathered(max_tokens))

    def evaluate(max_batches: int | None = None) -> dict | None:
        return evaluate_sets(
            model, validation, data.classes, inputs.dtype, max_tokens, max_batches, ranks, stop
        )

    def write_save(progress: Progress) -> None:
        if ranks.is_first:
            content = captured(model, optimizer, scaler, progress) | kept
            content["examples_per_step"] = step_examples
            content["examples_per_rank"] = args.batch_size * args.gradient_accumulation_steps
            Saves(Path(args.out_dir), run_name(args)).write(content)

    def nothing(*_: object) -> None:
        """What other ranks than the first leave."""

    evaluate(max_batches=2)
    if longer:
        print(f"going on to {recipe.num_steps} steps, as if they had been asked for at first")
        # From here on the folder is that of the longer run.
        write_save(progress)
    print(
        f"training on {len(chosen)} pairs: {recipe.num_steps} steps of "
        f"{recipe.examples_per_step}, validation every {recipe.eval_interval}; at most "
        f"{max_tokens} tokens a micro-batch, {'compiled' if compiled else 'not compiled'}"
    )
    return fine_tune(
        model,
        optimizer,
        scaler,
        recipe,
        examples,
        evaluate=evaluate,
        is_better=lambda new, best: METRICS[args.best_metric].is_better(
            new[args.best_metric], best and best[args.best_metric]
        ),
        on_evaluation=records.add_line if records else nothing,
        on_best=records.save_best if records else nothing,
        save=write_save,
        in_words=figures_in_words,
        progress=progress,
        save_interval=args.save_interval,
        stop=stop,
        ranks=ranks,
        log=records.steps if records else None,
    )


def positions_of_sets(sets: np.ndarray) -> list[np.ndarray]:
    """Of numbers of sets [N], the positions of each."""
    return [np.flatnonzero(sets == number) for number in np.unique(sets)]


def evaluate_sets(
    model: GPTClassification, splits: dict[str, EncodedSplit], *others: object, **named: object
) -> dict | None:
    """`evaluate_split` of every set: of several the mean of each metric, with those of "sets"."""
    of_sets = {}
    for name, split in splits.items():
        of_sets[name] = evaluate_split(model, split, *others, **named)
        if of_sets[name] is None:
            return None
    if len(of_sets) == 1:
        return of_sets.popitem()[1]
    means = {m: float(np.mean([one[m] for one in of_sets.values()])) for m in main_metrics()}
    return means | {"examples": sum(map(len, splits.values())), "sets": of_sets}


def score_best(
    args: argparse.Namespace, inputs: Inputs, data: JoinedDatasets
) -> tuple[dict[str, dict], GPTClassification]:
    """Validation and test metrics of the saved best checkpoint, and its model."""
    saved = (inputs.saved or _read_best(args)) if inputs.ranks.is_first else None
    model = _model_of(args, saved, inputs, len(data.classes))
    print("scoring the best model on validation and test")
    scores = {
        split: score(args, inputs, data.splits(split), data.classes, split, model)
        for split in ("validation", "test")
    }
    return scores, model


def score_best_of_sets(
    args: argparse.Namespace, inputs: Inputs, data: JoinedDatasets, progress: Progress
) -> dict[str, dict]:
    """For each set the step of its own best model, and that model's test metrics on the set."""
    best = inputs.ranks.from_first(lambda: progress.best_of_sets)
    scores = {}
    for name, kept in best.items():
        saved = read_fine_tuned(fine_tuned_path(args, name)) if inputs.ranks.is_first else None
        model = _model_of(args, saved, inputs, len(data.classes))
        splits = {name: data.splits("test")[name]}
        title = f"best for {name}, test"
        scores[name] = {
            "best_step": kept["step"],
            "test": score(args, inputs, splits, data.classes, title, model),
        }
    return scores


def score(
    args: argparse.Namespace,
    inputs: Inputs,
    splits: dict[str, EncodedSplit],
    classes: Sequence[str],
    title: str,
    model: GPTClassification,
) -> dict:
    """Metrics of a model on a split of every set, printed under `title`."""
    max_tokens = args.max_tokens_per_batch or EVALUATION_TOKENS
    metrics = evaluate_sets(model, splits, classes, inputs.dtype, max_tokens, ranks=inputs.ranks)
    for name, split in splits.items():
        of_set = metrics.get("sets", {name: metrics})[name]
        majority = np.bincount(split.labels).max() / len(split)
        of_set["majority_accuracy"] = float(majority)
        _print_scores(f"{title}, {name}" if "sets" in metrics else title, of_set)
    if "sets" in metrics:
        _print_scores(f"{title}, mean of {len(splits)} sets", metrics)
    return metrics


def _print_scores(title: str, metrics: dict) -> None:
    majority = metrics.get("majority_accuracy")
    beside = "" if majority is None else f" (majority class {majority:.4f})"
    print(f"{title}: {figures_in_words(metrics)}{beside}")


def _model_of(
    args: argparse.Namespace, saved: dict | None, inputs: Inputs, num_classes: int
) -> GPTClassification:
    """Read by the first rank alone: another might still see the file's predecessor."""
    config = inputs.ranks.from_first(lambda: saved["config"])
    if saved is not None:
        model = GPTClassification.from_saved(config, saved["model"])
    else:
        model = GPTClassification(GPTBatched(GPTConfig.from_dict(config)), num_classes)
    inputs.ranks.copy_from_first(model)
    _set_up(args, model.pretrained_model)
    return model.to(inputs.device)


def report_on_test(
    args: argparse.Namespace,
    inputs: Inputs,
    data: JoinedDatasets,
    model: GPTClassification,
    progress: Progress,
    run: dict,
) -> dict[str, dict]:
    """Write report.html, report.md, figures and predictions.jsonl about the test split.

    Returns the metrics of every set with their intervals, on the first rank.
    """
    print("writing the report: intervals, figures and every prediction on test")
    scored = {
        short_name(dataset): scored_test(args, inputs, data, model, dataset)
        for dataset in dataset_names(args.dataset)
    }
    if not inputs.ranks.is_first:
        return {}
    # Only here: matplotlib takes seconds to import.
    from xnli_gpt.report import ReportContent, read_steps, write_report

    out_dir = Path(args.out_dir)
    save_atomically(
        out_dir / "predictions.jsonl", lambda path: write_predictions(path, "test", scored)
    )
    metrics = {name: split_metrics(one) for name, one in scored.items()}
    trunk = "random trunk" if args.random_init else Path(inputs.info["file"]).name
    content = ReportContent(
        f"{run_name(args)}: {trunk}, fine-tuned",
        results=metrics,
        macro_average=macro_average(metrics, scored) if len(metrics) > 1 else None,
        history=progress.lines,
        steps=read_steps(out_dir / "steps.jsonl"),
        best_step=progress.best_step,
        predictions=_lines_of(scored),
        facts=_facts(args, run, progress),
        recipe={name: value for name, value in vars(args).items() if name != "config"},
    )
    write_report(out_dir, content)
    return metrics


def scored_test(
    args: argparse.Namespace,
    inputs: Inputs,
    data: JoinedDatasets,
    model: GPTClassification,
    dataset: str,
) -> ScoredSplit:
    """The rows of a set's test split with their texts and the model's logits."""
    request = _request(args, dataset, ("test",), data.classes)
    texts = load_texts(request, args.cache_dir, BUILTIN_DATASETS)[0]["test"]
    max_tokens = args.max_tokens_per_batch or EVALUATION_TOKENS
    split = data.sets[short_name(dataset)].splits["test"]
    logits, rows = split_logits(
        model, split, len(data.classes), inputs.dtype, max_tokens, ranks=inputs.ranks
    )
    return ScoredSplit(
        rows,
        texts.premises,
        texts.hypotheses,
        texts.labels,
        logits.numpy()[None],
        data.classes,
        language_of(short_name(dataset), texts.hypotheses),
    )


def _lines_of(scored: dict[str, ScoredSplit]) -> Iterator[dict]:
    for name, one in scored.items():
        yield from prediction_lines(name, "test", one)


def _facts(args: argparse.Namespace, run: dict, progress: Progress) -> dict[str, object]:
    """What the report says was run; config.yaml has all of it."""
    info = run["checkpoint"]
    return {
        "command": run["command"],
        "best validation": _best_validation(progress),
        "training": f"{progress.step} steps, {progress.examples} examples",
        "duration": _training_time(progress),
        "pretrained checkpoint": info["file"],
        "its weights": info["weights_id"],
        "its format": info["checkpoint_format"],
        "its step": info["step"],
        "network": f"{info['num_layers']} layers, {info['num_heads']} heads, width "
        f"{info['model_dim']}, {info['vocab_size']} embedding rows",
        "trunk at the start": "random" if args.random_init else "pretrained",
        "data": run["data"]["content_sha256"],
        "tokenizer": f"{args.tokenizer_name} ({run['tokenizer']['sha256']})",
        "commit": run["commit"],
        "seed": args.seed,
        "machine": f"{platform.node()}, {run['device']}",
        "precision": run["dtype"],
        "processes": run["processes"],
        "versions": run["versions"],
        "date": time.strftime("%Y-%m-%d"),
    }


def _best_validation(progress: Progress) -> str | None:
    if progress.best is None:
        return None
    return f"{figures_in_words(progress.best)}, at step {progress.best_step} of {progress.step}"


def _training_time(progress: Progress) -> str:
    from xnli_gpt.report.wording import duration

    length = duration(progress.train_seconds)
    return f"{length} of training, {progress.examples_per_second:.1f} examples/s"


def write_results(
    args: argparse.Namespace,
    scores: dict[str, dict],
    best_of_sets: dict[str, dict],
    progress: Progress,
    check: dict | None,
) -> None:
    """results.json of a finished training run."""
    results = {
        **scores,
        **({"best_per_set": best_of_sets} if best_of_sets else {}),
        "best_metric": args.best_metric,
        "best_step": progress.best_step,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "examples": progress.examples,
        "examples_per_second": progress.examples_per_second,
        "train_seconds": progress.train_seconds,
        "seed": args.seed,
        "self_check": check,
    }
    save_json(_results_path(args), results)


def run(args: argparse.Namespace, inputs: Inputs) -> str:
    """One run, from checked inputs to results.json; returns where its results are, in words."""
    _print_checkpoint(args, inputs.info)
    if args.prepare_only:
        load_data(args, inputs)
        return f"prepared in {args.cache_dir}"
    if words := words_about_precision(args.dtype, inputs.precision, inputs.device):
        print(words)
    with _own_out_dir(args, inputs.ranks):
        data = load_data(args, inputs)
        if args.eval_only:
            evaluate_only(args, inputs, data)
        else:
            train_and_score(args, inputs, data)
        return inputs.ranks.from_first(lambda: _outcome(args))


def _outcome(args: argparse.Namespace) -> str:
    """Where the results of a scored run are; warns of a model that answers one class alone."""
    results = _earlier_results(args)
    answers = {
        f"{split} of {name}" if name else split: answer
        for split in ("validation", "test")
        for name, answer in only_answers(results.get(split, {}), "").items()
    }
    if warning := one_class_warning(answers):
        print(warning)
    report = Path(args.out_dir) / "report.html"
    places = {"results": _results_path(args), "report": report, "model": fine_tuned_path(args)}
    return ", ".join(f"{what}: {path}" for what, path in places.items() if path.exists())


def _own_out_dir(args: argparse.Namespace, ranks: Ranks) -> contextlib.AbstractContextManager:
    return own_folder(Path(args.out_dir)) if ranks.is_first else contextlib.nullcontext()


def _print_checkpoint(args: argparse.Namespace, info: dict | None) -> None:
    if info is not None:
        print(
            f"checkpoint: {info['file']}: format {info['checkpoint_format']}, "
            f"{info['num_layers']} layers, {info['num_heads']} heads, width {info['model_dim']}, "
            f"{info['vocab_size']} embedding rows"
        )
    if args.vocab_size is not None:
        print("note: --vocab_size is no longer needed, the file tells")


def evaluate_only(args: argparse.Namespace, inputs: Inputs, data: JoinedDatasets) -> None:
    """Score the best checkpoint of --out_dir; what else its results hold is kept."""
    saved = inputs.saved
    print(
        f"scoring {fine_tuned_path(args)} of step {saved['step']}: its own tokenizer, template "
        f"{saved['template']} and block size {saved['block_size']} count, not the flags"
    )
    scores, _ = score_best(args, inputs, data)
    if inputs.ranks.is_first:
        save_json(_results_path(args), _earlier_results(args) | scores)


def train_and_score(args: argparse.Namespace, inputs: Inputs, data: JoinedDatasets) -> None:
    """The whole of a run, or what is left of it."""
    decisive = what_decides_the_result(args, inputs, data)
    num_examples = len(pick_training_examples(args, data.train))
    save = find_save(args, inputs, decisive, num_examples)
    if save is not None and _is_longer(decisive, save, num_examples):
        # They are of the shorter run.
        inputs.ranks.from_first(lambda: _results_path(args).unlink(missing_ok=True))
    elif save is not None and inputs.ranks.from_first(lambda: _has_results(args)):
        print("finished already, nothing is left to do")
        return
    run = describe_run(args, inputs, data, decisive)
    if inputs.ranks.is_first:
        write_config(args, run)
    model = build_model(args, inputs.info, len(data.classes))
    model, optimizer, scaler = load_pretrained_model(args, model, inputs)
    if save is None:
        check = self_check(model, data.train, inputs.encoding)
    else:
        check = save["self_check"]
    # Only the check needs the language model's head: it is neither trained nor saved.
    model.pretrained_model.lm_head_weight = None
    kept = {
        "decisive": decisive,
        "self_check": check,
        "tokenizer_file": inputs.encoding.file_hash,
    }
    progress = train(args, inputs, data, model, optimizer, scaler, save, kept)
    del model, optimizer, save
    scores, best = score_best(args, inputs, data)
    if args.report:
        metrics = report_on_test(args, inputs, data, best, progress, run)
        for name, of_set in metrics.items():
            scores["test"].get("sets", {name: scores["test"]})[name].update(of_set)
    best_of_sets = score_best_of_sets(args, inputs, data, progress)
    if inputs.ranks.is_first:
        write_results(args, scores, best_of_sets, progress, check)
        if progress.before_last is None:
            for path in Path(args.out_dir).glob("*-ckpt-earlier.pt"):
                path.unlink()


def _require_best_of_save(args: argparse.Namespace, progress: Progress) -> None:
    """Forget a best so far whose file is not that of the save.

    It may be of a later step, which comes again, if not to the last bit on a GPU; or damaged.
    """
    if progress.best is not None and not _is_of(fine_tuned_path(args), progress.best_step):
        progress.best, progress.best_step = None, 0
    for name, kept in list(progress.best_of_sets.items()):
        if not _is_of(fine_tuned_path(args, name), kept["step"]):
            del progress.best_of_sets[name]


def _is_of(path: Path, wanted_step: int) -> bool:
    """Whether the best model is that of a step, or can be made so by the one kept before it."""
    step, earlier = _step_of(path), _earlier_path(path)
    if step != wanted_step and _step_of(earlier) == wanted_step:
        _copy_where_there(earlier, path)
        return True
    if step == wanted_step:
        return True
    found = "is not whole" if step is None else f"is of step {step}"
    print(
        f"note: {path} {found}, the best model of the save was of step {wanted_step}: "
        "the best is looked for from here on"
    )
    return False


def _step_of(path: Path) -> int | None:
    """The step of a fine-tuned checkpoint; None where it is not there, or damaged."""
    try:
        return read_whole(path)["step"]
    except (RunError, KeyError, TypeError):
        return None


def _results_path(args: argparse.Namespace) -> Path:
    return Path(args.out_dir) / "results.json"


def _earlier_results(args: argparse.Namespace) -> dict:
    path = _results_path(args)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _has_results(args: argparse.Namespace) -> bool:
    """Whether training ended: --eval_only writes results of an unfinished run, too."""
    return "steps" in _earlier_results(args)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    started = time.perf_counter()

    def work() -> None:
        with StopSignals() as stop, _only_first_rank_prints():
            args, problems = parse_arguments(argv)
            try:
                with joined_ranks(_wants_gpu(args)) as ranks:
                    places = run(args, check_inputs(args, problems, ranks, stop))
            # A library that a signal interrupts may make another error of it.
            except Exception:
                if stop.raised is None:
                    raise
                raise stop.raised from None
            print(f"{places} (done in {time.perf_counter() - started:.0f} s)")

    try:
        return exit_code_of(work)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there")
        return EXIT_STOPPED


def _wants_gpu(args: argparse.Namespace) -> bool:
    wanted = args.device is None or args.device.startswith("cuda")
    return wanted and not args.prepare_only and torch.cuda.is_available()


@contextlib.contextmanager
def _only_first_rank_prints() -> Iterator[None]:
    if not _among_several() or os.environ.get("RANK") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _among_several() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"


def end_process(code: int) -> None:
    """End the process; of several ranks, without what C++ libraries do at their end: one whose
    peers have ended might wait for them for ever, and gloo's threads may abort a run that is done.
    """
    if not _among_several():
        sys.exit(code)
    if code == 0:
        # Loggers write what they still hold.
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # A log shows a line when it is said, not when a buffer is full.
    sys.stdout.reconfigure(line_buffering=True)
    end_process(main())
