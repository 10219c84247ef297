"""Saves, resuming, signals and the folder of a run: nothing is lost, nothing is overwritten."""

import errno
import fcntl
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import kills
import numpy as np
import pytest
import small_run
import torch
from limits import HANG_S

import finetune_hindi_xnli as finetune
from load_checkpoint_helper import load_pretrained_checkpoint
from model import GPTClassification, PackedRow
from xnli_gpt.errors import RunError
from xnli_gpt.evaluation import logits
from xnli_gpt.network.compiling import compile_trunk
from xnli_gpt.training import saves as saves_room
from xnli_gpt.training.batches import StepCutter
from xnli_gpt.training.memory import compile_ahead
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.options import RecipeOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.resumption import examples_per_step
from xnli_gpt.training.saves import Saves
from xnli_gpt.training.signals import STOP_SIGNALS
from xnli_gpt.training.state import TrainState
from xnli_gpt.training.step import train_step
from xnli_gpt.training.trainer import Trainer

PROJECT = Path(finetune.__file__).parent
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler here")
BASE = ("--max_steps", 12, "--eval_interval", 4, "--save_interval", 3)
# What must come through a save besides the plain recipe's state.
RECIPES = {
    "plain": (),
    "lazy": ("--embedding_update", "lazy"),
    "float16": ("--dtype", "float16"),
    "grouped": ("--group_premises",),
    "weighted": ("--class_weights", "balanced", "--label_smoothing", 0.1, "--dropout", 0.4),
    "frozen": ("--freeze_backbone",),
    "patient": ("--early_stopping", 2, "--best_metric", "loss"),
}


@pytest.fixture(scope="module")
def whole(assets):
    """The outcome of an uninterrupted run, by recipe; made when it is first asked for."""
    made: dict[str, dict] = {}

    def outcome(recipe: str) -> dict:
        if recipe not in made:
            out_dir = assets.folder / f"whole-{recipe}"
            assert run(assets, out_dir, *RECIPES[recipe]) == 0
            made[recipe] = kills.outcome(out_dir)
        return made[recipe]

    return outcome


