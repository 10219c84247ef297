"""Known names of datasets win over folders that are called the same, which are meant by a slash."""

import json
import os
from pathlib import Path

import pytest
import small_run
import torch
import yaml

import evaluate_hindi_xnli as evaluate
import finetune_hindi_xnli as finetune
from xnli_gpt.checkpoints.fine_tuned import datasets_in_name
from xnli_gpt.data import names, sources
from xnli_gpt.data.cache import load_texts
from xnli_gpt.data.names import dataset_names, short_name
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.sources import HUB_XNLI
from xnli_gpt.errors import DataError
from xnli_gpt.training.config_file import data_flags

OF_XNLI = ("hindi_xnli", "xnli_ur")
ROWS_OF_FOLDER = 36


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """A working directory of the test's own, on a machine without network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "_hub_reachable", lambda: False)
    rows = {"train": small_run.rows_about(small_run.NAMES[:3])}
    monkeypatch.setitem(sources.BUILTIN, "demo", lambda: rows)


def rows_read(dataset: str, data_dir: str | None = None) -> int:
    request = DataRequest(dataset, data_dir=data_dir, splits=("train",))
    return len(load_texts(request, "cache")[0]["train"].labels)


@pytest.mark.parametrize("name", OF_XNLI)
def test_a_name_of_xnli_is_no_folder(name):
    small_run.write_dataset(Path(name))
    with pytest.raises(DataError, match=f"{name}: no network"):
        rows_read(name)


@pytest.mark.parametrize("name", OF_XNLI)
def test_a_file_of_a_known_name_is_in_nobodys_way(name):
    Path(name).touch()
    with pytest.raises(DataError, match=f"{name}: no network"):
        rows_read(name)


def test_a_built_in_name_is_no_folder():
    small_run.write_dataset(Path("demo"))
    assert rows_read("demo") == 9


@pytest.mark.parametrize("name", [*OF_XNLI, "xnli_all", "demo"])
@pytest.mark.parametrize("way", ["./{}", "{}/", "../{here}/{}", "{cwd}/{}"])
def test_a_slash_means_the_folder(name, way):
    small_run.write_dataset(Path(name))
    dataset = way.format(name, here=Path.cwd().name, cwd=Path.cwd())
    assert rows_read(dataset) == ROWS_OF_FOLDER
    assert short_name(dataset) == name
    assert dataset_names([dataset]) == [dataset]


@pytest.mark.parametrize("name", [*OF_XNLI, "demo"])
def test_data_dir_means_a_folder(name):
    small_run.write_dataset(Path("data") / name)
    assert rows_read(name, data_dir="data") == ROWS_OF_FOLDER


def test_a_built_in_name_is_not_any_data_dir():
    small_run.write_dataset(Path("data"))
    assert rows_read("demo", data_dir="data") == 9


def test_a_copy_that_the_library_would_take_for_the_hub_is_told():
    small_run.write_dataset(Path(HUB_XNLI))
    with pytest.raises(DataError, match="which the folder facebook/xnli here hides.*`data_dir`"):
        rows_read("hindi_xnli")
    assert rows_read("hindi_xnli", data_dir=HUB_XNLI) == ROWS_OF_FOLDER
    assert rows_read(HUB_XNLI) == ROWS_OF_FOLDER


def test_a_known_name_is_its_own_short_name():
    Path("elsewhere").mkdir()
    for name in ("hindi_xnli", "demo", "other"):
        Path(name).symlink_to("elsewhere")
    assert [short_name(name) for name in ("hindi_xnli", "demo")] == ["hindi_xnli", "demo"]
    assert short_name("./demo") == short_name("other") == "elsewhere"


def test_where_both_exist_that_is_said_in_one_line():
    assert names.notes_of_datasets(["xnli_hi", "demo"], None) == []
    for name in ("xnli_hi", "demo", "data/demo", "owner/name"):
        Path(name).mkdir(parents=True)
    (note,) = names.notes_of_datasets(["xnli_hi", "xnli_ur", "demo"], None)
    assert note.startswith("note: xnli_hi, demo: ")
    assert note.endswith("./xnli_hi ./demo")
    assert names.notes_of_datasets(["./demo", "owner/name", "data", "xnli_ur"], None) == []
    assert names.notes_of_datasets(["xnli_hi", "demo"], "data") == []
    (note,) = names.notes_of_datasets(["xnli_hi", "demo"], "data/demo")
    assert "demo is built in: data/demo has no folder demo" in note


# The commands


@pytest.fixture
def small_demo(monkeypatch):
    """The built-in dataset with few rows: 36 in train, 18 in test."""
    pieces = {"train": slice(0, 12), "validation": slice(0, 5), "test": slice(0, 6)}
    splits = {s: small_run.rows_about(small_run.NAMES[part]) for s, part in pieces.items()}
    monkeypatch.setitem(sources.BUILTIN, "demo", lambda: splits)


def fine_tuned(assets, dataset: str, out_dir: str = "run") -> dict:
    """The recipe that a short run left."""
    words = small_run.command(assets, out_dir, "--dataset", dataset, "--max_steps", 1)
    assert finetune.main(words) == 0
    return yaml.safe_load((Path(out_dir) / "config.yaml").read_text(encoding="utf-8"))


def evaluated(assets, monkeypatch, run: Path) -> dict:
    """The results on a run's own data, from a folder that has another `hindi_xnli`."""
    Path("other").mkdir()
    small_run.write_dataset(Path("other/hindi_xnli"), label_shift=1)
    monkeypatch.chdir("other")
    return scores_of(assets, run)


