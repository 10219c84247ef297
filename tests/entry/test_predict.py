"""Prediction as a user meets it: one pair, files, pipes, the Python class, and what goes wrong."""

import csv
import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import small_run
import torch
from limits import HANG_S
from small_run import LABELS, rows_about

import finetune_hindi_xnli as finetune
import predict_hindi_xnli as predict
from inference import Prediction, XNLIClassifier
from xnli_gpt.checkpoints.fine_tuned import read_fine_tuned
from xnli_gpt.errors import EXIT_INTERRUPTED, DataError, EvaluationError, RunError, UsageError

SCRIPT = Path(predict.__file__)
PAIR = ("राम ने बाज़ार से 3 आम ख़रीदा", "राम के पास आम है")


@pytest.fixture(scope="module")
def assets(assets) -> types.SimpleNamespace:
    out_dir = assets.folder / "run"
    assert finetune.main(small_run.command(assets, out_dir, "--max_steps", 2)) == 0
    assets.run = out_dir
    (assets.fine_tuned,) = out_dir.glob("*-ckpt.pt")
    return assets


@pytest.fixture(scope="module")
def classifier(assets) -> XNLIClassifier:
    return XNLIClassifier.load(assets.fine_tuned, device="cpu")


@pytest.fixture
def in_chunks_of_two(monkeypatch):
    """Few rows must meet the borders of chunks."""
    monkeypatch.setattr(predict, "FIRST_CHUNK", 2)
    monkeypatch.setattr(predict, "LARGEST_CHUNK", 2)


def rows_of_different_lengths() -> list[dict]:
    rows = rows_about(["राम", "सीता"])
    return [
        row | {"premise": " ".join([row["premise"]] * (1 + 3 * i % 4)), "id": i}
        for i, row in enumerate(rows)
    ]


def pairs_of(rows: list[dict]) -> list[tuple[str, str]]:
    return [(row["premise"], row["hypothesis"]) for row in rows]


def write_jsonl(path: Path, rows: list[object]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(assets, *words: object) -> int:
    argv = ["--checkpoint", assets.fine_tuned, "--device", "cpu", *words]
    return predict.main([str(word) for word in argv])


def error_lines(capsys, assets, *words: object, code: int = 2) -> list[str]:
    assert run(assets, *words) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), lines
    return lines


def place_of_results(capsys) -> str:
    """The last line of what a command says."""
    return capsys.readouterr().out.splitlines()[-1]


def given_stdin(monkeypatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


# The class


def test_predictions_are_those_of_the_evaluation(assets, classifier):
    """The metrics that the run wrote for its test split come out of the predictions."""
    rows = read_jsonl(assets.dataset / "test.jsonl")
    predictions = classifier.predict(pairs_of(rows))
    results = json.loads((assets.run / "results.json").read_text(encoding="utf-8"))["test"]
    right = [p.label == row["label"] for p, row in zip(predictions, rows, strict=True)]
    assert np.mean(right) == pytest.approx(results["accuracy"])
    losses = [
        -np.log(p.probabilities[row["label"]]) for p, row in zip(predictions, rows, strict=True)
    ]
    assert np.mean(losses) == pytest.approx(results["loss"], abs=1e-5)


def test_a_prediction_is_its_logits(classifier):
    (prediction,) = classifier.predict([PAIR])
    assert isinstance(prediction, Prediction)
    assert list(prediction.probabilities) == list(LABELS)
    expected = torch.tensor(prediction.logits).softmax(0)
    assert list(prediction.probabilities.values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(prediction.probabilities.values()) == pytest.approx(1)
    assert prediction.label == LABELS[int(np.argmax(prediction.logits))]


@pytest.mark.parametrize("max_tokens", [1, 100, 16384])
def test_logits_do_not_depend_on_the_batch(assets, classifier, max_tokens):
    pairs = pairs_of(rows_of_different_lengths())
    alone = [classifier.predict([pair])[0].logits for pair in pairs]
    cut = XNLIClassifier.load(assets.fine_tuned, device="cpu", max_tokens=max_tokens)
    together = [prediction.logits for prediction in cut.predict(pairs)]
    assert np.abs(np.array(alone) - np.array(together)).max() < 1e-4
    assert np.ptp(np.array(alone), axis=0).max() > 1e-3, "else order would not show"


def test_premises_are_cut_as_in_training_and_hypotheses_never(classifier):
    premise, hypothesis = "आम " * 300, "राम के पास आम है"
    (row,) = classifier.encode([(premise, hypothesis)])
    assert len(row) == 160
    (short,) = classifier.encode([("आ", hypothesis)])
    hypothesis_tokens = (
        len(short)
        - 3
        - len(classifier.encoding.tokenizer.encode("आ", add_special_tokens=False).ids)
    )
    assert row[-hypothesis_tokens - 1 :].tolist() == short[-hypothesis_tokens - 1 :].tolist()
    with pytest.raises(DataError, match=r"pair 2: a hypothesis of \d+ tokens.*the 160 tokens"):
        classifier.predict([PAIR, (hypothesis, premise)])


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        (("", "a"), "the premise is empty"),
        (("a", " \n"), "the hypothesis is empty"),
        (("a", 3), "the hypothesis must be text, found 3"),
        (("a", None), "found None"),
        (("a",), "expected a premise and a hypothesis"),
        ("ab", "expected a premise and a hypothesis, found 'ab'"),
        (("a\ud800", "b"), "the premise is not Unicode text"),
    ],
)
def test_pairs_that_can_not_be_used_are_named(classifier, pair, problem):
    assert problem in classifier.problem_of(pair)
    with pytest.raises(DataError, match="pair 2: ") as caught:
        classifier.predict([PAIR, pair])
    assert problem in str(caught.value)


