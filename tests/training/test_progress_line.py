"""How far training is, as a log and a terminal show it."""

import numpy as np
import pytest
from training_parts import Run, recipe_of

from xnli_gpt.training.progress_line import LineTimes, ProgressLine
from xnli_gpt.training.state import TrainState

# Lines of progress without a terminal


def times_of_lines(step_seconds, num_steps):
    """When lines come, in seconds from the start, in a run of equally long steps."""
    now = [0.0]
    times = LineTimes(lambda: now[0])
    lines = []
    for _ in range(num_steps):
        now[0] += step_seconds
        if times.is_due_after_step():
            lines.append(now[0])
            times.note_line()
    return lines


@pytest.mark.parametrize("step_seconds", [0.01, 0.7, 3.0, 10.0, 47.0])
def test_a_log_has_a_line_at_once_and_then_at_least_every_ten_seconds(step_seconds):
    lines = times_of_lines(step_seconds, int(300 / step_seconds))
    assert lines[0] == pytest.approx(step_seconds)
    gaps = np.diff(lines)
    assert gaps.max() <= max(10.0, step_seconds) + 1e-6
    assert gaps.min() > min(10.0 - 2 * step_seconds, step_seconds) - 1e-6


def test_a_run_of_hours_has_a_line_a_minute():
    lines = np.array(times_of_lines(0.5, 4 * 3600 * 2))
    assert np.diff(lines).max() <= 60.0
    assert np.diff(lines[lines > 1800]).min() >= 58.0
    assert len(lines) < 300


def test_another_line_is_a_line_too():
    now = [0.0]
    times = LineTimes(lambda: now[0])
    now[0] = 1.0
    assert times.is_due_after_step()
    times.note_line()
    now[0] = 9.0
    times.note_line()
    now[0] = 10.0
    assert not times.is_due_after_step()


def test_an_evaluation_is_announced_where_it_may_be_long(model, capsys, monkeypatch):
    """The first one always; another one where the last took ten seconds or more."""
    monkeypatch.setattr("xnli_gpt.training.progress_line.SECONDS_BETWEEN_LINES", (0.0, 60.0))
    Run(model, recipe_of(num_steps=4, eval_interval=2))
    out = capsys.readouterr().out
    assert "step 2: evaluating on the validation split\n" in out
    assert "step 4: evaluating on the validation split, about 0 s\n" in out
    monkeypatch.undo()
    Run(model, recipe_of(num_steps=4, eval_interval=2))
    assert capsys.readouterr().out.count("evaluating on the validation split") == 1


def test_a_loss_that_nobody_has_looked_at_is_not_told_as_nan(capsys):
    """On a GPU losses are looked at some steps late, and evaluations clear those of before."""
    state = TrainState(step=1)
    with ProgressLine(num_steps=3, first_step=0) as line:
        line.show(state, epoch=0.1)
        state.step, state.losses = 2, [0.5]
        line.times = LineTimes()
        line.show(state, epoch=0.2)
        state.step, state.losses = 3, []
        line.show(state, epoch=0.3)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert "loss" not in first and "loss 0.5000" in last
