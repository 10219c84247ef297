"""What a user did wrong, in a line each, and what only looks wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from finetune_parts import PROJECT, error_lines, subprocess_environment
from limits import HANG_S
from small_run import command

import finetune_hindi_xnli as finetune

pytestmark = pytest.mark.usefixtures("working_folder")


def test_all_problems_of_a_command_line_are_told_at_once(assets, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("dropout: 2\nlearning_rte: 1\n")
    words = ["--config", recipe, "--batch_size", "many", "--num_epochs", -1, "--dtype", "float8"]
    words += ["--learnin_rate", 3, "--grad_clip", "--pretrained_ckpt_path", tmp_path / "none.pt"]
    words += ["--tokenizer_name", tmp_path / "none.json", "--device", "gpu"]
    words += ["--out_dir", recipe / "out", "--text_column", "premise"]
    lines = error_lines(words, capsys)
    told = [
        "--grad_clip: expected one argument",
        "--text_column: expected 2 arguments",
        "unknown argument --learnin_rate: did you mean --learning_rate?",
        "unknown key learning_rte: did you mean learning_rate?",
        "--batch_size many: expected a whole number",
        "--num_epochs -1.0: expected more than 0",
        "--dropout 2.0: expected at most 0.99",
        "--dtype float8: expected auto or float32 or bfloat16 or float16",
        "--device gpu: expected cpu, cuda or cuda:N",
        f"--out_dir {recipe / 'out'}: can't be made",
        "none.pt: no such file",
        "none.json: no such file",
    ]
    missing = [text for text in told if not any(text in line for line in lines)]
    assert not missing and len(lines) == len(told), lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--seed -1", "--seed -1: expected at least 0"),
        ("--seed 99999999999999999999999", "--seed 99999999999999999999999: expected at most"),
        ("--seed 1.5", "--seed 1.5: expected a whole number"),
        ("--num_epochs inf", "--num_epochs inf: expected a finite number"),
        ("--learning_rate nan", "--learning_rate nan: expected a finite number"),
        ("--learning_rate 0", "--learning_rate 0.0: expected more than 0"),
        ("--warmup_ratio 1.5", "--warmup_ratio 1.5: expected at most 1"),
        ("--block_size 999999999999", "--block_size 999999999999: expected at most"),
        ("--best_metric f1", "--best_metric f1: expected accuracy or macro_f1 or loss"),
        ("--lr_schedule Linear", "--lr_schedule Linear: expected linear or cosine or constant"),
        ("--num_classes 1", "--num_classes 1: expected at least 2"),
        ("--prepare_only=yes", "--prepare_only"),
        ("--learning", "unknown argument --learning"),
        ("stray", "unknown argument stray"),
        ("--n_layer 12", "--n_layer 12, but"),
        ("--n_head 6", "6 heads"),
        ("--n_embd 768", "--n_embd 768, but"),
        ("--vocab_size 50000", "--vocab_size 50000, but"),
        ("--device cuda:x", "--device cuda:x: expected cpu, cuda or cuda:N"),
        ("--device mps", "--device mps: expected cpu, cuda or cuda:N"),
    ],
)
def test_one_wrong_flag_is_one_line(words, expected, assets, tmp_path, capsys):
    if words == "--n_head 6":
        expected = "--n_head 6, but"
    (line,) = error_lines(command(assets, tmp_path, *words.split()), capsys)
    assert expected in line


def test_every_flag_that_contradicts_the_file_is_named(assets, tmp_path, capsys):
    changes = ["--n_layer", 12, "--n_head", 6, "--n_embd", 768, "--vocab_size", 50000]
    lines = error_lines(command(assets, tmp_path, *changes), capsys)
    assert [line.split()[1] for line in lines] == [
        "--n_layer",
        "--n_head",
        "--n_embd",
        "--vocab_size",
    ]


@pytest.mark.parametrize("name", ["--dataset", "--tokenizer_name", "--out_dir", "--text_column"])
def test_an_empty_value_as_from_an_unset_shell_variable_is_an_error(name, assets, tmp_path, capsys):
    values = ["", "b"] if name == "--text_column" else [""]
    lines = error_lines(command(assets, tmp_path, name, *values), capsys)
    assert any(name in line for line in lines)


def test_cuda_never_falls_back_to_the_cpu(assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (line,) = error_lines(command(assets, tmp_path, "--device", "cuda"), capsys)
    assert "--device cuda: no CUDA device here" in line
    assert not (tmp_path / "config.yaml").exists()


def test_a_cuda_device_that_is_not_there_is_named(assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (line,) = error_lines(command(assets, tmp_path, "--device", "cuda:2"), capsys)
    assert "--device cuda:2: only 2 here" in line


def test_a_tokenizer_with_more_tokens_than_the_checkpoint_has_rows(assets, tmp_path, capsys):
    argv = command(assets, tmp_path, "--tokenizer_name", assets.large_tokenizer)
    (line,) = error_lines(argv, capsys)
    assert "500 tokens" in line and "384 embedding rows" in line


def test_a_glob_that_matches_nothing(assets, tmp_path, capsys):
    argv = command(assets, tmp_path, "--pretrained_ckpt_path", tmp_path / "best_*.pt")
    (line,) = error_lines(argv, capsys)
    assert "best_*.pt: matches no file" in line


@pytest.mark.parametrize("name", ["out_dir", "cache_dir"])
def test_a_folder_that_cannot_be_made(name, assets, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = command(assets, tmp_path / "out", f"--{name}", tmp_path / "file" / "inside")
    (line,) = error_lines(argv, capsys)
    assert f"--{name} {tmp_path}/file/inside: can't be made, {tmp_path}/file is a file" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out_dir", "cache_dir"])
def test_a_folder_that_cannot_be_written(name, assets, tmp_path, capsys, monkeypatch):
    # Root may write everywhere, so that permissions alone would not fail here.
    locked = tmp_path / "locked"
    locked.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked)
    argv = command(assets, tmp_path / "out", f"--{name}", locked / "a" / "b")
    (line,) = error_lines(argv, capsys)
    assert f"--{name} {locked}/a/b: {locked} is not writable" in line


def test_checkpoint_and_tokenizer_are_asked_for_together(tmp_path, capsys):
    lines = error_lines(["--out_dir", tmp_path, "--cache_dir", tmp_path], capsys)
    assert len(lines) == 2
    assert "--pretrained_ckpt_path is needed" in lines[0]
    assert "--tokenizer_name is needed" in lines[1]


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", b"PK\x03\x04 half a zip"])
def test_eval_only_without_a_usable_checkpoint(content, assets, tmp_path, capsys):
    path = tmp_path / "pairs-ckpt.pt"
    if content is not None:
        path.write_bytes(content)
    argv = ["--eval_only", "--dataset", assets.dataset, "--out_dir", tmp_path]
    (line,) = error_lines([*argv, "--cache_dir", assets.cache, "--device", "cpu"], capsys)
    assert str(path) in line


def test_eval_only_on_a_pretrained_checkpoint(assets, tmp_path, capsys):
    (tmp_path / "pairs-ckpt.pt").write_bytes(assets.checkpoint.read_bytes())
    argv = ["--eval_only", "--dataset", assets.dataset, "--out_dir", tmp_path]
    (line,) = error_lines([*argv, "--cache_dir", assets.cache, "--device", "cpu"], capsys)
    assert "not a fine-tuned checkpoint" in line


@pytest.mark.parametrize(
    ("flag", "package"), [("tensorboard", "tensorboard"), ("wandb_log", "wandb")]
)
def test_a_missing_logger_package_is_named(flag, package, assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    (line,) = error_lines(command(assets, tmp_path, f"--{flag}"), capsys)
    assert f"{package} is not installed: pip install {package}" in line


def test_a_draw_without_a_class_is_refused(assets, tmp_path, capsys):
    (line,) = error_lines(command(assets, tmp_path, "--max_train_examples", 1), capsys)
    assert "--max_train_examples 1: no example of a class" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # What is wrong with the words is said before the checkpoint is looked at.
        ("--batch_size 0 --seeed 1", ["unknown", "--batch_size"]),
        ("--n_layer 7 --n_embd 7", ["--n_layer", "--n_embd"]),
    ],
)
def test_the_command_itself_exits_with_2_and_no_traceback(words, told, assets, tmp_path):
    argv = command(assets, tmp_path, *words.split())
    done = subprocess.run(
        [sys.executable, PROJECT / "finetune_hindi_xnli.py", *argv],
        env=subprocess_environment(),
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 2
    assert [line.split(" ")[1] for line in done.stderr.splitlines()] == told


def test_a_vocabulary_that_pads_to_the_files_is_fine_and_no_longer_needed(assets, tmp_path, capsys):
    argv = command(assets, tmp_path, "--vocab_size", 300, "--prepare_only")
    assert finetune.main(argv) == 0
    assert "--vocab_size is no longer needed" in capsys.readouterr().out
