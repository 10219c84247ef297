"""What the machine decides, and what saves memory or time: what it changes in a run."""

import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_parts import (
    PROJECT,
    error_lines,
    read_json,
    read_lines,
    subprocess_environment,
    weights_of,
)
from limits import HANG_S
from small_run import command

import finetune_hindi_xnli as finetune
from load_checkpoint_helper import inspect_checkpoint, load_pretrained_checkpoint
from model import GPTBatched, GPTClassification, GPTConfig
from xnli_gpt.data.encoded import EncodedSplit
from xnli_gpt.errors import UsageError
from xnli_gpt.evaluation.logits import Inference, evaluate_split
from xnli_gpt.fine_tuning.attention import fastest_attention, require_within_windows
from xnli_gpt.options import plain_values
from xnli_gpt.training import compiling
from xnli_gpt.training.options import RecipeOptions

pytestmark = pytest.mark.usefixtures("working_folder")


def short_run(assets, out_dir: Path, *changes: object) -> Path:
    """Three steps and one evaluation."""
    words = command(assets, out_dir, "--max_steps", 3, "--eval_interval", 3, *changes)
    assert finetune.main(words) == 0
    return out_dir


@pytest.fixture(scope="module")
def plain(assets) -> Path:
    return short_run(assets, assets.folder / "plain")


def assert_same_numbers(one: Path, two: Path) -> None:
    """Losses to six digits, and the same predictions."""
    for line, expected in zip(read_lines(two), read_lines(one), strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-6)
        assert line["validation"]["loss"] == pytest.approx(expected["validation"]["loss"], rel=1e-6)
    found, expected = (read_json(folder / "results.json")["test"] for folder in (two, one))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["confusion"] == expected["confusion"]


def furthest_apart(one: Path, two: Path) -> float:
    weights, others = weights_of(one), weights_of(two)
    return max(float((weights[name] - others[name]).abs().max()) for name in weights)


@pytest.mark.parametrize("budget", [1, 200])
def test_the_budget_of_tokens_changes_no_result(budget, plain, assets, tmp_path, capsys):
    short_run(assets, tmp_path, "--max_tokens_per_batch", budget)
    assert f"at most {budget} tokens a micro-batch" in capsys.readouterr().out
    assert_same_numbers(plain, tmp_path)
    # Adam moves a weight whose gradient is next to nothing by the sign of its rounding.
    assert furthest_apart(plain, tmp_path) < 1e-4


@pytest.mark.parametrize(
    "changes", [("--gradient_checkpointing",), ("--attention", "groups"), ("--compile", "never")]
)
def test_what_saves_memory_or_names_the_default_changes_no_bit(changes, plain, assets, tmp_path):
    short_run(assets, tmp_path, *changes)
    assert furthest_apart(plain, tmp_path) == 0


def test_gradient_checkpointing_reaches_the_trunk(assets):
    words = "--gradient_checkpointing --attention groups --device cpu --pretrained_ckpt_path"
    config, problems = finetune.COMMAND.parse([*words.split(), str(assets.checkpoint)])
    assert not problems
    model = finetune.build_model(inspect_checkpoint(assets.checkpoint)[0], 3, seed=0)
    finetune.load_pretrained_model(argparse.Namespace(**plain_values(config)), model)
    assert model.pretrained_model.gradient_checkpointing
    assert model.pretrained_model.row_attention == "groups"


def test_a_lazy_embedding_update_runs_and_is_another_result(plain, assets, tmp_path):
    short_run(assets, tmp_path, "--embedding_update", "lazy")
    assert furthest_apart(plain, tmp_path) > 1e-4
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    exact, lazy = (
        (weights_of(folder)["pretrained_model.embed.weight"] != trunk.embed.weight).any(1)
        for folder in (plain, tmp_path)
    )
    assert torch.equal(lazy, exact), "the same rows were met"
    assert 0 < int(lazy.sum()) < len(lazy), "rows of no token stay as they were"


