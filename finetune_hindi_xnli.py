"""Fine-tune a pretrained checkpoint of the modded-nanogpt line on Hindi XNLI.

    python finetune_hindi_xnli.py --dataset hindi_xnli \\
        --pretrained_ckpt_path 'runs/*/best_state_*.pt' --tokenizer_name tokenizer.json

`run` is the table of contents of a run. Exit codes: 0 done, 1 training failed, 2 what was asked
can't be done (said in lines that begin with "error:"), 75 stopped by a signal with everything
saved: the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Sequence

from xnli_gpt.choices import SPLITS
from xnli_gpt.commands import Command, Problems, end_process, printed_by_main_process
from xnli_gpt.data.names import dataset_names, problems_of_datasets
from xnli_gpt.fine_tuning.configuration import FineTuning
from xnli_gpt.options import configuration_of, plain_values
from xnli_gpt.processors import set_up_libraries

# sysexits.h calls it EX_TEMPFAIL: to be tried again.
EXIT_STOPPED = 75


def problems_of_names(config: FineTuning) -> list[str]:
    """Return what is wrong with names that only a table of names knows."""
    return problems_of_datasets(config.data.dataset, config.data.data_dir)


COMMAND = Command(
    "Fine-tune a pretrained GPT checkpoint on Hindi XNLI.", FineTuning, problems_of_names
)

if __name__ == "__main__":
    COMMAND.refuse_wrong_words()
    set_up_libraries()

import torch

from load_checkpoint_helper import config_of, read_pretrained
from model import GPTBatched, GPTClassification
from xnli_gpt.data.encoded import JoinedDatasets
from xnli_gpt.data.loading import Wanted, load_datasets
from xnli_gpt.devices import device_of, precision_of, words_about_precision
from xnli_gpt.errors import UsageError
from xnli_gpt.files import own_folder, save_json
from xnli_gpt.fine_tuning.attention import require_attention, set_up
from xnli_gpt.fine_tuning.inputs import (
    Inputs,
    Run,
    encoding_of,
    folder_of,
    read_best,
    require_folders,
    require_one_order,
    require_rows_for_tokens,
    say_checkpoint,
)
from xnli_gpt.fine_tuning.scores import (
    load_best,
    outcome,
    score_best,
    score_best_of_sets,
    write_report_of,
    write_results,
)
from xnli_gpt.fine_tuning.setup import find_save, fit_to_machine, make_optimizer, make_trainer
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.training.config_file import RunFacts, repeatable_flags, write_config
from xnli_gpt.training.distributed import ALONE, Ranks, joined_ranks
from xnli_gpt.training.loggers import require_loggers
from xnli_gpt.training.resumption import Resumption
from xnli_gpt.training.self_check import self_check
from xnli_gpt.training.signals import Stopped, StopSignals
from xnli_gpt.training.state import TrainState


def check_inputs(
    config: FineTuning,
    problems: Sequence[str] = (),
    ranks: Ranks = ALONE,
    stop: StopSignals | None = None,
) -> Inputs:
    """Read and check everything that can be found wrong without reading the data.

    `problems` are those already found in the command line. Raises UsageError with all of them; the
    main process names those of all ranks.
    """
    found, run, folder = Problems(problems), config.run, folder_of(config)
    # The login node that fetches for a GPU job has no GPU itself.
    device = torch.device("cpu")
    if not run.prepare_only:
        device = found.attempt(device_of, config.machine.device, ranks.world_size > 1)
        found.attempt(require_attention, config.machine, device)
    found.attempt(require_one_order, config.recipe)
    found.attempt(require_loggers, run)
    found.attempt(require_folders, config)
    found.attempt(dataset_names, config.data.dataset)
    if run.resume == "never" and not (run.prepare_only or run.eval_only):
        found.attempt(folder.require_no_run)
    info = trunk = saved = encoding = None
    if run.eval_only:
        saved = found.attempt(read_best, folder)
    else:
        info, trunk = found.attempt(read_checkpoint, config) or (None, None)
    if saved or not run.eval_only:
        encoding = found.attempt(encoding_of, config, saved)
    if encoding is not None and info is not None:
        found.attempt(require_rows_for_tokens, encoding, info, config.pretrained.tokenizer_name)
    everyones = dict.fromkeys(p for of_rank in ranks.all_gather_object(found) for p in of_rank)
    if everyones:
        raise UsageError(list(everyones) if ranks.is_main_process else [])
    # Timing may tell ranks different things.
    precision = ranks.broadcast_object(lambda: precision_of(config.machine.dtype, device))
    return Inputs(encoding, device, precision, info, saved, trunk, ranks, stop or StopSignals())


def read_checkpoint(config: FineTuning) -> tuple[dict | None, GPTBatched | None]:
    """Return the checkpoint's `info` and trunk; None for what the run has no use for."""
    run, pretrained = config.run, config.pretrained
    if pretrained.pretrained_ckpt_path is None and run.prepare_only:
        return None, None
    needs_weights = not (run.prepare_only or pretrained.random_init)
    return read_pretrained(pretrained, config.data.block_size, needs_weights)


