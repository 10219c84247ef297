"""The entry point as a user meets it: flags, errors, whole runs, and the files they leave."""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import kills
import made_checkpoints
import numpy as np
import pytest
import small_run
import torch
import yaml
from limits import HANG_S
from sklearn.utils.class_weight import compute_class_weight
from small_run import LABELS, NAMES, command, rows_about
from tokenizers import Tokenizer

import finetune_hindi_xnli as finetune
from load_checkpoint_helper import inspect_checkpoint, load_pretrained_checkpoint
from model import GPTBatched, GPTClassification, GPTConfig
from xnli_gpt.data import cache
from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.encoded import EncodedSplit, pack
from xnli_gpt.data.loading import pick_training_examples
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.errors import UsageError
from xnli_gpt.evaluation import validation
from xnli_gpt.evaluation.logits import Inference, evaluate_split, split_logits
from xnli_gpt.fine_tuning.configuration import FineTuning
from xnli_gpt.fine_tuning.inputs import require_within_windows
from xnli_gpt.fine_tuning.setup import make_recipe
from xnli_gpt.options import plain_values
from xnli_gpt.provenance import code_commit
from xnli_gpt.training import compiling
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.resumption import examples_per_step
from xnli_gpt.training.trainer import Trainer

PROJECT = Path(finetune.__file__).parent
FLAGS = [flag for group in finetune.COMMAND.flags.values() for flag in group]


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """The folders of the defaults are relative."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def assets(tmp_path_factory) -> types.SimpleNamespace:
    """A dataset, its tokenizer, and a small-format checkpoint of random weights."""
    return small_run.make_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="session")
def trained(assets) -> Path:
    """The out_dir of one whole run."""
    out_dir = assets.folder / "trained"
    changes = ("--num_epochs", 4, "--seed", 3, "--backbone_lr_scale", 0.5)
    assert finetune.main(command(assets, out_dir, *changes)) == 0
    return out_dir


@pytest.fixture(scope="session")
def stopped_early(assets) -> Path:
    """A run whose validation labels contradict train's, so that it soon gets worse."""
    out_dir = assets.folder / "stopped_early"
    changes = ["--dataset", assets.contrary, "--num_epochs", 20, "--lr_schedule", "constant"]
    changes += ["--warmup_ratio", 0, "--best_metric", "loss", "--eval_interval", 3]
    changes += ["--early_stopping", 2, "--learning_rate", 3e-3]
    assert finetune.main(command(assets, out_dir, *changes)) == 0
    return out_dir


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(out_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text().splitlines()]


def load_saved(out_dir: Path) -> dict:
    (path,) = out_dir.glob("*-ckpt.pt")
    return torch.load(path, weights_only=True)


def scores_in(results: dict) -> dict:
    return {split: results[split] for split in ("validation", "test")}


def error_lines(argv: list[str], capsys, code: int = 2) -> list[str]:
    """The lines on stderr of a command that must fail, each of them an error."""
    assert finetune.main([str(word) for word in argv]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), lines
    return lines