def run(assets, out_dir: Path, *changes: object) -> int:
    return finetune.main(small_run.command(assets, out_dir, *BASE, *changes))


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal when a step is done."""
    counted = Trainer._count

    def arrange(step: int, *numbers: signal.Signals) -> None:
        def count(trainer, *others):
            counted(trainer, *others)
            if trainer.state.step == step:
                for number in numbers or (signal.SIGTERM,):
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(Trainer, "_count", count)

    yield arrange


def stopped_run(assets, out_dir: Path, signal_at, step: int, *changes: object) -> Path:
    signal_at(step)
    assert run(assets, out_dir, *changes) == finetune.EXIT_STOPPED
    signal_at(0)
    return out_dir


def save_of(out_dir: Path, which: str = "last") -> dict:
    (path,) = out_dir.glob(f"*-{which}.pt")
    return torch.load(path, weights_only=True)


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file but the lock, which holds a process's number."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def error_line(capsys, words: list, code: int = 2) -> str:
    assert finetune.main([str(word) for word in words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


# Bit for bit


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("step", [5, 8, 12])
def test_a_stopped_and_resumed_run_ends_where_an_uninterrupted_one_does(
    recipe, step, assets, tmp_path, signal_at, whole
):
    """Stopped between evaluations, at one that is due, and when only the scoring is left."""
    expected = whole(recipe)
    stopped_run(assets, tmp_path, signal_at, step, *RECIPES[recipe])
    assert save_of(tmp_path)["progress"]["step"] == step
    assert not (tmp_path / "results.json").exists()
    assert run(assets, tmp_path, *RECIPES[recipe]) == 0
    assert kills.differences(expected, kills.outcome(tmp_path)) == []


def test_a_comparison_of_outcomes_can_fail(whole):
    plain = whole("plain")
    assert kills.differences(plain, plain) == []
    for other in ("lazy", "weighted"):
        assert kills.differences(plain, whole(other))


def test_a_run_killed_again_and_again_ends_where_one_left_alone_does(assets, tmp_path):
    expected = tmp_path / "whole"
    words = kills.command(assets, expected, 2)
    assert finetune.main(words) == 0
    killed = tmp_path / "killed"
    hits = kills.kill_and_resume(kills.command(assets, killed, 2), killed, kills=2, seed=6)
    assert sum(hits.values()) == 2
    assert kills.differences(kills.outcome(expected), kills.outcome(killed)) == []


@pytest.mark.long
def test_six_kills(assets, tmp_path):
    arguments = ["--kills", "6", "--seed", "2", "--folder", tmp_path]
    assert subprocess.run([sys.executable, PROJECT / "tests/kills.py", *arguments]).returncode == 0


def test_a_save_holds_the_random_states_and_resuming_sets_them(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.dropout_width = 2
    trainer = Trainer(
        model,
        torch.optim.AdamW(model.parameters()),
        torch.amp.GradScaler("cpu", enabled=False),
        Recipe(examples_per_step=1, num_steps=9, eval_interval=9),
        Examples(np.ones(1, dtype=int), np.zeros(1, dtype=int), None),
        validation=None,
        state=TrainState(step=3),
    )
    saves = Saves(tmp_path, "x")
    torch.rand(5)
    saves.write(trainer.state_dict())
    trainer.state = TrainState()

    def draws() -> list:
        return [random.random(), np.random.rand(), torch.rand(1).item()]

    expected = draws()
    assert draws() != expected
    _, content = saves.newest()
    trainer.load_state_dict(content)
    assert trainer.state.step == 3
    assert draws() == expected


# Damaged saves


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "flipped bit":
        # Within the first weights: the head of the file is the zip's.
        weights = torch.load(path, weights_only=True)["model"]["pretrained_model.embed.weight"]
        data[data.index(weights.numpy().tobytes()) + 100] ^= 1
    path.write_bytes({"cut off": data[: len(data) // 2], "empty": b""}.get(how, data))


@pytest.mark.parametrize("how", ["flipped bit", "cut off", "empty"])
def test_a_damaged_newest_save_falls_back_to_the_one_before(
    how, assets, tmp_path, signal_at, whole, capsys
):
    stopped_run(assets, tmp_path, signal_at, 8)
    assert [save_of(tmp_path, which)["progress"]["step"] for which in ("prev", "last")] == [6, 8]
    damage(tmp_path / "pairs-last.pt", how)
    capsys.readouterr()
    assert run(assets, tmp_path) == 0
    out = capsys.readouterr().out
    assert re.search(r"note: .*pairs-last.pt: can't be loaded .*the save before", out)
    assert f"resuming {tmp_path}/pairs-prev.pt after step 6" in out
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_kill_between_the_renames_of_a_save_loses_nothing(assets, tmp_path, signal_at, capsys):
    stopped_run(assets, tmp_path, signal_at, 8)
    (tmp_path / "pairs-last.pt").rename(tmp_path / "pairs-last.pt.partial")
    assert run(assets, tmp_path) == 0
    assert "pairs-prev.pt after step 6" in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))


def test_only_damaged_saves_are_an_error(assets, tmp_path, signal_at, capsys):
    stopped_run(assets, tmp_path, signal_at, 8)
    for name in ("last", "prev"):
        damage(tmp_path / f"pairs-{name}.pt", "cut off")
    before = contents(tmp_path)
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE))
    assert "no save is whole (pairs-last.pt, pairs-prev.pt)" in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kept", ["later", "gone", "damaged"])
def test_a_best_model_that_is_not_the_saves_is_looked_for_again(
    kept, assets, tmp_path, signal_at, whole, capsys
):
    """On a GPU a later best need not come again; on a CPU it does, to the last bit."""
    stopped_run(assets, tmp_path, signal_at, 5)
    earlier = tmp_path / "pairs-last.pt"
    shutil.copy(earlier, tmp_path / "kept")
    best = tmp_path / "pairs-ckpt.pt"
    if kept == "later":
        assert run(assets, tmp_path) == 0
        (tmp_path / "results.json").unlink()
        (tmp_path / "pairs-prev.pt").unlink()
        shutil.copy(tmp_path / "kept", earlier)
        assert torch.load(best, weights_only=True)["step"] > 4
    elif kept == "gone":
        best.unlink()
    else:
        damage(best, "cut off")
    capsys.readouterr()
    assert run(assets, tmp_path) == 0
    assert "the best model of the save was of step 4" in capsys.readouterr().out
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


# Another run in the folder


def test_another_command_is_refused_by_the_difference(assets, tmp_path, signal_at, capsys):
    stopped_run(assets, tmp_path, signal_at, 5)
    before = contents(tmp_path)
    changes = ("--learning_rate", 0.002, "--dataset", assets.contrary, "--dropout", 0.2)
    (tmp_path / "contrary-last.pt").write_bytes((tmp_path / "pairs-last.pt").read_bytes())
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE, *changes))
    (tmp_path / "contrary-last.pt").unlink()
    assert "--learning_rate 0.001 there, 0.002 now" in line
    assert "--dropout 0.1 there, 0.2 now" in line and "data " in line
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        (("--max_steps", 13), "--max_steps 12 there, 13 now"),
        (("--dtype", "bfloat16"), "--dtype float32 there, bfloat16 now"),
        (("--text_column", "hypothesis", "premise"), "--text_column premise hypothesis there"),
        (("--batch_size", 3), "the save's steps have 12 examples"),
        (("--tokenizer_name", "TOKENIZER"), "tokenizer"),
        (("--pretrained_ckpt_path", "CHECKPOINT"), "pretrained weights"),
    ],
)
def test_what_is_part_of_the_command(
    changes, difference, assets, tmp_path, signal_at, capsys, other_inputs
):
    stopped_run(assets, tmp_path, signal_at, 3)
    words = [other_inputs.get(word, word) for word in changes]
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE, *words))
    assert difference in line


@pytest.fixture(scope="module")
def other_inputs(assets) -> dict[str, Path]:
    """A tokenizer and a checkpoint that differ from the run's."""
    tokenizer = small_run.train_tokenizer(assets.folder / "other.json", 290)
    state = small_run.made_checkpoints.random_state("small", 6, 1, 128, vocab=300, seed=2)
    checkpoint = assets.folder / "state_step000200.pt"
    return {
        "TOKENIZER": tokenizer,
        "CHECKPOINT": small_run.made_checkpoints.save_checkpoint(checkpoint, state),
    }


