"""Command lines and configuration files for the fuzzer."""

from __future__ import annotations

import contextlib
import io
import math
import os
import random
from pathlib import Path

import yaml
from fuzz_datasets import ODD_CELLS
from fuzzing import Kind, Wrong, require_good_message
from odd_inputs import ODD_WORDS, changed_bytes

import finetune_hindi_xnli as finetune
from xnli_gpt.flags import parse_flags
from xnli_gpt.options import Flag

FLAGS = {flag.name: flag for group in finetune.COMMAND.flags.values() for flag in group}
NUMBERS = [
    "0", "1", "-1", "2", "3.5", "1e-4", "1e400", "-1e400", "nan", "inf", "-inf", "1_000", " 7 ",
    "٣",
    "0x10", "1e3", "9" * 30, "9" * 5000, "4294967295", "4294967296", "65536", "65537", "0.99",
    "1.0",
    "-0", "+5", "1/2", "1,5", "true", "None",
]  # fmt: skip
YAML_TEXTS = [
    "", "[]", "3", "null", "~", "- a", "a", "a: b: c", "{", "seed: [", "seed: 1\nseed: 2", "? a",
    "---",
    "seed: 1\n---\nseed: 2", "%YAML 9.9\n---\nseed: 1", "seed: !!python/object:os.system []",
    "seed: !!python/object/apply:os.system [touch MARKER]", "seed: !!python/name:os.system",
    "seed: !!python/tuple [1, 2]", "seed: !!binary aGVsbG8=", "seed: !!binary '*'", "seed: !!int x",
    "seed: !!int ''", "seed: !!float x", "seed: !!timestamp x", "seed: 2020-13-45",
    "seed: 2020-01-01",
    "seed: 2020-01-01 25:61:61", "seed: !!set {a, b}", "seed: !!omap [a: 1]", "seed: !!null x",
    "seed: !!bool x", "seed: !!str 5", "seed: !!map 5", "seed: !!seq 5", "seed: !x 5", "seed: &a 5",
    "seed: *a", "seed: &a [*a]", "text_column: &a [*a, x]", "text_column: &a [x, {y: *a}]",
    "&a seed: *a", "seed: 0x10", "seed: 0o7", "seed: 010", "seed: 1_000", "seed: 1:30",
    "seed: .inf",
    "seed: .nan", "seed: " + "9" * 5000, "seed: 0x" + "f" * 5000, "seed: 1e999", "seed: -0.0",
    "seed: " + "[" * 3000, "seed: " + "{a: " * 3000, "- " * 3000, "seed: '\\0'", 'seed: "\\0"',
    'dataset: "a\\0b"', 'pretrained_ckpt_path: "a\\0*"', 'out_dir: "a\\0b"',
    'tokenizer_name: "\\0"',
    'cache_dir: "\\0"', 'data_dir: "a\\0"', 'config: x.yaml', "true: 1", "1: 2", "null: 3",
    "[a]: 1", "{a: 1}: 2", "dataset: [a, b]", "dataset: {a: b}", "text_column: a", "compile: no",
    "compile: off", "random_init: yes", "random_init: 'yes'", "random_init: 1",
    "text_column: [a, 1]",
    "text_column: [a, b, c]", "text_column: []", "text_column: [a, null]", "dtype: [float32]",
    "pretrained_ckpt_path: []", "pretrained_ckpt_path: [1]", "pretrained_ckpt_path: {a: 1}",
    "seed: !!python/object/new:type {args: [z, !!python/tuple [], {extend: !!python/name:exec}]}",
    "<<: {seed: 1}", "<<: [a]", "<<: *x", "? [a, b]\n: 1", "seed: |\n  5", "seed: >\n  5\n  6",
    "seed: 1\x00", "seed: \ud800", "\ufeffseed: 1", "seed:\t1", "\tseed: 1", "seed: 1 # comment",
    "dataset: 2024", "dataset: 1e-4", "dataset: yes", "dataset: ~", "dataset: ''", "dataset: '\n'",
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
    "c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
    "e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e]\n"
    "text_column: &g [*f, *f, *f, *f, *f, *f, *f, *f]\nseed: [*g, *g, *g, *g, *g, *g]",
]  # fmt: skip