def subprocess_environment(**others: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | others


# Whole runs


def test_a_run_leaves_its_results(trained):
    results = read_json(trained / "results.json")
    assert results["steps"] == 12
    assert results["examples"] == 4 * 36
    assert results["examples_per_second"] > 0
    assert results["seed"] == 3 and results["skipped_steps"] == 0
    for split, rows in (("validation", 15), ("test", 18)):
        metrics = results[split]
        assert metrics["examples"] == rows
        assert 0 <= metrics["accuracy"] <= 1 and 0 <= metrics["macro_f1"] <= 1
        assert math.isfinite(metrics["loss"])
        assert metrics["majority_accuracy"] == pytest.approx(1 / 3)


def test_a_run_learns(trained):
    lines = read_lines(trained)
    assert lines[-1]["train_loss"] < 0.7 * lines[0]["train_loss"]


def test_metrics_jsonl_has_a_line_an_evaluation_and_the_best_of_them_is_kept(trained):
    lines, results = read_lines(trained), read_json(trained / "results.json")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["epoch"] == 4.0
    accuracies = [line["validation"]["accuracy"] for line in lines]
    assert results["best_step"] == 1 + accuracies.index(max(accuracies))
    assert results["validation"]["accuracy"] == max(accuracies)
    assert load_saved(trained)["step"] == results["best_step"]


def test_config_yaml_tells_what_was_run(trained, assets):
    text = (trained / "config.yaml").read_text(encoding="utf-8")
    config = yaml.safe_load(text)
    found = config.pop("found")
    assert set(config) <= {flag.name for flag in FLAGS} and None not in config.values()
    assert config["backbone_lr_scale"] == 0.5
    assert config["weight_decay"] == 0.01
    # A package's version may be without what was built in, as in 2.13.0+cu130.
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["tokenizer"]["sha256"] == load_pair_encoding(str(assets.tokenizer)).tokenizer_hash
    assert len(found["data"]["content_sha256"]["pairs"]) == 64
    assert found["data"]["classes"] == list(LABELS)
    assert found["checkpoint"]["checkpoint_format"] == "small"
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    assert found["commit"] == code_commit()
    assert "&id" not in text and "*id" not in text


def test_config_yaml_runs_a_run_again_from_anywhere(assets, tmp_path, monkeypatch, capsys):
    """Its paths were relative, and of two checkpoints the later one is taken by now."""
    monkeypatch.chdir(assets.folder)
    words = ["--dataset", "pairs", "--pretrained_ckpt_path", "state_step*.pt", "--max_steps", "4"]
    words += ["--tokenizer_name", "tokenizer.json", "--block_size", "160", "--batch_size", "6"]
    words += ["--no-report", "--device", "cpu", "--out_dir", tmp_path.name, "--eval_interval", "2"]
    assert finetune.main(words) == 0
    assert not list(tmp_path.iterdir())
    first = assets.folder / tmp_path.name
    newer = shutil.copy(assets.checkpoint, assets.folder / "state_step000200.pt")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    recipe = ["--config", str(first / "config.yaml")]
    assert finetune.main([*recipe, "--out_dir", "again"]) == 0
    assert finetune.main(recipe) == 0
    out = capsys.readouterr().out.splitlines()
    assert "finished already, nothing is left to do" in out
    assert out[-1].startswith(f"results: {first / 'results.json'}, model: {first}/pairs-ckpt.pt (")
    Path(newer).unlink()
    assert kills.differences(*map(kills.outcome, (first, tmp_path / "again"))) == []
    configs = [yaml.safe_load((f / "config.yaml").read_text()) for f in (first, Path("again"))]
    for config in configs:
        del config["found"], config["out_dir"]
    assert configs[0] == configs[1]


def test_an_older_config_yaml_runs_its_run_again_and_guards_its_folder(trained, tmp_path, capsys):
    content = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))
    found = content.pop("found")
    old = {"flags": content | {"dataset_config": None, "out_dir": str(tmp_path)}} | found
    old["tokenizer"] = {"sha256": found["tokenizer"]["file_sha256"]}
    old["decisive"] = found["decisive"] | {"tokenizer": found["tokenizer"]["file_sha256"]}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old))
    shutil.copy(trained / "pairs-ckpt.pt", tmp_path)
    (line,) = error_lines(["--config", path, "--seed", 77], capsys)
    assert "--seed 3 there, 77 now" in line and "tokenizer" not in line
    assert finetune.main(["--config", str(path), "--max_steps", "12"]) == 2
    capsys.readouterr()
    (tmp_path / "pairs-ckpt.pt").unlink()
    assert finetune.main(["--config", str(path)]) == 0
    weights = [load_saved(folder)["model"] for folder in (trained, tmp_path)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_saved_model_has_what_using_it_needs_and_no_head_of_pretraining(trained, assets):
    saved = load_saved(trained)
    assert {path.name for path in trained.iterdir()} >= {"pairs-ckpt.pt", "results.json"}
    assert not [name for name in saved["model"] if "lm_head" in name]
    assert not [key for key in saved if "optim" in key]
    assert saved["classes"] == list(LABELS)
    assert saved["template"] == "documents"
    assert (
        saved["metrics"]["accuracy"]
        == read_json(trained / "results.json")["validation"]["accuracy"]
    )
    assert Tokenizer.from_str(saved["tokenizer"]).get_vocab_size() == 300
    model = GPTClassification.from_saved(saved["config"], saved["model"])
    assert {tensor.dtype for tensor in saved["model"].values()} == {torch.float32}
    assert not model.training


def test_test_is_scored_once_and_by_the_best_model(stopped_early):
    results, lines = read_json(stopped_early / "results.json"), read_lines(stopped_early)
    losses = [line["validation"]["loss"] for line in lines]
    best = losses.index(min(losses))
    assert best < len(losses) - 1 and min(losses) < 0.8 * losses[-1], "the run must get worse"
    assert results["best_step"] == lines[best]["step"] < results["steps"]
    for name, value in lines[best]["validation"].items():
        assert results["validation"][name] == value
    assert results["test"]["loss"] < 0.8 * losses[-1], "the splits are alike: so are their losses"
    assert all("test" not in line for line in lines)


def test_early_stopping_ends_the_run(stopped_early):
    lines, results = read_lines(stopped_early), read_json(stopped_early / "results.json")
    assert results["steps"] == results["best_step"] + 2 * 3 < 60
    assert lines[-1]["step"] == results["steps"]


@pytest.mark.parametrize("out_dir", ["trained", "stopped_early"])
def test_eval_only_reproduces_the_scores_to_the_last_digit(out_dir, assets, request):
    folder = request.getfixturevalue(out_dir)
    before = read_json(folder / "results.json")
    dataset = assets.contrary if out_dir == "stopped_early" else assets.dataset
    # A placeholder that must be overwritten, else nothing would have been scored.
    doctored = before | {"test": {"accuracy": -1}, "validation": {"accuracy": -1}}
    (folder / "results.json").write_text(json.dumps(doctored))
    argv = ["--eval_only", "--dataset", dataset, "--out_dir", folder, "--batch_size", 6]
    argv += ["--cache_dir", assets.cache, "--device", "cpu"]
    assert finetune.main([str(word) for word in argv]) == 0
    after = read_json(folder / "results.json")
    assert after == before


def test_a_model_of_one_answer_is_called_that_in_the_last_lines(trained, assets, tmp_path, capsys):
    saved = load_saved(trained)
    saved["model"]["head.output.bias"] = torch.tensor([0.0, 0.0, 1e4])
    torch.save(saved, tmp_path / "pairs-ckpt.pt")
    for folder, called in [(tmp_path, True), (trained, False)]:
        capsys.readouterr()
        assert finetune.main(command(assets, folder, "--eval_only")) == 0
        *lines, places = capsys.readouterr().out.splitlines()
        assert places.startswith(f"results: {folder}/results.json, model: {folder}/pairs-ckpt.pt (")
        told = "(contradiction on validation, contradiction on test)"
        assert ("one class alone" in lines[-1] and told in lines[-1]) == called


def test_order_of_a_run(assets, tmp_path, monkeypatch):
    """Two validation batches first; the whole split four times an epoch; test once, at the end.

    By then the language-model head, which only the self-check needs, is gone.
    """
    events = []

    def spy(module, name, describe):
        original = getattr(module, name)

        def wrapped(*args, **kwargs):
            events.append(describe(*args, **kwargs))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    def evaluation(model, split, classes, inference, max_batches=None):
        return ("test" if len(split) == 18 else "validation", max_batches)

    spy(validation, "evaluate_split", evaluation)

    def training(trainer):
        return ("train", trainer.model.pretrained_model.lm_head_weight)

    spy(Trainer, "train", training)
    changes = ("--batch_size", 3, "--gradient_accumulation_steps", 1, "--num_epochs", 1)
    assert finetune.main(command(assets, tmp_path, *changes)) == 0
    whole = ("validation", None)
    assert events == [("validation", 2), ("train", None), *[whole] * 4, whole, ("test", None)]
    assert [line["step"] for line in read_lines(tmp_path)] == [3, 6, 9, 12]


def test_progress_is_plain_lines_where_there_is_no_terminal(assets, tmp_path, capsys):
    assert finetune.main(command(assets, tmp_path, "--max_steps", 2)) == 0
    out, err = capsys.readouterr()
    assert "\r" not in out + err and "\x1b" not in out + err
    assert "step 1/2, epoch 0.33: loss " in out
    assert "step 2: validation accuracy" in out
    places = f"results: {tmp_path}/results.json, model: {tmp_path}/pairs-ckpt.pt (done in "
    assert out.splitlines()[-1].startswith(places)
    assert not err


def weights_of(out_dir: Path) -> dict[str, torch.Tensor]:
    return load_saved(out_dir)["model"]


def test_the_same_command_twice_gives_the_same_weights_and_another_seed_others(assets, tmp_path):
    def words(name: str, seed: int) -> list[str]:
        changes = ("--max_steps", 3, "--eval_interval", 3, "--seed", seed)
        return command(assets, tmp_path / name, *changes)

    subprocess.run(
        [sys.executable, PROJECT / "finetune_hindi_xnli.py", *words("one", 5)],
        env=subprocess_environment(),
        stdout=subprocess.DEVNULL,
        timeout=HANG_S,
        check=True,
    )
    assert finetune.main(words("two", 5)) == 0
    assert finetune.main(words("other", 6)) == 0
    one, two, other = (weights_of(tmp_path / name) for name in ("one", "two", "other"))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert not torch.equal(one["head.output.weight"], other["head.output.weight"])


@pytest.mark.parametrize(
    "changes",
    [
        ("--freeze_backbone",),
        ("--freeze_backbone", "--weight_decay", 0.5, "--dtype", "bfloat16"),
        ("--backbone_lr_scale", 0),
    ],
)
def test_a_frozen_trunk_is_the_files_bit_for_bit(assets, tmp_path, changes):
    argv = command(assets, tmp_path, "--max_steps", 3, "--eval_interval", 3, *changes)
    assert finetune.main(argv) == 0
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    weights = weights_of(tmp_path)
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(weights[f"pretrained_model.{name}"], tensor), name
    info, _ = inspect_checkpoint(assets.checkpoint)
    untrained = finetune.build_model(info, 3, seed=0)
    assert not torch.equal(weights["head.output.weight"], untrained.head.output.weight)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_mixed_precision_runs_on_a_cpu_and_saves_float32(assets, tmp_path, dtype):
    changes = ("--dtype", dtype, "--max_steps", 2, "--eval_interval", 2)
    assert finetune.main(command(assets, tmp_path, *changes)) == 0
    results = read_json(tmp_path / "results.json")
    assert isinstance(results["skipped_steps"], int)
    assert {tensor.dtype for tensor in weights_of(tmp_path).values()} == {torch.float32}
    config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert config["dtype"] == config["found"]["dtype"] == dtype


@pytest.mark.parametrize("eval_interval", [1, 100], ids=["found in validation", "in training"])
def test_a_diverging_run_ends_with_one_line_and_code_1(assets, tmp_path, capsys, eval_interval):
    changes = ("--learning_rate", 1e30, "--warmup_ratio", 0, "--eval_interval", eval_interval)
    argv = command(assets, tmp_path, *changes)
    (line,) = error_lines(argv, capsys, code=1)
    assert "--learning_rate" in line and "not finite" in line


def test_max_train_examples_is_a_seeded_draw(assets, tmp_path, capsys):
    train = np.zeros(100)

    def draw(seed: int, count: int) -> list[int]:
        return pick_training_examples(count, seed, train).tolist()

    assert len(set(draw(0, 30))) == 30
    assert draw(0, 30) == draw(0, 30) != draw(1, 30)
    assert draw(0, 1000) == list(range(100))
    argv = command(assets, tmp_path, "--max_train_examples", 20, "--num_epochs", 1)
    assert finetune.main(argv) == 0
    assert "training on 20 pairs: 2 steps of 12" in capsys.readouterr().out
    assert read_json(tmp_path / "results.json")["examples"] == 20


def test_the_flags_reach_the_recipe():
    words = "--batch_size 5 --gradient_accumulation_steps 3 --num_epochs 2 --class_weights balanced"
    words += " --label_smoothing 0.1 --dropout 0.3 --lr_schedule cosine --grad_clip 2 --seed 8"
    words += " --learning_rate 0.01 --warmup_ratio 0.2 --early_stopping 4 --max_train_examples 40"
    config, problems = finetune.COMMAND.parse(words.split())
    assert not problems
    labels = np.array([0] * 20 + [1] * 8 + [2] * 12)
    per_step = examples_per_step(config.recipe, world_size=1, save=None)
    recipe = make_recipe(config, labels, 3, torch.float32, per_step)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert recipe.weight_of_class == pytest.approx(tuple(expected))
    assert (recipe.examples_per_step, recipe.num_steps, recipe.eval_interval) == (15, 6, 1)
    assert (recipe.label_smoothing, recipe.dropout, recipe.grad_clip) == (0.1, 0.3, 2.0)
    assert (recipe.lr_schedule, recipe.learning_rate, recipe.warmup_ratio) == ("cosine", 0.01, 0.2)
    assert (recipe.early_stopping, recipe.seed) == (4, 8)


# What the machine decides, and what it changes


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


# Predictions


def test_predictions_do_not_depend_on_the_batch_size(assets):
    encoding = load_pair_encoding(str(assets.tokenizer), block_size=160)
    request = DataRequest(dataset=str(assets.dataset))
    split = load_encoded(request, encoding, assets.cache).splits["test"]
    assert len(set(split.lengths.tolist())) > 3, "rows of one length need no padding"
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    torch.manual_seed(0)
    model = GPTClassification(trunk, 3)
    alone, *batched = (
        split_logits(model, split, len(LABELS), Inference(torch.float32, max_tokens))[0]
        for max_tokens in (1, 7 * 64, 64 * 64)
    )
    for logits in batched:
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-4)
    with torch.no_grad():
        rows = (pack(split, [row])[:2] for row in range(len(split)))
        straight = torch.cat([model(tokens[None], length) for tokens, length in rows])
    torch.testing.assert_close(alone, straight, rtol=0, atol=1e-4)
    assert float((alone[0] - alone[-1]).abs().max()) > 1e-2


