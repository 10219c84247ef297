"""Evaluation as a user meets it: checkpoints and predictions, files, comparisons, errors."""

import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
import yaml
from small_run import LABELS, command

import evaluate_hindi_xnli as evaluate
import finetune_hindi_xnli as finetune
from inference import XNLIClassifier
from xnli_gpt.data import sources
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.evaluation.scored_split import SCORES
from xnli_gpt.evaluation.sides import names_of_sides

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture(scope="module")
def assets(assets) -> types.SimpleNamespace:
    """A fine-tuned checkpoint, two more seeds of it by noise on its head, one with its classes in
    another order, one of two classes, and parallel datasets."""
    made, folder = assets, assets.folder
    made.hindi, made.urdu = (small_run.write_dataset(folder / f"xnli_{x}") for x in ("hi", "ur"))
    made.out_dir = folder / "trained"
    assert finetune.main(command(made, made.out_dir, "--num_epochs", 1)) == 0
    made.seeds = [made.out_dir / "pairs-ckpt.pt"]
    made.seeds += [save_variant(made, f"seed{i}", add_noise(i)) for i in (1, 2)]
    made.reordered = save_variant(made, "reordered", reorder_classes)
    made.binary = save_variant(made, "binary", make_binary)
    made.longer = save_variant(made, "longer", lambda saved: saved.update(block_size=158))
    made.broken = save_variant(made, "broken", add_noise(1, float("nan")))
    return made


@pytest.fixture(scope="module")
def evaluated(assets) -> Path:
    """The out_dir of one checkpoint's evaluation on its own dataset."""
    return run(assets, "evaluated", "--checkpoint", assets.seeds[0], "--dataset", assets.dataset)


def save_variant(assets, name: str, change) -> Path:
    saved = torch.load(assets.seeds[0], weights_only=True)
    change(saved)
    path = assets.folder / f"{name}-ckpt.pt"
    torch.save(saved, path)
    return path


def add_noise(seed: int, scale: float = 1.0):
    def change(saved: dict) -> None:
        bias = saved["model"]["head.output.bias"]
        generator = torch.Generator().manual_seed(seed)
        saved["model"]["head.output.bias"] = bias + scale * torch.randn(3, generator=generator)

    return change


def reorder_classes(saved: dict) -> None:
    saved["classes"] = [saved["classes"][i] for i in (2, 0, 1)]
    for name in ("weight", "bias"):
        saved["model"][f"head.output.{name}"] = saved["model"][f"head.output.{name}"][[2, 0, 1]]


def make_binary(saved: dict) -> None:
    saved["classes"] = ["no", "yes"]
    for name in ("weight", "bias"):
        saved["model"][f"head.output.{name}"] = saved["model"][f"head.output.{name}"][:2]


def shorten(saved: dict) -> None:
    saved["block_size"] = saved["config"]["max_seq_len"] = 8


def words(assets, out_dir: Path, *argv: object) -> list[str]:
    fixed = ["--out_dir", out_dir, "--cache_dir", assets.cache, "--device", "cpu", "--no-report"]
    return [str(word) for word in [*fixed, "--bootstrap_samples", 200, *argv]]


def run(assets, name: str, *argv: object) -> Path:
    out_dir = assets.folder / name
    assert evaluate.main(words(assets, out_dir, *argv)) == 0
    return out_dir


def results_of(out_dir: Path) -> dict:
    return json.loads((out_dir / "results.json").read_text(encoding="utf-8"))


def lines_of(out_dir: Path) -> list[dict]:
    text = (out_dir / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def refusal(assets, capsys, *argv: object, code: int = 2) -> list[str]:
    """The lines on stderr of a command that must fail and leave nothing."""
    out_dir = Path("refused")
    assert evaluate.main(words(assets, out_dir, *argv)) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), lines
    assert not out_dir.exists()
    return lines


def test_the_scores_are_those_of_fine_tuning(evaluated, assets):
    metrics = results_of(evaluated)["datasets"]["pairs"]
    trained = json.loads((assets.out_dir / "results.json").read_text(encoding="utf-8"))["test"]
    for name in ("accuracy", "macro_f1", "loss", "confusion", "per_class", "majority_accuracy"):
        assert metrics[name] == trained[name]