def test_what_changes_no_result_may_change(assets, tmp_path, signal_at, whole):
    stopped_run(assets, tmp_path, signal_at, 5)
    copied = shutil.copy(assets.checkpoint, tmp_path / "state_step000100.pt")
    changes = ("--max_tokens_per_batch", 100, "--save_interval", 5, "--pretrained_ckpt_path")
    assert run(assets, tmp_path, *changes, copied) == 0
    found, expected = kills.outcome(tmp_path), whole("plain")
    for name, tensor in expected["last"].items():
        torch.testing.assert_close(found["last"][name], tensor, atol=1e-5, rtol=1e-5)


def decide_otherwise(folder: Path, change) -> None:
    """What decided the run of a save, as another version of the program would have it."""
    path = folder / "pairs-last.pt"
    content = torch.load(path, weights_only=True)
    change(content["decisive"])
    torch.save(content, path)


def test_a_flag_that_the_saves_version_did_not_have_counts_as_its_default(
    assets, tmp_path, signal_at, whole, capsys
):
    stopped_run(assets, tmp_path, signal_at, 5)
    decide_otherwise(tmp_path, lambda decisive: decisive.pop("--label_smoothing"))
    words = small_run.command(assets, tmp_path, *BASE, "--label_smoothing", 0.1)
    assert "--label_smoothing 0.0 there, 0.1 now" in error_line(capsys, words)
    assert run(assets, tmp_path) == 0
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_flag_of_a_later_version_is_named(assets, tmp_path, signal_at, capsys):
    stopped_run(assets, tmp_path, signal_at, 5)
    decide_otherwise(tmp_path, lambda decisive: decisive.update({"--mixup": 0.5}))
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE))
    assert "--mixup 0.5 there, which is not known now" in line