# The self-check


@pytest.fixture(scope="session")
def pretrained(assets) -> Path:
    """A checkpoint that knows its texts by heart, with the tokenizer of `assets`."""
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    encoding = load_pair_encoding(str(assets.tokenizer))
    premises = sorted({row["premise"] for row in rows_about(NAMES)})
    rows = [
        torch.tensor([encoding.end_of_text, *encoding.tokenizer.encode(text).ids])
        for text in premises
    ]
    pad = torch.nn.utils.rnn.pad_sequence
    inputs = pad([row[:-1] for row in rows], batch_first=True)
    targets = pad([row[1:] for row in rows], batch_first=True, padding_value=-100)
    # The random head's logits would hardly leave the middle of the cap.
    trunk.lm_head_weight *= 100
    optimizer = torch.optim.Adam(trunk.parameters(), lr=3e-3)
    for _ in range(15):
        optimizer.zero_grad()
        trunk.lm_loss(inputs, targets).backward()
        optimizer.step()
    state = {name: tensor.detach() for name, tensor in trunk.state_dict().items()}
    state["lm_head.weight"] = trunk.lm_head_weight
    return made_checkpoints.save_checkpoint(assets.folder / "state_step000130.pt", state)


@pytest.fixture(scope="session")
def wrong_tokenizer(assets) -> Path:
    """The same pieces under other ids."""
    tokenizer = read_json(assets.tokenizer)
    vocab = tokenizer["model"]["vocab"]
    last = len(vocab)
    tokenizer["model"]["vocab"] = {word: i and last - i for word, i in vocab.items()}
    path = assets.folder / "wrong.json"
    path.write_text(json.dumps(tokenizer))
    return path


