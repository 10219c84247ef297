"""Whole runs on files as people have them: what is said before training, what is scored, and that
an evaluation and a prediction read them as the run did."""

import csv
import json
import shutil

import pytest
import small_run
import yaml
from shell import ROOT

import evaluate_hindi_xnli as evaluate
import finetune_hindi_xnli as finetune
import predict_hindi_xnli as predict

CASES = ROOT / "tests" / "cases"


def train(assets, out_dir, dataset, *words):
    words = ["--dataset", dataset, "--tokenizer_name", CASES / "tokenizer.json", *words]
    return finetune.main(small_run.command(assets, out_dir, "--max_steps", 2, *words))


def score(out_dir, *words):
    words = ["--out_dir", out_dir, "--device", "cpu", "--dtype", "float32", "--no-report", *words]
    return evaluate.main([str(word) for word in words])


def results_of(folder):
    return json.loads((folder / "results.json").read_text())


def test_a_run_without_a_test_split(assets, tmp_path, capsys):
    assert train(assets, tmp_path / "run", CASES / "no_test", "--report") == 0
    assert "has no test split, so test is not scored" in capsys.readouterr().out
    results = results_of(tmp_path / "run")
    assert "test" not in results and results["validation"]["intervals"]["accuracy"]
    assert "validation" in (tmp_path / "run" / "report.md").read_text()
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["split"] for line in lines} == {"validation"}
    # Resuming a finished run, and scoring it again.
    assert train(assets, tmp_path / "run", CASES / "no_test", "--report") == 0
    assert train(assets, tmp_path / "run", CASES / "no_test", "--eval_only") == 0


def test_a_test_split_without_labels_is_predicted(assets, tmp_path, capsys):
    assert train(assets, tmp_path / "run", CASES / "test_unlabelled", "--report") == 0
    assert "test has no labels: it is predicted, and not scored" in capsys.readouterr().out
    assert "test" not in results_of(tmp_path / "run")
    lines = [json.loads(line) for line in open(tmp_path / "run" / "predictions.jsonl")]
    test = [line for line in lines if line["split"] == "test"]
    assert len(test) == 15 and {line["label"] for line in test} == {None}
    assert all(abs(sum(line["probabilities"].values()) - 1) < 1e-6 for line in test)


def test_leaked_rows_are_said_and_scored_apart(assets, tmp_path, capsys):
    """A test split of which a third stands in train, too."""
    folder = shutil.copytree(CASES / "pairs", tmp_path / "leaked")
    leaked = (folder / "train.jsonl").read_text().splitlines(keepends=True)[:9]
    with open(folder / "test.jsonl", "a") as file:
        file.writelines(leaked)
    assert train(assets, tmp_path / "run", folder, "--report") == 0
    assert "test: 9 of 27 pairs stand in train" in capsys.readouterr().out
    test = results_of(tmp_path / "run")["test"]
    slices = {one["slice"]: one for one in test["slices"]["in_train"]}
    assert {name: one["examples"] for name, one in slices.items()} == {
        "not in train": 18,
        "in train, too": 9,
    }
    right = sum(one["accuracy"] * one["examples"] for one in slices.values())
    assert right == pytest.approx(test["accuracy"] * 27)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "not in train" in report and "9 of 27 pairs stand in train" in report
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert any("9 of 27" in note for note in config["found"]["data"]["notes"])


def test_an_evaluation_reads_the_rows_as_the_run_did(assets, tmp_path):
    words = ["--where", "language=hi", "--carry_column", "label_source"]
    folder = shutil.copytree(CASES / "xnli_orig", tmp_path / "xnli_orig")
    for path in folder.glob("*.tsv"):
        header, *rows = path.read_text().splitlines()
        lines = [f"{header}\tlabel_source", *(f"{row}\t{i // 2 % 2}" for i, row in enumerate(rows))]
        path.write_text("\n".join(lines))
    assert train(assets, tmp_path / "run", folder, *words) == 0
    assert score(tmp_path / "scores", "--checkpoint", tmp_path / "run") == 0
    ours, again = results_of(tmp_path / "run")["test"], results_of(tmp_path / "scores")
    again = again["datasets"]["xnli_orig"]
    assert again["accuracy"] == ours["accuracy"] and again["examples"] == ours["examples"] == 36
    assert {one["slice"] for one in again["slices"]["label_source"]} == {"0", "1"}
    (first, *_) = open(tmp_path / "scores" / "predictions.jsonl")
    assert json.loads(first)["label_source"] in ("0", "1")


def test_numbers_of_another_order_are_noticed(tmp_path, capsys):
    """A file of predictions that are right, beside data whose numbers mean something else."""
    folder = shutil.copytree(CASES / "names_then_ints", tmp_path / "data")
    names = ("contradiction", "entailment", "neutral")
    rows = [json.loads(line) for line in open(folder / "test.jsonl")]
    (tmp_path / "right.txt").write_text("\n".join(names[row["label"]] for row in rows))
    words = ["--predictions", tmp_path / "right.txt", "--dataset", folder]
    assert score(tmp_path / "a", *words) == 0
    said = capsys.readouterr().out
    assert results_of(tmp_path / "a")["datasets"]["data"]["accuracy"] == 0
    assert "the answers fit 1.0000 of the labels instead of 0.0000" in said
    assert "are contradiction entailment neutral" in said and "--label_names" in said
    assert score(tmp_path / "b", *words, "--label_names", *names) == 0
    assert results_of(tmp_path / "b")["datasets"]["data"]["accuracy"] == 1
    assert "another order" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["p.jsonl", "q.jsonl"])
