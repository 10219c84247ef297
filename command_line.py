"""Command lines of the entry points: flags as tables, YAML recipes, errors as lines, exit codes.

All that is wrong with a command line is told at once, each problem in a line on stderr that
begins with "error:".
"""

from __future__ import annotations

import argparse
import math
import reprlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
import yaml

EXIT_FAILED, EXIT_REFUSED = 1, 2
# The key of a run's config.yaml that holds what is no flag.
FOUND = "found"
# Of whole numbers, where a flag has no bound of its own.
LARGEST = (1 << 63) - 1
# How a message shows what a user gave.
LONGEST_SHOWN = 200
MAX_SHOWN_WORDS = 6
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


@dataclass(frozen=True)
class Flag:
    """One line of the command line: `kind` is int, float, str or bool; `count` as argparse's
    nargs; `low` and `high` are inclusive bounds, `above` an exclusive one."""

    name: str
    kind: type
    default: object
    help: str
    choices: tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    count: int | str | None = None


# Flags by the titles that --help puts above them.
FlagGroups = dict[str, tuple[Flag, ...]]


class UsageError(ValueError):
    """What was asked can't be done; one problem a line."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def parse_flags(
    description: str, groups: FlagGroups, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """Flags over YAML over defaults, and all that is wrong with them.

    A wrong value's place is taken by the default, so that the rest can be checked too.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(description, groups)
    arguments, problems = _parse_words(parser, words)
    if arguments.config is not None:
        recipe, recipe_problems = _read_recipe(Path(arguments.config), groups)
        parser.set_defaults(**recipe)
        arguments, _ = _parse_words(parser, words)
        problems += recipe_problems
    for group in groups.values():
        for flag in group:
            wrong = _problems_of(flag, getattr(arguments, flag.name))
            if wrong:
                setattr(arguments, flag.name, flag.default)
                problems += wrong
    return arguments, problems


def _parse_words(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """argparse stops at the first flag without its value: leave that one out and go on."""
    problems = []
    while True:
        try:
            arguments, unknown = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            problems.append(f"{error.argument_name}: {_shown(error.message)}")
            words = _without_flag(words, error.argument_name.split("/"))
        else:
            return arguments, problems + [
                f"unknown argument {_shown(word)}; see --help" for word in unknown
            ]


def _without_flag(words: list[str], names: list[str]) -> list[str]:
    kept, dropping = [], False
    for word in words:
        if word.startswith("-"):
            # A letter may have its value behind it at once.
            dropping = word.split("=")[0] in names or word[:2] in names
        if not dropping:
            kept.append(word)
    return kept


def _parser(description: str, groups: FlagGroups) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="YAML", help="a recipe; flags override it")
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            group.add_argument(f"--{flag.name}", **_argparse_options(flag))
    return parser


def _argparse_options(flag: Flag) -> dict[str, object]:
    default = " ".join(flag.default) if isinstance(flag.default, list) else flag.default
    options = {"default": flag.default, "help": f"{flag.help} (default: {default})"}
    if flag.kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    metavar = "|".join(flag.choices) if flag.choices else flag.kind.__name__.upper()
    return options | {"type": _lenient(flag.kind), "metavar": metavar, "nargs": flag.count}


def _lenient(kind: type) -> Callable[[object], object]:
    """What is no such number stays as it is, to be reported with all other problems."""

    def convert(value: object) -> object:
        try:
            text = str(value)
        except ValueError:
            return value  # a whole number of too many digits
        try:
            return kind(text)
        except ValueError:
            return text

    return convert


