"""Checkpoints as the pretraining scripts save them, from the frozen streams of the golden cases."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
GOLDEN_SIZES = {
    "small": dict(fmt="small", layers=12, heads=1),
    "medium": dict(fmt="medium", layers=16, heads=1),
    "large": dict(fmt="medium", layers=24, heads=2),
}


def golden_case(name: str) -> dict[str, np.ndarray]:
    """The stored arrays of one golden case."""
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return dict(arrays)


def golden_state(name: str) -> OrderedDict[str, Tensor]:
    """The state dict of one golden case, as its script would store it."""
    size, case = GOLDEN_SIZES[name], golden_case(name)
    dim, vocab, seed = int(case["dim"]), int(case["vocab"]), int(case["seed"])
    return random_state(**size, dim=dim, vocab=vocab, seed=seed)


def random_state(
    fmt: str,
    layers: int,
    heads: int,
    dim: int,
    vocab: int,
    seed: int,
    *,
    world_size: int = 8,
    pad_vocab: bool | None = None,
    no_attention: int = 7,
) -> OrderedDict[str, Tensor]:
    """Random weights under the names, shapes and dtypes of format `fmt`.

    `pad_vocab` defaults to what the format's script does: embedding rows padded in small only.
    """
    pad_vocab = fmt == "small" if pad_vocab is None else pad_vocab
    padded = -(-vocab // 128) * 128
    rows = padded if pad_vocab else vocab
    shapes = {"embed.weight": (rows, dim)}
    shapes |= {f"value_embeds.{t}.weight": (rows, dim) for t in range(3)}
    for i in range(layers):
        if fmt == "small":
            attention = {"qkv_w": (3, dim, dim), "c_proj.weight": (dim, dim)}
            mlp = {"c_fc.weight": (4 * dim, dim), "c_proj.weight": (dim, 4 * dim)}
        else:
            attention = {"qkvo_w": (4, dim, dim)}
            mlp = {"fc_w": (4 * dim, dim), "proj_w": (dim, 4 * dim)}
        if i != no_attention:
            shapes |= {f"blocks.{i}.attn.{k}": shape for k, shape in attention.items()}
        shapes |= {f"blocks.{i}.mlp.{k}": shape for k, shape in mlp.items()}
    shapes["lm_head.weight" if fmt == "small" else "lm_head_w"] = (padded, dim)
    state = OrderedDict((name, _weight(name, shape, seed)) for name, shape in shapes.items())
    state["scalars"] = _scalars(fmt, layers, seed, world_size, no_attention)
    # What Module.state_dict() carries as an attribute, and pickles.
    state._metadata = OrderedDict({"": {"version": 1}})
    return state


def save_checkpoint(path: Path, state: dict[str, Tensor], **others: object) -> Path:
    """A file as the scripts write it; `others` adds or replaces its top-level entries."""
    torch.save({"step": 100, "code": "", "model": state, "optimizers": [], **others}, path)
    return path


def gpt_call(layers: int, heads: int, dim: int) -> str:
    """The line of a training script that tells the head count."""
    return (
        f"model = GPT(vocab_size=args.vocab_size, num_layers={layers}, num_heads={heads}, "
        f"model_dim={dim}, max_seq_len=args.seq_len).cuda()\n"
    )


def stream(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The frozen random stream of a parameter."""
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    return generator.standard_normal(shape).astype(np.float32)


def _weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    values = torch.from_numpy(stream(name, shape, seed))
    values = values * (1.0 if "embed" in name else np.float32(0.6 / np.sqrt(shape[-1])))
    stored_as_bfloat16 = any(part in name for part in ("embed", "qkvo_w", "fc_w", "proj_w"))
    return values.bfloat16() if stored_as_bfloat16 else values


def initial_scalars(layers: int) -> Tensor:
    """What the scripts begin with: [5L]."""
    return torch.tensor([1.0] * layers + [1.0, 0.0] * layers + [0.5, 0.5] * layers)


def _scalars(fmt: str, layers: int, seed: int, world_size: int, no_attention: int) -> Tensor:
    base = initial_scalars(layers).double().numpy()
    read_skips = range(layers // 2) if fmt == "small" else (2, 4, 6)
    used = np.zeros(5 * layers, dtype=bool)
    used[list(read_skips)] = True
    used[layers : 5 * layers] = True
    for i in range(3, layers - 3):
        used[3 * layers + 2 * i + 1] = False
    if no_attention < layers:
        used[3 * layers + 2 * no_attention : 3 * layers + 2 * no_attention + 2] = False
    noise = 0.3 * stream("scalars", (5 * layers,), seed)
    scalars = base + np.where(used, noise, 0.0)
    if fmt == "small":
        scalars = np.concatenate([scalars, np.ones(-len(scalars) % world_size)])
    return torch.from_numpy(scalars.astype(np.float32))