def test_no_pairs_no_predictions(classifier):
    assert classifier.predict([]) == []
    assert classifier.predict(iter([PAIR])) == classifier.predict([PAIR])


def test_asking_draws_no_bar_on_a_terminal(classifier, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    classifier.predict([PAIR])
    assert capsys.readouterr().err == ""


def test_load_refuses_what_is_no_checkpoint_of_ours(assets, tmp_path):
    with pytest.raises(RunError, match="not a fine-tuned checkpoint"):
        XNLIClassifier.load(assets.checkpoint, device="cpu")
    with pytest.raises(RunError, match="no such file"):
        XNLIClassifier.load(tmp_path / "none.pt", device="cpu")
    with pytest.raises(UsageError, match="float64"):
        XNLIClassifier.load(assets.fine_tuned, dtype="float64")


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved.pop("classes"),
        lambda saved: saved["classes"].pop(),
        lambda saved: saved["config"].update(num_layers=7),
        lambda saved: saved["model"].pop("head.hidden.bias"),
        lambda saved: saved.update(tokenizer="{}"),
    ],
)
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(assets, tmp_path, capsys, change):
    saved = read_fine_tuned(assets.fine_tuned)
    change(saved)
    path = tmp_path / "pairs-ckpt.pt"
    torch.save(saved, path)
    argv = ["--checkpoint", path, "--premise", "a", "--hypothesis", "b", "--device", "cpu"]
    assert predict.main([str(word) for word in argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: its parts do not fit together (")


def test_logits_that_are_not_finite_are_an_error(assets, tmp_path):
    saved = read_fine_tuned(assets.fine_tuned)
    saved["model"]["head.output.bias"][0] = torch.nan
    path = tmp_path / "pairs-ckpt.pt"
    torch.save(saved, path)
    with pytest.raises(EvaluationError, match="not finite"):
        XNLIClassifier.load(path, device="cpu").predict([PAIR])


def test_a_runs_folder_or_save_stands_for_its_model(assets, classifier, tmp_path, capsys):
    logits = classifier.predict([PAIR])[0].logits
    save = assets.run / "pairs-last.pt"
    for path in (assets.run, str(assets.run), save):
        assert XNLIClassifier.load(path, device="cpu").predict([PAIR])[0].logits == logits
    (note,) = capsys.readouterr().err.splitlines()
    assert note == f"note: {save} is a save to resume from; {assets.fine_tuned} is its best model"
    argv = ["--checkpoint", str(assets.run), "--export", str(tmp_path / "exported")]
    assert predict.main(argv) == 0
    assert place_of_results(capsys).startswith(f"exported: {tmp_path / 'exported'} (")
    assert "Test was scored once" in (tmp_path / "exported/README.md").read_text(encoding="utf-8")
    lone = tmp_path / "lone-prev.pt"
    lone.write_bytes(save.read_bytes())
    with pytest.raises(RunError, match="lone-ckpt.pt, which is not there"):
        XNLIClassifier.load(lone)
    with pytest.raises(RunError, match="a folder without a model"):
        XNLIClassifier.load(tmp_path)


# One pair


def test_one_pair_gives_its_classes_most_probable_first(assets, classifier, capsys):
    assert run(assets, "--premise", PAIR[0], "--hypothesis", PAIR[1]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (prediction,) = classifier.predict([PAIR])
    assert lines[0][0] == prediction.label
    assert {name: float(p) for name, p in lines} == pytest.approx(
        prediction.probabilities, abs=1e-4
    )
    assert [float(p) for _, p in lines] == sorted((float(p) for _, p in lines), reverse=True)


def test_one_pair_as_json(assets, classifier, capsys):
    assert run(assets, "--premise", PAIR[0], "--hypothesis", PAIR[1], "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    (prediction,) = classifier.predict([PAIR])
    record = json.loads(line)
    assert (record["premise"], record["hypothesis"]) == PAIR
    assert record["prediction"] == prediction.label
    assert record["logits"] == pytest.approx(list(prediction.logits))
    assert PAIR[0] in line, "Devanagari must be readable"


# Files


def test_a_file_keeps_its_order_and_its_other_columns(
    assets, classifier, tmp_path, in_chunks_of_two, capsys
):
    rows = rows_of_different_lengths()
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "predictions.jsonl"
    assert run(assets, "--input", source, "--output", output) == 0
    assert place_of_results(capsys) == f"predictions: {output} ({len(rows)} pairs)"
    records = read_jsonl(output)
    expected = classifier.predict(pairs_of(rows))
    assert len(records) == len(rows)
    for record, row, prediction in zip(records, rows, expected, strict=True):
        assert {key: record[key] for key in row} == row
        assert record["prediction"] == prediction.label
        assert record["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-5)
        assert record["logits"] == pytest.approx(list(prediction.logits), abs=1e-4)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize(("kind", "separator"), [("csv", ","), ("tsv", "\t")])
def test_csv_and_tsv_with_all_that_their_fields_may_hold(
    assets, classifier, tmp_path, kind, separator
):
    rows = rows_of_different_lengths()[:3]
    rows[0]["premise"] = 'राम,\t"ने"\nआम ख़रीदा'
    buffer = io.StringIO()
    columns = ["id", "context", "claim"]
    writer = csv.writer(buffer, delimiter=separator, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([row["id"], row["premise"], row["hypothesis"]] for row in rows)
    source = tmp_path / f"pairs.{kind}"
    # A byte order mark, as spreadsheets write it, and a blank line.
    source.write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode() + b"\r\n")
    output = tmp_path / f"predictions.{kind}"
    words = ["--input", source, "--output", output, "--text_column", "context", "claim"]
    assert run(assets, *words, "--quotes", "csv") == 0
    with open(output, encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file, delimiter=separator))
    expected = classifier.predict(pairs_of(rows))
    assert list(records[0]) == [*columns, "prediction", *(f"probability_{c}" for c in LABELS)]
    assert [record["context"] for record in records] == [row["premise"] for row in rows]
    assert [record["id"] for record in records] == ["0", "1", "2"]
    assert [record["prediction"] for record in records] == [p.label for p in expected]
    for record, prediction in zip(records, expected, strict=True):
        for name, probability in prediction.probabilities.items():
            assert float(record[f"probability_{name}"]) == pytest.approx(probability, abs=1e-5)


def test_jsonl_becomes_a_table_of_its_texts(assets, tmp_path):
    rows = [{"premise": "a", "hypothesis": "b", "odd": 1}, {"hypothesis": "d", "premise": "c"}]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert run(assets, "--input", source, "--output", tmp_path / "out.csv") == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file))
    assert [(r["premise"], r["hypothesis"]) for r in records] == [("a", "b"), ("c", "d")]
    assert "odd" not in records[0]


def test_old_predictions_in_the_input_are_replaced(assets, tmp_path):
    source = tmp_path / "pairs.csv"
    source.write_text("prediction,premise,hypothesis\nold,a,b\n", encoding="utf-8")
    assert run(assets, "--input", source, "--output", tmp_path / "out.csv") == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        header, row = list(csv.reader(file))
    assert header.count("prediction") == 1
    assert dict(zip(header, row, strict=True))["prediction"] in LABELS


BAD_JSONL = [
    ("{", "not JSON"),
    ("[1]", "no object"),
    ('{"premise": "a"}', "no column hypothesis (found premise)"),
    ('{"premise": "a", "hypothesis": 3}', "the hypothesis must be text, found 3"),
    ('{"premise": "", "hypothesis": "b"}', "the premise is empty"),
    ('{"premise": "\\ud800", "hypothesis": "b"}', "the premise is not Unicode text"),
    ('{"premise": "a", "hypothesis": "' + "आम " * 200 + '"}', "leaves no room"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_JSONL)
def test_a_bad_row_is_named_and_nothing_is_left(assets, tmp_path, capsys, line, problem):
    good = {"premise": "a", "hypothesis": "b"}
    source = write_jsonl(tmp_path / "pairs.jsonl", [good, "", line, good])
    (said,) = error_lines(capsys, assets, "--input", source, "--output", tmp_path / "out.jsonl")
    assert said.startswith(f"error: {source} line 3: ") and problem in said
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_bad_rows_are_skipped_by_flag_and_named(assets, tmp_path, capsys, in_chunks_of_two):
    rows = []
    for number, (line, _) in enumerate(BAD_JSONL):
        rows += [line, {"premise": "a", "hypothesis": "b", "id": number}]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    output = tmp_path / "out.jsonl"
    assert run(assets, "--input", source, "--output", output, "--bad_rows", "skip") == 0
    assert [record["id"] for record in read_jsonl(output)] == list(range(len(BAD_JSONL)))
    out, err = capsys.readouterr()
    places = f"predictions: {output} ({len(BAD_JSONL)} pairs, {len(BAD_JSONL)} rows skipped)"
    assert out.splitlines() == [places]
    said = err.splitlines()
    lines = [int(line.split(" line ")[1].split(":")[0]) for line in said]
    assert sorted(lines) == [1 + 2 * i for i in range(len(BAD_JSONL))]
    assert all(line.startswith(f"skipped {source} line ") for line in said)


BAD_CSV = [
    ("a,b,c", "has 3 fields, expected the 2 of the header"),
    ("a", "1 fields"),
    ('"a"b,c', "has a field that opens with a quote but is not a quoted field"),
    ("a,", "the hypothesis is empty"),
]


@pytest.mark.parametrize(("line", "problem"), BAD_CSV)
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_bad_rows_of_csv_are_named_by_their_line(assets, tmp_path, capsys, line, problem, policy):
    source, output = tmp_path / "pairs.csv", tmp_path / "out.jsonl"
    # The row before spans two lines.
    source.write_text(f'premise,hypothesis\n"x\ny",z\n{line}\nlast,b\n', encoding="utf-8")
    words = ["--input", source, "--output", output, "--bad_rows", policy]
    assert run(assets, *words) == (2 if policy == "stop" else 0)
    said = capsys.readouterr().err
    assert f"{source} line 4: " in said and problem in said
    assert output.exists() == (policy == "skip")
    if policy == "skip":
        assert [record["premise"] for record in read_jsonl(output)] == ["x\ny", "last"]


def test_bytes_that_are_no_text_are_named(assets, tmp_path, capsys):
    for name, text in (
        ("pairs.jsonl", b'{"premise": "a", "hypothesis": "\xff"}\n'),
        ("pairs.csv", b"premise,hypothesis\na,\xff\n"),
    ):
        (tmp_path / name).write_bytes(text)
        (said,) = error_lines(capsys, assets, "--input", tmp_path / name)
        assert f"line {1 + name.endswith('csv')}: is not UTF-8" in said
    (tmp_path / "wide.csv").write_bytes("premise,hypothesis\na,b\n".encode("utf-16"))
    (said,) = error_lines(capsys, assets, "--input", tmp_path / "wide.csv")
    assert "its header is not UTF-8" in said


def test_a_lone_surrogate_that_is_handed_on_stays_json(assets, tmp_path):
    line = '{"premise": "a", "hypothesis": "b", "note": "\\ud800"}'
    source = write_jsonl(tmp_path / "pairs.jsonl", [line])
    assert run(assets, "--input", source, "--output", tmp_path / "out.jsonl") == 0
    assert read_jsonl(tmp_path / "out.jsonl")[0]["note"] == "\ud800"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,b\nc,d\n", "no column premise, hypothesis (found a, b); name the columns"),
        ("premise,hypothesis,premise\na,b,c\n", "column premise stands twice"),
        ("premise,hypothesis\n", "no pairs, expected at least one"),
        ("", "no column premise, hypothesis (found nothing)"),
        ('"premise\n', "its header can't be read"),
    ],
)
def test_files_without_pairs(assets, tmp_path, capsys, content, problem):
    source = tmp_path / "pairs.csv"
    source.write_text(content, encoding="utf-8")
    (said,) = error_lines(capsys, assets, "--input", source, "--output", tmp_path / "out.csv")
    assert said.startswith(f"error: {source}: ") and problem in said
    assert not (tmp_path / "out.csv").exists()


def test_a_file_of_bad_rows_alone_is_an_error(assets, tmp_path, capsys):
    source = write_jsonl(tmp_path / "pairs.jsonl", ["{", "{"])
    assert run(assets, "--input", source, "--bad_rows", "skip") == 2
    assert f"error: {source}: none of 2 rows can be used" in capsys.readouterr().err


def test_rows_in_memory_are_bounded(assets, classifier, in_chunks_of_two):
    """No row is read before the two before it are answered."""
    taken = []

    def rows():
        for number in range(7):
            taken.append(number)
            yield predict.Row(f"line {number}", {}, PAIR)

    chunks = predict.predicted_chunks(classifier, rows(), predict.BadRows("stop"))
    for number, chunk in enumerate(chunks):
        assert len(chunk) <= 2
        assert len(taken) <= 2 * (number + 1)
    assert len(taken) == 7


# Pipes


def test_lines_from_a_pipe_go_out_as_lines(assets, classifier, monkeypatch, capsys):
    given_stdin(monkeypatch, "\ufeff" + "\t".join(PAIR) + "\r\n\nx\ty")
    assert run(assets) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = classifier.predict([PAIR, ("x", "y")])
    assert [tuple(line[:2]) for line in lines] == [PAIR, ("x", "y")]
    assert [line[2] for line in lines] == [prediction.label for prediction in expected]
    assert [float(p) for p in lines[0][3:]] == pytest.approx(
        list(expected[0].probabilities.values()), abs=1e-5
    )


def test_a_header_in_a_pipe_names_its_columns(assets, monkeypatch, capsys):
    given_stdin(monkeypatch, 'id\thypothesis\tpremise\n7\tb\t"a\ta"\n')
    assert run(assets, "--quotes", "csv") == 0
    header, row = list(csv.reader(io.StringIO(capsys.readouterr().out), delimiter="\t"))
    record = dict(zip(header, row, strict=True))
    assert (record["id"], record["premise"], record["hypothesis"]) == ("7", "a\ta", "b")
    assert record["prediction"] in LABELS


def test_jsonl_from_a_pipe_goes_out_as_jsonl(assets, monkeypatch, capsys):
    given_stdin(monkeypatch, '\n {"premise": "a", "hypothesis": "b", "id": 5}\n')
    assert run(assets) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["id"] == 5 and record["prediction"] in LABELS


def test_lines_become_json_by_flag(assets, monkeypatch, capsys):
    given_stdin(monkeypatch, "a\tb\n")
    assert run(assets, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["premise"], record["hypothesis"]) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "standard input: no pairs"),
        ("a b\n", "standard input line 1: has 1 fields, expected premise, tab, hypothesis"),
        ("a\tb\nc\td\te\n", "standard input line 2: has 3 fields"),
        (b"a\t\xff\n", "standard input line 1: is not UTF-8"),
    ],
)
def test_what_is_wrong_in_a_pipe(assets, monkeypatch, capsys, text, problem):
    given_stdin(monkeypatch, text)
    (said,) = error_lines(capsys, assets)
    assert problem in said