def _read_recipe(path: Path, groups: FlagGroups) -> tuple[dict, list[str]]:
    """The values of a YAML file as the flags take them, and what is wrong with the file."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    # A date that is none, a number of thousands of digits, lists in lists in lists: each raises
    # something else in PyYAML.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return {}, [f"--config {path}: can't be read ({_shown(reason)})"]
    if not isinstance(recipe, dict):
        return {}, [f"--config {path}: expected a mapping of flags to values"]
    recipe = _without_findings(recipe)
    flags = {flag.name: flag for group in groups.values() for flag in group}
    unknown = [_shown(key) for key in recipe if key not in flags]
    problems = [f"--config {path}: unknown key {key}; keys are the flags" for key in unknown]
    known = {key: value for key, value in recipe.items() if key in flags and value is not None}
    return {key: _recipe_value(flags[key], value) for key, value in known.items()}, problems


def _without_findings(recipe: dict) -> dict:
    """Return the flags alone of a run's config.yaml, which also says what the run found.

    Older ones hold the flags under a key of their own.
    """
    if isinstance(recipe.get("flags"), dict) and "decisive" in recipe:
        return recipe["flags"]
    return {key: value for key, value in recipe.items() if key != FOUND}


def _recipe_value(flag: Flag, value: object) -> object:
    """What does not fit the flag stays as it is, to be reported with all other problems."""
    if flag.kind is bool:
        return value
    if flag.count is not None:
        return [_scalar(flag, item) for item in (value if isinstance(value, list) else [value])]
    return _scalar(flag, value)


def _scalar(flag: Flag, value: object) -> object:
    # YAML takes 1e-4 for a string, and a folder called 2024 for a number.
    plain = isinstance(value, str | int | float | date) and not isinstance(value, bool)
    return _lenient(flag.kind)(value) if plain else value


def _problems_of(flag: Flag, value: object) -> list[str]:
    if value is None:
        return []
    given = value if isinstance(value, list) else [value]
    said = f"--{flag.name} {' '.join(map(_shown, given[:MAX_SHOWN_WORDS]))}"
    expected = _expected_instead(flag, value)
    if expected is not None:
        return [f"{said}: expected {expected}"]
    high = LARGEST if flag.kind is int and flag.high is None else flag.high
    bounds = [
        (flag.low, "at least", lambda bound: value >= bound),
        (high, "at most", lambda bound: value <= bound),
        (flag.above, "more than", lambda bound: value > bound),
    ]
    return [
        f"{said}: expected {words} {bound}"
        for bound, words, holds in bounds
        if bound is not None and not holds(bound)
    ]


def _expected_instead(flag: Flag, value: object) -> str | None:
    """What should stand where `value` does, or None where it is of the flag's kind."""
    if flag.choices is not None:
        return None if value in flag.choices else " or ".join(flag.choices)
    if flag.kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if flag.count is not None:
        right_count = len(value) == flag.count or (flag.count == "+" and value)
        right = right_count and all(map(_is_name, value))
        return None if right else f"{'some' if flag.count == '+' else flag.count} names"
    if flag.kind is str:
        return None if _is_name(value) else "a name or path"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a whole number" if flag.kind is int else "a number"
    return None if isinstance(value, int) or math.isfinite(value) else "a finite number"


def _is_name(value: object) -> bool:
    """No file system and no Hub takes a name with a NUL, which YAML can write."""
    return isinstance(value, str) and value != "" and "\0" not in value


def _shown(value: object) -> str:
    """Anything that a user gave, on one line and cut where it is long."""
    try:
        # Lists of the same list several times, and so on, would print for ever.
        text = value if isinstance(value, str) else _SHORT.repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: LONGEST_SHOWN + 1])
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def exit_code_of(
    work: Callable[[], None],
    refused: tuple[type[Exception], ...],
    failed: tuple[type[Exception], ...] = (),
) -> int:
    """Do `work`; returns 0, or prints what went wrong and returns the exit code of it.

    `refused` are errors about what a user asked for, `failed` those of the work itself.
    """
    try:
        work()
        return 0
    except UsageError as error:
        code, problems = EXIT_REFUSED, error.problems
    except refused as error:
        code, problems = EXIT_REFUSED, [str(error)]
    except OSError as error:
        code, problems = EXIT_REFUSED, [f"{error.filename or 'disk'}: {error.strerror or error}"]
    except failed as error:
        code, problems = EXIT_FAILED, [str(error)]
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        code = EXIT_FAILED
        problems = [f"{reason}: use --max_tokens_per_batch or a larger GPU"]
    for problem in problems:
        printable = problem if problem.isprintable() else ascii(problem)[1:-1]
        print(f"error: {printable}", file=sys.stderr)
    return code
