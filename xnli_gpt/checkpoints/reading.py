"""A checkpoint's file, whatever its format: its content, and which of its tensors are weights."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from xnli_gpt.checkpoints.folders import json_beside, weight_files
from xnli_gpt.checkpoints.formats import first_prefix, without_wrappers
from xnli_gpt.checkpoints.mapped import MappedFile, Storage, storage_in
from xnli_gpt.checkpoints.pickles import Inert
from xnli_gpt.checkpoints.safetensors_files import is_safetensors, read_safetensors
from xnli_gpt.checkpoints.torch_files import is_legacy, read_legacy, read_zip
from xnli_gpt.errors import CheckpointError
from xnli_gpt.files import FINE_TUNED_KIND
from xnli_gpt.messages import listed, shown

# Tied tables make more weights than a file stores; without a limit, some kilobytes would be a model
# of any size.
MOST_SHARING = 8
# Under which of its keys a file has its weights.
WEIGHT_KEYS = ("model", "model_state", "model_state_dict", "state_dict")
# Files of other programs, by what they begin with.
FOREIGN_FILES = {
    (20240326).to_bytes(4, "little"): "a checkpoint of llm.c, which is not supported",
    (20240520).to_bytes(4, "little"): "a shard of tokens, not a checkpoint",
    b"GGUF": "a GGUF file of llama.cpp, which is not supported",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, which is not supported",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; fetch it with git lfs",
}


@dataclass(frozen=True)
class CheckpointFile:
    """A file's content with its tensors mapped, and the weights among them without the prefixes
    of wrappers, which are "model" in the content; `prefix` is that of the first. The weights of a
    folder are those of all its files."""

    path: Path
    mapped: tuple[MappedFile, ...]
    content: dict
    weights: Mapping[str, Tensor]
    prefix: str

    def storage_of(self, name: str) -> Storage:
        """Return where the bytes of a weight lie."""
        return storage_in(self.mapped, self.weights[name])

    def check_unchanged(self) -> None:
        """Raise CheckpointError where a file is another one than was mapped."""
        for mapped in self.mapped:
            mapped.check_unchanged()


def read_checkpoint_file(path: Path) -> CheckpointFile:
    """Return what a file holds, or a folder with config.json; its weights are mapped, and not
    looked at yet.

    Nothing of it is executed. Raises CheckpointError for a file that is none, or is damaged.
    """
    # Of a name that is too long for the file system this is no error.
    files = weight_files(path) if os.path.isdir(path) else [path]
    for file in files:
        _require_file(file)
    mapped = tuple(MappedFile(file) for file in files)
    content: dict = {}
    weights: dict = {}
    for one in mapped:
        of_file = _content_of(one)
        key, found = _weights_of(one.path, of_file)
        beside = _beside(of_file) if not key else {k: v for k, v in of_file.items() if k != key}
        if twice := weights.keys() & found.keys():
            raise CheckpointError(f"{path}: {listed(sorted(twice))} stand in several of its files")
        content |= beside
        weights |= found
    _require_tensors(path, weights)
    _require_stored(path, mapped, weights)
    state = {without_wrappers(name): tensor for name, tensor in weights.items()}
    if len(state) != len(weights):
        raise CheckpointError(f"{path}: holds the same weights with and without a wrapper's prefix")
    content = {**content, **json_beside(files[0]), "model": state}
    return CheckpointFile(path, mapped, content, state, first_prefix(weights))


def _require_tensors(path: Path, weights: Mapping[object, object]) -> None:
    odd = [name for name in weights if not isinstance(name, str)]
    odd += [name for name, value in weights.items() if not isinstance(value, Tensor | Inert)]
    if odd:
        raise CheckpointError(f"{path}: in 'model', {listed(odd)} is no tensor; save it again")
    for name, value in weights.items():
        if isinstance(value, Inert):
            raise CheckpointError(f"{path}: {_why_no_weight(name, value)}")


def _require_file(path: Path) -> None:
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; give the path of a pretrained checkpoint")
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror})") from error
    if not path.is_file():
        raise CheckpointError(f"{path}: not a file; give the path of one checkpoint")


def _content_of(mapped: MappedFile) -> dict:
    """Return what the file holds, by the reader that its first bytes ask for."""
    with open(mapped.path, "rb") as file:
        start = file.read(32)
    for first, what in FOREIGN_FILES.items():
        if start.startswith(first):
            raise CheckpointError(f"{mapped.path}: {what}; give a checkpoint of PyTorch")
    if is_safetensors(start, mapped.num_bytes):
        return read_safetensors(mapped)
    content = read_legacy(mapped) if is_legacy(start) else read_zip(mapped)
    if not isinstance(content, dict):
        if isinstance(content, Inert) and not content.problem and content.name != "torch.Tensor":
            raise CheckpointError(
                f"{mapped.path}: an object of {shown(content.name)}, whose code would have to be "
                "executed; load it where you trust it, and save its state_dict() with torch.save"
            )
        what = content.name if isinstance(content, Inert) else type(content).__name__
        raise CheckpointError(
            f"{mapped.path}: holds a {shown(what)}, expected the dict that the pretraining script "
            "saves, with the weights under 'model'"
        )
    return content


def fine_tuned_error(path: Path) -> CheckpointError:
    """Return what to raise for a fine-tuned checkpoint where a pretrained one is expected."""
    return CheckpointError(
        f"{path}: a fine-tuned checkpoint of this project, expected a pretrained one; to score it "
        "use evaluate_hindi_xnli.py, to fine-tune give the pretraining script's file"
    )


def _weights_of(path: Path, content: dict) -> tuple[str, dict]:
    """Return the key under which the weights are, and the weights; "" where the file is them."""
    if content.get("kind") == FINE_TUNED_KIND:
        raise fine_tuned_error(path)
    for key in WEIGHT_KEYS:
        if isinstance(content.get(key), dict) and content[key]:
            return key, content[key]
    flat = {name: value for name, value in content.items() if _may_be_weight(name, value)}
    if any(isinstance(value, Tensor) and "." in name for name, value in flat.items()):
        return "", flat
    found = listed(content) or "nothing"
    raise CheckpointError(
        f"{path}: no weights under 'model' (found {found}); "
        "give a checkpoint of the pretraining script"
    )


def _may_be_weight(name: object, value: object) -> bool:
    """Tell whether an entry of a flat dict is one of the weights: a step may stand beside them."""
    is_tensor = isinstance(value, Tensor) and (value.dim() > 0 or "." in str(name))
    return isinstance(name, str) and (is_tensor or (isinstance(value, Inert) and "." in name))


def _beside(content: dict) -> dict:
    return {key: value for key, value in content.items() if not _may_be_weight(key, value)}


def _why_no_weight(name: str, value: Inert) -> str:
    if value.problem:
        return f"{shown(name)} {value.problem}; the file is damaged, or was not saved by torch.save"
    return (
        f"its pickle calls {shown(value.name)} for {shown(name)}, and nothing in a checkpoint is "
        "executed; load it where you trust it, and save the weights alone with torch.save"
    )


def _require_stored(
    path: Path, mapped: Sequence[MappedFile], weights: Mapping[str, Tensor]
) -> None:
    """Raise CheckpointError for many more weights than values that are stored."""
    held = {storage_in(mapped, tensor): tensor.itemsize for tensor in weights.values()}
    stored = sum(storage.num_bytes // itemsize for storage, itemsize in held.items())
    meant = sum(math.prod(tensor.shape) for tensor in weights.values())
    if meant > MOST_SHARING * stored:
        raise CheckpointError(
            f"{path}: {meant} weights of only {stored} stored values; save the model again"
        )
