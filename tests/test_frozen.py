"""What the first published version wrote (`frozen/README.md`) is used by today's code, and by code
that has learnt one more fact of a network."""

import dataclasses
import json
import shutil
import types
from pathlib import Path

import pytest
import small_run
import torch
import transformers

import finetune_hindi_xnli as finetune
import model
from inference import XNLIClassifier
from predict_hindi_xnli import export_checkpoint
from xnli_gpt.evaluation import metrics
from xnli_gpt.export import card
from xnli_gpt.export import folder as folder_room
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.mixing import join_scalars
from xnli_gpt.report import run_report
from xnli_gpt.training.optimizer import configure_optimizers
from xnli_gpt.training.saves import moments_by_names

FROZEN = Path(__file__).parent / "frozen"
TRUNK = "pretrained_model."
FLAGS = (
    *("--max_steps", 24, "--eval_interval", 6, "--save_interval", 5, "--learning_rate", 0.01),
    *("--best_metric", "loss", "--seed", 2, "--dtype", "float32"),
)
# Of a run that goes on from a save: another machine's roundings grow over nine steps.
SAME_TRAINING = 1e-3


def recorded(key: str) -> tuple[list[tuple[str, str]], torch.Tensor]:
    rows = json.loads((FROZEN / "logits.json").read_text(encoding="utf-8"))
    return [(row["premise"], row["hypothesis"]) for row in rows], torch.tensor(
        [row[key] for row in rows]
    )


def farthest_from_recorded(checkpoint: Path, key: str) -> float:
    pairs, expected = recorded(key)
    predictions = XNLIClassifier.load(checkpoint, "cpu", "float32").predict(pairs)
    logits = torch.tensor([prediction.logits for prediction in predictions])
    return float((logits - expected).abs().max())


def frozen_model() -> dict:
    return torch.load(FROZEN / "run/pairs-ckpt.pt", weights_only=True)


@pytest.fixture
def one_more_field(monkeypatch):
    """A network's description with a field that the frozen one does not have."""

    def add(**options) -> type[GPTConfig]:
        field = ("newer_fact", object, dataclasses.field(**options))
        grown = dataclasses.make_dataclass(
            "GPTConfig", [field], bases=(GPTConfig,), frozen=True, kw_only=True
        )
        for module in (model, folder_room, card):
            monkeypatch.setattr(module, "GPTConfig", grown)
        return grown

    return add


def test_an_old_model_predicts_what_it_did():
    assert farthest_from_recorded(FROZEN / "run/pairs-ckpt.pt", "logits") <= 1e-5


def test_the_recorded_logits_tell_pairs_and_models_apart():
    _, logits = recorded("logits")
    _, after = recorded("logits_after_resuming")
    assert float(logits.std(dim=0).min()) > 1e-3
    assert float((logits - after).abs().max()) > 0.1


