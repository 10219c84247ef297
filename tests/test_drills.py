"""One change, one place: each change that HOUSE's table of drills names, done with a toy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
import yaml
from limits import HANG_S
from shell import ROOT

from xnli_gpt.checkpoints.reading import read_checkpoint_file

# A row of the table, and then everything that a user does with a metric. In a process of its own:
# names of metrics are read where modules are imported.
METRIC_DRILL = """
import sys
from xnli_gpt.evaluation.metrics import METRICS, Metric
METRICS["toy"] = Metric("toy share", lambda c: c.right[..., 0] / c.examples, is_main=True)
import finetune_hindi_xnli, evaluate_hindi_xnli, predict_hindi_xnli
from scripts import gather_sweep

words, out = sys.argv[2:], sys.argv[1]
for seed in ("1", "2"):
    run = [*words, "--best_metric", "toy", "--seed", seed, "--out_dir", f"{out}/runs/seed{seed}"]
    assert finetune_hindi_xnli.main([*run, "--report"]) == 0
best = [f"{out}/runs/seed{seed}/pairs-ckpt.pt" for seed in ("1", "2")]
common = ["--cache_dir", words[words.index("--cache_dir") + 1], "--bootstrap_samples", "100"]
scored = ["--checkpoint", best[0], "--compare", best[1], "--out_dir", f"{out}/scored", *common]
assert evaluate_hindi_xnli.main(scored) == 0
assert predict_hindi_xnli.main(["--checkpoint", best[0], "--export", f"{out}/exported"]) == 0
with open(f"{out}/runs.txt", "w") as file:
    file.write("runs/seed1 --seed 1\\nruns/seed2 --seed 2\\n")
sys.argv = ["gather", f"{out}/runs.txt"]
assert gather_sweep.main() == 0
"""


@pytest.fixture(scope="module")
def toy_metric(tmp_path_factory) -> tuple[Path, str]:
    """What is left after a life with a new metric, and what was printed."""
    folder = tmp_path_factory.mktemp("metric")
    words = small_run.command(small_run.make_assets(folder), folder / "unused", "--max_steps", 2)
    done = subprocess.run(
        [sys.executable, "-c", METRIC_DRILL, str(folder), *words],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_new_metric_picks_the_best_model_and_has_an_interval(toy_metric):
    folder, said = toy_metric
    results = read_json(folder / "runs/seed1/results.json")
    assert results["best_metric"] == "toy"
    test = results["test"]
    right_first = test["confusion"][0][0]
    assert test["toy"] == pytest.approx(right_first / test["examples"])
    low, high = test["intervals"]["toy"] or (test["toy"], test["toy"])
    assert low <= test["toy"] <= high
    assert f"toy share {test['toy']:.4f}" in said


def test_a_new_metric_is_in_report_card_sweep_and_comparison(toy_metric):
    folder, _ = toy_metric
    for path in ("runs/seed1/report.md", "scored/report.md", "exported/README.md"):
        assert "toy share" in (folder / path).read_text(encoding="utf-8"), path
    assert "| toy |" in (folder / "sweep.md").read_text(encoding="utf-8")
    compared = read_json(folder / "scored/results.json")["comparison"]["datasets"]["pairs"]
    assert set(compared["toy"]) >= {"first", "second", "difference", "interval", "p"}


# Changes that a person makes in the source: each edits a copy of it, and the files are counted.


def source_with(tmp_path: Path, edits: dict[str, tuple[str, str]]) -> Path:
    """A copy of the source in which each named file has its first text replaced by the second."""
    copy = tmp_path / "source"
    copy.mkdir()
    shutil.copytree(ROOT / "xnli_gpt", copy / "xnli_gpt")
    for path in ROOT.glob("*.py"):
        shutil.copy(path, copy)
    for name, (old, new) in edits.items():
        text = (copy / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, (name, old)
        (copy / name).write_text(text.replace(old, new), encoding="utf-8")
    return copy


def run_in(source: Path, script: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, source / script, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def fine_tuned_in(source: Path, assets, out_dir: Path, *changes: object) -> dict:
    """The recipe that a run of two steps left."""
    words = small_run.command(assets, out_dir, "--max_steps", 2, *changes)
    done = run_in(source, "finetune_hindi_xnli.py", *words)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load((out_dir / "config.yaml").read_text(encoding="utf-8"))


def train_losses(out_dir: Path) -> list[float]:
    lines = (out_dir / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


TOY_LOSS = {
    "xnli_gpt/choices.py": ('("cross_entropy",)', '("cross_entropy", "toy")'),
    "xnli_gpt/training/losses.py": (
        '"cross_entropy": cross_entropy,\n',
        '"cross_entropy": cross_entropy,\n    "toy": lambda *parts: 2 * cross_entropy(*parts),\n',
    ),
}
TOY_FLAG = {
    "xnli_gpt/training/options.py": (
        '    seed: int = option(0, "of head',
        '    toy_scale: float = option(1.0, "of the rate")\n    seed: int = option(0, "of head',
    ),
    "xnli_gpt/training/trainer.py": (
        "return recipe.learning_rate * learning",
        "return recipe.toy_scale * recipe.learning_rate * learning",
    ),
}
TOY_HEAD = {
    "xnli_gpt/choices.py": ('HEADS = ("mlp",)', 'HEADS = ("mlp", "toy")'),
    "xnli_gpt/network/heads.py": (
        'HEADS: dict[str, type[nn.Module]] = {"mlp": MLPHead}\n',
        """class ToyHead(nn.Module):
    def __init__(self, model_dim, num_classes):
        super().__init__()
        self.output = nn.Linear(model_dim, num_classes)

    def forward(self, pooled, dropout_mask=None):
        return self.output(pooled if dropout_mask is None else pooled * dropout_mask)