@pytest.mark.parametrize(
    ("checkpoint", "tokenizer", "suspicious"),
    [
        ("pretrained", "tokenizer", False),
        ("pretrained", "wrong", True),
        ("random", "tokenizer", True),
    ],
)
def test_self_check_warns_of_a_wrong_tokenizer_and_of_structureless_weights(
    checkpoint, tokenizer, suspicious, assets, pretrained, wrong_tokenizer, tmp_path, capsys
):
    path = pretrained if checkpoint == "pretrained" else assets.checkpoint
    changes = ["--pretrained_ckpt_path", path, "--max_steps", 1]
    if tokenizer == "wrong":
        changes += ["--tokenizer_name", wrong_tokenizer]
    assert finetune.main(command(assets, tmp_path, *changes)) == 0
    # After one step a model may answer one class alone, which is another warning.
    told = [
        ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("warning: the trunk")
    ]
    assert bool(told) == suspicious
    check = read_json(tmp_path / "results.json")["self_check"]
    assert check["suspicious"] is suspicious


def test_random_init_has_the_checkpoints_network_and_none_of_its_weights(assets, tmp_path, capsys):
    changes = ("--random_init", "--max_steps", 1, "--learning_rate", 1e-9)
    assert finetune.main(command(assets, tmp_path, *changes)) == 0
    assert "self-check: left out" in capsys.readouterr().out
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    embedding = weights_of(tmp_path)["pretrained_model.embed.weight"]
    assert embedding.shape == trunk.embed.weight.shape
    assert not torch.allclose(embedding, trunk.embed.weight, atol=0.1)