def test_results_tell_everything_of_the_split(evaluated, assets):
    results = results_of(evaluated)
    metrics = results["datasets"]["pairs"]
    assert set(metrics) == {
        *(*SCORES, "ece", "examples", "per_class", "confusion", "majority_accuracy"),
        *("intervals", "calibration", "slices"),
    }
    for name in SCORES:
        low, high = metrics["intervals"][name]
        assert low <= metrics[name] <= high
    assert metrics["examples"] == sum(b["count"] for b in metrics["calibration"]) == 18
    negation = {cut["slice"]: cut["examples"] for cut in metrics["slices"]["negation"]}
    assert negation == {"with negation": 6, "without negation": 12}
    assert results["macro_average"]["accuracy"] == metrics["accuracy"]
    checkpoint = results["checkpoint"]
    assert checkpoint["file"] == str(assets.seeds[0]) and len(checkpoint["sha256"]) == 64
    assert checkpoint["format"] == "small" and checkpoint["pretrained"]["step"] == 100
    assert results["versions"]["torch"] == torch.__version__
    assert results["data"]["pairs"]["rows"] == 18


def test_predictions_are_the_rows_in_order_with_what_was_made_of_them(evaluated, assets):
    lines = lines_of(evaluated)
    rows = [json.loads(line) for line in (assets.dataset / "test.jsonl").open(encoding="utf-8")]
    assert [line["id"] for line in lines] == list(range(18))
    for line, row in zip(lines, rows, strict=True):
        assert {name: line[name] for name in row} == row
        assert (line["dataset"], line["split"]) == ("pairs", "test")
        assert line["prediction"] == max(line["probabilities"], key=line["probabilities"].get)
        assert list(line["probabilities"]) == list(LABELS)
        shares = np.exp(line["logits"]) / np.exp(line["logits"]).sum()
        assert list(line["probabilities"].values()) == pytest.approx(shares, rel=1e-5)
    right = np.mean([line["label"] == line["prediction"] for line in lines])
    assert results_of(evaluated)["datasets"]["pairs"]["accuracy"] == pytest.approx(right)


def test_logits_are_those_of_the_pairs_one_by_one(evaluated, assets):
    classifier = XNLIClassifier.load(assets.seeds[0], device="cpu")
    for line in lines_of(evaluated):
        (alone,) = classifier.predict([(line["premise"], line["hypothesis"])])
        assert line["logits"] == pytest.approx(alone.logits, abs=1e-5)


def test_datasets_of_several_languages_in_one_table(assets, capsys):
    argv = ["--dataset", "xnli_hi", "xnli_ur", "--data_dir", assets.folder]
    out_dir = run(assets, "languages", "--checkpoint", assets.seeds[0], *argv, "--split", "train")
    results = results_of(out_dir)
    assert list(results["datasets"]) == ["xnli_hi", "xnli_ur"]
    # The same rows under two names: drawn together, so the mean is no surer.
    assert results["macro_average"]["accuracy"] == results["datasets"]["xnli_hi"]["accuracy"]
    for name, interval in results["macro_average"]["intervals"].items():
        assert interval == pytest.approx(results["datasets"]["xnli_ur"]["intervals"][name])
    assert [line["dataset"] for line in lines_of(out_dir)] == ["xnli_hi"] * 36 + ["xnli_ur"] * 36
    _precision, *table, places = capsys.readouterr().out.splitlines()
    assert places == f"results: {out_dir}/results.json, predictions: {out_dir}/predictions.jsonl"
    accuracy = f"{results['macro_average']['accuracy']:.4f}"
    assert [line.split()[0] for line in table[1:]] == ["xnli_hi", "xnli_ur", "macro"]
    assert all(accuracy in line for line in table[1:])


def test_xnli_all_is_the_fifteen_languages(assets, capsys):
    folder = assets.folder / "all"
    for language in "ar bg de el en es fr hi ru sw th tr ur vi zh".split():
        small_run.write_dataset(folder / f"xnli_{language}")
    out_dir = run(
        assets,
        "all15",
        "--checkpoint",
        assets.seeds[0],
        "--dataset",
        "xnli_all",
        "--data_dir",
        folder,
    )
    results = results_of(out_dir)
    assert len(results["datasets"]) == 15
    assert results["datasets"]["xnli_sw"]["slices"]["negation"] == []
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines].index("results:") == len(lines) - 1 >= 17