def test_a_real_pipe_in_the_plainest_locale(assets):
    argv = [sys.executable, SCRIPT, "--checkpoint", assets.fine_tuned, "--device", "cpu"]
    plainest = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        argv,
        input="\t".join(PAIR).encode(),
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | plainest,
        timeout=HANG_S,
    )
    assert done.returncode == 0 and not done.stderr
    (line,) = done.stdout.decode().splitlines()
    assert tuple(line.split("\t")[:2]) == PAIR
    assert line.split("\t")[2] in LABELS


def test_a_reader_that_leaves_ends_it_quietly(assets, monkeypatch, capsys, in_chunks_of_two):
    """As `head` does, while pairs still come."""
    taken = []
    usable = predict.predicted_chunks

    def counted(*args):
        for chunk in usable(*args):
            taken.append(chunk)
            yield chunk

    monkeypatch.setattr(predict, "predicted_chunks", counted)
    given_stdin(monkeypatch, "a\tb\n" * 20)
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    with open(writing_end, "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(assets) == 0
    assert capsys.readouterr().err == ""
    assert len(taken) == 1, "nobody reads the rest"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line(assets, monkeypatch, capsys):
    given_stdin(monkeypatch, "a\tb\n")
    with open("/dev/full", "w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(assets) == 2
    assert capsys.readouterr().err.splitlines() == ["error: disk: No space left on device"]


# Command lines


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--premise", "a"], "--premise: give both"),
        (["--premise", "a", "--hypothesis", "b", "--output", "x.csv"], "--output: goes with many"),
        (["--input", "none.jsonl"], "--input none.jsonl: no such file"),
        (["--input", "pairs.txt"], "expected a file that ends in .jsonl, .json, .csv, .tsv"),
        (["--output", "none/out.csv"], "no folder none; make it first"),
        (["--output", "out.csv", "--json"], "--json: goes with standard output"),
        (["--export", "x", "--premise", "a"], "--premise: nothing is predicted with --export"),
        (["--bad_rows", "keep"], "expected error or skip"),
        (["--device", "tpu"], "--device tpu"),
        (["--dtype", "int8"], "--dtype int8"),
    ],
)
def test_what_can_be_wrong_with_a_command_line(
    assets, tmp_path, monkeypatch, capsys, words, problem
):
    monkeypatch.chdir(tmp_path)
    given_stdin(monkeypatch, "a\tb\n")
    assert any(problem in line for line in error_lines(capsys, assets, *words))
    assert list(tmp_path.iterdir()) == []


