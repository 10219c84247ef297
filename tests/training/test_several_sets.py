"""Training on several datasets at once: sampling, validation of each, the best by the mean."""

import json
import os
import signal
from collections import Counter
from pathlib import Path

import kills
import numpy as np
import pytest
import small_run
import torch

import finetune_hindi_xnli as finetune
from xnli_gpt.data.cache import load_encoded
from xnli_gpt.data.encoded import JoinedDatasets, joined
from xnli_gpt.data.names import dataset_names, short_name
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.tokenizer import load_pair_encoding
from xnli_gpt.errors import DataError
from xnli_gpt.fine_tuning.setup import positions_of_sets
from xnli_gpt.provenance import code_commit
from xnli_gpt.training.order import ExampleOrder
from xnli_gpt.training.trainer import Trainer

STEPS = ("--max_steps", 10, "--eval_interval", 3)


@pytest.fixture(scope="module")
def assets(assets):
    few = assets.folder / "few"
    few.mkdir()
    for split in ("train", "validation", "test"):
        lines = (assets.dataset / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (few / f"{split}.jsonl").write_text("".join(lines[:9]))
    assets.few = few
    return assets


def command(assets, out_dir, *changes: object) -> list[str]:
    sets = ("--dataset", assets.dataset, assets.contrary, assets.few)
    return small_run.command(assets, out_dir, *STEPS, *sets, *changes)


def of_sets(assets) -> JoinedDatasets:
    encoding = load_pair_encoding(str(assets.tokenizer), block_size=160)
    names = [str(folder) for folder in (assets.dataset, assets.contrary, assets.few)]
    return joined(
        {
            short_name(name): load_encoded(DataRequest(dataset=name), encoding, assets.cache)
            for name in names
        }
    )


def test_joined_rows_are_those_of_their_sets(assets):
    data = of_sets(assets)
    assert list(data.sets) == ["pairs", "contrary", "few"]
    assert Counter(data.train_sets.tolist()) == {0: 36, 1: 36, 2: 9}
    for number, dataset in enumerate(data.sets.values()):
        own = dataset.splits["train"]
        places = np.flatnonzero(data.train_sets == number)
        assert len(places) == len(own)
        for index, place in enumerate(places):
            assert data.train.row(place).tolist() == own.row(index).tolist()
            assert data.train.premise(place).tolist() == own.premise(index).tolist()
            assert data.train.labels[place] == own.labels[index]


def test_sets_of_other_classes_are_not_joined(assets, tmp_path, capsys):
    binary = tmp_path / "binary"
    binary.mkdir()
    for split in ("train", "validation", "test"):
        rows = [{"premise": "a", "hypothesis": "b", "label": label} for label in ("no", "yes")]
        lines = [json.dumps(row) + "\n" for row in rows]
        (binary / f"{split}.jsonl").write_text("".join(lines))
    words = small_run.command(assets, tmp_path / "out", "--dataset", assets.dataset, binary)
    assert finetune.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--dataset binary: classes no, yes, but pairs has entailment" in line
    assert not (tmp_path / "out").exists()


def test_names_of_sets():
    assert dataset_names(["a", "b/c"]) == ["a", "b/c"]
    every = dataset_names(["xnli_all"])
    assert len(every) == 15 and {"xnli_hi", "xnli_ur", "xnli_en"} < set(every)
    with pytest.raises(DataError, match="xnli_hi more than once"):
        dataset_names(["xnli_all", "xnli_hi"])


# Sampling


def sets_of_epoch(order: ExampleOrder, sets: np.ndarray, epoch: int) -> Counter:
    steps = range(epoch * order.epoch_steps, (epoch + 1) * order.epoch_steps)
    return Counter(sets[np.concatenate([order.of_step(step) for step in steps])].tolist())


def test_sampling_in_proportion_takes_every_row_once():
    sets = np.repeat([0, 1], [90, 10])
    order = ExampleOrder(100, 8, seed=1)
    assert sets_of_epoch(order, sets, 0) == sets_of_epoch(order, sets, 5) == {0: 90, 1: 10}


def test_even_sampling_takes_as_many_of_each_and_all_of_them_equally_often():
    sets = np.repeat([0, 1, 2], [90, 7, 23])
    order = ExampleOrder(120, 8, 1, positions_of_sets(sets))
    assert sets_of_epoch(order, sets, 0) == sets_of_epoch(order, sets, 7) == {0: 40, 1: 40, 2: 40}
    epochs = 9 * 7 * 23 // 7  # after so many, whole rounds of the two larger sets
    times = Counter()
    for step in range(epochs * order.epoch_steps):
        times.update(order.of_step(step).tolist())
    of_set = [[times[place] for place in np.flatnonzero(sets == number)] for number in range(3)]
    assert all(max(counts) - min(counts) <= 1 for counts in of_set)


def test_the_order_is_a_function_of_seed_and_step():
    sets = positions_of_sets(np.repeat([0, 1], [30, 5]))
    one, two = (ExampleOrder(35, 4, 3, sets) for _ in range(2))
    backwards = [two.of_step(step).tolist() for step in reversed(range(40))]
    assert [one.of_step(step).tolist() for step in range(40)] == backwards[::-1]
    other = ExampleOrder(35, 4, 4, sets)
    assert one.of_step(0).tolist() != other.of_step(0).tolist()


# Runs


@pytest.fixture(scope="module")
def trained(assets):
    out_dir = assets.folder / "three"
    assert finetune.main(command(assets, out_dir, "--best_per_set")) == 0
    return out_dir


def test_every_set_is_scored_and_the_mean_decides(trained):
    results = json.loads((trained / "results.json").read_text())
    for split in ("validation", "test"):
        scores = results[split]
        assert list(scores["sets"]) == ["pairs", "contrary", "few"]
        for metric in ("accuracy", "macro_f1", "loss"):
            values = [of_set[metric] for of_set in scores["sets"].values()]
            assert scores[metric] == pytest.approx(np.mean(values))
        assert scores["examples"] == sum(one["examples"] for one in scores["sets"].values())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: line["validation"]["accuracy"])
    assert results["best_step"] == best["step"]


