"""Folders of checkpoints: which files hold the weights, and the JSON files that tell of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from xnli_gpt.checkpoints.paths import told_of_folder
from xnli_gpt.errors import CheckpointError
from xnli_gpt.messages import listed

# What Hugging Face calls the weights of a folder, the one that counts first.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG_FILE = "config.json"


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a folder that says what is in it: by a config.json, with
    one file or several shards, or the newest model_NNNNNN.pt beside its meta_NNNNNN.json.

    Raises CheckpointError for any other folder, and where shards are missing.
    """
    if (folder / CONFIG_FILE).is_file():
        for name in WEIGHT_FILES:
            if (folder / name).is_file():
                return [folder / name]
            if (folder / f"{name}.index.json").is_file():
                return _shards(folder, folder / f"{name}.index.json")
    models = sorted(p for p in folder.glob("model_*.pt") if _meta_of(p).is_file())
    if models:
        return [models[-1]]
    raise CheckpointError(told_of_folder(folder))


def _shards(folder: Path, index: Path) -> list[Path]:
    places = _read_json(index).get("weight_map")
    names = sorted(set(places.values())) if isinstance(places, dict) else []
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise CheckpointError(
            f"{index}: names the shards {listed(missing) or 'of nothing'}, which are not there; "
            "copy all of them"
        )
    return [folder / name for name in names]


def json_beside(path: Path) -> dict[str, object]:
    """Return what the JSON files beside a file say of it: a config.json, and the configuration in
    the meta_NNNNNN.json of a model_NNNNNN.pt."""
    beside: dict[str, object] = {}
    config, meta = path.parent / CONFIG_FILE, _meta_of(path)
    if config.is_file():
        beside["config.json"] = _read_json(config)
    if meta != path and meta.is_file():
        content = _read_json(meta)
        beside["model_config"] = content.get("model_config")
        beside["step"] = content.get("step")
    return beside


def _meta_of(path: Path) -> Path:
    match = re.fullmatch(r"model_(\d+)\.pt", path.name)
    return path.with_name(f"meta_{match[1]}.json") if match else path


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: can't be read ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