def test_resume_never_refuses_a_folder_with_a_run(assets, tmp_path, signal_at, capsys):
    stopped_run(assets, tmp_path, signal_at, 5)
    before = contents(tmp_path)
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE, "--resume", "never"))
    assert "holds a run" in line and "pairs-last.pt" in line
    assert contents(tmp_path) == before


def test_results_without_a_save_are_not_overwritten_by_another_command(assets, tmp_path, capsys):
    assert run(assets, tmp_path) == 0
    for name in ("last", "prev"):
        (tmp_path / f"pairs-{name}.pt").unlink()
    before = contents(tmp_path)
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE, "--seed", 9))
    assert "--seed 0 there, 9 now" in line
    (tmp_path / "config.yaml").unlink()
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE))
    assert "belongs to another run" in line
    del before["config.yaml"]
    assert contents(tmp_path) == before


def test_a_finished_run_is_left_as_it_is(assets, tmp_path, capsys):
    assert run(assets, tmp_path) == 0
    before = contents(tmp_path)
    assert run(assets, tmp_path) == 0
    assert "finished already" in capsys.readouterr().out
    assert contents(tmp_path) == before


def test_a_save_elsewhere_is_gone_on_with_in_a_new_folder(assets, tmp_path, signal_at, whole):
    first = stopped_run(assets, tmp_path / "first", signal_at, 6)
    before = contents(first)
    second = tmp_path / "second"
    assert run(assets, second, "--resume", first / "pairs-last.pt") == 0
    assert contents(first) == before
    assert kills.differences(whole("plain"), kills.outcome(second)) == []


@pytest.mark.parametrize("what", ["missing", "best model", "text"])
def test_resuming_from_what_is_no_save(what, assets, tmp_path, signal_at, capsys):
    path = tmp_path / "given.pt"
    if what == "best model":
        best = stopped_run(assets, tmp_path / "run", signal_at, 5) / "pairs-ckpt.pt"
        shutil.copy(best, path)
    elif what == "text":
        path.write_text("no zip")
    capsys.readouterr()
    words = small_run.command(assets, tmp_path / "out", *BASE, "--resume", path)
    line = error_line(capsys, words)
    reason = {"missing": "no such file", "best model": "not a save", "text": "not a zip file"}
    assert str(path) in line and reason[what] in line
    assert not (tmp_path / "out").exists()


