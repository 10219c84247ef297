"""A fine-tuned checkpoint as a folder that the transformers library loads, with a model card.

model.safetensors, config.json          the network
modeling_xnli_gpt.py                    its code, which needs nothing of this project
tokenizer.json, tokenizer_config.json   the tokenizer, with the template of a pair built in
README.md                               the model card
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, processors
from torch import Tensor

from inference import model_of_saved
from model import GPTConfig
from xnli_gpt.checkpoints.fine_tuned import datasets_in_name, fine_tuned_file, read_fine_tuned
from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.tokenizer import PairEncoding, encoding_of_saved
from xnli_gpt.errors import XNLIError
from xnli_gpt.evaluation.answers import only_answers
from xnli_gpt.evaluation.metrics import METRICS, main_metrics
from xnli_gpt.files import save_atomically, save_json

MODULE = Path(__file__).parent / "exported_model" / "modeling_xnli_gpt.py"
MODEL_TYPE = "xnli_gpt"
CONFIG_CLASS = "XNLIGPTConfig"
MODEL_CLASS = "XNLIGPTForSequenceClassification"


class ExportError(XNLIError, ValueError):
    """A checkpoint can't be exported; the message says why and what to do."""


def export_checkpoint(checkpoint: Path, folder: Path) -> None:
    """Write the folder for a fine-tuned checkpoint, or for that of a run's folder; it appears
    whole or not at all.

    Raises ExportError for a folder that holds something already or can't be made, and RunError
    for a file that is damaged or no fine-tuned checkpoint.
    """
    _require_new(folder)
    checkpoint = fine_tuned_file(checkpoint)
    saved = read_fine_tuned(checkpoint)
    # Weights that fit no model must not leave as if they did.
    model = model_of_saved(saved, checkpoint)
    encoding = encoding_of_saved(saved, checkpoint)
    card = model_card(saved, checkpoint, encoding)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save_weights(partial / "model.safetensors", model.state_dict())
        save_json(partial / "config.json", transformers_config(saved, encoding))
        save_json(partial / "tokenizer.json", json.loads(pair_tokenizer(encoding).to_str()))
        save_json(partial / "tokenizer_config.json", tokenizer_config(encoding))
        shutil.copyfile(MODULE, partial / MODULE.name)
        save_atomically(partial / "README.md", lambda path: path.write_text(card, encoding="utf-8"))
        _open_to_others(partial)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _require_new(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"`export` {folder}: holds files already; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"`export` {folder}: is a file; name a new folder")
    if not folder.resolve().parent.is_dir():
        raise ExportError(f"`export` {folder}: no folder {folder.parent}; make it first")


def _open_to_others(folder: Path) -> None:
    """Give what the process usually gives: a temporary folder and safetensors keep others out."""
    # Python tells the mask only by setting another one.
    umask = os.umask(0o077)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)
    for path in folder.iterdir():
        path.chmod(0o666 & ~umask)


