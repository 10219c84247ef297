"""The words of a command line and the YAML of a recipe, read as flags, and what is wrong with them.

All that is wrong is found at once. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

import yaml

from xnli_gpt.messages import MAX_LISTED, shown
from xnli_gpt.options import Flag, FlagGroups
from xnli_gpt.spelling import nearest

# The key of a run's config.yaml that holds what is no flag.
FOUND = "found"
# Of whole numbers, where a flag has no bound of its own.
LARGEST = (1 << 63) - 1


def parse_flags(
    description: str,
    groups: FlagGroups,
    argv: Sequence[str] | None = None,
    recipes: bool = True,
) -> tuple[argparse.Namespace, list[str]]:
    """Return flags over YAML over defaults, and all that is wrong with them.

    A wrong value's place is taken by the default, so that the rest can be checked too. `recipes`:
    whether there is a --config.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = _parser(description, groups, recipes)
    arguments, problems = _parse_words(parser, words)
    if recipes and arguments.config is not None:
        recipe, recipe_problems = _read_recipe(Path(arguments.config), groups)
        parser.set_defaults(**recipe)
        arguments, _ = _parse_words(parser, words)
        problems += recipe_problems
    for flag in flags_of(groups):
        wrong = _problems_of(flag, getattr(arguments, flag.name))
        if wrong:
            setattr(arguments, flag.name, flag.default)
            problems += wrong
    return arguments, problems


def flags_of(groups: FlagGroups) -> Iterator[Flag]:
    for flags in groups.values():
        yield from flags