def test_metrics_are_cut_back_to_the_save(assets, tmp_path, signal_at, whole):
    stopped_run(assets, tmp_path, signal_at, 5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "from": "a life that was killed"}\n{"step": 1')
    assert run(assets, tmp_path) == 0
    assert kills.outcome(tmp_path)["metrics"] == whole("plain")["metrics"]


def test_a_line_a_step(assets, tmp_path, whole):
    lines = [json.loads(line) for line in whole("plain")["steps"].splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    of_evaluation = [line["train_loss"] for line in whole("plain")["metrics"]]
    means = [float(np.mean([line["loss"] for line in lines[i : i + 4]])) for i in (0, 4, 8)]
    assert means == of_evaluation
    assert lines[0]["learning_rate"] == 1e-3 / 2 and lines[-1]["learning_rate"] == 1e-3 / 10
    assert all(line["grad_norm"] > 0 for line in lines)


def test_steps_are_cut_back_to_the_save(assets, tmp_path, signal_at, whole):
    stopped_run(assets, tmp_path, signal_at, 5)
    with open(tmp_path / "steps.jsonl", "a") as file:
        file.write('{"step": 6, "loss": 9.0}\n{"step": 7, "lo')
    assert run(assets, tmp_path) == 0
    assert kills.outcome(tmp_path)["steps"] == whole("plain")["steps"]


def test_a_save_of_an_older_version_is_gone_on_with(assets, tmp_path, signal_at, whole):
    """It knows no steps.jsonl, names the tokenizer by its file, and its config.yaml had the flags
    under a key of their own."""
    stopped_run(assets, tmp_path, signal_at, 5)
    file_hash = hashlib.sha256(assets.tokenizer.read_bytes()).hexdigest()
    save = save_of(tmp_path)
    assert file_hash == save.pop("tokenizer_file") != save["decisive"]["tokenizer"]
    save["decisive"]["tokenizer"] = file_hash
    del save["progress"]["before_last"]
    torch.save(save, tmp_path / "pairs-last.pt")
    (tmp_path / "steps.jsonl").unlink()
    assert run(assets, tmp_path) == 0
    found, expected = kills.outcome(tmp_path), whole("plain")
    expected_steps = expected["steps"].splitlines(keepends=True)[5:]
    assert kills.differences(expected | {"steps": "".join(expected_steps)}, found) == []


def test_the_rate_that_is_shown_is_that_of_this_process(assets, tmp_path, signal_at, capsys):
    """Of 5 steps on a machine that was all but asleep, and 7 as fast as they are here."""
    stopped_run(assets, tmp_path, signal_at, 5)
    save = save_of(tmp_path)
    save["progress"]["train_seconds"] = 1e6
    torch.save(save, tmp_path / "pairs-last.pt")
    capsys.readouterr()
    assert run(assets, tmp_path) == 0
    shown = re.findall(r"([0-9.]+) examples/s", capsys.readouterr().out)
    assert shown and min(map(float, shown)) > 0.1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert min(line["examples_per_second"] for line in lines) > 0.1
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["train_seconds"] > 1e6
    assert results["examples_per_second"] == pytest.approx(144 / results["train_seconds"])


# More steps than were asked for


CONSTANT = ("--lr_schedule", "constant", "--warmup_ratio", 0)


@pytest.mark.parametrize(
    ("interval", "changes"),
    [
        (4, ()),
        # The shorter run is evaluated at 12, the longer one is not: its model is then not kept.
        (5, ("--best_metric", "loss")),
        (100, ()),
        (5, ("--early_stopping", 2)),
    ],
)
def test_a_longer_run_ends_where_one_of_as_many_steps_does(interval, changes, assets, tmp_path):
    words = (*CONSTANT, "--eval_interval", interval, *changes)
    assert run(assets, tmp_path / "whole", *words, "--max_steps", 17) == 0
    longer = tmp_path / "longer"
    assert run(assets, longer, *words) == 0
    assert json.loads((longer / "results.json").read_text())["steps"] <= 12
    # Of a best model at the end, the one before it.
    assert (longer / "pairs-ckpt-earlier.pt").exists() == ("loss" in changes)
    assert run(assets, longer, *words, "--max_steps", 17) == 0
    assert kills.differences(*map(kills.outcome, (tmp_path / "whole", longer))) == []


def test_a_longer_run_may_be_stopped_and_made_longer_again(assets, tmp_path, signal_at, capsys):
    words = (*CONSTANT, "--eval_interval", 5, "--best_metric", "loss")
    assert run(assets, tmp_path / "whole", *words, "--max_steps", 21) == 0
    longer = tmp_path / "longer"
    stopped_run(assets, longer, signal_at, 7, *words)
    assert run(assets, longer, *words, "--max_steps", 13) == 0
    for step in (14, 18):
        stopped_run(assets, longer, signal_at, step, *words, "--max_steps", 21)
        # What the folder held of the shorter run is no result of this one.
        assert not (longer / "results.json").exists()
    capsys.readouterr()
    line = error_line(capsys, small_run.command(assets, longer, *BASE, *words))
    assert "--max_steps 21 there, 12 now" in line and "not shorter" in line
    assert run(assets, longer, *words, "--max_steps", 21) == 0
    assert kills.differences(*map(kills.outcome, (tmp_path / "whole", longer))) == []
    assert run(assets, longer, *words, "--max_steps", 21) == 0
    assert "finished already" in capsys.readouterr().out


def test_epochs_may_be_raised_and_the_warm_up_kept(assets, tmp_path, capsys):
    first = ("--lr_schedule", "constant", "--warmup_ratio", 0.3)
    words = small_run.command(assets, tmp_path / "longer", *first, "--num_epochs")
    assert finetune.main([*words, "2"]) == 0
    capsys.readouterr()
    line = error_line(capsys, [*words, "5"])
    assert "--num_epochs 2.0 there, 5.0 now" in line
    assert "2 of 6 there and 5 of 15 now" in line
    (ratio,) = re.findall(r"--warmup_ratio (\S+) keeps it", line)
    kept = ("--num_epochs", 5, "--warmup_ratio", ratio)
    assert finetune.main(small_run.command(assets, tmp_path / "longer", *first, *kept)) == 0
    assert finetune.main(small_run.command(assets, tmp_path / "whole", *first, *kept)) == 0
    assert kills.differences(*(kills.outcome(tmp_path / n) for n in ("whole", "longer"))) == []


def test_why_a_run_is_not_made_longer(assets, tmp_path, capsys):
    assert run(assets, tmp_path) == 0
    before = contents(tmp_path)
    longer = ("--max_steps", 24)
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE, *longer))
    assert "--max_steps 12 there, 24 now" in line and "--lr_schedule linear gives" in line
    changes = (*longer, "--learning_rate", 0.002)
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE, *changes))
    assert "--learning_rate 0.001 there, 0.002 now" in line
    assert contents(tmp_path) == before


