"""Runs that are made longer, and why some can't be."""

import json
import re

import kills
import pytest
import small_run
from resume_parts import BASE, contents, error_line, run, stopped_run

import finetune_hindi_xnli as finetune

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