class CommandLines(Kind):
    """Words after the command and YAML recipes, with any names and any values."""

    def __init__(self, folder: Path):
        self.folder, self.recipe = folder / "here", folder / "recipe.yaml"
        self.marker = folder / "marker"
        self.folder.mkdir()
        os.chdir(self.folder)

    def run(self, generator: random.Random) -> str:
        words, self.doing = some_words(generator), "flags"
        if generator.random() < 0.6:
            text = some_yaml(generator).replace("MARKER", str(self.marker))
            self.recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
            words, self.doing = ["--config", str(self.recipe), *words], "YAML"
        problems = check_arguments(words)
        if generator.random() < 0.15:
            # One problem is certain, so that nothing long begins.
            check_run([*words, "--n_layer", "0"], self.folder)
        if self.marker.exists():
            raise Wrong("the payload was executed")
        return "no problem" if not problems else "problems"


def some_words(generator: random.Random) -> list[str]:
    words = []
    for _ in range(generator.choice([0, 1, 2, 5])):
        name = generator.choice(list(FLAGS))
        others = [f"--no-{name}", f"-{name}", name, f"--{name[:-1]}"]
        flag = generator.choice([f"--{name}"] * 6 + others)
        values = [str(generator.choice([*NUMBERS, *ODD_WORDS, *FLAGS])) for _ in range(3)]
        if FLAGS[name].choices and generator.random() < 0.7:
            values[0] = generator.choice(FLAGS[name].choices)
        form = generator.randrange(6)
        if form == 0:
            words.append(f"{flag}={values[0]}")
        else:
            words += [flag, *values[: generator.choice([0, 1, 1, 1, 2, 3])]]
    if generator.random() < 0.15:
        odd = [
            "--",
            "-",
            "--=",
            "-x",
            "--no-",
            "@file",
            "--random_init=x",
            "--seed",
            "-h1",
            "--\x00",
        ]
        words.insert(generator.randrange(len(words) + 1), generator.choice(odd))
    return [word for word in words if word not in ("-h", "--help")]


def some_yaml(generator: random.Random) -> str:
    kind = generator.randrange(4)
    if kind == 0:
        return generator.choice(YAML_TEXTS)
    if kind == 1:
        lines = [generator.choice(YAML_TEXTS) for _ in range(2)]
        return "\n".join(lines)
    names = [*FLAGS, "unknown", "config", 1, None, True]
    recipe = {generator.choice(names): _yaml_value(generator) for _ in range(3)}
    text = yaml.safe_dump(recipe, allow_unicode=generator.random() < 0.5)
    if kind == 2:
        return text
    return changed_bytes(text.encode(), generator).decode("latin-1")


def _yaml_value(generator: random.Random) -> object:
    plain = [*ODD_CELLS, *ODD_WORDS, *NUMBERS, math.nan, math.inf, 10**4200, b"x", b"\xff"]
    nested = [{"a": [1, {"b": None}]}, [[["x"]]], ["premise", "hypothesis"], ["a", None]]
    return generator.choice([*plain, *nested])


def check_arguments(words: list[str]) -> list[str]:
    """Parse; returns the problems. Raises `Wrong` where a value that no problem names is not what
    its flag says."""
    command = finetune.COMMAND
    args, problems = parse_flags(command.description, command.flags, words)
    for problem in problems:
        require_good_message(ValueError(problem))
    for name, flag in FLAGS.items():
        value = getattr(args, name)
        if not is_right_value(flag, value):
            raise Wrong(f"--{name} became {value!r}: {problems}")
    return problems


def is_right_value(flag: Flag, value: object) -> bool:
    """Whether a value is what the table of flags promises; a default always is."""
    if value is None or value == flag.default:
        return type(value) is type(flag.default)
    if flag.count is not None:
        right_count = isinstance(value, list) and (flag.count == "+" or len(value) == flag.count)
        return right_count and len(value) > 0 and all(_is_name(word) for word in value)
    if flag.choices is not None:
        return type(value) is str and value in flag.choices
    if flag.kind in (str, Path):
        return _is_name(value)
    if type(value) is not flag.kind:
        return False
    if flag.kind is float and not math.isfinite(value):
        return False
    low_enough = flag.high is None or value <= flag.high
    high_enough = flag.low is None or value >= flag.low
    return low_enough and high_enough and (flag.above is None or value > flag.above)


def _is_name(value: object) -> bool:
    return type(value) is str and value != ""


def check_run(words: list[str], folder: Path) -> None:
    """A command line with a problem: exit code 2, nothing but errors, and no file left."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        code = finetune.main(words)
    lines = errors.getvalue().splitlines()
    if code != 2 or not lines or not all(line.startswith("error: ") for line in lines):
        raise Wrong(f"exit code {code}: {errors.getvalue()[:2000]!r}")
    left = list(folder.iterdir())
    if left or out.getvalue():
        raise Wrong(f"left {left}, said {out.getvalue()!r}")
