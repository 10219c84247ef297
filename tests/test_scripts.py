"""The scripts that a user starts: what they hand on, and the demo from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def stub(folder, name, body):
    path = folder / name
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


def run_slurm_script(tmp_path, environment, arguments):
    """The batch script with a venv and an srun of ours: what srun is told, one word a line."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/activate").write_text("")
    stub(tmp_path, "srun", 'printf "%s\\n" "$@"; env > "$ENVIRONMENT_FILE"')
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_CPUS_PER_TASK": "3",
        "VENV": str(tmp_path / "venv"),
        "CACHE": str(tmp_path / "cache"),
        "ENVIRONMENT_FILE": str(tmp_path / "environment"),
        **environment,
    }
    done = subprocess.run(
        ["bash", ROOT / "scripts/finetune.slurm", *arguments],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    seen = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    return done.stdout.splitlines(), seen


def test_slurm_script_forwards_words_and_sets_what_offline_nodes_need(tmp_path):
    words, seen = run_slurm_script(
        tmp_path,
        {"CHECKPOINT": "runs/*/best state.pt", "TOKENIZER": "t.json"},
        ["--seed", "3", "--out_dir", "out/a b"],
    )
    assert words[:2] == ["python", "finetune_hindi_xnli.py"]
    assert words[-4:] == ["--seed", "3", "--out_dir", "out/a b"]
    assert words[words.index("--pretrained_ckpt_path") + 1] == "runs/*/best state.pt"
    assert words[words.index("--device") + 1] == "cuda"
    assert seen["HF_HUB_OFFLINE"] == "1" and seen["OMP_NUM_THREADS"] == "3"
    assert all(
        seen[name].startswith(str(tmp_path / "cache"))
        for name in ("HF_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    )


def test_slurm_script_leaves_checkpoint_and_tokenizer_to_the_config_where_not_set(tmp_path):
    words, _ = run_slurm_script(tmp_path, {}, [])
    assert "--pretrained_ckpt_path" not in words and "--tokenizer_name" not in words


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo as a user starts it, in a copy of the tree, with this interpreter's packages."""
    copy = tmp_path_factory.mktemp("clone") / "project"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    wanted = "cat requirements*.txt requirements.txt | cksum"
    installed = subprocess.run(
        ["bash", "-c", wanted], cwd=copy, capture_output=True, text=True, check=True
    ).stdout
    venv = copy / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "installed-requirements.txt").write_text(installed)
    (venv / "bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        ["bash", "scripts/demo.sh"], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return copy, done.stdout


@pytest.mark.long
def test_demo_pretraining_is_worth_something(demo):
    copy, output = demo
    accuracy = {
        name: json.loads((copy / "out" / name / "results.json").read_text())["test"]["accuracy"]
        for name in ("demo", "demo-random")
    }
    assert accuracy["demo"] > accuracy["demo-random"] + 0.05
    assert accuracy["demo"] > 0.5
    for name in accuracy.values():
        assert f"{name:.4f}" in output


@pytest.mark.long
def test_demo_says_that_the_load_is_right_and_the_tokenizer_too(demo):
    _, output = demo
    assert "agrees: the load is right" in output
    assert "self-check: language-model loss" in output and "warning:" not in output
    assert output.count("right: ") == 6


@pytest.mark.long
def test_demo_leaves_the_files_that_the_readme_lists(demo):
    copy, _ = demo
    left = {path.name for path in (copy / "out/demo").iterdir()}
    assert left == {"demo-ckpt.pt", "config.yaml", "metrics.jsonl", "results.json"}
