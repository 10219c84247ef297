"""What a checkpoint file must come to, read independently of the loader.

That is from the state dict that it was made of, from the bytes of its storages, or, where a
pickle's own bytes were changed, by plain `torch.load`.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from checkpoint_writer import Archive, Content, State, archive_of, content_of, file_of
from fuzzing import Wrong, require_good_message
from torch import Tensor

import load_checkpoint_helper as loader
from load_checkpoint_helper import load_pretrained_checkpoint
from xnli_gpt.errors import CheckpointError
from xnli_gpt.network.mixing import join_scalars


@dataclass(frozen=True)
class Case:
    """A file, what its weights are where it loads at all, and whether it must or must not.

    `state` is None where only plain `torch.load` can tell what the file says.
    """

    data: bytes
    state: State | None
    must: str = "either"  # load, refuse, either
    num_heads: int | None = None


PLAINLY_RENAMED = {
    "mlp.fc_w": "mlp.c_fc.weight",
    "mlp.proj_w": "mlp.c_proj.weight",
    "lm_head_w": "lm_head.weight",
}


def weights_meant(state: State) -> dict[str, Tensor]:
    """Our names and float32 values of a file's weights, from section 3 of the design."""
    named = {}
    for name, tensor in state.items():
        name, tensor = _stripped(name), tensor.detach().float()
        if name.endswith("attn.qkvo_w"):
            named[name.replace("qkvo_w", "qkv_w")] = tensor[:3]
            named[name.replace("qkvo_w", "c_proj.weight")] = tensor[3]
        else:
            for theirs, ours in PLAINLY_RENAMED.items():
                name = name.replace(theirs, ours)
            named[name] = tensor
    layers = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    named["scalars"] = named["scalars"][: 5 * layers]
    return named


def check(path: Path, case: Case) -> str:
    """Load the file at `path`; returns what came of it, and raises `Wrong` where that is wrong."""
    try:
        trunk, _, checkpoint = load_pretrained_checkpoint(path, num_heads=case.num_heads)
    except CheckpointError as error:
        require_good_message(error, path)
        if case.must == "load":
            raise Wrong(f"a sound file was refused: {error}") from error
        return "refused"
    if case.must == "refuse":
        raise Wrong("a file that must be refused was loaded")
    state = case.state
    if state is None:
        # Mapped, since nobody reads the optimizer states, whatever their size is said to be.
        state = _weights_by_torch(path)
    right = weights_meant(state)
    found = trunk.state_dict() | {"lm_head.weight": trunk.lm_head_weight}
    weights = {name: found.pop(name) for name in trunk.config.mixing_weights}
    found["scalars"] = join_scalars(weights, trunk.config)
    _require_same(right, found, "the trunk")
    mapped = checkpoint["model"]
    meant = {_stripped(name): tensor for name, tensor in state.items()}
    _require_same(meant, mapped, "the checkpoint's dict")
    return "loaded"


def _weights_by_torch(path: Path) -> State:
    """What the pickle module makes of a file, for torch's restricted reader gives a whole file up
    for what stands beside the weights. No changed byte of a sound file makes it a dangerous one."""
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["model"]
    except Exception:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)["model"]


def _stripped(name: str) -> str:
    while name.startswith(("_orig_mod.", "module.")):
        name = name.partition(".")[2]
    return name


def _require_same(right: State, found: State, what: str) -> None:
    if right.keys() != found.keys():
        raise Wrong(f"{what} has other names: {sorted(right.keys() ^ found.keys())[:6]}")
    for name, tensor in right.items():
        same = tensor.shape == found[name].shape and tensor.dtype == found[name].dtype
        if not (same and torch.equal(tensor, found[name])):
            raise Wrong(f"{what} has other values in {name}")


def check_inspector(path: Path, outcome: str, case: Case) -> None:
    """The command line says the same in its own way."""
    heads = [] if case.num_heads is None else ["--n_head", str(case.num_heads)]
    for options in ([], ["--json"]):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = loader.main([str(path), *heads, *options])
        refused = errors.getvalue().startswith("error: ") and errors.getvalue().count("\n") == 1
        said_right = (out.getvalue() == "") == refused == (code == 2)
        if code != {"loaded": 0, "refused": 2}[outcome] or not said_right:
            raise Wrong(f"the inspector: code {code}, {errors.getvalue()!r}")
        if options and code == 0:
            json.loads(out.getvalue())


@dataclass(frozen=True)
class Base:
    """A sound file to be changed; its parts are shared, and not to be changed in place."""

    content: Content
    data: bytes
    size: Mapping[str, object]
    marker: Path

    @property
    def state(self) -> State:
        return self.content.state

    @property
    def archive(self) -> Archive:
        return archive_of(self.content)

    def with_top(self, **top: object) -> bytes:
        return file_of(replace(self.content, top=self.content.top | top))

    def with_state(self, state: State, **top: object) -> bytes:
        size = self.size
        return file_of(content_of(state, size["layers"], size["heads"], size["dim"], **top))
