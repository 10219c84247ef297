"""Other states, and other things than weights."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch
from checkpoint_judge import Base, Case
from checkpoint_writer import STORAGE_KINDS, Spec, Storage, file_of
from made_checkpoints import gpt_call, random_state
from torch import Tensor


def other_values(base: Base, generator: random.Random) -> Case:
    name = generator.choice([name for name in base.state if name != "scalars"])
    tensor = base.state[name].clone()
    value = generator.choice([0.0, -0.0, 1.0, 1e-30, -3e38, generator.gauss(0, 1)])
    tensor.view(-1)[generator.randrange(tensor.numel())] = value
    state = {**base.state, name: tensor}
    return Case(base.with_state(state), state, "load")


def value_not_finite(base: Base, generator: random.Random) -> Case:
    name = generator.choice(list(base.state))
    tensor = base.state[name].clone()
    value = generator.choice([math.nan, math.inf, -math.inf])
    tensor.view(-1)[generator.randrange(tensor.numel())] = value
    return Case(base.with_state({**base.state, name: tensor}), {}, "refuse")


def other_dtypes(base: Base, generator: random.Random) -> Case:
    floats = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
    state = {name: t.to(generator.choice(floats)) for name, t in base.state.items()}
    # Rounded to fewer bits, a scalar that training never moved is still 1 or 0.5.
    return Case(base.with_state(state), state, "load")


def no_floating_point(base: Base, generator: random.Random) -> Case:
    others = [dtype for dtype in STORAGE_KINDS if not dtype.is_floating_point]
    name = generator.choice(list(base.state))
    state = {**base.state, name: base.state[name].to(generator.choice(others))}
    return Case(base.with_state(state), {}, "refuse")


def moved_scalar(base: Base, generator: random.Random) -> Case:
    scalars = base.state["scalars"].clone()
    scalars[generator.randrange(len(scalars))] = generator.gauss(0, 1)
    state = {**base.state, "scalars": scalars}
    return Case(base.with_state(state), state)


def other_number_of_scalars(base: Base, generator: random.Random) -> Case:
    scalars, layers = base.state["scalars"], base.size["layers"]
    number = generator.choice([0, 1, 5 * layers - 1, 5 * layers + generator.randrange(20)])
    padded = torch.cat([scalars, torch.ones(100)])[:number]
    state = {**base.state, "scalars": padded}
    must = "load" if number >= 5 * layers else "refuse"
    return Case(base.with_state(state), state, must)


def other_order(base: Base, generator: random.Random) -> Case:
    names = list(base.state)
    generator.shuffle(names)
    state = {name: base.state[name] for name in names}
    return Case(base.with_state(state), state, "load")


def wrapped_names(base: Base, generator: random.Random) -> Case:
    """Prefixes of torch.compile and DistributedDataParallel, on all names or in a mixture."""
    prefixes = ["", "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod." * 50]
    same = generator.choice(prefixes)
    mixed = generator.random() < 0.3
    state = {
        (generator.choice(prefixes) if mixed else same) + name: tensor
        for name, tensor in base.state.items()
    }
    return Case(base.with_state(state), state, "either" if mixed else "load")


def lost_names(base: Base, generator: random.Random) -> Case:
    lost = set(generator.sample(list(base.state), generator.choice([1, 1, 2, 5])))
    state = {name: tensor for name, tensor in base.state.items() if name not in lost}
    return Case(base.with_state(state), {}, "refuse")


ODD_TENSOR_NAMES = [
    "", "x", "blocks", "blocks.", "blocks.12.mlp.fc_w", "blocks.99999.mlp.fc_w",
    "blocks.00.mlp.fc_w", "blocks.१.mlp.fc_w", "blocks.1१.mlp.fc_w", "blocks.-1.mlp.fc_w",
    f"blocks.{'9' * 5000}.attn.qkvo_w", f"blocks.{'9' * 5000}.mlp.fc_w", "blocks.0.attn.qkv_w",
    "value_embeds.3.weight", "value_embeds.0", "scalars.", "Scalars", "embed.weight\n",
    "embed\nweight", "\x1b[2J", "\u202eweight", "\ud800", "\0", "a" * 100_000,
    "pretrained_model.embed.weight", "_orig_mod.", "module.module.", "module.scalars", "embed2",
    "{i}", "blocks.{i}.mlp.fc_w", "transformer.h.0.attn.c_attn", "blocks.0.lambdas",
]  # fmt: skip


def odd_names(base: Base, generator: random.Random) -> Case:
    """One more tensor of an odd name, or one tensor under another name."""
    odd = generator.choice(ODD_TENSOR_NAMES)
    state = dict(base.state)
    name = generator.choice(list(state))
    state[odd] = state[name] if generator.random() < 0.5 else state.pop(name)
    return Case(base.with_state(state), {}, "refuse")


def swapped_names(base: Base, generator: random.Random) -> Case:
    """Two tensors change their places: refused by their shapes, or loaded as the file says."""
    one, two = generator.sample(list(base.state), 2)
    state = {**base.state, one: base.state[two], two: base.state[one]}
    return Case(base.with_state(state), state)


def other_shapes(base: Base, generator: random.Random) -> Case:
    name = generator.choice(list(base.state))
    tensor = base.state[name]
    kinds: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.transpose(0, -1).contiguous(),
        lambda t: t.flatten(),
        lambda t: t[None],
        lambda t: t[..., None],
        lambda t: t[:-1].clone(),
        lambda t: torch.cat([t, t[:1]]),
        lambda t: t[:0].clone(),
        lambda t: t.flatten()[0].clone(),
        lambda t: t.reshape(-1, 2) if t.dim() > 1 else t.reshape(1, -1),
    ]
    changed = generator.choice(kinds)(tensor)
    state = {**base.state, name: changed}
    must = "either" if changed.shape == tensor.shape or name == "scalars" else "refuse"
    return Case(base.with_state(state), state, must)


def lost_or_extra_blocks(base: Base, generator: random.Random) -> Case:
    layers = base.size["layers"]
    block = generator.randrange(layers)
    if generator.random() < 0.5:
        state = {n: t for n, t in base.state.items() if not n.startswith(f"blocks.{block}.")}
        return Case(base.with_state(state), {}, "refuse")
    new = generator.choice([layers, layers + 1, 500, 9999, 10000])
    extra = {
        name.replace(f"blocks.{block}.", f"blocks.{new}."): tensor
        for name, tensor in base.state.items()
        if name.startswith(f"blocks.{block}.")
    }
    return Case(base.with_state({**base.state, **extra}), {}, "refuse")


def of_two_formats(base: Base, generator: random.Random) -> Case:
    other = random_state("small", 6, 1, 8, 10, 2) if base.size["fmt"] == "medium" else {}
    names = generator.sample(list(other), min(len(other), generator.choice([1, 3, 30])))
    state = {**base.state, **{name: other[name] for name in names}}
    sound = state.keys() == base.state.keys()
    return Case(base.with_state(state), state, "either" if sound else "refuse")


ODD_CODES: list[object] = [
    "", "x", "GPT(", "GPT()", "GPT(num_heads=2)", "GPT(num_heads=4)", "GPT(num_heads=3)",
    "GPT(num_heads=0)", f"GPT(num_heads={'9' * 4000})", f"GPT(num_heads={'9' * 5000})",
    "GPT(num_heads=1e400)", "GPT(num_heads=2, num_layers=11)", "(" * 90, "(" * 100_000,
    "-" * 100_000 + "1", "[" * 5000 + "]" * 5000, "a." * 50_000 + "a", "1+" * 50_000 + "1",
    "x = '\\d'\nGPT(num_heads=2)", "'\\/'", "0777", "1if 1else 2", "0x1for x in y", "x is 3",
    "assert (1, 2)", "\0", "\ud800", "# coding: latin-1\n'\xe9'", "# coding: no-such\n1",
    "\ufeffGPT(num_heads=2)", "GPT(*[1, 2])", "GPT(**{'num_heads': 3})", "f'{GPT(num_heads=3)}'",
    "GPT = print\nGPT(num_heads=4)", "match x:\n case GPT(num_heads=3): pass", "\t\n x\n",
    "h = 2\nh: int = 4\nGPT(num_heads=h)", "GPT(num_heads=(h := 4))", "lambda: GPT(10, 12, 2, 8)",
    "GPT(num_heads=2j)", "GPT(num_heads=-2)", b"GPT(num_heads=4)", 5, None, ["GPT(num_heads=4)"],
    "async def f():\n  await GPT(num_heads=2)", "\x1b[31mGPT(num_heads=2)",
]  # fmt: skip


def odd_code(base: Base, generator: random.Random) -> Case:
    """Source text that tells nothing, tells lies, or is a burden to the parser."""
    code = generator.choice(ODD_CODES)
    if generator.random() < 0.03:
        code = generator.choice(["a=1\n" * 1_000_000, "(" * 4_000_000, "x" * (1 << 25)])
    if generator.random() < 0.3 and isinstance(code, str):
        code += "\n" + gpt_call(base.size["layers"], base.size["heads"], base.size["dim"])
    heads = generator.choice([None, base.size["heads"]])
    return Case(base.with_top(code=code), base.state, num_heads=heads)


def odd_entries(base: Base, generator: random.Random) -> Case:
    """Odd things under the keys of a checkpoint, and keys that none has."""
    odd: list[object] = [
        None, True, -1, 10**600, 10**5000, math.nan, math.inf, "", "x\ny", b"x", [], {}, (), [[]],
        {"a": {"b": [1, 2.0, None]}}, {1: 2, None: 3, False: 4, 1.5: 6}, OrderedDict(a=1),
        Spec(Storage("0", "BFloat16Storage", 80), 0, (), ()),
        Spec(Storage("0", "BFloat16Storage", 80), 79, (1, 1), (1, 1)),
        Spec(Storage("0", "BFloat16Storage", 80), 80, (1,), (1,)),
        Spec(Storage("0", "BFloat16Storage", 80), 0, (10**9, 10**9), (0, 0)),
        Spec(Storage("77", "FloatStorage", 10**12), 0, (10**12,), (1,)),
        Spec(Storage("0", "FloatStorage", -5), 0, (5,), (1,)),
    ]  # fmt: skip
    keys = ["step", "val_loss", "optimizers", "kind", "model", "x", "", "a\nb", "\x1b[1m", "\ud800"]
    keys += [0, None, 1.5, b"model", ("a", 1)]
    key, value = generator.choice(keys), generator.choice(odd)
    top = base.content.top | {key: value}
    if key == "model":
        return Case(file_of(replace(base.content, top=top)), {}, "refuse")
    return Case(file_of(replace(base.content, top=top)), base.state)


def no_checkpoint(base: Base, generator: random.Random) -> Case:
    """Another thing than a dict with a model."""
    model = base.content.model
    cyclic: dict = {}
    cyclic["model"] = cyclic
    endless: list = []
    endless.append(endless)
    thing = generator.choice(
        [
            None, 3, "model", [], (model,), {}, model, {"weights": model}, {"model": [model]},
            {"model": {"model": model}}, {"model": {}}, {"MODEL": model}, cyclic, endless,
            {"model": list(model.items())}, {"model": {1: next(iter(model.values()))}},
            {"kind": "hindi-xnli-classifier", "model": model}, {"a\nb" * 99: 1}, {"x" * 10**6: 1},
            {"model": {("a", ("b",)): 1}}, {"model": {"a\nb": 1, "\x1b[2J": 2}},
        ]
    )  # fmt: skip
    return Case(file_of(replace(base.content, top=thing)), {}, "refuse")
