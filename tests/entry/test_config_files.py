"""Configuration files of the fine-tuning command, and its help."""

import argparse
import re
from pathlib import Path

import pytest
import yaml
from finetune_parts import PROJECT, error_lines

import finetune_hindi_xnli as finetune
from xnli_gpt.fine_tuning.configuration import FineTuning
from xnli_gpt.options import plain_values

pytestmark = pytest.mark.usefixtures("working_folder")


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
