"""What a run writes down of every step, and how fast it says that it is."""

import json

import pytest
import torch

from xnli_gpt.checkpoints.fine_tuned import FINE_TUNED_KIND, read_fine_tuned
from xnli_gpt.training import records
from xnli_gpt.training.records import ModelWriter, StepLog
from xnli_gpt.training.state import RecentRate


def steps_in(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def log_of(path, first_step: int = 0, loggers: tuple = ()) -> StepLog:
    log = StepLog(path, list(loggers))
    log.begin(first_step)
    return log


def test_steps_wait_until_they_are_written(tmp_path):
    path, seen = tmp_path / "steps.jsonl", []
    log = log_of(path, loggers=[lambda numbers, step: seen.append((step, numbers))])
    assert path.read_text() == ""
    log.add(1, {"loss": 0.5, "grad_norm": None, "skipped": True})
    log.add(2, {"loss": 0.25})
    assert path.read_text() == ""
    assert seen == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    log.flush()
    log.flush(to_disk=True)
    first, second = map(json.loads, path.read_text().splitlines())
    assert first == {"step": 1, "loss": 0.5, "grad_norm": None, "skipped": True}
    assert second == {"step": 2, "loss": 0.25}


def test_who_follows_a_run_sees_its_steps_after_some_seconds(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    path = tmp_path / "steps.jsonl"
    log = log_of(path)
    for step, moment, written in [(1, 105.0, []), (2, 110.0, [1, 2]), (3, 119.0, [1, 2])]:
        now[0] = moment
        log.add(step, {"loss": 1.0})
        assert steps_in(path) == written


@pytest.mark.parametrize(
    ("tail", "first_step", "left"),
    [
        ("", 2, [1, 2]),
        ("", 9, [1, 2, 3]),
        ("", 0, []),
        ('{"step": 4, "lo', 9, [1, 2, 3]),
        ('{"step": 4}', 9, [1, 2, 3]),
        ("\0\0\0\n", 9, [1, 2, 3]),
        ('no json\n{"step": 5}\n', 9, [1, 2, 3]),
        ("[4]\n", 9, [1, 2, 3]),
    ],
)
def test_what_a_killed_life_wrote_is_cut_off(tail, first_step, left, tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(f'{{"step": {i}}}\n' for i in (1, 2, 3)) + tail)
    log = log_of(path, first_step)
    assert steps_in(path) == left
    log.add(7, {"loss": 1.0})
    log.flush()
    assert steps_in(path) == [*left, 7]


def test_a_file_that_vanishes_is_an_error(tmp_path):
    log = log_of(tmp_path / "steps.jsonl")
    (tmp_path / "steps.jsonl").unlink()
    log.add(1, {"loss": 1.0})
    with pytest.raises(FileNotFoundError):
        log.flush()


def test_the_rate_is_that_of_the_recent_past():
    rate = RecentRate()
    assert rate.examples_per_second == 0.0
    # A first step that compiles.
    rate.add(50.0, 64)
    assert rate.examples_per_second == pytest.approx(64 / 50)
    for _ in range(20):
        rate.add(4.0, 64)
    assert rate.examples_per_second == pytest.approx(16)
    # A step longer than all that counts as recent is a rate of its own.
    rate.add(100.0, 64)
    assert rate.examples_per_second == pytest.approx(0.64)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_model_is_written_as_it_was_when_it_was_handed_over(tmp_path, in_background):
    writer = ModelWriter(torch.device("cpu"), in_background)
    model = torch.nn.Linear(300, 200)
    handed_over = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    writer.write(tmp_path / "a-ckpt.pt", model.state_dict(), {"kind": FINE_TUNED_KIND, "step": 3})
    with torch.no_grad():
        model.weight.zero_()
    writer.wait()
    written = read_fine_tuned(tmp_path / "a-ckpt.pt")
    assert written["step"] == 3
    assert written["model"].keys() == handed_over.keys()
    assert all(torch.equal(written["model"][name], handed_over[name]) for name in handed_over)


@pytest.mark.parametrize("told_by", ["write", "wait"])
def test_what_went_wrong_in_the_background_is_told_by_what_comes_next(tmp_path, told_by):
    writer = ModelWriter(torch.device("cpu"), in_background=True)
    state = torch.nn.Linear(3, 2).state_dict()
    writer.write(tmp_path / "no folder" / "a-ckpt.pt", state, {})
    with pytest.raises(FileNotFoundError):
        writer.wait() if told_by == "wait" else writer.write(tmp_path / "b-ckpt.pt", state, {})
    writer.write(tmp_path / "b-ckpt.pt", state, {})
    writer.wait()
    assert (tmp_path / "b-ckpt.pt").exists()