@pytest.mark.parametrize("with_dataset", [True, False])
def test_predictions_are_scored_as_their_model_was(with_dataset, evaluated, assets):
    argv = ["--dataset", assets.dataset] if with_dataset else []
    out_dir = run(assets, f"again{with_dataset}", "--predictions", evaluated, *argv)
    again, before = results_of(out_dir), results_of(evaluated)
    assert again["datasets"] == before["datasets"]
    assert again["macro_average"] == before["macro_average"]
    assert lines_of(out_dir) == lines_of(evaluated)


def test_several_checkpoints_are_seeds_of_one_recipe(assets, evaluated, capsys):
    out_dir = run(assets, "seeds", "--checkpoint", *assets.seeds, "--dataset", assets.dataset)
    printed = capsys.readouterr().out
    results = results_of(out_dir)
    figures = results["seeds"]["datasets"]["pairs"]["accuracy"]
    assert figures["values"][0] == results_of(evaluated)["datasets"]["pairs"]["accuracy"]
    assert len(set(figures["values"])) > 1
    assert figures["std"] == pytest.approx(np.std(figures["values"], ddof=1))
    assert results["datasets"]["pairs"]["accuracy"] == pytest.approx(figures["mean"])
    assert [c["file"] for c in results["seeds"]["checkpoints"]] == [str(p) for p in assets.seeds]
    assert f"{figures['mean']:.4f} ± {figures['std']:.4f} over 3 seeds" in printed
    lines = lines_of(out_dir)
    assert [line["run"] for line in lines] == [1] * 18 + [2] * 18 + [3] * 18
    without_run = [{k: v for k, v in line.items() if k != "run"} for line in lines[:18]]
    assert without_run == lines_of(evaluated)
    again = results_of(run(assets, "seeds_again", "--predictions", out_dir))
    assert again["seeds"]["datasets"] == results["seeds"]["datasets"]
    assert again["datasets"] == results["datasets"]


def test_two_recipes_are_compared_on_the_same_rows(assets, evaluated, capsys):
    argv = ["--checkpoint", assets.seeds[1], "--dataset", assets.dataset]
    out_dir = run(assets, "compared", *argv, "--compare", evaluated)
    comparison = results_of(out_dir)["comparison"]
    figures = comparison["datasets"]["pairs"]
    scores = [results_of(path)["datasets"]["pairs"]["macro_f1"] for path in (out_dir, evaluated)]
    assert figures["macro_f1"]["difference"] == pytest.approx(scores[0] - scores[1])
    predictions = [lines_of(path) for path in (out_dir, evaluated)]
    rights = [np.array([p["prediction"] == p["label"] for p in lines]) for lines in predictions]
    assert figures["mcnemar"]["only_first_right"] == (rights[0] & ~rights[1]).sum()
    assert figures["mcnemar"]["variant"] == "exact binomial"
    assert comparison["checkpoints"][0]["file"] == str(evaluated / "predictions.jsonl")
    assert f"difference {figures['accuracy']['difference']:+.4f}" in capsys.readouterr().out
    by_model = run(assets, "compared2", *argv, "--compare", assets.seeds[0])
    assert results_of(by_model)["comparison"]["datasets"] == comparison["datasets"]


def test_classes_in_another_order_are_matched_by_name(assets):
    argv = ["--checkpoint", assets.seeds[0], "--dataset", assets.dataset]
    out_dir = run(assets, "reordered", *argv, "--compare", assets.reordered)
    figures = results_of(out_dir)["comparison"]["datasets"]["pairs"]
    assert all(figures[name]["difference"] == 0 for name in SCORES)
    assert figures["mcnemar"]["only_first_right"] == figures["mcnemar"]["only_second_right"] == 0


def test_the_hypothesis_only_baseline_stands_beside_the_model(assets, capsys):
    argv = ["--checkpoint", assets.seeds[0], "--dataset", assets.dataset, "--hypothesis_only"]
    results = results_of(run(assets, "baseline", *argv))
    # These hypotheses give their label away.
    assert results["datasets"]["pairs"]["hypothesis_only"] == {"accuracy": 1.0, "macro_f1": 1.0}
    assert "(hypothesis only 1.0000)" in capsys.readouterr().out