HEADS: dict[str, type[nn.Module]] = {"mlp": MLPHead, "toy": ToyHead}
""",
    ),
}


def test_a_loss_is_two_files(tmp_path):
    assert len(TOY_LOSS) == 2
    source, assets = source_with(tmp_path, TOY_LOSS), small_run.make_assets(tmp_path)
    fine_tuned_in(source, assets, tmp_path / "plain")
    recipe = fine_tuned_in(source, assets, tmp_path / "toy", "--loss", "toy")
    assert recipe["loss"] == recipe["found"]["decisive"]["loss"] == "toy"
    first, toy = (train_losses(tmp_path / name)[0] for name in ("plain", "toy"))
    assert toy == pytest.approx(2 * first, rel=1e-6)
    words = small_run.command(assets, tmp_path / "toy", "--max_steps", 2)
    refused = run_in(source, "finetune_hindi_xnli.py", *words)
    assert refused.returncode == 2
    assert "--loss toy there, cross_entropy now" in refused.stderr


def test_a_flag_of_the_recipe_is_two_files(tmp_path):
    assert len(TOY_FLAG) == 2
    source, assets = source_with(tmp_path, TOY_FLAG), small_run.make_assets(tmp_path)
    recipe = fine_tuned_in(source, assets, tmp_path / "run", "--toy_scale", 0.5, "--report")
    assert recipe["toy_scale"] == recipe["found"]["decisive"]["toy_scale"] == 0.5
    assert "| toy_scale | 0.5 |" in (tmp_path / "run/report.md").read_text(encoding="utf-8")
    steps = (tmp_path / "run/steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(steps[0])["learning_rate"] == pytest.approx(0.5e-3)
    # Its own config.yaml is a recipe that has the flag, too: the run is done already.
    again = run_in(source, "finetune_hindi_xnli.py", "--config", tmp_path / "run/config.yaml")
    assert again.returncode == 0 and "finished already" in again.stdout, again.stderr


def test_a_head_is_two_files(tmp_path):
    assert len(TOY_HEAD) == 2
    source, assets = source_with(tmp_path, TOY_HEAD), small_run.make_assets(tmp_path)
    fine_tuned_in(source, assets, tmp_path / "run", "--head", "toy")
    pair = ("--premise", small_run.NAMES[0], "--hypothesis", small_run.NAMES[1])
    words = ("--checkpoint", tmp_path / "run", "--device", "cpu", "--dtype", "float32")
    told = run_in(source, "predict_hindi_xnli.py", *words, *pair, "--json")
    assert told.returncode == 0, told.stderr
    exported = tmp_path / "exported"
    done = run_in(source, "predict_hindi_xnli.py", *words, "--export", exported)
    assert done.returncode == 0, done.stderr
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD_EXPORTED, exported, pair[1], pair[3]],
        env=os.environ | {"HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert loaded.returncode == 0, loaded.stderr
    logits = json.loads(loaded.stdout.splitlines()[-1])
    assert logits == pytest.approx(json.loads(told.stdout)["logits"], abs=1e-5)


TOY_COLUMN = {
    "xnli_gpt/data/selection.py": (
        "return list(request.carry_columns)",
        'return [*request.carry_columns, *({"genre"} & {*table.columns})]',
    )
}


def add_genre(dataset: Path) -> None:
    """Give every row of a dataset a column that alternates."""
    for path in dataset.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = (row | {"genre": ("fiction", "travel")[n % 2]} for n, row in enumerate(rows))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.parametrize("is_asked_for", [True, False], ids=["by its flag", "always"])
def test_a_column_in_slices_and_predictions_is_one_file_at_most(tmp_path, is_asked_for):
    assert len(TOY_COLUMN) == 1
    source = source_with(tmp_path, {} if is_asked_for else TOY_COLUMN)
    assets = small_run.make_assets(tmp_path)
    add_genre(assets.dataset)
    flags = ("--carry_column", "genre") if is_asked_for else ()
    fine_tuned_in(source, assets, tmp_path / "run", "--report", *flags)
    lines = (tmp_path / "run/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["genre"] for line in lines[:2]] == ["fiction", "travel"]
    slices = read_json(tmp_path / "run/results.json")["test"]["slices"]
    counts = {one["slice"]: one["examples"] for one in slices["genre"]}
    assert counts == {"fiction": -(-len(lines) // 2), "travel": len(lines) // 2}
    assert "travel" in (tmp_path / "run/report.md").read_text(encoding="utf-8")


TOY_FAMILY = {
    "xnli_gpt/checkpoints/families/gpt2.py": (
        "GPT2_FAMILIES = (\n",
        "GPT2_FAMILIES = (\n"
        '    _family("toy", _rules("toy.", is_turned=False),\n'
        '            lambda clues: _facts(clues, "gelu tanh"), lambda clues: None),\n',
    )
}
FEATURES_OF = """
import sys, torch
from load_checkpoint_helper import load_pretrained_checkpoint
trunk, info, _ = load_pretrained_checkpoint(sys.argv[1])
assert info["checkpoint_format"] == "toy", info["checkpoint_format"]
with torch.no_grad():
    torch.save(trunk.forward_features(torch.load(sys.argv[2])), sys.argv[3])
"""


def test_a_family_of_checkpoints_is_one_file(tmp_path):
    assert len(TOY_FAMILY) == 1
    source, zoo = source_with(tmp_path, TOY_FAMILY), ROOT / "tests/zoo"
    stored = read_checkpoint_file(zoo / "files/build-nanogpt.pt").weights
    weights = {name.replace("transformer.", "toy."): tensor for name, tensor in stored.items()}
    torch.save({"model": weights, "model_args": {"n_head": 4}}, tmp_path / "toy.pt")
    numbers = np.load(zoo / "build-nanogpt.npz")
    torch.save(torch.from_numpy(numbers["ids"]).long(), tmp_path / "ids.pt")
    words = [tmp_path / name for name in ("toy.pt", "ids.pt", "features.pt")]
    done = subprocess.run(
        [sys.executable, "-c", FEATURES_OF, *map(str, words)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    features = torch.load(words[-1])[:, :: int(numbers["every"])]
    expected = torch.from_numpy(numbers["features"])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


LOAD_EXPORTED = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder, premise, hypothesis = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
print(json.dumps(model(**tokenizer(premise, hypothesis, return_tensors="pt")).logits[0].tolist()))
"""