# Signals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_and_leaves_with_its_own_code(number, assets, tmp_path, signal_at, capsys):
    signal_at(5, number)
    assert run(assets, tmp_path) == 75
    out = capsys.readouterr().out
    assert f"stopped by {number.name} after step 5, which is saved; the same command goes" in out
    assert save_of(tmp_path)["progress"]["step"] == 5


def test_signals_during_a_save_do_not_break_it(assets, tmp_path, monkeypatch, whole):
    written = saves_room.written_beside

    def interrupted(path, write):
        if path.name != "pairs-last.pt":
            return written(path, write)
        os.kill(os.getpid(), signal.SIGUSR1)
        partial = written(path, write)
        os.kill(os.getpid(), signal.SIGINT)
        return partial

    monkeypatch.setattr(saves_room, "written_beside", interrupted)
    assert run(assets, tmp_path) == 75
    monkeypatch.undo()
    # Noted during the save at step 3; the next boundary is a step later.
    assert [save_of(tmp_path, which)["progress"]["step"] for which in ("prev", "last")] == [3, 4]
    assert run(assets, tmp_path) == 0
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_signal_breaks_an_evaluation_off_and_it_is_made_up_for(
    assets, tmp_path, monkeypatch, whole
):
    """An evaluation can take minutes; a stop should take seconds."""
    packed, evaluated = logits.packed_rows, []

    def noted(split, indices):
        if len(split) == 15:
            evaluated.append(len(indices))
            # The first of the evaluation at step 4; two batches are tried before training.
            if len(evaluated) == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
        return packed(split, indices)

    monkeypatch.setattr(logits, "packed_rows", noted)
    small = ("--max_tokens_per_batch", 60)
    assert run(assets, tmp_path, *small) == 75
    assert len(evaluated) == 3, "no more than the piece that was being computed"
    progress = save_of(tmp_path)["progress"]
    assert (progress["step"], progress["evaluated_step"], progress["lines"]) == (4, 0, [])
    monkeypatch.undo()
    assert run(assets, tmp_path, *small) == 0
    found = kills.outcome(tmp_path)
    assert [line["step"] for line in found["metrics"]] == [4, 8, 12]


