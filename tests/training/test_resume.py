"""Saves and resuming: nothing is lost, and a resumed run ends where an uninterrupted one does."""

import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kills
import numpy as np
import pytest
import small_run
import torch
from resume_parts import BASE, PROJECT, RECIPES, contents, error_line, run, save_of, stopped_run

import finetune_hindi_xnli as finetune
from xnli_gpt.errors import RunError
from xnli_gpt.training.options import RecipeOptions
from xnli_gpt.training.order import Examples
from xnli_gpt.training.recipe import Recipe
from xnli_gpt.training.resumption import examples_per_step
from xnli_gpt.training.saves import Saves
from xnli_gpt.training.state import TrainState
from xnli_gpt.training.trainer import Trainer

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
