"""The zoo: checkpoints of the whole line at a tiny size, written from descriptions, and what the
scripts themselves compute from them.

NAME.json says how each tensor is drawn; NAME.npz has ids [2, 128] and, at every 16th place,
features and capped logits of the script's own forward pass in float32, and where it has windows
those of a longer row. Files that are not drawn lie in `files`.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ZOO = Path(__file__).parent
DRAWN = sorted(path.stem for path in ZOO.glob("*.json"))
FILES = {path.name.removesuffix(".pt"): path for path in sorted((ZOO / "files").iterdir())}
SUPPORTED = [*DRAWN, *FILES]


def state_of(name: str) -> dict[str, Tensor]:
    """The tensors of an entry, under their names in its file."""
    described = described_as(name)
    generator, state = torch.Generator().manual_seed(described["seed"]), {}
    for key, facts in described["tensors"].items():
        state[key] = _tensor(facts, described, generator, state)
    return state


def described_as(name: str) -> dict:
    return json.loads((ZOO / f"{name}.json").read_text())


def _tensor(facts: dict, described: dict, generator: torch.Generator, state: dict) -> Tensor:
    dtypes = [getattr(torch, facts[key]) for key in ("through", "dtype") if key in facts]
    drawn = None
    if described["draw"] == "torch":
        # Every tensor takes its part of the stream, also one whose values are given.
        drawn = torch.randn(facts["shape"], generator=generator)
    if "same" in facts:
        tensor = state[facts["same"]]
    elif "values" in facts:
        tensor = torch.tensor(facts["values"]).reshape(facts["shape"])
    elif drawn is not None:
        tensor = drawn * facts["std"]
    else:
        seed = (zlib.crc32(facts["stream"].encode()) + described["seed"]) % 2**32
        values = np.random.RandomState(seed).standard_normal(tuple(facts["shape"]))
        tensor = torch.from_numpy(values.astype(np.float32)) * facts["scale"]
    for dtype in dtypes:
        tensor = tensor.to(dtype)
    return tensor


def write_entry(name: str, folder: Path, state: dict[str, Tensor] | None = None, **top) -> Path:
    """The file of an entry as its script would have saved it; `top` replaces what stands beside."""
    described = described_as(name)
    state = state_of(name) if state is None else state
    path = folder / described["file"]
    path.parent.mkdir(parents=True, exist_ok=True)
    under = described["under"]
    torch.save(state if under is None else {**described["top"], under: state, **top}, path)
    for beside, content in described.get("beside", {}).items():
        (folder / beside).write_text(json.dumps(content))
    return path


def path_of(name: str, folder: Path) -> Path:
    """The file of any entry."""
    return FILES[name] if name in FILES else write_entry(name, folder)


def numbers_of(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(ZOO / f"{name}.npz").items()}