def load_pretrained_model(
    args: argparse.Namespace, model: GPTClassification
) -> tuple[GPTClassification, torch.optim.Optimizer, torch.amp.GradScaler]:
    """Set `model.pretrained_model` to the checkpoint's trunk, on the device of the run.

    The signature that the group's scripts call; flags that `args` lacks have their defaults.
    Raises CheckpointError for a file that can't be used and UsageError for a flag that contradicts
    it.
    """
    config = configuration_of(FineTuning, vars(args))
    info, trunk = read_checkpoint(config)
    device = device_of(config.machine.device)
    dtype = precision_of(config.machine.dtype, device).dtype
    put_trunk(model, trunk or random_trunk(info, config.recipe.seed), config, device, dtype)
    return model, *make_optimizer(model, config, dtype)


def random_trunk(info: dict, seed: int) -> GPTBatched:
    """Return the checkpoint's network with random weights."""
    torch.manual_seed(seed)
    return GPTBatched(config_of(info))


def put_trunk(
    model: GPTClassification,
    trunk: GPTBatched,
    config: FineTuning,
    device: torch.device,
    dtype: torch.dtype,
    longest: int | None = None,
) -> None:
    """Give a model its trunk, on a device, and frozen where the head alone is trained; `longest` is
    the longest row of the data, where it is known."""
    set_up(trunk, config, device, dtype, longest)
    is_trained = not config.recipe.freeze_backbone
    model.pretrained_model = trunk.to(device).requires_grad_(is_trained)
    model.to(device)


def build_model(info: dict, num_classes: int, seed: int, head: str = "mlp") -> GPTClassification:
    """Return a classifier whose head is drawn from the seed, its trunk still without weights."""
    with torch.device("meta"):
        trunk = GPTBatched(config_of(info))
    torch.manual_seed(seed)
    return GPTClassification(trunk, num_classes, head)


def model_of_checkpoint(run: Run) -> GPTClassification:
    """Return the model of the fine-tuned checkpoint that a run scores without training."""
    inputs = run.inputs
    model = GPTClassification.from_saved(inputs.saved["config"], inputs.saved["model"])
    inputs.ranks.broadcast_model(model)
    device, dtype = inputs.device, inputs.precision.dtype
    set_up(model.pretrained_model, run.config, device, dtype, run.data.longest_row)
    return model.to(device)


def train_and_score(run: Run) -> None:
    """Do the whole of a run, or what is left of it."""
    resumption = find_save(run)
    if is_finished(run, resumption):
        print("finished already, nothing is left to do")
        return
    found = describe(run, resumption)
    model, state, check = train(run, resumption)
    score_and_report(run, model, state, found, check)


def is_finished(run: Run, resumption: Resumption) -> bool:
    """Return whether nothing is left to do; results of a run that is made longer are removed."""
    if resumption.is_longer:
        run.inputs.ranks.broadcast_object(lambda: run.folder.results.unlink(missing_ok=True))
        return False
    return resumption.save is not None and run.inputs.ranks.broadcast_object(run.folder.is_finished)


def describe(run: Run, resumption: Resumption) -> dict[str, object]:
    """Write config.yaml, and return what it says beside the flags."""
    config, inputs = run.config, run.inputs
    facts = RunFacts(inputs.info, inputs.encoding, run.data, inputs.device, resumption)
    found = facts.as_dict()
    if inputs.ranks.is_main_process:
        flags = repeatable_flags(
            plain_values(config), config.pretrained, config.data, inputs.info["file"]
        )
        write_config(run.folder.config, flags, found)
    return found


