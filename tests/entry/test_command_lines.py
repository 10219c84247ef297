"""What every entry point says of its words before it imports anything heavy, and what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch

import evaluate_hindi_xnli as evaluate
import finetune_hindi_xnli as finetune
import load_checkpoint_helper as inspector
import predict_hindi_xnli as predict
from xnli_gpt import choices, devices
from xnli_gpt.data import names, pairs, sources
from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.labels import NLI_CLASSES
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.sources import BUILTIN
from xnli_gpt.errors import DataError
from xnli_gpt.evaluation.metrics import main_metrics
from xnli_gpt.evaluation.scores import classification_metrics
from xnli_gpt.flags import parse_flags
from xnli_gpt.network.heads import HEADS
from xnli_gpt.network.row_attention import ROW_ATTENTION
from xnli_gpt.training.losses import LOSSES

PROJECT = Path(__file__).resolve().parents[2]
ENTRY_POINTS = {
    "finetune_hindi_xnli": finetune,
    "evaluate_hindi_xnli": evaluate,
    "predict_hindi_xnli": predict,
    "load_checkpoint_helper": inspector,
}
HEAVY = {"torch", "numpy", "datasets", "tokenizers", "sklearn", "scipy", "matplotlib"}
# Imports a second of code, and is needed by nobody who compiles nothing.
COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
# Runs a command as `python SCRIPT WORDS` does, and says on the last line what was imported.
WATCHED = """
import json, runpy, sys
script, sys.argv = sys.argv[1], sys.argv[1:]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    print(json.dumps(list(sys.modules)), flush=True)
"""


def run(name: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
    """An entry point as a command of its own, in the project's folder."""
    return subprocess.run(
        [sys.executable, f"{name}.py", *map(str, words)],
        cwd=PROJECT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def imported_by(name: str, *words: object) -> tuple[set[str], subprocess.CompletedProcess]:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, f"{name}.py", *map(str, words)],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return set(json.loads(done.stdout.splitlines()[-1])), done


def problems_of(words: str, module: object = finetune) -> list[str]:
    recipes = {} if module is not inspector else {"recipes": False}
    return parse_flags(module.COMMAND.description, module.COMMAND.flags, words.split(), **recipes)[
        1
    ]


# At once


@pytest.mark.parametrize("name", ENTRY_POINTS)
@pytest.mark.parametrize("words", ["--help", "--no_such_flag 1", "--jsno", "a --seeed"])
def test_words_are_answered_before_anything_heavy_is_imported(name, words):
    modules, done = imported_by(name, *words.split())
    assert not modules & HEAVY
    if words == "--help":
        assert done.returncode == 0 and done.stderr == ""
        assert done.stdout.startswith(f"usage: {name}.py")
    else:
        assert done.returncode == 2
        assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def test_predicting_imports_only_what_it_needs(assets_of_a_run):
    pair = ("--premise", "राम ने बाज़ार से 3 आम ख़रीदा", "--hypothesis", "राम के पास आम है")
    modules, done = imported_by("predict_hindi_xnli", "--checkpoint", assets_of_a_run, *pair)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(small_run.LABELS) + 1
    unneeded = {"sklearn", "scipy", "datasets", "pandas", "pyarrow", "matplotlib"} | COMPILER
    assert "torch" in modules and not modules & unneeded


def test_a_file_of_pairs_is_predicted_the_same_way_as_one_pair(assets_of_a_run, tmp_path):
    """One pair is computed from weights that stay in their file, many from a copy."""
    pair = {"premise": "राम ने बाज़ार से 3 आम ख़रीदा", "hypothesis": "राम के पास आम है"}
    source = tmp_path / "pairs.jsonl"
    source.write_text(json.dumps(pair) + "\n")
    words = ("--checkpoint", assets_of_a_run, "--json")
    texts = ("--premise", pair["premise"], "--hypothesis", pair["hypothesis"])
    one = run("predict_hindi_xnli", *words, *texts)
    many = run("predict_hindi_xnli", *words, "--input", source)
    assert (one.returncode, many.returncode) == (0, 0)
    assert json.loads(one.stdout) == json.loads(many.stdout)


def test_importing_the_classifier_needs_no_scientific_libraries():
    program = "import sys; from inference import XNLIClassifier; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    unneeded = {"sklearn", "scipy", "datasets", "matplotlib"} | COMPILER
    assert not set(done.stdout.split()) & unneeded