def test_an_old_save_is_gone_on_with(tmp_path, capsys):
    """It ends where the version that wrote it ended without a break."""
    assets = types.SimpleNamespace(
        dataset=FROZEN / "pairs",
        checkpoint=FROZEN / "state_step000100.pt",
        tokenizer=FROZEN / "tokenizer.json",
        cache=tmp_path / "cache",
    )
    out_dir = shutil.copytree(FROZEN / "run", tmp_path / "run")
    assert finetune.main(small_run.command(assets, out_dir, *FLAGS)) == 0
    assert f"resuming {out_dir}/pairs-last.pt after step 15" in capsys.readouterr().out
    results = json.loads((out_dir / "results.json").read_text(encoding="utf-8"))
    assert (results["steps"], results["best_step"]) == (24, 24)
    lines = (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [6, 12, 18, 24]
    after = farthest_from_recorded(out_dir / "pairs-ckpt.pt", "logits_after_resuming")
    assert after <= SAME_TRAINING


def test_a_finished_save_older_than_a_main_metric_gets_its_report(monkeypatch):
    best = frozen_save()["progress"]["best"]
    newer = metrics.Metric("newer", lambda c: c.loss, is_main=True)
    monkeypatch.setitem(metrics.METRICS, "newer", newer)
    assert run_report._best_validation(types.SimpleNamespace(best=best, best_step=6, step=15))


def frozen_save() -> dict:
    return torch.load(FROZEN / "run/pairs-last.pt", weights_only=True)


def frozen_classifier() -> model.GPTClassification:
    """The model of the save, which has the mixing weights in one tensor `scalars`."""
    return model.GPTClassification.from_saved(frozen_model()["config"], frozen_save()["model"])


def test_an_old_save_has_all_its_values_under_todays_names():
    saved, trunk = frozen_save()["model"], frozen_classifier().pretrained_model
    assert torch.equal(join_scalars(trunk.state_dict(), trunk.config), saved.pop(f"{TRUNK}scalars"))
    todays = frozen_classifier().state_dict()
    assert len(todays) == len(saved) + 3
    assert all(torch.equal(todays[name], tensor) for name, tensor in saved.items())


def test_the_moments_of_an_old_save_are_split_as_its_weights_are():
    save, classifier = frozen_save(), frozen_classifier()
    optimizer = configure_optimizers("cpu", classifier)
    optimizer.load_state_dict(moments_by_names(save, classifier, optimizer))
    names = {id(parameter): name for name, parameter in classifier.named_parameters()}
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    moments = {names[id(parameter)]: of_one for parameter, of_one in optimizer.state.items()}
    parts = [f"{TRUNK}{name}" for name in classifier.config.mixing_weights]
    assert order[:3] == parts
    of_scalars, *others = (save["optimizer"]["state"][i] for i in range(len(order) - 2))
    for key in ("exp_avg", "exp_avg_sq"):
        named = {name.removeprefix(TRUNK): moments[name][key] for name in parts}
        assert torch.equal(join_scalars(named, classifier.config), of_scalars[key])
    assert all(moments[name]["step"] == of_scalars["step"] == 15 for name in parts)
    for name, of_one in zip(order[3:], others, strict=True):
        assert all(torch.equal(moments[name][key], value) for key, value in of_one.items())
    rates = [group["lr"] for group in save["optimizer"]["param_groups"]]
    assert [group["lr"] for group in optimizer.param_groups] == rates


def test_moments_of_an_old_save_of_a_frozen_trunk_are_those_of_its_head():
    classifier = frozen_classifier()
    classifier.pretrained_model.requires_grad_(False)
    optimizer = configure_optimizers("cpu", classifier)
    classifier.head(torch.ones(2, classifier.config.model_dim)).sum().backward()
    optimizer.step()
    save = {"model": frozen_save()["model"], "optimizer": optimizer.state_dict()}
    assert moments_by_names(save, classifier, optimizer) == save["optimizer"]


@pytest.mark.parametrize(
    "options", [{"default": 1.5}, {"default": None}, {"default_factory": tuple}]
)
def test_a_field_that_comes_later_leaves_old_models_usable(one_more_field, options):
    config = one_more_field(**options).from_dict(frozen_model()["config"])
    default = options.get("default", ())
    assert config.newer_fact == default
    assert type(config).from_dict(config.to_dict() | {"newer_fact": "other"}).newer_fact == "other"
    assert farthest_from_recorded(FROZEN / "run/pairs-ckpt.pt", "logits") <= 1e-5


def test_a_field_that_comes_later_leaves_exports_usable(
    one_more_field, exported_code_apart, tmp_path
):
    one_more_field(default=1.5)
    folder = tmp_path / "exported"
    export_checkpoint(FROZEN / "run/pairs-ckpt.pt", folder)
    assert json.loads((folder / "config.json").read_text())["newer_fact"] == 1.5
    options = {"trust_remote_code": True}
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    pairs, expected = recorded("logits")
    premises, hypotheses = map(list, zip(*pairs, strict=True))
    batch = tokenizer(premises, hypotheses, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert float((network(**batch).logits - expected).abs().max()) <= 1e-5


def test_a_field_of_the_first_version_is_needed():
    config = frozen_model()["config"]
    for name in config:
        others = {key: value for key, value in config.items() if key != name}
        with pytest.raises(ValueError, match=rf"missing or unknown \['{name}'\]"):
            GPTConfig.from_dict(others)


@pytest.mark.parametrize("later", [False, True])
def test_a_key_that_is_no_field_stays_an_error(one_more_field, later):
    cls = one_more_field(default=1.5) if later else GPTConfig
    with pytest.raises(ValueError, match=r"missing or unknown \['newest', 'num_layers'\]"):
        config = frozen_model()["config"] | {"newest": 1}
        del config["num_layers"]
        cls.from_dict(config)