def test_predictions_of_another_tool_are_scored(tmp_path, capsys, name):
    assert score(tmp_path / "out", "--predictions", CASES / "pred_own" / name, "--report") == 0
    assert "without probabilities, so without loss and ECE" in capsys.readouterr().out
    metrics = results_of(tmp_path / "out")["datasets"]["predictions"]
    assert metrics["accuracy"] == pytest.approx(2 / 3 if name == "p.jsonl" else 1)
    assert metrics["loss"] is None and metrics["ece"] is None and metrics["calibration"] == []
    # What was written can be scored again, to the same figures.
    assert score(tmp_path / "again", "--predictions", tmp_path / "out") == 0
    assert results_of(tmp_path / "again")["datasets"]["predictions"] == metrics


def test_plain_lines_need_the_data_that_they_are_of(tmp_path, capsys):
    words = ["--predictions", CASES / "pred_own" / "lines.txt"]
    assert score(tmp_path / "out", *words) == 2
    assert "--dataset" in capsys.readouterr().err
    folder = tmp_path / "two"
    folder.mkdir()
    rows = small_run.rows_about(small_run.NAMES[:1])[:2]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert score(tmp_path / "out", *words, "--dataset", folder) == 0
    assert results_of(tmp_path / "out")["datasets"]["two"]["accuracy"] == 1
    (folder / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert score(tmp_path / "more", *words, "--dataset", folder) == 2
    assert "predictions for rows that the data's 1 don't have" in capsys.readouterr().err


def test_predictions_in_a_table_with_probabilities_have_a_loss(assets, tmp_path):
    assert train(assets, tmp_path / "run", assets.dataset) == 0
    test = assets.dataset / "test.jsonl"
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["premise", "hypothesis", "label"])
        writer.writeheader()
        writer.writerows(json.loads(line) for line in open(test))
    words = ["--checkpoint", tmp_path / "run", "--device", "cpu", "--dtype", "float32"]
    words += ["--input", tmp_path / "pairs.csv", "--output", tmp_path / "predicted.csv"]
    assert predict.main([str(word) for word in words]) == 0
    assert score(tmp_path / "scores", "--predictions", tmp_path / "predicted.csv") == 0
    ours, theirs = results_of(tmp_path / "run")["test"], results_of(tmp_path / "scores")
    theirs = theirs["datasets"]["predictions"]
    assert theirs["accuracy"] == ours["accuracy"]
    assert theirs["loss"] == pytest.approx(ours["loss"], abs=1e-4)


@pytest.mark.parametrize(
    ("quotes", "code", "pairs"), [(None, 2, 0), ("text", 0, 36), ("csv", 0, 24)]
)
def test_unquoted_tsv_is_predicted_row_by_row(assets, tmp_path, capsys, quotes, code, pairs):
    if not (assets.folder / "quoted").exists():
        assert train(assets, assets.folder / "quoted", assets.dataset) == 0
    words = ["--checkpoint", assets.folder / "quoted", "--device", "cpu", "--dtype", "float32"]
    words += ["--input", CASES / "quote_none_tsv" / "train.tsv", "--bad_rows", "skip"]
    words += ["--output", tmp_path / "out.jsonl", *(["--quotes", quotes] if quotes else [])]
    assert predict.main([str(word) for word in words]) == code
    if code:
        said = capsys.readouterr().err
        assert "line 6" in said and "--quotes text" in said
    else:
        assert len((tmp_path / "out.jsonl").read_text().splitlines()) == pairs


def test_the_end_of_text_token_and_the_form_of_letters_are_kept(assets, tmp_path, capsys):
    words = ["--tokenizer_name", CASES / "tok_bos" / "tokenizer.json"]
    assert train(assets, tmp_path / "run", assets.dataset, *words) == 2
    assert "--end_of_text" in capsys.readouterr().err
    words += ["--end_of_text", "<|bos|>", "--normalize", "NFC"]
    assert train(assets, tmp_path / "run", assets.dataset, *words) == 0
    assert "end-of-text token: <|bos|> (0)" in capsys.readouterr().out
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["found"]["tokenizer"]["end_of_text"] == "<|bos|>"
    assert score(tmp_path / "scores", "--checkpoint", tmp_path / "run") == 0
    again = results_of(tmp_path / "scores")["datasets"]["pairs"]
    assert again["accuracy"] == results_of(tmp_path / "run")["test"]["accuracy"]
    # Another token is another run.
    words = [*words, "--end_of_text", "<|user_start|>", "--max_steps", 3]
    assert train(assets, tmp_path / "run", assets.dataset, *words) == 2
    assert "end-of-text token <|bos|> there" in capsys.readouterr().err


def test_flags_of_a_recipe_are_replaced_and_repeated_ones_add_up(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("where: [language=hi]\n")
    words = ["--config", str(recipe)]
    assert finetune.COMMAND.parse(words)[0].rows.where == ("language=hi",)
    words += ["--where", "a=1", "--where", "b=2", "c=3"]
    assert finetune.COMMAND.parse(words)[0].rows.where == ("a=1", "b=2", "c=3")
    assert finetune.COMMAND.parse(["--where", "a=1"])[0].rows.where == ("a=1",)
