"""Signals, whenever they come: saved, told by the exit code, gone on with."""

import os
import signal

import kills
import pytest
import small_run
from limits import HANG_S
from resume_parts import needs_compiler, run, save_of

import finetune_hindi_xnli as finetune
from xnli_gpt.evaluation import logits
from xnli_gpt.training import saves as saves_room
from xnli_gpt.training.signals import STOP_SIGNALS

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
