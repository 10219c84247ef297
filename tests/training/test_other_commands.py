"""Folders that hold a run: which command goes on there, which is refused, and why."""

import shutil
from pathlib import Path

import kills
import pytest
import small_run
import torch
from resume_parts import BASE, contents, error_line, run, stopped_run

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
    decide_otherwise(tmp_path, lambda decisive: decisive.pop("label_smoothing"))
    words = small_run.command(assets, tmp_path, *BASE, "--label_smoothing", 0.1)
    assert "--label_smoothing 0.0 there, 0.1 now" in error_line(capsys, words)
    assert run(assets, tmp_path) == 0
    assert kills.differences(whole("plain"), kills.outcome(tmp_path)) == []


def test_a_flag_of_a_later_version_is_named(assets, tmp_path, signal_at, capsys):
    stopped_run(assets, tmp_path, signal_at, 5)
    decide_otherwise(tmp_path, lambda decisive: decisive.update({"mixup": 0.5}))
    line = error_line(capsys, small_run.command(assets, tmp_path, *BASE))
    assert "`mixup` 0.5 there, which is not known now" in line


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