def test_all_problems_are_told_at_once(monkeypatch, capsys):
    given_stdin(monkeypatch, "")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert predict.main(["--device", "tpu", "--output", "x.txt"]) == 2
    said = capsys.readouterr().err
    for problem in ("nothing to predict", "--checkpoint is needed", "--device tpu", "x.txt"):
        assert problem in said


def test_the_input_is_never_overwritten(assets, tmp_path, capsys):
    source = write_jsonl(tmp_path / "pairs.jsonl", [{"premise": "a", "hypothesis": "b"}])
    before = source.read_bytes()
    (said,) = error_lines(capsys, assets, "--input", source, "--output", source)
    assert "is the input" in said
    assert source.read_bytes() == before


def test_an_interrupted_command_leaves_nothing(assets, tmp_path, monkeypatch, capsys):
    source = write_jsonl(tmp_path / "pairs.jsonl", [{"premise": "a", "hypothesis": "b"}])
    predicted = XNLIClassifier.predict_encoded

    def interrupted(*args):
        predicted(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(XNLIClassifier, "predict_encoded", interrupted)
    words = ["--input", source, "--output", tmp_path / "out.jsonl"]
    assert run(assets, *words) == EXIT_INTERRUPTED
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_a_checkpoint_of_pretraining_is_refused(assets, capsys):
    words = ["--checkpoint", assets.checkpoint, "--premise", "a", "--hypothesis", "b"]
    (said,) = error_lines(capsys, assets, *words)
    assert "not a fine-tuned checkpoint" in said
