"""The model card of an exported folder: what a checkpoint tells of itself, its use and limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from xnli_gpt.checkpoints.fine_tuned import datasets_in_name
from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.names import HUB_XNLI, is_xnli, language_of_name
from xnli_gpt.data.tokenizer import PairEncoding
from xnli_gpt.evaluation.answers import only_answers
from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.network.config import GPTConfig


def model_card(checkpoint: Path, saved: Mapping[str, object], encoding: PairEncoding) -> str:
    """Return README.md for the content of a fine-tuned checkpoint, with metadata for the Hub."""
    datasets = saved.get("datasets") or datasets_in_name(checkpoint)
    validation = saved.get("metrics") or {}
    test = metrics_of_test_beside(saved, checkpoint)
    columns = {"validation": validation} | ({} if test is None else {"test": test})
    last, of_last = list(columns.items())[-1]
    shown = [key for key in METRICS if key in validation]
    environment = Environment(
        loader=PackageLoader("xnli_gpt.export", "."), undefined=StrictUndefined
    )
    environment.filters["cell"] = _cell
    return environment.get_template("model_card.md.jinja").render(
        card_data=_metadata(checkpoint, saved, datasets, test),
        datasets=datasets,
        languages=languages_of(datasets),
        classes=saved["classes"],
        family=saved["config"]["family"],
        template=_template_in_words(encoding.template),
        block_size=encoding.block_size,
        within_windows=GPTConfig.from_dict(saved["config"]).tokens_within_windows,
        facts=_facts(saved, checkpoint, encoding, datasets),
        columns=columns,
        last=last,
        metrics=[
            [_title(key), *(_with_interval(of_split, key) for of_split in columns.values())]
            for key in shown
        ],
        one_class=_answers_of_one_class(columns),
        sets=_rows_of_sets(of_last.get("sets")),
        per_class=_rows_of_classes(of_last.get("per_class")),
    )


def _cell(text: object) -> str:
    """Return a cell of a table: a bar in it would begin a new one."""
    return str(text).replace("|", "\\|")


def _metadata(
    checkpoint: Path,
    saved: Mapping[str, object],
    datasets: Sequence[str],
    test: Mapping[str, object] | None,
) -> ModelCardData:
    """Return what the Hub reads; the results of the test split where they are of XNLI."""
    languages = languages_of(datasets)
    results = {}
    if test is not None and len(datasets) == len(languages) == 1:
        results = {
            "model_name": checkpoint.stem,
            "eval_results": [
                EvalResult(
                    task_type="text-classification",
                    dataset_type=HUB_XNLI,
                    dataset_name=datasets[0],
                    dataset_config=languages[0],
                    dataset_split="test",
                    metric_type=key,
                    metric_name=_with_bounds(test, key),
                    metric_value=round(test[key], 4),
                )
                for key in main_metrics()
                if key in test
            ],
        }
    pretrained = (saved.get("pretrained") or {}).get("file")
    return ModelCardData(
        language=languages or None,
        # That of XNLI forbids commercial use; of other texts and of the weights nothing is known.
        license="cc-by-nc-4.0" if languages else "other",
        base_model=Path(pretrained).stem if pretrained else None,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["natural-language-inference", "xnli", "custom_code"],
        datasets=[HUB_XNLI] if languages else None,
        **results,
    )


def _with_bounds(metrics: Mapping[str, object], key: str) -> str:
    interval = metrics.get("intervals", {}).get(key)
    bounds = f" (95 %: {interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    return _title(key) + bounds


def languages_of(datasets: Iterable[str]) -> list[str]:
    """Return the language codes that the names of XNLI sets tell."""
    found = (language_of_name(name) for name in datasets if is_xnli(name))
    return sorted(filter(None, set(found)))


def _template_in_words(template: str) -> str:
    words = {"end_of_text": "[end of text]"}
    return " ".join(words.get(part, part) for part in TEMPLATES[template])


def _facts(
    saved: Mapping[str, object],
    checkpoint: Path,
    encoding: PairEncoding,
    datasets: Sequence[str],
) -> dict[str, object]:
    config, pretrained = saved["config"], saved.get("pretrained") or {}
    num_parameters = sum(tensor.numel() for tensor in saved["model"].values())
    return {
        "fine-tuned on": ", ".join(datasets),
        "checkpoint": f"{checkpoint.name}, step {saved.get('step', 'unknown')}",
        "pretrained checkpoint": Path(str(pretrained.get("file", "unknown"))).name,
        "pretraining step": pretrained.get("step", "unknown"),
        "format": config["family"],
        "size": f"{config['num_layers']} layers, {config['num_heads']} heads, "
        f"width {config['model_dim']}; {num_parameters:,} parameters, float32",
        "vocabulary": f"{encoding.tokenizer.get_vocab_size():,} tokens, "
        f"{config['vocab_size']:,} embedding rows",
        "template": f"{encoding.template}: {_template_in_words(encoding.template)}",
        "block size": f"{encoding.block_size} tokens",
        "classes": ", ".join(f"{i} {name}" for i, name in enumerate(saved["classes"])),
    }


def metrics_of_test_beside(saved: Mapping[str, object], checkpoint: Path) -> dict | None:
    """Return test metrics of the results.json beside a checkpoint, where it speaks of this model.

    The checkpoint itself was written before its test split was scored.
    """
    try:
        results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
        same_step = results["best_step"] == saved["step"]
        same_model = results["validation"]["accuracy"] == saved["metrics"]["accuracy"]
        return results["test"] if same_step and same_model else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _title(key: str) -> str:
    """Return what the card calls a metric: without abbreviations."""
    return METRICS[key].long_title or METRICS[key].title_with_unit


def _answers_of_one_class(columns: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Return what a model that tells nothing apart answers to every pair."""
    return [
        f"{answer} to every pair of {split}{f' of {name}' if name else ''}"
        for split, metrics in columns.items()
        for name, answer in only_answers(metrics, "").items()
    ]


def _rows_of_sets(sets: Mapping[str, Mapping[str, object]] | None) -> list[list[str]]:
    """Return a table with its header, one row a set."""
    if not sets:
        return []
    shown = main_metrics()
    rows = [
        [name, *(_with_interval(of_set, key) for key in shown)] for name, of_set in sets.items()
    ]
    return [["set", *map(_title, shown)], *rows]


def _with_interval(metrics: Mapping[str, object], key: str) -> str:
    if key not in metrics:
        return ""
    low_and_high = metrics.get("intervals", {}).get(key)
    interval = f" ({low_and_high[0]:.4f} to {low_and_high[1]:.4f})" if low_and_high else ""
    return f"{metrics[key]:.4f}{interval}"


def _rows_of_classes(per_class: Mapping[str, Mapping[str, float]] | None) -> list[list[str]]:
    figures = ("precision", "recall", "f1")
    return [
        [name, *(f"{of_class[figure]:.4f}" for figure in figures), str(of_class["support"])]
        for name, of_class in (per_class or {}).items()
    ]