@pytest.mark.parametrize("when", ["read_data", "score_best"])
def test_a_signal_outside_of_training_ends_the_run_at_once(
    when, assets, tmp_path, monkeypatch, capsys, whole
):
    monkeypatch.setattr(finetune, when, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert run(assets, tmp_path) == 75
    assert "stopped by SIGTERM outside of training" in capsys.readouterr().out
    monkeypatch.undo()
    assert run(assets, tmp_path) == 0
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_stop_that_a_library_turns_into_another_error_is_a_stop(assets, tmp_path, monkeypatch):
    def compile_in_c(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException as error:
            raise TypeError(f"wrapper: {error}") from None

    monkeypatch.setattr(finetune, "fit_to_machine", compile_in_c)
    assert run(assets, tmp_path) == 75


def test_handlers_are_put_back(assets, tmp_path):
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert run(assets, tmp_path, "--max_steps", 1) == 0
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_a_real_signal_to_a_real_process_stops_it(assets, tmp_path):
    log = tmp_path / "log"
    log.touch()
    changes = ("--max_steps", 100000, "--eval_interval", 100000)
    words = small_run.command(assets, tmp_path / "out", *changes)
    process = kills.start(words, log, HOLD_AT="3")
    assert kills.wait_for(kills.held_at(3), log, process)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=HANG_S) == 75, log.read_text()
    assert save_of(tmp_path / "out")["progress"]["step"] == 3


# The folder


@needs_compiler
def test_a_signal_while_it_compiles_ends_the_run_at_once(assets, tmp_path):
    """Nothing compiled is at hand, so that it has more to do than the signal needs to arrive."""
    log, out_dir = tmp_path / "log", tmp_path / "out"
    log.touch()
    words = small_run.command(assets, out_dir, "--compile", "always", "--max_steps", 50)
    process = kills.start(words, log, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "compiled"))
    assert kills.wait_for("compiling:", log, process), log.read_text()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANG_S) == finetune.EXIT_STOPPED, log.read_text()
    said = log.read_text()
    assert "stopped by SIGTERM outside of training" in said and "training on" not in said


@needs_compiler
def test_steps_compile_nothing_that_was_not_compiled_ahead(assets):
    """Rows of every number of examples, in a model that has seen two."""
    trunk, info, _ = load_pretrained_checkpoint(assets.checkpoint, max_seq_len=160)
    model = GPTClassification(trunk, num_classes=3)
    lengths = np.random.default_rng(0).integers(5, 60, 40)

    def get_batch(positions):
        own = lengths[positions]
        row = PackedRow.of(torch.zeros(int(own.sum()), dtype=torch.int64), own.tolist())
        return row, torch.zeros(len(own), dtype=torch.int64)

    examples = Examples(lengths, np.zeros(40, dtype=int), get_batch)
    recipe = Recipe(examples_per_step=8, num_steps=3, eval_interval=3)
    optimizer = configure_optimizers("cpu", model)
    compile_trunk(trunk)
    compile_ahead(model, recipe, examples)
    assert all(p.grad is None for p in model.parameters())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with torch.compiler.set_stance("fail_on_recompile"):
        for step, count in enumerate((8, 3, 21)):
            cutter = StepCutter(recipe, examples, model.dropout_width)
            batches = cutter.batches(step, np.arange(count), 400)
            train_step(model, optimizer, scaler, recipe, batches)


