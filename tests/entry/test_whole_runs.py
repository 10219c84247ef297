"""Whole runs as a user meets them: what they leave, score and say, and that they repeat."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import kills
import numpy as np
import pytest
import torch
import yaml
from finetune_parts import (
    FLAGS,
    PROJECT,
    error_lines,
    load_saved,
    read_json,
    read_lines,
    subprocess_environment,
    weights_of,
)
from limits import HANG_S
from sklearn.utils.class_weight import compute_class_weight
from small_run import LABELS, command
from tokenizers import Tokenizer

import finetune_hindi_xnli as finetune
from load_checkpoint_helper import inspect_checkpoint, load_pretrained_checkpoint
from model import GPTClassification
from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.encoded import pack
from xnli_gpt.data.loading import pick_training_examples
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.evaluation import validation
from xnli_gpt.evaluation.logits import Inference, split_logits
from xnli_gpt.fine_tuning.setup import make_recipe
from xnli_gpt.provenance import code_commit
from xnli_gpt.training.resumption import examples_per_step
from xnli_gpt.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture(scope="module")
def trained(assets) -> Path:
    """The out_dir of one whole run."""
    out_dir = assets.folder / "trained"
    changes = ("--num_epochs", 4, "--seed", 3, "--backbone_lr_scale", 0.5)
    assert finetune.main(command(assets, out_dir, *changes)) == 0
    return out_dir


@pytest.fixture(scope="module")
def stopped_early(assets) -> Path:
    """A run whose validation labels contradict train's, so that it soon gets worse."""
    out_dir = assets.folder / "stopped_early"
    changes = ["--dataset", assets.contrary, "--num_epochs", 20, "--lr_schedule", "constant"]
    changes += ["--warmup_ratio", 0, "--best_metric", "loss", "--eval_interval", 3]
    changes += ["--early_stopping", 2, "--learning_rate", 3e-3]
    assert finetune.main(command(assets, out_dir, *changes)) == 0
    return out_dir


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


def test_a_filled_cache_needs_only_reading(assets, tmp_path, monkeypatch, trained):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != assets.cache)
    assert finetune.main(command(assets, tmp_path, "--prepare_only")) == 0