@pytest.mark.parametrize("update", ["exact", "lazy"])
def test_a_frozen_trunk_needs_no_update_of_embeddings(update, assets, tmp_path):
    short_run(assets, tmp_path, "--freeze_backbone", "--embedding_update", update)
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    weights = weights_of(tmp_path)
    for name in ("embed.weight", "value_embeds.1.weight"):
        assert torch.equal(weights[f"pretrained_model.{name}"], trunk.state_dict()[name])


@pytest.mark.parametrize("attention", ["flex", "varlen"])
def test_attention_that_only_a_gpu_trains_is_refused_on_a_cpu(attention, assets, tmp_path, capsys):
    out_dir = tmp_path / "out"
    changes = ("--attention", attention, "--dtype", "bfloat16")
    (line,) = error_lines(command(assets, out_dir, *changes), capsys)
    assert f"--attention {attention}: has no backward pass on a CPU" in line
    assert not out_dir.exists()


def test_varlen_takes_half_precisions_and_pairs_within_the_windows(assets, tmp_path, capsys):
    changes = ("--attention", "varlen", "--dtype", "float32")
    lines = error_lines(command(assets, tmp_path / "out", *changes), capsys)
    assert any("--attention varlen: needs --dtype bfloat16 or float16" in line for line in lines)
    trunk = load_pretrained_checkpoint(assets.checkpoint)[0]
    require_within_windows("varlen", trunk, 896)
    with pytest.raises(UsageError, match="a pair of 897 tokens, beyond the window of 896"):
        require_within_windows("varlen", trunk, 897)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "changes", "expected"),
    [
        ("cuda", torch.bfloat16, (9, 0), {}, "varlen"),
        ("cuda", torch.float16, (8, 6), {}, "varlen"),
        ("cuda", torch.float16, (7, 0), {}, None),
        ("cuda", torch.float32, (9, 0), {}, None),
        ("cpu", torch.bfloat16, None, {}, None),
        # The longest pair decides, not the longest that the network would take.
        ("cuda", torch.bfloat16, (9, 0), {"longest": 896, "max_seq_len": 1024}, "varlen"),
        ("cuda", torch.bfloat16, (9, 0), {"longest": 897, "max_seq_len": 1024}, None),
        ("cuda", torch.bfloat16, (9, 0), {"windows": (14, 3)}, None),
        ("cuda", torch.bfloat16, (9, 0), {"head_dim": 12}, None),
        ("cuda", torch.bfloat16, (9, 0), {"group_premises": True}, None),
    ],
)
def test_the_fastest_attention_is_one_that_gives_the_same(
    device, dtype, capability, changes, expected, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    changes = dict(changes)
    longest = changes.pop("longest", 512)
    recipe = RecipeOptions(group_premises=changes.pop("group_premises", False))
    network = GPTConfig.of_family(
        "small", vocab_size=99, num_layers=6, num_heads=2, model_dim=256, max_seq_len=512
    )
    network = dataclasses.replace(network, **changes)
    assert fastest_attention(network, recipe, torch.device(device), dtype, longest) == expected


@pytest.mark.parametrize("choice", ["auto", "never"])
def test_a_short_run_is_not_compiled(choice, assets, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finetune, "compile_trunk", lambda trunk: pytest.fail("compiled"))
    short_run(assets, tmp_path, "--compile", choice)
    (line,) = (ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("training on "))
    assert line.endswith(" tokens a micro-batch, not compiled")


@pytest.mark.parametrize(
    ("choice", "steps", "compiled"),
    [("always", 1, True), ("auto", 299, False), ("auto", 300, True), ("never", 300, False)],
)
def test_what_is_compiled(choice, steps, compiled, monkeypatch):
    monkeypatch.setattr(compiling, "_why_not_compile", lambda device: None)
    assert compiling.is_compiled(choice, torch.device("cpu"), steps) is compiled


def run_without_a_compiler(
    assets, out_dir: Path, *changes: object
) -> subprocess.CompletedProcess[str]:
    """A run of three steps, long enough to be compiled, where the C++ compiler fails."""
    code = "import sys, finetune_hindi_xnli as f; from xnli_gpt.training import compiling; "
    code += "compiling.STEPS_WORTH_COMPILING = 1; sys.exit(f.main())"
    words = command(assets, out_dir, "--max_steps", 3, "--eval_interval", 3, *changes)
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=subprocess_environment(
            CXX="/bin/false",
            TORCHINDUCTOR_CACHE_DIR=str(out_dir.with_name("inductor")),
            PYTHONPATH=str(PROJECT),
        ),
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def test_compile_always_without_a_compiler_is_one_line_and_code_2(assets, tmp_path):
    done = run_without_a_compiler(assets, tmp_path / "out", "--compile", "always")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --compile always: torch.compile fails here: ")
    assert "training on " not in done.stdout


def test_compile_auto_without_a_compiler_goes_on_with_a_note(plain, assets, tmp_path):
    done = run_without_a_compiler(assets, tmp_path / "out", "--compile", "auto")
    assert (done.returncode, done.stderr) == (0, "")
    (note,) = (line for line in done.stdout.splitlines() if "torch.compile fails here" in line)
    assert note.startswith("note: not compiled (") and note.endswith("with the same result")
    assert "tokens a micro-batch, not compiled\n" in done.stdout
    assert_same_numbers(plain, tmp_path / "out")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_whole_run_on_cuda(assets, tmp_path, dtype):
    changes = ("--device", "cuda", "--dtype", dtype)
    assert finetune.main(command(assets, tmp_path / "out", *changes)) == 0
    results = read_json(tmp_path / "out/results.json")
    assert results["steps"] > results["skipped_steps"]
    assert 0 <= results["test"]["accuracy"] <= 1


def test_preparing_for_a_gpu_job_needs_no_gpu(assets, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = command(assets, tmp_path / "out", "--device", "cuda", "--prepare_only")
    assert finetune.main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"prepared in {assets.cache} (done")
    assert finetune.main(words[:-1]) == 2


def _split_of(lengths: list[int]) -> EncodedSplit:
    generator = np.random.default_rng(0)
    return EncodedSplit(
        tokens=generator.integers(0, 128, sum(lengths)).astype(np.uint16),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        premise_spans=np.zeros((len(lengths), 2), dtype=np.int32),
        labels=np.arange(len(lengths)) % 3,
    )


def test_an_evaluation_that_memory_does_not_hold_is_done_in_smaller_pieces(monkeypatch):
    config = GPTConfig.of_family(
        "small", vocab_size=128, num_layers=6, num_heads=2, model_dim=32, max_seq_len=64
    )
    model = GPTClassification(GPTBatched(config), 3)
    split = _split_of([3, 20, 7, 12, 9, 30, 5, 8, 8])
    expected = evaluate_split(model, split, "abc", Inference(torch.float32, 1000))
    forward, sizes = model.forward, []

    def limited(row, *others, **named):
        sizes.append(len(row.input_ids))
        if sizes[-1] > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return forward(row, *others, **named)

    monkeypatch.setattr(model, "forward", limited)
    found = evaluate_split(model, split, "abc", Inference(torch.float32, 1000))
    assert max(sizes) > 40, "the first attempt must be too much"
    assert found["confusion"] == expected["confusion"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    too_long = _split_of([50])
    with pytest.raises(torch.OutOfMemoryError):
        evaluate_split(model, too_long, "abc", Inference(torch.float32, 1000))


def test_out_of_memory_anywhere_else_is_one_line(monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has")

    monkeypatch.setattr(finetune, "check_inputs", fail)
    assert finetune.main([]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: CUDA out of memory: use --max_tokens_per_batch or a larger GPU"
    ]