def test_the_best_model_of_each_set_is_kept_and_scored(trained):
    results = json.loads((trained / "results.json").read_text())
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert list(results["best_per_set"]) == ["pairs", "contrary", "few"]
    for name, best in results["best_per_set"].items():
        accuracies = {ln["step"]: ln["validation"]["sets"][name]["accuracy"] for ln in lines}
        assert best["best_step"] == max(accuracies, key=accuracies.get)
        saved = torch.load(trained / f"pairs+contrary+few-{name}-ckpt.pt", weights_only=True)
        assert saved["step"] == best["best_step"]
        assert best["test"]["examples"] == results["test"]["sets"][name]["examples"]


def test_a_stopped_run_of_several_sets_ends_where_an_uninterrupted_one_does(
    trained, assets, tmp_path, monkeypatch
):
    counted = Trainer._count

    def count(trainer, *others):
        counted(trainer, *others)
        if trainer.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_count", count)
    words = command(assets, tmp_path / "three", "--best_per_set")
    assert finetune.main(words) == 75
    monkeypatch.undo()
    assert finetune.main(words) == 0
    assert_same_outcome(trained, tmp_path / "three")


def assert_same_outcome(first: Path, second: Path) -> None:
    outs = (first, second)
    results = [json.loads((out / "results.json").read_text()) for out in outs]
    assert kills.without_times(results[0]) == kills.without_times(results[1])
    lines = [(out / "metrics.jsonl").read_text().splitlines() for out in outs]
    for one, two in zip(*lines, strict=True):
        assert kills.without_times(json.loads(one)) == kills.without_times(json.loads(two))
    assert (first / "steps.jsonl").read_text() == (second / "steps.jsonl").read_text()
    for path in first.glob("*-ckpt.pt"):
        one = torch.load(path, weights_only=True)["model"]
        two = torch.load(second / path.name, weights_only=True)["model"]
        assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_a_longer_run_has_the_best_model_of_each_set_that_it_would_have_had(assets, tmp_path):
    """The evaluation at the end of the shorter run, off the interval, chooses none of them."""
    changes = ("--best_per_set", "--lr_schedule", "constant", "--warmup_ratio", 0)
    changes += ("--best_metric", "loss", "--eval_interval", 3, "--max_steps")
    assert finetune.main(command(assets, tmp_path / "whole", *changes, 8)) == 0
    assert finetune.main(command(assets, tmp_path / "longer", *changes, 5)) == 0
    assert list((tmp_path / "longer").glob("*-few-ckpt-earlier.pt"))
    assert finetune.main(command(assets, tmp_path / "longer", *changes, 8)) == 0
    assert_same_outcome(tmp_path / "whole", tmp_path / "longer")


def test_sampling_is_part_of_the_command(trained, assets, capsys):
    words = command(assets, trained, "--best_per_set", "--sampling", "even")
    assert finetune.main(words) == 2
    assert "--sampling proportional there, even now" in capsys.readouterr().err


def test_even_sampling_runs(assets, tmp_path):
    assert finetune.main(command(assets, tmp_path, "--sampling", "even", "--max_steps", 2)) == 0


def test_a_run_ends_with_its_report(assets, tmp_path):
    words = command(assets, tmp_path, "--report", "--max_steps", 4)
    assert finetune.main(words) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    of_pairs = results["test"]["sets"]["pairs"]
    low, high = of_pairs["intervals"]["accuracy"]
    assert low <= of_pairs["accuracy"] <= high
    for told in ("contrary", "state_step000100.pt", "bootstrap over premises"):
        assert told in page
    for told in ("best validation", "duration", "gradient_accumulation_steps", "0.001"):
        assert told in page
    commit = code_commit()
    assert commit is None or commit in page
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open(encoding="utf-8")]
    assert len(lines) == results["test"]["examples"]
    right = sum(line["label"] == line["prediction"] for line in lines if line["dataset"] == "pairs")
    assert right / of_pairs["examples"] == pytest.approx(of_pairs["accuracy"])
