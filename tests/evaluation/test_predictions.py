"""Predictions of other models, read back in the order of the data or refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scored_parts import CLASSES, scored_at_random

from xnli_gpt.errors import PredictionsError
from xnli_gpt.evaluation.predictions import logits_in_order, prediction_lines, read_predictions
from xnli_gpt.evaluation.scored_split import ScoredSplit


def write_lines(path, lines) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def lines_of(scored: ScoredSplit) -> list[dict]:
    return list(prediction_lines("pairs", "test", scored))


def read_back(path, scored: ScoredSplit, classes=CLASSES) -> np.ndarray:
    ((predicted,),) = [run.values() for run in read_predictions(path, "test")]
    labels = [scored.classes[label] for label in scored.labels]
    return logits_in_order(
        predicted, scored.ids, scored.premises, scored.hypotheses, labels, classes
    )


def test_predictions_come_back_in_the_order_of_the_data(tmp_path):
    scored = scored_at_random(4, num_premises=5)
    lines = lines_of(scored)
    assert lines[7]["label"] == "neutral" and lines[7]["id"] == 7
    assert sum(lines[7]["probabilities"].values()) == pytest.approx(1)
    path = tmp_path / "predictions.jsonl"
    write_lines(path, lines[::-1])
    assert (read_back(path, scored) == scored.logits[0]).all()
    swapped = ("neutral", "entailment", "contradiction")
    assert (read_back(path, scored, swapped) == scored.logits[0][:, [1, 0, 2]]).all()


def test_predictions_may_lack_logits_and_labels(tmp_path):
    scored = scored_at_random(4, num_premises=5)
    lines = lines_of(scored)
    for line in lines:
        del line["logits"], line["label"]
    write_lines(tmp_path / "mine.jsonl", lines)
    back = replace(scored, logits=read_back(tmp_path / "mine.jsonl", scored)[None])
    assert np.allclose(back.probabilities, scored.probabilities)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda lines: lines.pop(), "no prediction for 1 of the data's 15 rows, .* id 14"),
        (lambda lines: lines.append(lines[0] | {"id": 99}), "1 predictions for rows .* id 99"),
        (lambda lines: lines.append(lines[3]), "id 3 stands twice"),
        (lambda lines: lines[2].update(premise="other"), "premise of id 2 is 'other', but"),
        (lambda lines: lines[2].update(hypothesis="other"), "hypothesis of id 2 is 'other', but"),
        (lambda lines: lines[2].update(label="neutral"), "label of id 2 is 'neutral', but"),
        (lambda lines: lines[2].pop("id"), "line 3: no id"),
        (lambda lines: lines[2].update(id="2"), "line 3: id '2' is no whole number"),
        (lambda lines: lines[2].update(premise=None), "line 3: premise None is no text"),
        (lambda lines: lines[2].update(logits=[0.1, 0.2]), "line 3: logits .* not 3 numbers"),
        (lambda lines: lines[2].update(logits=[9, 0, 0]), "line 3: logits .* don't give"),
        (lambda lines: lines[2].update(prediction="maybe"), "line 3: prediction maybe is not"),
        (
            lambda lines: lines[2].update(probabilities={"yes": 0.5, "no": 0.5}),
            "line 3: classes yes, no, but entailment, neutral, contradiction above",
        ),
        (
            lambda lines: lines[2].update(probabilities=dict.fromkeys(CLASSES, 0.5)),
            "line 3: probabilities .* are no shares of 1",
        ),
        (
            lambda lines: [line.update(split="validation") for line in lines],
            r"no predictions of split test \(found validation\); see `split`",
        ),
    ],
)
def test_predictions_that_do_not_match_the_data_are_refused(change, told, tmp_path):
    scored = scored_at_random(4, num_premises=5)
    lines = lines_of(scored)
    change(lines)
    write_lines(tmp_path / "predictions.jsonl", lines)
    with pytest.raises(PredictionsError, match=told) as caught:
        read_back(tmp_path / "predictions.jsonl", scored)
    assert "\n" not in str(caught.value) and "predictions.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "found nothing"),
        (b"{\n", "line 1: not JSON"),
        (b"[]\n", "line 1: no object"),
        (b"\xff\n", "not UTF-8"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_holds_no_predictions_is_refused(content, told, tmp_path):
    if content is not None:
        (tmp_path / "predictions.jsonl").write_bytes(content)
    with pytest.raises(PredictionsError, match=told):
        read_predictions(tmp_path / "predictions.jsonl", "test")


def test_predictions_of_other_classes_are_refused(tmp_path):
    scored = scored_at_random(4, num_premises=5)
    write_lines(tmp_path / "predictions.jsonl", lines_of(scored))
    with pytest.raises(PredictionsError, match="data's classes are no, yes"):
        read_back(tmp_path / "predictions.jsonl", scored, ("no", "yes"))