# The Python interface of the group's scripts


def test_load_pretrained_model_takes_a_bare_namespace(assets):
    config = GPTConfig.of_family(
        "small", vocab_size=384, num_layers=6, num_heads=1, model_dim=128, max_seq_len=64
    )
    model = GPTClassification(GPTBatched(config), 3)
    args = argparse.Namespace(pretrained_ckpt_path=str(assets.checkpoint), device="cpu")
    returned, optimizer, scaler = finetune.load_pretrained_model(args, model)
    assert returned is model
    trunk, _, _ = load_pretrained_checkpoint(assets.checkpoint)
    ids = torch.arange(20)[None]
    expected = trunk.forward_features(ids)
    assert torch.equal(model.pretrained_model.forward_features(ids), expected)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(parameter) for parameter in model.parameters()}
    assert isinstance(scaler, torch.amp.GradScaler) and not scaler.is_enabled()
    # The group's own recipe: the same rate on everything.
    assert {group["lr"] for group in optimizer.param_groups} == {1e-4}
    assert vars(args).keys() == {"pretrained_ckpt_path", "device"}
    again = configure_optimizers("cpu", model)
    assert isinstance(again, torch.optim.AdamW)


def test_load_pretrained_model_refuses_a_flag_that_contradicts_the_file(assets):
    args = argparse.Namespace(pretrained_ckpt_path=str(assets.checkpoint), n_layer=12)
    with pytest.raises(UsageError, match="--n_layer 12, but .* has 6"):
        finetune.load_pretrained_model(args, None)