def scores_of(assets, run: Path) -> dict:
    words = ["--checkpoint", run, "--cache_dir", assets.cache, "--device", "cpu", "--no-report"]
    words += ["--bootstrap_samples", 100, "--out_dir", "scores"]
    assert evaluate.main([str(word) for word in words]) == 0
    return json.loads(Path("scores/results.json").read_text(encoding="utf-8"))


def test_a_folder_of_a_known_name_stays_that_folder(assets, monkeypatch, capsys):
    small_run.write_dataset(Path("hindi_xnli"))
    here = Path.cwd()
    assert fine_tuned(assets, "./hindi_xnli")["dataset"] == [f"{here}/hindi_xnli"]
    assert (here / "run/hindi_xnli-ckpt.pt").is_file()
    assert list(evaluated(assets, monkeypatch, here / "run")["datasets"]) == ["hindi_xnli"]
    assert f"the run's own data: {here}/hindi_xnli\n" in capsys.readouterr().out


def test_a_known_name_stays_itself(assets, small_demo, monkeypatch, capsys):
    small_run.write_dataset(Path("demo"), label_shift=1)
    note = "note: demo: taken by name; a folder here of the same name is meant by ./demo"
    recipe = fine_tuned(assets, "demo")
    assert recipe["dataset"] == ["demo"] and note in capsys.readouterr().out
    run = Path.cwd() / "run"
    results = evaluated(assets, monkeypatch, run)
    told = capsys.readouterr().out
    assert "the run's own data: demo\n" in told and note not in told
    monkeypatch.chdir(run.parent)
    assert scores_of(assets, run)["data"]["demo"] == results["data"]["demo"]
    assert note in capsys.readouterr().out


def test_names_of_xnli_stay_themselves_in_a_recipe():
    small_run.write_dataset(Path("hindi_xnli"))
    words = ["--dataset", "hindi_xnli", "./hindi_xnli", "xnli_ur"]
    config, _ = finetune.COMMAND.parse(words)
    lasting = ["hindi_xnli", os.path.abspath("hindi_xnli"), "xnli_ur"]
    assert data_flags(config.data, config.rows)["dataset"] == lasting


def test_a_run_of_xnli_is_not_scored_on_a_folder_of_its_name(assets, capsys):
    """Without network there is nothing to score it on, and that is what is said."""
    small_run.write_dataset(Path("hindi_xnli"))
    fine_tuned(assets, "./hindi_xnli")
    saved = torch.load("run/hindi_xnli-ckpt.pt", weights_only=True)
    saved["data"]["dataset"] = ["hindi_xnli"]
    torch.save(saved, "moved-ckpt.pt")
    words = ["--checkpoint", "moved-ckpt.pt", "--device", "cpu", "--cache_dir", str(assets.cache)]
    capsys.readouterr()
    assert evaluate.main(words) == 2
    told = capsys.readouterr()
    assert "error: --dataset hindi_xnli: no network" in told.err
    assert "note: hindi_xnli: taken by name" in told.out


def test_what_is_prepared_is_the_known_dataset(assets, small_demo, capsys):
    small_run.write_dataset(Path("demo"))
    Path("demo/train.jsonl").write_text("no JSON\n")
    words = ["--dataset", "demo", "--tokenizer_name", assets.tokenizer, "--prepare_only"]
    assert finetune.main([str(word) for word in words]) == 0
    told = capsys.readouterr().out
    assert "train: 36 pairs" in told and told.count("note: demo: taken by name") == 1
    words[1] = "./demo"
    assert finetune.main([str(word) for word in words]) == 2
    assert "demo/train.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["xnli_hi+xnli_ur-ckpt.pt", "xnli_hi+xnli_ur-ckpt.pth"])
def test_a_checkpoints_name_tells_its_sets_whatever_its_ending(name):
    assert datasets_in_name(Path(name)) == ["xnli_hi", "xnli_ur"]