def test_two_runs_in_one_folder_at_once(assets, tmp_path, capsys):
    holding = "import sys, pathlib; from xnli_gpt.files import own_folder\n"
    holding += "with own_folder(pathlib.Path(sys.argv[1])):\n"
    holding += "    print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", holding, tmp_path / "out"],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    line = error_line(capsys, small_run.command(assets, tmp_path / "out", *BASE))
    assert f"process {other.pid} on" in line and "is running here" in line
    # What a kill leaves behind blocks nobody.
    other.kill()
    other.wait()
    assert (tmp_path / "out" / ".lock").exists()
    assert run(assets, tmp_path / "out", "--max_steps", 1) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_does_not_block(number, assets, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    assert run(assets, tmp_path, "--max_steps", 1) == 0
    assert f"note: {tmp_path} can't be locked" in capsys.readouterr().out


def within_file_size(limit: int, words: list[str]) -> subprocess.CompletedProcess:
    """The command where no file can become larger than `limit` bytes: as on a disk that fills."""
    return subprocess.run(
        [sys.executable, PROJECT / "finetune_hindi_xnli.py", *words],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        timeout=HANG_S,
    )


def test_a_disk_that_fills_while_saving_leaves_what_was_there(
    assets, tmp_path, signal_at, capsys, whole
):
    stopped_run(assets, tmp_path, signal_at, 5)
    before = contents(tmp_path)
    # More than the best model needs, less than a save does.
    best, last = ((tmp_path / f"pairs-{name}.pt").stat().st_size for name in ("ckpt", "last"))
    words = small_run.command(assets, tmp_path, *BASE)
    done = within_file_size((best + last) // 2, words)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {tmp_path}/pairs-last.pt.partial: File too large"]
    after = contents(tmp_path)
    assert after["pairs-last.pt"] == before["pairs-last.pt"]
    assert not list(tmp_path.glob("*.partial"))
    assert run(assets, tmp_path) == 0
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_folder_that_vanishes_is_one_line(assets, tmp_path, monkeypatch, capsys):
    counted = Trainer._count

    def count(trainer, *others):
        counted(trainer, *others)
        if trainer.state.step == 2:
            shutil.rmtree(tmp_path / "out")

    monkeypatch.setattr(Trainer, "_count", count)
    line = error_line(capsys, small_run.command(assets, tmp_path / "out", *BASE))
    assert "No such file or directory" in line and str(tmp_path / "out") in line


def test_a_failed_run_leaves_no_empty_folder(assets, tmp_path, capsys):
    error_line(
        capsys, small_run.command(assets, tmp_path / "out", "--label_column", "no_such_column")
    )
    assert not (tmp_path / "out").exists()


# Another number of processes


def test_a_resumed_step_keeps_its_examples():
    options = RecipeOptions(batch_size=4, gradient_accumulation_steps=3)
    twice = RecipeOptions(batch_size=8, gradient_accumulation_steps=3)
    assert examples_per_step(options, 2, None) == 24
    save = {"examples_per_step": 24, "examples_per_rank": 12}
    assert [examples_per_step(options, ranks, save) for ranks in (1, 2, 3, 4)] == [24] * 4
    assert examples_per_step(twice, 1, save) == 24
    with pytest.raises(RunError, match="the save's steps have 24 examples"):
        examples_per_step(twice, 2, save)
    with pytest.raises(RunError, match="5 ranks can't share evenly"):
        examples_per_step(options, 5, save)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_on_cuda_comes_near_an_uninterrupted_one(
    dtype, assets, tmp_path, signal_at, record_property
):
    """Sums on a GPU come in any order: the weights go the same way, not to the same bit."""
    changes = ("--device", "cuda", "--dtype", dtype)
    assert run(assets, tmp_path / "whole", *changes) == 0
    stopped_run(assets, tmp_path / "stopped", signal_at, 7, *changes)
    assert run(assets, tmp_path / "stopped", *changes) == 0
    whole, resumed = (kills.outcome(tmp_path / name) for name in ("whole", "stopped"))
    one, two = (torch.cat([t.flatten() for t in o["last"].values()]) for o in (whole, resumed))
    apart = float((one - two).norm() / one.norm())
    record_property("relative difference of the weights", apart)
    assert apart < 1e-3
