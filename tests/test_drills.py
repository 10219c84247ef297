"""One change, one place: each change that HOUSE's table of drills names, done with a toy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_run
from limits import HANG_S
from shell import ROOT

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