@pytest.fixture(scope="module")
def assets_of_a_run(tmp_path_factory) -> Path:
    """A fine-tuned checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    assets = small_run.make_assets(folder)
    words = ("--max_steps", 1, "--compile", "never")
    assert finetune.main(small_run.command(assets, folder / "out", *words)) == 0
    return folder / "out/pairs-ckpt.pt"


# The names of a flag's choices, and what they name


def test_what_can_be_chosen_is_what_is_there():
    assert tuple(ROW_ATTENTION) == choices.ROW_ATTENTION
    assert tuple(devices.DTYPES) == choices.DTYPES
    assert pairs.TEMPLATES is choices.TEMPLATES
    metrics = classification_metrics(torch.eye(3), np.arange(3), NLI_CLASSES)
    assert set(main_metrics()) <= metrics.keys()
    assert tuple(BUILTIN) == names.BUILTIN_NAMES
    assert tuple(LOSSES) == choices.LOSSES
    assert tuple(HEADS) == choices.HEADS


# The nearest right word


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("--learning-rate 1e-4", "--learning_rate"),
        ("--learning_rat=1e-4", "--learning_rate"),
        ("--Learning_Rate 1e-4", "--learning_rate"),
        ("--leraning_rate 1e-4", "--learning_rate"),
        ("-learning_rate 1e-4", "--learning_rate"),
        ("--lr-schedule linear", "--lr_schedule"),
        ("--epochs 3", "--num_epochs"),
        ("--learning 1", "--learning_rate"),
        ("--datset a b c", "--dataset"),
        ("--text-column a b", "--text_column"),
        ("--sed -1", "--seed"),
        ("--no_report", "--no-report"),
        ("--no-reprot", "--no-report"),
        ("--freeze-backbone", "--freeze_backbone"),
        ("--hlep", "--help"),
        ("--confg recipe.yaml", "--config"),
        ("--lr 1e-3", "--learning_rate"),
        ("--wd 0.1", "--weight_decay"),
    ],
)
def test_a_misspelt_flag_gets_the_nearest_right_one(words, right):
    given = words.split()[0].split("=")[0]
    assert problems_of(words) == [f"unknown argument {given}: did you mean {right}?"]


@pytest.mark.parametrize("words", ["--fp16", "--bs 8", "--zz 3", "--zz a b", "--zz=3", "-x"])
def test_a_flag_that_is_near_none_is_sent_to_the_help(words):
    given = words.split()[0].split("=")[0]
    assert problems_of(words) == [f"unknown argument {given}; see --help"]


def test_only_the_values_of_a_misspelt_flag_are_no_problems():
    problems = problems_of("--learning-rate 1 stray --freeze-backbone astray --dataset a")
    assert [problem.split()[2].rstrip(":;") for problem in problems] == [
        "--learning-rate",
        "stray",
        "--freeze-backbone",
        "astray",
    ]


def test_what_stands_around_a_misspelt_flag_is_kept_apart():
    words = "--dataset a --learning-rate 1 b --seed 3".split()
    args, problems = parse_flags("", finetune.COMMAND.flags, words)
    assert (args.dataset, args.seed) == (["a"], 3)
    assert len(problems) == 2
    problems = problems_of("--lm-check tokens.bin model.pt", inspector)
    assert problems == ["unknown argument --lm-check: did you mean --lm_check?"]


def test_texts_that_look_like_flags_are_texts():
    words = ["--premise", "- a dash", "--hypothesis=--seed", "--text_column", "-1", "-2.5"]
    args, problems = parse_flags(predict.COMMAND.description, predict.COMMAND.flags, words)
    assert not problems
    assert (args.premise, args.hypothesis) == ("- a dash", "--seed")
    assert args.text_column == ["-1", "-2.5"]


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("--lr_schedule linaer", "linear"),
        ("--lr_schedule Linear", "linear"),
        ("--best_metric macro-f1", "macro_f1"),
        ("--embedding_update laz", "lazy"),
        ("--dtype bf16", "bfloat16"),
    ],
)
def test_a_misspelt_choice_gets_the_nearest_right_one(words, right):
    (problem,) = problems_of(words)
    assert problem.startswith(f"{words}: expected ")
    assert problem.endswith(f"; did you mean {right}?")


def test_a_misspelt_key_of_a_recipe_gets_the_nearest_right_one(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning-rate: 1\nseeed: 2\nzz: 3\nlr_schedule: linaer\n")
    first, second, third, fourth = problems_of(f"--config {recipe}")
    assert "unknown key learning-rate: did you mean learning_rate?" in first
    assert "unknown key seeed: did you mean seed?" in second
    assert "unknown key zz; keys are the flags" in third
    assert fourth.endswith("; did you mean linear?")


# Names of datasets


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("xnli_hindi", "xnli_hi"),
        ("hindi-xnli", "hindi_xnli"),
        ("Hindi_XNLI", "hindi_xnli"),
        ("hindi_xlni", "hindi_xnli"),
        ("xnli_urdu", "xnli_ur"),
        ("xnli-ur", "xnli_ur"),
        ("urdu_xnli", "xnli_ur"),
        ("xnli_german", "xnli_de"),
        ("dmeo", "demo"),
    ],
)
@pytest.mark.parametrize("name", ["finetune_hindi_xnli", "evaluate_hindi_xnli"])
def test_a_misspelt_dataset_gets_the_nearest_right_one(given, right, name, capsys):
    words = ["--dataset", "demo", given, "--device", "cpu"]
    assert ENTRY_POINTS[name].main(words) == 2
    said = capsys.readouterr().err
    assert f"error: --dataset {given}: no such folder" in said
    assert f"did you mean {right}?\n" in said


def test_a_language_that_xnli_has_not_got_is_told(capsys):
    assert finetune.main(["--dataset", "xnli_xx", "--device", "cpu"]) == 2
    assert "error: --dataset xnli_xx: XNLI has no language xx, expected one of ar bg" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("name", ["snli", "owner/xnli_hindi", "emo", "xnli", "./xnli_hindi"])
def test_a_name_that_may_be_right_is_tried(name):
    assert names.problem_of_dataset(name) is None


def test_a_name_that_is_a_folder_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert names.problem_of_dataset("xnli_hindi") is not None
    Path("xnli_hindi").mkdir()
    assert names.problem_of_dataset("xnli_hindi") is None
    assert names.problem_of_dataset("hindi-xnli", data_dir=str(tmp_path)) is None


@pytest.mark.parametrize("online", [True, False])
def test_a_name_that_was_tried_in_vain_gets_the_nearest_right_one(online, tmp_path, monkeypatch):
    def refuse(*_):
        raise FileNotFoundError("no such dataset")

    monkeypatch.setattr(sources, "_hub_reachable", lambda: online)
    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(DataError, match=r"did you mean demo\?"):
        load_texts(DataRequest("demos"), tmp_path)
    with pytest.raises(DataError) as error:
        load_texts(DataRequest("snli"), tmp_path)
    assert "did you mean" not in str(error.value)


def test_a_misspelt_dataset_is_told_before_anything_heavy_is_imported():
    modules, done = imported_by("finetune_hindi_xnli", "--dataset", "xnli_hindi")
    assert done.returncode == 2 and "did you mean xnli_hi?" in done.stderr
    assert not modules & HEAVY


# All at once, by one process


def test_files_that_are_not_there_are_told_with_the_wrong_words(tmp_path):
    missing, pattern = tmp_path / "none.pt", tmp_path / "*.pt"
    words = ("--seeed", 1, "--pretrained_ckpt_path", missing, pattern, "--dataset", "dmeo")
    done = run("finetune_hindi_xnli", *words)
    assert done.returncode == 2
    first, second, third, fourth = done.stderr.splitlines()
    assert "unknown argument --seeed: did you mean --seed?" in first
    assert "did you mean demo?" in second
    assert f"{missing}: no such file" in third
    assert f"{pattern}: matches no file" in fourth


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_one_process_of_several_speaks_and_all_refuse(rank, lines):
    ranks = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    done = run("finetune_hindi_xnli", "--seeed", 1, **ranks)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == lines
    helped = run("finetune_hindi_xnli", "--help", **ranks)
    assert helped.returncode == 0 and bool(helped.stdout) == bool(lines)


def test_a_node_that_lacks_the_recipe_says_so(tmp_path):
    ranks = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}
    done = run("finetune_hindi_xnli", "--config", tmp_path / "none.yaml", **ranks)
    assert done.returncode == 2 and "none.yaml: can't be read" in done.stderr


# Paths of the home folder


def test_the_home_folder_is_found_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tokenizer = tmp_path / "t.json"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"tokenizer_name: ~/{tokenizer.name}\ndataset: [demo, ~/pairs]\n")
    words = "--config ~/recipe.yaml --pretrained_ckpt_path ~/a*.pt b.pt --out_dir=~/out"
    words += " --cache_dir ~ --resume ~/x-last.pt --data_dir ~/data --label_column ~label"
    command = finetune.COMMAND
    args, problems = parse_flags(command.description, command.flags, words.split())
    assert not problems
    assert args.tokenizer_name == str(tokenizer)
    assert args.dataset == ["demo", f"{tmp_path}/pairs"]
    assert args.pretrained_ckpt_path == [f"{tmp_path}/a*.pt", "b.pt"]
    assert (args.out_dir, args.cache_dir) == (f"{tmp_path}/out", str(tmp_path))
    assert (args.resume, args.data_dir) == (f"{tmp_path}/x-last.pt", f"{tmp_path}/data")
    assert args.label_column == "~label"


@pytest.mark.parametrize(
    ("module", "flags"),
    [
        (evaluate, "checkpoint predictions compare dataset data_dir cache_dir out_dir"),
        (predict, "checkpoint export input output"),
        (inspector, "checkpoint lm_check convert"),
    ],
)
def test_every_flag_of_a_path_knows_the_home_folder(module, flags, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    kinds = {flag.name: flag for group in module.COMMAND.flags.values() for flag in group}
    assert {name for name, flag in kinds.items() if flag.kind is Path} == set(flags.split())
    words = []
    for name in flags.split():
        words += ["~/x"] if kinds[name].positional else [f"--{name}", "~/x"]
    recipes = {"recipes": False} if module is inspector else {}
    args, problems = parse_flags(module.COMMAND.description, module.COMMAND.flags, words, **recipes)
    assert not problems
    for name in flags.split():
        assert getattr(args, name) in ("/home/somebody/x", ["/home/somebody/x"])


def test_a_quoted_glob_of_the_home_folder_finds_the_file(tmp_path):
    words = ("~/state_*.pt", "--json")
    small_run.make_assets(tmp_path)
    done = run("load_checkpoint_helper", *words, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["file"] == str(tmp_path / "state_step000100.pt")