# What a user did wrong


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


def test_a_filled_cache_needs_only_reading(assets, tmp_path, monkeypatch, trained):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != assets.cache)
    assert finetune.main(command(assets, tmp_path, "--prepare_only")) == 0


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


# Configuration files


def parsed(tmp_path: Path, text: str | bytes, *words: str) -> tuple[argparse.Namespace, list[str]]:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return finetune.COMMAND.parse(["--config", str(path), *words])


RECIPE = """
dataset: 2024
learning_rate: 1e-4  # a string to YAML
num_epochs: 2
freeze_backbone: true
tensorboard: false
text_column: [sentence1, sentence2]
pretrained_ckpt_path: a.pt
max_steps: null
dtype: bfloat16
class_weights: none
"""


def test_a_recipe_gives_every_kind_of_flag(tmp_path):
    config, problems = parsed(tmp_path, RECIPE)
    assert not problems
    recipe = config.recipe
    assert (config.data.dataset, recipe.learning_rate, recipe.num_epochs) == (("2024",), 1e-4, 2.0)
    assert (recipe.freeze_backbone, config.run.tensorboard) == (True, False)
    assert config.data.text_column == ("sentence1", "sentence2")
    assert config.pretrained.pretrained_ckpt_path == ("a.pt",)
    assert (recipe.max_steps, config.machine.dtype, recipe.class_weights) == (
        *(None, "bfloat16", "none"),
    )
    assert recipe.batch_size == FineTuning().recipe.batch_size