def test_a_larger_block_size_than_the_checkpoints_may_be_asked_for(assets, evaluated, capsys):
    short = save_variant(assets, "short", shorten)
    argv = ["--checkpoint", short, "--dataset", assets.dataset]
    (line,) = refusal(assets, capsys, *argv)
    assert "--block_size 8" in line
    out_dir = run(assets, "longer_rows", *argv, "--block_size", 160)
    metrics, whole = (results_of(path)["datasets"]["pairs"] for path in (out_dir, evaluated))
    assert metrics["confusion"] == whole["confusion"]
    assert metrics["loss"] == pytest.approx(whole["loss"])


def test_a_class_without_rows_is_noted(assets, capsys, tmp_path):
    folder = small_run.write_dataset(tmp_path / "two")
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if '"neutral"' not in line]
    (folder / "test.jsonl").write_text("\n".join(kept), encoding="utf-8")
    run(assets, "two_classes", "--checkpoint", assets.seeds[0], "--dataset", folder)
    assert "no row of neutral in test" in capsys.readouterr().out


def test_builtin_datasets_are_known_by_their_names(assets, monkeypatch):
    splits = {"test": small_run.rows_about(small_run.NAMES[:3])}
    monkeypatch.setitem(sources.BUILTIN, "demo", lambda: splits)
    argv = ["--checkpoint", assets.seeds[0], "--dataset", "demo"]
    assert results_of(run(assets, "demo", *argv))["datasets"]["demo"]["examples"] == 9


# Errors


def test_all_that_is_wrong_with_a_command_is_told_at_once(assets, capsys):
    lines = refusal(
        assets,
        capsys,
        *("--checkpoint", "missing.pt", assets.checkpoint, "--compare", "missing.jsonl"),
        *("--dataset", "xnli_hi", "xnli_hi", "--split", "tset", "--device", "tpu"),
    )
    told = "\n".join(lines)
    assert len(lines) == 6
    assert "--split tset: expected train or validation or test" in told
    assert "--device tpu" in told and "xnli_hi more than once" in told
    assert "missing.pt: can't be loaded (no such file)" in told
    assert f"{assets.checkpoint}: not a fine-tuned checkpoint of this project" in told
    assert "missing.jsonl: can't be read" in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "--checkpoint or --predictions is needed"),
        (["--predictions", "a", "--checkpoint", "b"], "expected one of them"),
        (["--predictions", "a", "--hypothesis_only"], "needs --dataset"),
    ],
)
def test_what_is_scored_must_be_said(argv, told, assets, capsys):
    assert told in refusal(assets, capsys, *argv)[0]


def test_a_binary_model_on_three_classes(assets, capsys):
    (line,) = refusal(assets, capsys, "--checkpoint", assets.binary, "--dataset", assets.dataset)
    assert f"classes {', '.join(LABELS)}, but {assets.binary} knows no, yes" in line


