"""Several processes, one run: real ranks that talk through gloo."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import kills
import numpy as np
import pytest
import small_run
import torch
from limits import HANG_S

import finetune_hindi_xnli as finetune
from xnli_gpt.errors import RunError
from xnli_gpt.training import distributed
from xnli_gpt.training.distributed import Ranks

RECIPE = ("--learning_rate", 1e-4, "--max_steps", 12, "--eval_interval", 5, "--num_epochs", 1)
ALL_TOGETHER = ("--class_weights", "balanced", "--dropout", 0.3, "--label_smoothing", 0.1)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Started:
    """A run of several ranks, each started by itself, as srun does."""

    def __init__(self, count: int, words: list[str], folder: Path, **environment: str):
        folder.mkdir(parents=True, exist_ok=True)
        together = environment | {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        together["MASTER_PORT"] = str(free_port())
        self.logs = [folder / f"rank{rank}.log" for rank in range(count)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            log.touch()
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.processes.append(kills.start(words, log, **together, **own))

    def wait(self, timeout: float = HANG_S) -> list[int]:
        """Exit codes; what still runs then is killed, and fails the test."""
        deadline = time.monotonic() + timeout
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError("\n".join(self.texts())) from None
        finally:
            for process in self.processes:
                process.kill()

    def texts(self) -> list[str]:
        return [log.read_text() for log in self.logs]


def words_of(assets, out_dir: Path, batch_size: int, *changes: object) -> list[str]:
    sizes = ("--batch_size", batch_size, "--gradient_accumulation_steps", 1)
    return small_run.command(assets, out_dir, *RECIPE, *sizes, *changes)


def alone(assets, out_dir: Path, batch_size: int, *changes: object) -> dict:
    assert finetune.main(words_of(assets, out_dir, batch_size, *changes)) == 0
    return kills.outcome(out_dir)


def together(assets, out_dir: Path, ranks: int, batch_size: int, *changes: object) -> dict:
    words = words_of(assets, out_dir, batch_size, *changes)
    started = Started(ranks, words, out_dir.with_suffix(".logs"))
    assert started.wait() == [0] * ranks, "\n".join(started.texts())
    assert all(text == "" for text in started.texts()[1:]), "only the first rank speaks"
    return kills.outcome(out_dir)


def assert_same_run(one: dict, two: dict, atol: float = 1e-5) -> None:
    for model in ("best", "last"):
        for name, tensor in one[model].items():
            torch.testing.assert_close(two[model][name], tensor, atol=atol, rtol=0)
    assert one["results"]["steps"] == two["results"]["steps"]
    for split in ("validation", "test"):
        assert one["results"][split]["confusion"] == two["results"][split]["confusion"]
        assert one["results"][split]["examples"] == two["results"][split]["examples"]
        assert one["results"][split]["loss"] == pytest.approx(two["results"][split]["loss"], 1e-5)
    for line, other in zip(one["metrics"], two["metrics"], strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert line["validation"]["confusion"] == other["validation"]["confusion"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), id="plain", marks=pytest.mark.long),
        pytest.param(ALL_TOGETHER, id="all"),
        pytest.param(("--group_premises",), id="grouped"),
    ],
)
def test_two_ranks_give_the_weights_of_one_process(changes, assets, tmp_path):
    one = alone(assets, tmp_path / "one", 10, *changes)
    two = together(assets, tmp_path / "two", 2, 5, *changes)
    assert_same_run(one, two)


@pytest.mark.long
def test_three_ranks_share_steps_of_one_example(assets, tmp_path):
    """36 pairs in steps of 35 leave one for the last: two ranks have nothing to do but wait."""
    changes = ("--max_steps", 4, "--eval_interval", 2)
    one = alone(assets, tmp_path / "one", 15, "--max_train_examples", 31, *changes)
    three = together(assets, tmp_path / "three", 3, 5, "--max_train_examples", 31, *changes)
    assert_same_run(one, three)


@pytest.mark.long
def test_torchrun_starts_the_ranks(assets, tmp_path):
    one = alone(assets, tmp_path / "one", 10)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--master_port", str(free_port()), kills.PROJECT / "finetune_hindi_xnli.py"]
    words = words_of(assets, tmp_path / "two", 5)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(one, kills.outcome(tmp_path / "two"))


# Ends


def running(assets, tmp_path, ranks: int = 2) -> Started:
    words = words_of(assets, tmp_path / "out", 5, "--max_steps", 100000, "--eval_interval", 50000)
    started = Started(ranks, words, tmp_path / "logs")
    assert kills.wait_for("training on", started.logs[0], started.processes[0])
    time.sleep(1)
    return started


@pytest.mark.parametrize("dying", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_rank_that_dies_ends_the_others_with_the_reason(dying, assets, tmp_path):
    started = running(assets, tmp_path)
    started.processes[dying].kill()
    codes = started.wait()
    assert codes[dying] == -signal.SIGKILL and codes[1 - dying] == 1
    told = started.texts()[1 - dying].splitlines()[-1]
    assert "another rank has ended or can't be reached" in told, told


@pytest.mark.parametrize("signalled", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_signal_to_one_rank_stops_all_at_the_same_step(signalled, assets, tmp_path):
    started = running(assets, tmp_path)
    started.processes[signalled].send_signal(signal.SIGUSR1)
    assert started.wait() == [75, 75], started.texts()
    (save,) = (tmp_path / "out").glob("*-last.pt")
    step = torch.load(save, weights_only=True)["progress"]["step"]
    assert f"after step {step}, which is saved" in started.texts()[0]


@pytest.mark.long
def test_a_resumed_run_on_another_number_of_ranks_keeps_its_steps(assets, tmp_path):
    """Saved half way by two ranks, it goes on with one and with five; three can't share it."""
    one = alone(assets, tmp_path / "one", 10)
    started = Started(2, words_of(assets, tmp_path / "two", 5), tmp_path, HOLD_AT="6")
    last = tmp_path / "two" / "pairs-last.pt"
    assert kills.wait_for(kills.held_at(6), started.logs[0], started.processes[0])
    for process in started.processes:
        process.send_signal(signal.SIGUSR1)
    assert started.wait() == [75, 75], started.texts()
    assert torch.load(last, weights_only=True)["progress"]["step"] == 6
    shutil.copytree(tmp_path / "two", tmp_path / "five")
    assert_same_run(one, alone(assets, tmp_path / "two", 5))
    three = Started(3, words_of(assets, tmp_path / "five", 5), tmp_path / "logs3")
    codes = three.wait()
    assert codes[0] == 2 and 0 not in codes
    assert "10 examples, which 3 ranks can't share evenly" in three.texts()[0]
    assert_same_run(one, together(assets, tmp_path / "five", 5, 5))