def train(run: Run, resumption: Resumption) -> tuple[GPTClassification, TrainState, dict | None]:
    """Train; return the model, where training ended, and what the self-check found before it."""
    config, inputs, data = run.config, run.inputs, run.data
    model = build_model(inputs.info, len(data.classes), config.recipe.seed, config.recipe.head)
    trunk = inputs.take_trunk() or random_trunk(inputs.info, config.recipe.seed)
    put_trunk(model, trunk, config, inputs.device, inputs.precision.dtype, data.longest_row)
    optimizer, scaler = make_optimizer(model, config, inputs.precision.dtype)
    if resumption.save is None:
        check = self_check(trunk, data.train, inputs.encoding)
    else:
        check = resumption.save["self_check"]
    # Only the check needs the language model's head: it is neither trained nor saved.
    trunk.lm_head_weight = None
    trainer = make_trainer(run, resumption, model, optimizer, scaler, check)
    # The trainer has what it holds: weights and moments should not be in memory twice.
    resumption.save = None
    compiled = fit_to_machine(trainer, config.machine, compile_trunk)
    recipe = trainer.recipe
    if resumption.is_longer:
        print(f"going on to {recipe.num_steps} steps, as if they had been asked for at first")
        # From here on the folder is that of the longer run.
        trainer.save()
    print(
        f"training on {len(trainer.examples.lengths)} pairs: {recipe.num_steps} steps of "
        f"{recipe.examples_per_step}, validation every {recipe.eval_interval}; at most "
        f"{trainer.state.max_tokens_per_batch} tokens a micro-batch, "
        f"{'compiled' if compiled else 'not compiled'}"
    )
    state = trainer.train()
    # Frees the memory of the gradients for scoring.
    optimizer.zero_grad(set_to_none=True)
    return model, state, check


def score_and_report(
    run: Run, model: GPTClassification, state: TrainState, found: dict, check: dict | None
) -> None:
    """Score the best model on validation and test, once, and write results and report."""
    # What was trained takes its weights: it is on its device, and compiled.
    load_best(run, model, run.folder.best())
    scores = score_best(run, model)
    if run.config.run.report:
        split, of_sets = write_report_of(run, model, state, found)
        for name, metrics in of_sets.items():
            scores[split].get("sets", {name: scores[split]})[name].update(metrics)
    best_of_sets = score_best_of_sets(run, model, state)
    if run.inputs.ranks.is_main_process:
        write_results(run, state, scores, best_of_sets, check)
        if state.before_last is None:
            run.folder.remove_earlier_best()


def evaluate_only(run: Run) -> None:
    """Score the best checkpoint of the folder; what else its results hold is kept."""
    saved = run.inputs.saved
    print(
        f"scoring {run.folder.best()} of step {saved['step']}: its own tokenizer, template "
        f"{saved['template']} and block size {saved['block_size']} count, not the flags"
    )
    scores = score_best(run, model_of_checkpoint(run))
    if run.inputs.ranks.is_main_process:
        save_json(run.folder.results, run.folder.read_results() | scores)


def run(config: FineTuning, inputs: Inputs) -> str:
    """Do one run, from checked inputs to results.json; return where its results are, in words."""
    if inputs.info is not None:
        say_checkpoint(inputs.info)
    if config.pretrained.vocab_size is not None:
        print("note: --vocab_size is no longer needed, the file tells")
    if config.run.prepare_only:
        read_data(config, inputs)
        return f"prepared in {config.data.cache_dir}"
    if words := words_about_precision(config.machine.dtype, inputs.precision, inputs.device):
        print(words)
    folder, is_main = folder_of(config), inputs.ranks.is_main_process
    with own_folder(folder.path) if is_main else contextlib.nullcontext():
        this_run = Run(config, inputs, folder, read_data(config, inputs))
        if config.run.eval_only:
            evaluate_only(this_run)
        else:
            train_and_score(this_run)
        return inputs.ranks.broadcast_object(lambda: outcome(folder))


def read_data(config: FineTuning, inputs: Inputs) -> JoinedDatasets:
    """Return the splits that the run needs as token ids."""
    splits = tuple(split for split in SPLITS if split != "train" or not config.run.eval_only)
    classes = None if inputs.saved is None else tuple(inputs.saved["classes"])
    in_turn = inputs.ranks.main_process_first
    wanted = Wanted(config.data, config.rows, splits, classes)
    return load_datasets(wanted, inputs.encoding, in_turn)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    started = time.perf_counter()

    def work() -> None:
        with StopSignals() as stop, printed_by_main_process():
            config, problems = COMMAND.parse(argv)
            try:
                with joined_ranks(wants_gpu(config)) as ranks:
                    places = run(config, check_inputs(config, problems, ranks, stop))
            # A library that a signal interrupts may make another error of it.
            except Exception:
                if stop.raised is None:
                    raise
                raise stop.raised from None
            print(f"{places} (done in {time.perf_counter() - started:.0f} s)")

    try:
        return COMMAND.exit_code_of(work)
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on from there")
        return EXIT_STOPPED


def wants_gpu(config: FineTuning) -> bool:
    """Return whether a run computes on a GPU."""
    wanted = config.machine.device is None or config.machine.device.startswith("cuda")
    return wanted and not config.run.prepare_only and torch.cuda.is_available()


if __name__ == "__main__":
    end_process(main())