def test_a_label_that_the_model_does_not_know(assets, capsys, tmp_path):
    folder = small_run.write_dataset(tmp_path / "odd")
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4].replace('"neutral"', '"unsure"')
    (folder / "test.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (line,) = refusal(assets, capsys, "--checkpoint", assets.seeds[0], "--dataset", folder)
    assert "row 5 has 'unsure'" in line and "expected entailment" in line


def test_missing_columns_and_empty_splits(assets, capsys, tmp_path):
    argv = ["--checkpoint", assets.seeds[0], "--dataset"]
    (line,) = refusal(assets, capsys, *argv, assets.dataset, "--label_column", "gold")
    assert "no column gold" in line and "--label_column" in line
    folder = small_run.write_dataset(tmp_path / "empty")
    (folder / "test.jsonl").write_text("")
    (line,) = refusal(assets, capsys, *argv, folder)
    assert "test is empty" in line


def test_predictions_of_other_data_are_refused(assets, evaluated, capsys, tmp_path):
    folder = small_run.write_dataset(tmp_path / "pairs", label_shift=1)
    (line,) = refusal(assets, capsys, "--predictions", evaluated, "--dataset", folder)
    assert "label of id 0" in line and "predictions of other data" in line
    (line,) = refusal(assets, capsys, "--predictions", evaluated, "--dataset", assets.hindi)
    assert "no predictions for xnli_hi (found pairs)" in line


def test_predictions_without_labels_need_their_data(assets, evaluated, capsys, tmp_path):
    lines = [{k: v for k, v in line.items() if k != "label"} for line in lines_of(evaluated)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "unlabelled.jsonl").write_text(text, encoding="utf-8")
    argv = ["--predictions", "unlabelled.jsonl"]
    (line,) = refusal(assets, capsys, *argv)
    assert "id 0 has the label None" in line and "--dataset" in line
    out_dir = run(assets, "labelled", *argv, "--dataset", assets.dataset)
    assert results_of(out_dir)["datasets"] == results_of(evaluated)["datasets"]


def test_another_recipe_is_no_seed_and_no_checkpoint_stands_twice(assets, capsys):
    argv = ["--dataset", assets.dataset, "--checkpoint", assets.seeds[0]]
    (line,) = refusal(assets, capsys, *argv, assets.longer)
    assert "another block size" in line and "--compare" in line
    later = save_variant(assets, "later", lambda saved: saved["pretrained"].update(step=101))
    (line,) = refusal(assets, capsys, *argv, later)
    assert "another pretrained step" in line
    (line,) = refusal(assets, capsys, *argv, assets.seeds[0])
    assert "the same twice" in line
    (line,) = refusal(assets, capsys, *argv, "--compare", assets.binary)
    assert "classes no, yes" in line


def test_logits_that_are_not_finite_fail_and_leave_nothing(assets, capsys):
    argv = ["--checkpoint", assets.broken, "--dataset", assets.dataset]
    (line,) = refusal(assets, capsys, *argv, code=1)
    assert f"{assets.broken}: logits are not finite" in line


def test_predictions_are_checked_before_a_model_computes_anything(assets, evaluated, capsys):
    argv = ["--checkpoint", assets.broken, "--dataset", assets.hindi]
    (line,) = refusal(assets, capsys, *argv, "--compare", evaluated)
    assert "no predictions for xnli_hi" in line


def test_a_training_runs_results_are_not_overwritten(assets, capsys):
    before = (assets.out_dir / "results.json").read_bytes()
    argv = ["--checkpoint", assets.seeds[0], "--dataset", assets.dataset]
    assert evaluate.main(words(assets, assets.out_dir, *argv)) == 2
    assert "holds a fine-tuning run" in capsys.readouterr().err
    assert (assets.out_dir / "results.json").read_bytes() == before


def test_by_default_an_evaluation_stands_in_a_runs_default_folder(assets, tmp_path, monkeypatch):
    """Beside what the run left, which stays as it was."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(assets.out_dir, "out")
    before = {path.name: path.read_bytes() for path in Path("out").iterdir() if path.is_file()}
    argv = words(assets, Path("unused"), "--checkpoint", "out")
    assert argv[:2] == ["--out_dir", "unused"]
    assert evaluate.main(argv[2:]) == 0
    assert list(results_of(Path("out/evaluation"))["datasets"]) == ["pairs"]
    for name, content in before.items():
        assert (Path("out") / name).read_bytes() == content
    assert {path.name for path in Path("out").iterdir()} == {*before, "evaluation"}


def test_an_evaluation_leaves_a_report(assets, tmp_path):
    """With a comparison of a model with itself: no difference, and both sides named."""
    (seed,) = assets.seeds[:1]
    copy = tmp_path / "other recipe" / seed.name
    copy.parent.mkdir()
    copy.write_bytes(seed.read_bytes())
    argv = ["--checkpoint", seed, "--compare", copy, "--dataset", assets.dataset, "--report"]
    assert evaluate.main(words(assets, tmp_path / "out", *argv)) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "other recipe" in page and "trained" in page and "McNemar" in page
    assert results_of(tmp_path / "out")["comparison"]["names"][1].endswith("other recipe")
    assert 'src="http' not in page and "<script" not in page
    assert list((tmp_path / "out" / "figures").glob("confusion*.pdf"))


# What a newcomer gives


def test_a_runs_folder_is_its_model_and_its_data_are_what_is_scored(assets, evaluated, capsys):
    out_dir = run(assets, "by_folder", "--checkpoint", assets.out_dir)
    out = capsys.readouterr().out
    assert f"the run's own data: {assets.dataset}" in out
    assert results_of(out_dir)["datasets"] == results_of(evaluated)["datasets"]
    assert results_of(out_dir)["checkpoint"]["file"] == str(assets.seeds[0])
    save = assets.out_dir / "pairs-last.pt"
    out_dir = run(assets, "by_save", "--checkpoint", save)
    assert f"note: {save} is a save to resume from" in capsys.readouterr().err
    assert results_of(out_dir)["datasets"] == results_of(evaluated)["datasets"]


def test_folders_and_saves_without_a_model(assets, capsys, tmp_path):
    (line,) = refusal(assets, capsys, "--checkpoint", assets.folder)
    assert "several models (binary-ckpt.pt, broken-ckpt.pt, " in line and "name one" in line
    (line,) = refusal(assets, capsys, "--checkpoint", assets.dataset)
    assert "a folder without a model" in line and "the folder of a run" in line
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "x-last.pt").write_bytes((assets.out_dir / "pairs-last.pt").read_bytes())
    (line,) = refusal(assets, capsys, "--checkpoint", begun)
    assert "has not been evaluated yet" in line
    (line,) = refusal(assets, capsys, "--checkpoint", begun / "x-last.pt")
    assert f"{begun}/x-ckpt.pt, which is not there" in line
    (begun / "x-last.pt").rename(begun / "x.pt")
    (line,) = refusal(assets, capsys, "--checkpoint", begun / "x.pt")
    assert "a save to resume from, not a model" in line


def change_data(**changes: object):
    return lambda saved: saved["data"].update(changes)


def test_the_columns_of_a_run_belong_to_its_data(assets, capsys, tmp_path, evaluated):
    folder = small_run.write_dataset(tmp_path / "renamed")
    for path in folder.glob("*.jsonl"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"label"', '"gold"').replace('"premise"', '"first"'))
    changes = {"dataset": [str(folder)], "text_column": ["first", "hypothesis"]}
    model = save_variant(assets, "renamed", change_data(label_column="gold", **changes))
    found = results_of(run(assets, "renamed", "--checkpoint", model))["datasets"]["renamed"]
    assert found == results_of(evaluated)["datasets"]["pairs"]
    # For other data the defaults count, and what is given counts before both.
    (line,) = refusal(assets, capsys, "--checkpoint", model, "--dataset", folder)
    assert "no column premise" in line
    (line,) = refusal(assets, capsys, "--checkpoint", model, "--label_column", "label")
    assert "no column label" in line
    model = save_variant(assets, "elsewhere", change_data(dataset=["/none/pairs"]))
    (line,) = refusal(assets, capsys, "--checkpoint", model)
    assert "fine-tuned on /none/pairs, which is no folder here" in line and "--dataset" in line
    out_dir = run(assets, "moved", "--checkpoint", model, "--data_dir", assets.folder)
    assert list(results_of(out_dir)["datasets"]) == ["pairs"]
    (line,) = refusal(assets, capsys, "--checkpoint", assets.seeds[0], model)
    assert "was fine-tuned on other data than" in line and "--dataset" in line


def test_checkpoints_of_older_versions_know_the_names_of_their_data(assets, capsys, tmp_path):
    def forget(names: list[str]):
        return lambda saved: (saved.pop("data"), saved.update(datasets=names))

    old = save_variant(assets, "old", forget(["pairs"]))
    (line,) = refusal(assets, capsys, "--checkpoint", old)
    assert "was fine-tuned on pairs, and does not say where that is" in line
    named = save_variant(assets, "named", forget(["xnli_hi", "xnli_ur"]))
    out_dir = run(assets, "named", "--checkpoint", named, "--data_dir", assets.folder)
    assert list(results_of(out_dir)["datasets"]) == ["xnli_hi", "xnli_ur"]
    beside = tmp_path / "old run" / "pairs-ckpt.pt"
    beside.parent.mkdir()
    beside.write_bytes(old.read_bytes())
    flags = {"dataset": [str(assets.dataset)], "text_column": ["premise", "hypothesis"]}
    (beside.parent / "config.yaml").write_text(yaml.safe_dump({"flags": flags, "decisive": {}}))
    out_dir = run(assets, "beside", "--checkpoint", beside.parent)
    assert results_of(out_dir)["datasets"]["pairs"]["examples"] == 18


def test_one_tokenizer_has_one_hash(assets, evaluated):
    config = yaml.safe_load((assets.out_dir / "config.yaml").read_text(encoding="utf-8"))
    in_config = config["found"]["tokenizer"]["sha256"]
    assert results_of(evaluated)["checkpoint"]["tokenizer_sha256"] == in_config
    tokenizer = json.loads(assets.tokenizer.read_text(encoding="utf-8"))
    indented = assets.folder / "indented.json"
    indented.write_text(json.dumps(tokenizer, indent=3), encoding="utf-8")
    for path, same in [(indented, True), (assets.large_tokenizer, False)]:
        assert (load_pair_encoding(str(path)).tokenizer_hash == in_config) == same


def test_the_sides_of_a_comparison_have_names(assets, capsys, tmp_path):
    places = [tmp_path / rate / seed for rate in ("lr1e-4", "lr5e-5") for seed in ("s1", "s2")]
    models = [assets.seeds[0], assets.seeds[1], assets.seeds[2], assets.longer]
    for place, model in zip(places, models, strict=True):
        place.mkdir(parents=True)
        (place / "pairs-ckpt.pt").write_bytes(model.read_bytes())
    sides = ["--checkpoint", *places[:2], "--compare", places[2]]
    out_dir = run(assets, "sides", *sides)
    assert results_of(out_dir)["comparison"]["names"] == ["lr1e-4", "lr5e-5/s1"]
    out = capsys.readouterr().out
    assert "lr1e-4 against lr5e-5/s1:" in out and "pairs: accuracy lr1e-4 0." in out
    out_dir = run(assets, "named", *sides, "--names", "high", "low")
    assert results_of(out_dir)["comparison"]["names"] == ["high", "low"]
    (line,) = refusal(assets, capsys, *sides, "--names", "same", "same")
    assert "the same name for both sides" in line
    (line,) = refusal(assets, capsys, "--checkpoint", places[0], "--names", "a", "b")
    assert "--names: needs --compare" in line


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (["o/lr1/s1/x", "o/lr1/s2/x"], ["o/lr2/s1/x", "o/lr2/s2/x"], ["lr1", "lr2"]),
        (["newcomer/a/newcomer/x"], ["newcomer/b/newcomer/x"], ["a", "b"]),
        (["o/x-ckpt.pt"], ["o/y-ckpt.pt"], ["x", "y"]),
        (["o/s1/x", "o/s2/x"], ["o/s3/x"], ["o", "o/s3"]),
        (["a/x"], ["a/b/x"], ["a", "a/b"]),
        (["a/lr1/s1/x"], ["b/lr2/s1/x"], ["a/lr1", "b/lr2"]),
        (["o/x"], ["o/x"], ["first", "second"]),
    ],
)
def test_what_differs_between_paths_names_them(first, second, names):
    assert names_of_sides([Path(p) for p in first], [Path(p) for p in second]) == names


def test_a_model_of_one_answer_is_called_that(assets, capsys):
    def answer_always(saved: dict) -> None:
        saved["model"]["head.output.bias"] = torch.tensor([0.0, 1e4, 0.0])

    model = save_variant(assets, "constant", answer_always)
    run(assets, "constant", "--checkpoint", model)
    warning, places = capsys.readouterr().out.splitlines()[-2:]
    assert "answers one class alone" in warning and "(neutral on pairs)" in warning
    assert places.startswith("results: ")
    run(assets, "several", "--checkpoint", assets.seeds[0])
    assert "one class alone" not in capsys.readouterr().out


def test_a_random_trunk_that_is_compared_with_stands_among_the_baselines(assets, tmp_path):
    random = save_variant(assets, "random", lambda one: one["pretrained"].update(random_init=True))
    argv = ["--checkpoint", assets.seeds[0], "--compare", random, "--dataset", assets.dataset]
    argv += ["--hypothesis_only", "--report"]
    assert evaluate.main(words(assets, tmp_path / "out", *argv)) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for told in ("the same network from random weights (", "a classifier that sees the hypothesis"):
        assert told in page
