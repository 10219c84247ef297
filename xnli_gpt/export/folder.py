"""A fine-tuned model as a folder that the transformers library loads.

model.safetensors, config.json          the network
modeling_xnli_gpt.py and its imports    its code, which needs nothing of this project
tokenizer.json, tokenizer_config.json   the tokenizer, with the template of a pair built in
README.md                               the model card
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, normalizers, processors
from torch import Tensor

from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.tokenizer import PairEncoding
from xnli_gpt.errors import ExportError
from xnli_gpt.export.card import model_card
from xnli_gpt.export.network_files import network_files
from xnli_gpt.files import save_atomically, save_json
from xnli_gpt.network.config import GPTConfig
from xnli_gpt.network.mixing import name_scalars

MODULE, CONFIG_CLASS = "modeling_xnli_gpt", "XNLIGPTConfig"
TRUNK_PREFIX = "pretrained_model."
MODEL_CLASS, TRUNK_CLASS = "XNLIGPTForSequenceClassification", "XNLIGPTModel"


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned checkpoint: its path, its content, and how it encodes pairs."""

    path: Path
    saved: Mapping[str, object]
    encoding: PairEncoding


def write_folder(folder: Path, fine_tuned: FineTuned, model: Path) -> None:
    """Write the folder of a fine-tuned checkpoint with the code of `model` (model.py); it appears
    whole or not at all.

    Raises ExportError for a folder that holds something already or can't be made.
    """
    require_new(folder)
    saved, encoding = fine_tuned.saved, fine_tuned.encoding
    weights = dict(saved["model"])
    # Of older versions.
    name_scalars(weights, GPTConfig.from_dict(saved["config"]), TRUNK_PREFIX)
    texts = network_files(model)
    texts["README.md"] = model_card(fine_tuned.path, saved, encoding)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save_weights(partial / "model.safetensors", weights)
        save_json(partial / "config.json", transformers_config(saved, encoding))
        save_json(partial / "tokenizer.json", json.loads(pair_tokenizer(encoding).to_str()))
        save_json(partial / "tokenizer_config.json", tokenizer_config(encoding))
        for name, text in texts.items():
            _save_text(partial / name, text)
        _open_to_others(partial)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_new(folder: Path) -> None:
    """Raise ExportError for a folder that holds something already or can't be made."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"`export` {folder}: holds files already; name a new folder")
    if folder.exists() and not folder.is_dir():
        raise ExportError(f"`export` {folder}: is a file; name a new folder")
    if not folder.resolve().parent.is_dir():
        raise ExportError(f"`export` {folder}: no folder {folder.parent}; make it first")


def _save_text(path: Path, text: str) -> None:
    save_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


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
    """Return config.json: the network, the classes, and where transformers finds the code."""
    classes = saved["classes"]
    return GPTConfig.from_dict(saved["config"]).to_dict() | {
        "model_type": "xnli_gpt",
        "architectures": [MODEL_CLASS],
        "auto_map": {
            "AutoConfig": f"{MODULE}.{CONFIG_CLASS}",
            "AutoModel": f"{MODULE}.{TRUNK_CLASS}",
            "AutoModelForSequenceClassification": f"{MODULE}.{MODEL_CLASS}",
        },
        "dtype": "float32",
        "id2label": {str(i): name for i, name in enumerate(classes)},
        "label2id": {name: i for i, name in enumerate(classes)},
        "problem_type": "single_label_classification",
        "pad_token_id": encoding.end_of_text,
    }


def pair_tokenizer(encoding: PairEncoding) -> Tokenizer:
    """Return the tokenizer with the template of a pair built in.

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
    """Return the template of a single text, up to its end: the model was never asked about one."""
    return list(pair[: pair.index("$A") + 1])


def tokenizer_config(encoding: PairEncoding) -> dict:
    """Return tokenizer_config.json, by which AutoTokenizer cuts and pads as the model needs it."""
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