def _parse_words(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Parse all words: argparse stops at the first flag without its value, which is left out
    then."""
    words, told = _without_values_of_unknown(parser, words)
    problems = []
    while True:
        try:
            arguments, unknown = parser.parse_known_args(words)
        except argparse.ArgumentError as error:
            problems.append(f"{error.argument_name}: {shown(error.message)}")
            words = _without_flag(words, error.argument_name.split("/"))
        else:
            return arguments, problems + [
                told.get(word, f"unknown argument {shown(word)}; see --help") for word in unknown
            ]


def _without_values_of_unknown(
    parser: argparse.ArgumentParser, words: list[str]
) -> tuple[list[str], dict[str, str]]:
    """Return the words without the values of unknown flags, which are no problems of their own; and
    for each unknown flag what is to be said."""
    options = {option: action for action in parser._actions for option in action.option_strings}
    kept, told, to_drop = [], {}, 0.0
    for number, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if word == "--":
            return kept + words[number:], told
        if not _looks_like_flag(word):
            if to_drop > 0:
                to_drop -= 1
            else:
                kept.append(word)
        elif name in options:
            kept.append(word)
            to_drop = 0
        else:
            # The name stays: what stands before and behind it must not come together.
            kept.append(name)
            right = nearest(name, options)
            told[name] = _unknown(name, right)
            to_drop = 0 if equals else _most_values(options.get(right))
    return kept, told


def _looks_like_flag(word: str) -> bool:
    """Tell a flag as argparse does: no negative number, and no text with a space that opens with a
    dash."""
    name = word.partition("=")[0]
    if len(word) < 2 or not word.startswith("-") or " " in name:
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


def _unknown(name: str, right: str | None) -> str:
    said = f"unknown argument {shown(name)}"
    return f"{said}; see --help" if right is None else f"{said}: did you mean {right}?"


def _most_values(action: argparse.Action | None) -> float:
    """Return how many words behind a flag can be its values; of an unknown one any number."""
    if action is None or action.nargs == "+":
        return math.inf
    return 1 if action.nargs is None else action.nargs


def _without_flag(words: list[str], names: list[str]) -> list[str]:
    kept, dropping = [], False
    for word in words:
        if word.startswith("-"):
            # A letter may have its value behind it at once.
            dropping = word.split("=")[0] in names or word[:2] in names
        if not dropping:
            kept.append(word)
    return kept


def _parser(description: str, groups: FlagGroups, recipes: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
    )
    if recipes:
        parser.add_argument(
            "--config",
            metavar="YAML",
            type=_lenient(Path),
            help="a recipe, such as a run's config.yaml; flags override it",
        )
    for title, flags in groups.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            name = flag.name if flag.positional else f"--{flag.name}"
            group.add_argument(name, **_argparse_options(flag))
    return parser


class _Repeated(argparse.Action):
    """Takes the values of every time that a flag stands on a command line, and of no recipe."""

    def __call__(
        self, parser: object, arguments: argparse.Namespace, values: list, option: object = None
    ) -> None:
        before = getattr(arguments, self.dest)
        is_first = before is self.default or before is parser.get_default(self.dest)
        setattr(arguments, self.dest, [*([] if is_first else before), *values])


def _argparse_options(flag: Flag) -> dict[str, object]:
    default = " ".join(flag.default) if isinstance(flag.default, list) else flag.default
    options = {"default": flag.default, "help": f"{flag.help} (default: {default})"}
    if flag.kind is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    metavar = "|".join(flag.choices) if flag.choices else flag.kind.__name__.upper()
    options |= {"type": _lenient(flag.kind), "metavar": flag.metavar or metavar}
    # Without its word a positional flag is for the command to miss, among all other problems.
    nargs = {None: "?", "+": "*"}[flag.count] if flag.positional else flag.count
    if flag.repeatable:
        options["action"] = _Repeated
    return options | {"nargs": nargs}


def _lenient(kind: type) -> Callable[[object], object]:
    """Convert to a number; what is none stays as it is, to be reported with all other problems."""
    of_text = os.path.expanduser if kind is Path else kind

    def convert(value: object) -> object:
        try:
            text = str(value)
        except ValueError:
            return value  # a whole number of too many digits
        try:
            return of_text(text)
        except ValueError:
            return text

    return convert


def _read_recipe(path: Path, groups: FlagGroups) -> tuple[dict, list[str]]:
    """Return the values of a YAML file as the flags take them, and what is wrong with the file."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    # A date that is none, a number of thousands of digits, lists in lists in lists: each raises
    # something else in PyYAML.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return {}, [f"--config {path}: can't be read ({shown(reason)})"]
    if not isinstance(recipe, dict):
        return {}, [f"--config {path}: expected a mapping of flags to values"]
    recipe = _without_findings(recipe)
    flags = {flag.name: flag for flag in flags_of(groups)}
    unknown = [_unknown_key(key, flags) for key in recipe if key not in flags]
    problems = [f"--config {path}: {problem}" for problem in unknown]
    known = {key: value for key, value in recipe.items() if key in flags and value is not None}
    return {key: _recipe_value(flags[key], value) for key, value in known.items()}, problems


def _without_findings(recipe: dict) -> dict:
    """Return the flags alone of a run's config.yaml, which also says what the run found.

    Older ones hold the flags under a key of their own.
    """
    if isinstance(recipe.get("flags"), dict) and "decisive" in recipe:
        return recipe["flags"]
    return {key: value for key, value in recipe.items() if key != FOUND}


def _unknown_key(key: object, flags: Mapping[str, Flag]) -> str:
    right = nearest(key, flags) if isinstance(key, str) else None
    said = f"unknown key {shown(key)}"
    return f"{said}; keys are the flags" if right is None else f"{said}: did you mean {right}?"


def _recipe_value(flag: Flag, value: object) -> object:
    """Convert to the flag's kind; what does not fit stays as it is, to be reported with all other
    problems."""
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
    # argparse gives no words of a positional flag as an empty list.
    if value is None or (flag.positional and value == []):
        return []
    given = value if isinstance(value, list) else [value]
    said = f"{flag.option} {' '.join(map(shown, given[:MAX_LISTED]))}"
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
    """Return what should stand where `value` does, or None where it is of the flag's kind."""
    if flag.choices is not None:
        return None if value in flag.choices else _choices_instead(flag.choices, value)
    if flag.kind is bool:
        return None if isinstance(value, bool) else "true or false"
    if flag.count is not None:
        right_count = len(value) == flag.count or (flag.count == "+" and value)
        right = right_count and all(map(_is_name, value))
        return None if right else f"{'some' if flag.count == '+' else flag.count} names"
    if flag.kind in (str, Path):
        return None if _is_name(value) else "a name or path"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "a whole number" if flag.kind is int else "a number"
    return None if isinstance(value, int) or math.isfinite(value) else "a finite number"


def _choices_instead(choices: Sequence[str], value: object) -> str:
    right = nearest(value, choices) if isinstance(value, str) else None
    names = " or ".join(choices)
    return names if right is None else f"{names}; did you mean {right}?"


def _is_name(value: object) -> bool:
    """Return whether it is a text that can name something: no file system and no Hub takes a NUL,
    which YAML can write."""
    return isinstance(value, str) and value != "" and "\0" not in value
