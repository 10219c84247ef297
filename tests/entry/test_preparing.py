"""Preparing without a checkpoint, and the loggers of a run."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from finetune_parts import PROJECT, read_lines, subprocess_environment
from limits import HANG_S
from small_run import command

import finetune_hindi_xnli as finetune
from xnli_gpt.data import cache

pytestmark = pytest.mark.usefixtures("working_folder")


def test_prepare_only_needs_no_checkpoint_and_fills_the_cache(
    assets, tmp_path, capsys, monkeypatch
):
    argv = ["--prepare_only", "--dataset", assets.dataset, "--tokenizer_name", assets.tokenizer]
    argv += ["--cache_dir", tmp_path / "cache", "--out_dir", tmp_path / "out"]
    argv = [str(word) for word in [*argv, "--device", "cpu"]]
    assert finetune.main(argv) == 0
    first = capsys.readouterr().out
    assert "train: 36 pairs" in first and "test: 18 pairs" in first
    assert not (tmp_path / "out").exists()

    def no_more(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(cache, "encode_distinct", no_more)
    assert finetune.main(argv) == 0
    second = capsys.readouterr().out
    assert second.splitlines()[:-1] == first.splitlines()[:-1]
    (tmp_path / "cache").rename(tmp_path / "gone")
    with pytest.raises(AssertionError, match="tokenised again"):
        finetune.main(argv)


def fake_loggers(folder: Path) -> Path:
    """Modules of the loggers' names that only say that they were imported."""
    for name in ("wandb", "tensorboard"):
        (folder / f"{name}.py").write_text(
            "logged = []\n"
            "class Run:\n"
            "    def log(self, scalars, step):\n"
            "        logged.append((step, scalars))\n"
            "def init(**options):\n"
            "    return Run()\n"
        )
    return folder


def test_importing_the_entry_point_imports_no_logger(tmp_path):
    code = "import sys, finetune_hindi_xnli; print({'wandb', 'tensorboard'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=subprocess_environment(PYTHONPATH=str(fake_loggers(tmp_path))),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "set()"), done.stderr


@pytest.mark.parametrize("flags", [["--tensorboard"], ["--wandb_log"], []])
def test_a_logger_gets_every_evaluations_scalars(flags, assets, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(fake_loggers(tmp_path)))
    for name in ("wandb", "tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    logged: dict[int, dict] = {}

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "out" / "tensorboard")

        def add_scalar(self, name, value, step):
            logged.setdefault(step, {})[name] = value

        def flush(self):
            pass

    writer = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    changes = ("--max_steps", 4, "--eval_interval", 2, *flags)
    assert finetune.main(command(assets, tmp_path / "out", *changes)) == 0
    if flags == ["--wandb_log"]:
        logged |= dict(sys.modules["wandb"].logged)
    lines = read_lines(tmp_path / "out")
    assert sorted(logged) == ([1, 2, 3, 4] if flags else [])
    steps = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    if flags == ["--tensorboard"]:
        assert [logged[i]["loss"] for i in range(1, 5)] == [json.loads(s)["loss"] for s in steps]
    for line in lines if flags else []:
        scalars = logged[line["step"]]
        assert scalars["train_loss"] == line["train_loss"]
        assert scalars["learning_rate"] == line["learning_rate"]
        for name in ("accuracy", "macro_f1", "loss"):
            assert scalars[f"validation/{name}"] == line["validation"][name]
