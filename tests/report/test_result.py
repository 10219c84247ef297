"""The result in one sentence and one picture, and the curves of runs of few steps and of many."""

import json
from pathlib import Path

import numpy as np
import pytest
from report_parts import Page, history_lines, scored_split, write

from xnli_gpt.evaluation.comparison import compare
from xnli_gpt.evaluation.scores import split_metrics
from xnli_gpt.report import read_steps
from xnli_gpt.report.curves import chance_of, training_curve
from xnli_gpt.report.wording import duration

BASELINES = {"majority_accuracy": 1 / 3, "hypothesis_only": {"accuracy": 0.6}, "examples": 5010}


def sentence(tmp_path: Path, **parts: object) -> str:
    write(tmp_path, **parts)
    page = Page(tmp_path / "report.html")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    pasted = next(line for line in text.splitlines() if line.startswith("**"))
    assert pasted.replace("**", "").replace("\\", "") == page.sentence
    return page.sentence


def test_the_result_is_held_against_every_baseline_that_is_known(tmp_path):
    metrics = BASELINES | {"accuracy": 0.61, "intervals": {"accuracy": [0.59, 0.63]}}
    parts = {"results": {"hindi_xnli": metrics}, "random_trunk": {"hindi_xnli": 0.7}}
    assert sentence(tmp_path, **parts) == (
        "Accuracy 0.610 [0.590, 0.630] on the 5,010 test examples of hindi_xnli, above the "
        "majority class (0.333), not told apart from a classifier that sees the hypothesis only "
        "(0.600), below the same network from random weights (0.700)."
    )
    page = Page(tmp_path / "report.html")
    (image,) = page.all("img")
    for said in ("this model 0.610 [0.590, 0.630]", "majority class 0.333", "random trunk 0.700"):
        assert said in image["alt"]
    for name in ("majority class", "hypothesis only", "random trunk"):
        assert name in page.texts


def test_several_datasets_are_told_by_their_mean_and_ends(tmp_path):
    results = {
        "xnli_hi": BASELINES | {"accuracy": 0.72},
        "xnli_ur": BASELINES | {"accuracy": 0.64, "hypothesis_only": {"accuracy": 0.5}},
    }
    mean = {"accuracy": 0.68, "intervals": {"accuracy": [0.66, 0.70]}}
    assert sentence(tmp_path, results=results, macro_average=mean) == (
        "Accuracy 0.680 [0.660, 0.700] in the mean over 2 datasets (test), from 0.640 (xnli_ur) to "
        "0.720 (xnli_hi), above the majority class (0.333) and a classifier that sees the "
        "hypothesis only (0.550)."
    )
    assert "macro average" in Page(tmp_path / "report.html").texts


def alone(rows: int = 180) -> dict:
    scored = scored_split("xnli_hi", skill=1)
    scored.logits[:, :, 1] += 99
    return split_metrics(scored, 200)


def test_a_model_that_answers_one_class_alone_is_called_that(tmp_path):
    said = sentence(tmp_path, results={"xnli_hi": alone()})
    assert said == (
        "One class alone: the model answers neutral to all 180 test examples of xnli_hi, so that "
        "its accuracy, 0.333, is only the share of that class, against the majority class (0.333)."
    )
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The model answers neutral to every example." in text
    # Neither of the scores nor of slices.
    assert not [t for t in Page(tmp_path / "report.html").texts if t.startswith("0.333 [")]


def test_one_class_alone_is_told_among_several_datasets(tmp_path):
    results = {"xnli_hi": alone(), "xnli_ur": split_metrics(scored_split("xnli_ur", 2), 200)}
    assert "; it answers one class alone on xnli_hi." in sentence(tmp_path, results=results)


def test_a_comparison_is_told_with_its_difference(tmp_path):
    first, second = ({"xnli_hi": scored_split("xnli_hi", skill)} for skill in (3, 1))
    parts = {
        "results": {name: split_metrics(one, 200) for name, one in first.items()},
        "comparison": compare(first, second, 200) | {"names": ["BPE", "Unigram"]},
    }
    assert "; BPE minus Unigram: +0." in sentence(tmp_path, **parts)
    alts = [image["alt"] for image in Page(tmp_path / "report.html").all("img")]
    assert "BPE 0." in alts[0] and "Unigram 0." in alts[0]


@pytest.mark.parametrize("num_datasets, folded", [(1, 0), (3, 0), (4, 4), (15, 15)])
def test_many_datasets_are_folded_under_their_results(num_datasets, folded, tmp_path):
    figures = {"a": {"precision": 0.7, "recall": 0.7, "f1": 0.7, "support": 50}}
    results = {f"set_{i}": {"accuracy": 0.7, "per_class": figures} for i in range(num_datasets)}
    write(tmp_path, results=results)
    page = Page(tmp_path / "report.html")
    assert len(page.all("details")) == folded
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert text.count("<span>accuracy 0.700</span></summary>") == folded


def step_lines(count: int) -> list[dict]:
    return [{"step": i + 1, "loss": 1.1 - 0.5 * i / count} for i in range(count)]


def test_steps_are_read_from_a_file_that_a_kill_cut_and_a_resumed_run_went_on_with(tmp_path):
    path = tmp_path / "steps.jsonl"
    assert read_steps(path) == []
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 0.9}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "lo')
    assert read_steps(path) == [lines[0], lines[2]]


def test_a_run_of_two_steps_has_a_curve_of_them(tmp_path):
    write(tmp_path, steps=step_lines(2), history=history_lines(1))
    (image,) = Page(tmp_path / "report.html").all("img")
    assert "Training loss from 1.100 to 0.850." in image["alt"]
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Loss of every step in training and on validation" in text


def test_many_steps_are_smoothed_to_means_that_leave_none_out(tmp_path):
    steps = step_lines(18_408)
    steps[7]["loss"] = float("nan")
    curve = training_curve(steps)
    assert 50 <= len(curve.steps) <= 120
    assert curve.losses[0] == pytest.approx(1.1, abs=0.01)
    assert curve.losses[-1] == pytest.approx(0.6, abs=0.01)
    assert (curve.lows <= curve.losses).all() and (curve.losses <= curve.highs).all()
    assert np.average(curve.losses) == pytest.approx(0.85, abs=0.01)
    write(tmp_path, steps=steps)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"means of {curve.steps_per_point} steps" in text
    assert training_curve(steps[:1]) is None


def test_chance_is_the_most_frequent_class_of_validation_or_else_an_even_guess():
    history = history_lines(2)
    assert chance_of(history, {}) is None
    three = {name: {"support": support} for name, support in zip("abc", (1, 2, 5), strict=True)}
    assert chance_of(history, {"x": {"per_class": three}}).accuracy == pytest.approx(1 / 3)
    history[-1]["validation"]["per_class"] = three
    chance = chance_of(history, {})
    assert (chance.accuracy, chance.accuracy_title) == (5 / 8, "majority class")
    assert chance.loss == pytest.approx(np.log(3))
    two = {name: {"support": 1} for name in "ab"}
    history[-1]["validation"]["sets"] = {"x": {"per_class": three}, "y": {"per_class": two}}
    assert chance_of(history, {}).accuracy == pytest.approx((5 / 8 + 1 / 2) / 2)


@pytest.mark.parametrize(
    "seconds, said",
    [(3.21, "3.2 s"), (59.7, "1 min 0 s"), (249, "4 min 9 s"), (7980, "2 h 13 min")],
)
def test_durations_are_told_in_their_two_largest_units(seconds, said):
    assert duration(seconds) == said