def test_problems_of_all_ranks_are_told_once(assets, tmp_path):
    """Those of the words, which are told before anything is read, and those of what they name."""
    for wrong, told in (
        (("--n_head", 7, "--n_layer", 77), ["--n_head", "--n_layer"]),
        (("--no_such_flag", "--seed", "x"), ["--seed", "unknown"]),
    ):
        words = words_of(assets, tmp_path / "out", 5, *wrong)
        started = Started(2, words, tmp_path / f"logs{wrong[0]}")
        assert started.wait() == [2, 2]
        first, second = started.texts()
        assert second == ""
        assert sorted(line.split()[1] for line in first.splitlines()) == told


@pytest.mark.long
def test_ranks_that_read_different_data_are_refused(assets, tmp_path):
    """As where nodes have folders of their own."""
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank, dataset in enumerate((assets.dataset, assets.contrary)):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        words = words_of(assets, tmp_path / "out", 5, "--dataset", dataset)
        log = tmp_path / f"{rank}.log"
        started.append((kills.start(words, log, **together, **own), log))
    codes = [process.wait(timeout=HANG_S) for process, _ in started]
    assert 0 not in codes and codes[1] == 2
    assert "the first rank: belongs to another run (data" in started[1][1].read_text()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        (
            {"RANK": "x", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
            | {"WORLD_SIZE": "2"},
            "expected numbers",
        ),
    ],
)
def test_an_incomplete_environment_is_one_line(
    environment, said, assets, tmp_path, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert finetune.main(words_of(assets, tmp_path, 5)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line


# Shares


def test_every_example_of_a_step_is_one_ranks(assets):
    lengths = np.random.default_rng(0).integers(3, 90, 64)
    shares = [Ranks(rank, 4).share_of(lengths) for rank in range(4)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(64))
    tokens = [int(lengths[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= lengths.max()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus_give_the_weights_of_one(assets, tmp_path):
    changes = ("--device", "cuda", "--dtype", "float32")
    one = alone(assets, tmp_path / "one", 10, *changes)
    two = together(assets, tmp_path / "two", 2, 5, *changes)
    assert_same_run(one, two, atol=1e-4)


@pytest.mark.parametrize(("gpus", "local_rank", "expected"), [(4, 3, 3), (1, 3, 0), (2, 0, 0)])
def test_a_rank_takes_its_own_gpu_or_the_only_one_it_is_shown(
    gpus, local_rank, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert distributed._gpu_of(Ranks(local_rank, 4, local_rank)) == expected


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RunError, match="LOCAL_RANK 2: only 2 GPUs here"):
        distributed._gpu_of(Ranks(2, 4, 2))