def _save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        save_atomically(path, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
    except SafetensorError as error:
        raise ExportError(f"{path.name}: can't be written ({error})") from error


def transformers_config(saved: Mapping[str, object], encoding: PairEncoding) -> dict:
    """config.json: the architecture, the classes, and where transformers finds the code."""
    classes, module = saved["classes"], MODULE.stem
    return GPTConfig.from_dict(saved["config"]).to_dict() | {
        "model_type": MODEL_TYPE,
        "architectures": [MODEL_CLASS],
        "auto_map": {
            "AutoConfig": f"{module}.{CONFIG_CLASS}",
            "AutoModelForSequenceClassification": f"{module}.{MODEL_CLASS}",
        },
        "dtype": "float32",
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "problem_type": "single_label_classification",
        "pad_token_id": encoding.end_of_text,
    }


def pair_tokenizer(encoding: PairEncoding) -> Tokenizer:
    """The tokenizer of the checkpoint, which by itself makes of a pair what the template says.

    Line ends around a text are dropped, as they are before training.
    """
    tokenizer = Tokenizer.from_str(encoding.tokenizer.to_str())
    strip = normalizers.Replace(Regex(r"\A[\r\n]+|[\r\n]+\z"), "")
    own = tokenizer.normalizer
    tokenizer.normalizer = strip if own is None else normalizers.Sequence([strip, own])
    end_of_text = tokenizer.id_to_token(encoding.end_of_text)
    parts = {"premise": "$A", "hypothesis": "$B", "end_of_text": end_of_text}
    pair = [parts[part] for part in TEMPLATES[encoding.template]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=_without_hypothesis(pair),
        pair=pair,
        special_tokens=[(end_of_text, encoding.end_of_text)],
    )
    return tokenizer


def _without_hypothesis(pair: Sequence[str]) -> list[str]:
    """A single text has what stands up to its end: the model was never asked about one."""
    return list(pair[: pair.index("$A") + 1])


def tokenizer_config(encoding: PairEncoding) -> dict:
    """tokenizer_config.json, by which AutoTokenizer cuts and pads as the model needs it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": encoding.block_size,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": encoding.tokenizer.id_to_token(encoding.end_of_text),
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        # A special token spelled out in a text is text.
        "split_special_tokens": True,
    }


def model_card(saved: Mapping[str, object], checkpoint: Path, encoding: PairEncoding) -> str:
    """README.md: what the checkpoint tells of itself, how it is used, and its limits."""
    datasets = saved.get("datasets") or datasets_in_name(checkpoint)
    test = metrics_of_test_beside(saved, checkpoint)
    sections = [
        _front_matter(languages_of(datasets)),
        _introduction(saved, datasets),
        _usage(encoding),
        _facts(saved, checkpoint, encoding, datasets),
        _results(saved, test),
        _limits(saved, encoding, datasets),
    ]
    return "\n".join(sections)


def languages_of(datasets: Iterable[str]) -> list[str]:
    """Language codes that the names of XNLI sets tell."""
    matches = (re.fullmatch(r"xnli_([a-z]{2})|(hindi_xnli)", name) for name in datasets)
    return sorted({match[1] or "hi" for match in matches if match})


def _front_matter(languages: Sequence[str]) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-classification"]
    if languages:
        lines += ["language:", *(f"- {language}" for language in languages)]
    lines += ["tags:", "- natural-language-inference", "- xnli", "- custom_code"]
    return "\n".join(["---", *lines, "---", ""])


def _introduction(saved: Mapping[str, object], datasets: Sequence[str]) -> str:
    classes = ", ".join(saved["classes"])
    return f"""# {" + ".join(datasets)}: natural language inference with a pretrained GPT

Reads a premise and a hypothesis and says how the two are related: {classes}. A decoder of the
modded-nanogpt line (format {saved["config"]["family"]}) with a classification head on its last
token, fine-tuned on labelled pairs.
"""


def _usage(encoding: PairEncoding) -> str:
    return f"""## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", model=FOLDER, trust_remote_code=True)
pair = {{"text": premise, "text_pair": hypothesis}}
classify(pair, truncation="only_first", top_k=None)
```

or, batches of any size, padded on the right (lengths are read from `attention_mask`):

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
batch = tokenizer(premises, hypotheses, padding=True, truncation="only_first", return_tensors="pt")
logits = model(**batch).logits
```

`trust_remote_code=True` runs `{MODULE.name}` of this folder (checked with transformers 4.57
and 5.23). The tokenizer makes of a pair
`{_template_in_words(encoding.template)}` by itself. `truncation="only_first"` cuts the end of a
premise where the pair would exceed {encoding.block_size} tokens, as in training; transformers
does not cut unless it is asked to, and the model refuses a longer row. A hypothesis is never cut:
one that leaves no room for a premise is an error.
"""


def _template_in_words(template: str) -> str:
    words = {"end_of_text": "[end of text]"}
    return " ".join(words.get(part, part) for part in TEMPLATES[template])


def _facts(
    saved: Mapping[str, object],
    checkpoint: Path,
    encoding: PairEncoding,
    datasets: Sequence[str],
) -> str:
    config, pretrained = saved["config"], saved.get("pretrained") or {}
    num_parameters = sum(tensor.numel() for tensor in saved["model"].values())
    rows = {
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
    table = _table(["", ""], [[name, str(value)] for name, value in rows.items()])
    return f"## Facts\n\n{table}\n"


def metrics_of_test_beside(saved: Mapping[str, object], checkpoint: Path) -> dict | None:
    """Test metrics in the results.json beside a checkpoint, where it speaks of this model.

    The checkpoint itself was written before its test split was scored.
    """
    try:
        results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
        same_step = results["best_step"] == saved["step"]
        same_model = results["validation"]["accuracy"] == saved["metrics"]["accuracy"]
        return results["test"] if same_step and same_model else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _results(saved: Mapping[str, object], test: Mapping[str, object] | None) -> str:
    validation = saved.get("metrics") or {}
    columns = {"validation": validation} | ({} if test is None else {"test": test})
    shown = [key for key in METRICS if key in validation]
    if not shown:
        return "## Results\n\nThe checkpoint holds no metrics.\n"
    body = [
        [_title(key), *(_with_interval(of_split, key) for of_split in columns.values())]
        for key in shown
    ]
    name, last = list(columns.items())[-1]
    lines = ["## Results", "", *_on_one_class(columns), _origin_of_numbers(columns), ""]
    lines += [_table(["", *columns], body), ""]
    if sets := last.get("sets"):
        lines += [f"Every set of the {name} split by itself:", "", _table_of_sets(sets), ""]
    if per_class := last.get("per_class"):
        lines += [f"Every class of the {name} split:", "", _table_of_classes(per_class), ""]
    return "\n".join(lines)


def _title(key: str) -> str:
    """What the card calls a metric: without abbreviations."""
    return METRICS[key].long_title or METRICS[key].title_with_unit


def _on_one_class(columns: Mapping[str, Mapping[str, object]]) -> list[str]:
    """A paragraph on a model that tells nothing apart; nothing for any other."""
    told = [
        f"{answer} to every pair of {split}{f' of {name}' if name else ''}"
        for split, metrics in columns.items()
        for name, answer in only_answers(metrics, "").items()
    ]
    if not told:
        return []
    return [
        f"**This model answers one class alone:** {', '.join(told)}. It tells nothing apart, and "
        "its accuracy is the share of that class.",
        "",
    ]


def _origin_of_numbers(columns: Mapping[str, Mapping[str, object]]) -> str:
    sentences = [
        "On the validation split this checkpoint was chosen among those of its run: the numbers "
        "there are slightly too good an estimate for new texts."
    ]
    if "test" in columns:
        sentences.append("Test was scored once, at the end.")
    if "sets" in columns["validation"]:
        sentences.append("Numbers are means over the sets.")
    return " ".join(sentences)


def _table_of_sets(sets: Mapping[str, Mapping[str, object]]) -> str:
    shown = main_metrics()
    body = [
        [name, *(_with_interval(of_set, key) for key in shown)] for name, of_set in sets.items()
    ]
    return _table(["set", *map(_title, shown)], body)


def _with_interval(metrics: Mapping[str, object], key: str) -> str:
    if key not in metrics:
        return ""
    low_and_high = metrics.get("intervals", {}).get(key)
    interval = f" ({low_and_high[0]:.4f} to {low_and_high[1]:.4f})" if low_and_high else ""
    return f"{metrics[key]:.4f}{interval}"


def _table_of_classes(per_class: Mapping[str, Mapping[str, float]]) -> str:
    figures = ("precision", "recall", "f1")
    body = [
        [name, *(f"{of_class[figure]:.4f}" for figure in figures), str(of_class["support"])]
        for name, of_class in per_class.items()
    ]
    return _table(["class", *figures, "pairs"], body)


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    rows = [header, rule, *body]
    # A bar in a cell would begin a new one.
    return "\n".join(
        f"| {' | '.join(c.replace('|', chr(92) + '|') for c in row)} |" for row in rows
    )


def _limits(saved: Mapping[str, object], encoding: PairEncoding, datasets: Sequence[str]) -> str:
    windows = GPTConfig.from_dict(saved["config"]).tokens_within_windows
    languages = languages_of(datasets)
    limits = [
        f"It knows the classes {', '.join(saved['classes'])} and nothing else: a text that is no "
        "pair of premise and hypothesis gets one of them all the same.",
        "Its probabilities are those of a softmax, and were not calibrated.",
        f"Premises are cut to {encoding.block_size} tokens together with their hypothesis; "
        f"attention reaches back over at least {windows} tokens.",
        "Sets of inference pairs have artefacts (a negation in the hypothesis, shared words) that "
        "a classifier may take for inference.",
        "It has what its pretraining texts and crowd-written pairs have of error and prejudice: "
        "not for decisions about people.",
    ]
    if languages:
        limits.insert(1, f"Fine-tuned on {', '.join(languages)}; other languages are untested.")
        limits.append(
            "XNLI is licensed CC BY-NC 4.0, for non-commercial use; the tables of this card do "
            "not settle the licence of the weights."
        )
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits), ""])