def test_flags_override_the_recipe(tmp_path):
    words = "--learning_rate 0.5 --no-freeze_backbone --tensorboard --text_column a b"
    words += " --pretrained_ckpt_path b.pt c.pt --dtype float32"
    config, problems = parsed(tmp_path, RECIPE, *words.split())
    assert not problems
    assert (config.recipe.learning_rate, config.machine.dtype) == (0.5, "float32")
    assert (config.recipe.freeze_backbone, config.run.tensorboard) == (False, True)
    assert config.data.text_column == ("a", "b")
    assert config.pretrained.pretrained_ckpt_path == ("b.pt", "c.pt")
    assert config.recipe.num_epochs == 2.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_size: [1, 2]", "--batch_size 1 2: expected a whole number"),
        ("batch_size: true", "--batch_size True: expected a whole number"),
        ("batch_size: 2.5", "--batch_size 2.5: expected a whole number"),
        ("learning_rate: {a: 1}", "--learning_rate {'a': 1}: expected a number"),
        ("learning_rate: fast", "--learning_rate fast: expected a number"),
        ("freeze_backbone: 'no'", "--freeze_backbone no: expected true or false"),
        ("freeze_backbone: 1", "--freeze_backbone 1: expected true or false"),
        ("text_column: [a]", "--text_column a: expected 2 names"),
        ("text_column: premise hypothesis", "expected 2 names"),
        ("text_column: [yes, {a: 1}]", "expected 2 names"),
        ("pretrained_ckpt_path: []", "--pretrained_ckpt_path : expected some names"),
        ("out_dir: [a]", "--out_dir a: expected a name or path"),
        ("out_dir: yes", "--out_dir True: expected a name or path"),
        ("dataset: yes", "--dataset True: expected some names"),
        ("dtype: [float32]", "--dtype float32: expected auto or float32 or"),
        ("lr_schedule: 3", "--lr_schedule 3: expected linear or"),
        ("- a\n- b", "expected a mapping of flags to values"),
        ("", "expected a mapping of flags to values"),
        ("a: [1", "can't be read"),
        (b"a: \xff", "can't be read"),
        ("lr: 1", "unknown key lr: did you mean learning_rate?"),
        ("config: other.yaml", "unknown key config"),
        ("3: 4", "unknown key 3"),
    ],
)
def test_a_recipe_of_a_wrong_type_is_one_problem(text, expected, tmp_path):
    _, (problem,) = parsed(tmp_path, text)
    assert expected in problem


def test_wrong_types_do_not_keep_the_rest_from_being_checked(assets, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("cache_dir: [a]\nblock_size: {b: 1}\nn_head: many\ndevice: true\n")
    argv = ["--config", recipe, "--pretrained_ckpt_path", assets.checkpoint, "--n_layer", 7]
    argv += ["--tokenizer_name", assets.large_tokenizer, "--out_dir", tmp_path / "out"]
    argv += ["--prepare_only"]
    lines = error_lines(argv, capsys)
    told = [line.split()[1] for line in lines]
    assert told == ["--block_size", "--cache_dir", "--n_head", "--device", "--n_layer"]


def test_a_recipe_that_is_not_there(tmp_path, capsys):
    lines = error_lines(["--config", tmp_path / "none.yaml", "--out_dir", tmp_path], capsys)
    assert "none.yaml: can't be read" in lines[0]


def test_every_recipe_of_the_project_parses():
    recipes = sorted((PROJECT / "configs").glob("*.yaml"))
    assert recipes
    for path in recipes:
        config, problems = finetune.COMMAND.parse(["--config", str(path)])
        assert not problems, path
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert values and values.keys() <= plain_values(config).keys(), path


def test_help_groups_the_flags_and_shows_every_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit) as stop:
        finetune.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for title, flags in finetune.COMMAND.flags.items():
        # From the title of the group to the next empty line.
        section = shown.split(f"\n{title}:\n")[1].split("\n\n")[0]
        section = " ".join(section.split())
        for flag in flags:
            entry = re.split(rf"--{flag.name}[ ,]", section, maxsplit=1)[1]
            default = " ".join(flag.default) if isinstance(flag.default, list) else flag.default
            assert entry.split("(default: ")[1].split(")")[0] == str(default), flag.name
    assert "--config" in shown


# Preparing, and the loggers


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
