"""Options as fields of dataclasses: one declaration is a flag, a key of a recipe and a typed value.

A command's configuration is a dataclass whose fields are groups of options, each a dataclass of its
own that the room which uses it declares. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Configuration = TypeVar("Configuration")


@dataclass(frozen=True)
class Flag:
    """One line of the command line: `kind` is int, float, str, bool, or Path for what may be a
    path, whose `~` is expanded; `count` as argparse's nargs; `low` and `high` are inclusive bounds,
    `above` an exclusive one; `must_exist` is for paths and globs of what a command reads;
    `positional` for a word without --name, which `metavar` calls; `repeatable` for one whose values
    are those of every time that it stands on a command line."""

    name: str
    kind: type
    default: object
    help: str
    choices: tuple[str, ...] | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    count: int | str | None = None
    must_exist: bool = False
    positional: bool = False
    metavar: str | None = None
    repeatable: bool = False

    @property
    def option(self) -> str:
        """Return what a command line and messages call it."""
        return (self.metavar or self.name) if self.positional else f"--{self.name}"


# Flags by the titles that --help puts above them.
FlagGroups = dict[str, tuple[Flag, ...]]


def option(default: object, help: str, **details: object) -> Any:
    """Declare an option: a field of a group, with what `Flag` takes besides name, kind and
    count.

    `is_path` is for text that may be a path (a name of a dataset, a glob): it stays text, since
    `./name` means another thing than `name`.
    """
    return field(default=default, metadata={"help": help, **details})


def group(options: type, title: str) -> Any:
    """Declare a group of options as a field of a command's configuration."""
    return field(default_factory=options, metadata={"title": title})


def flag_groups(configuration: type) -> FlagGroups:
    """Return the flags of a command by the titles of their groups."""
    return {
        title: tuple(_flag(one, hint) for one, hint in _options_of(options))
        for _, title, options in _groups_of(configuration)
    }


def _groups_of(configuration: type) -> Iterator[tuple[str, str, type]]:
    """Yield a configuration's groups: name of the field, title, class."""
    for one in fields(configuration):
        yield one.name, one.metadata["title"], one.default_factory


def _options_of(options: type) -> Iterator[tuple[Field, object]]:
    hints = get_type_hints(options)
    for one in fields(options):
        yield one, hints[one.name]


def _flag(one: Field, hint: object) -> Flag:
    assert one.default is not MISSING, f"option {one.name} has no default"
    details = dict(one.metadata)
    kind, count = _kind_and_count(hint)
    kind = Path if details.pop("is_path", False) else kind
    default = str(one.default) if isinstance(one.default, Path) else one.default
    default = list(default) if isinstance(default, tuple) else default
    return Flag(one.name, kind, default, count=count, **details)


def _kind_and_count(hint: object) -> tuple[type, int | str | None]:
    """Return `int` and None for `int | None`, `str` and 2 for `tuple[str, str]`, and so on."""
    hint = _without_none(hint)
    if get_origin(hint) is not tuple:
        return hint, None
    kinds = get_args(hint)
    return kinds[0], "+" if kinds[1] is ... else len(kinds)


def _without_none(hint: object) -> object:
    if isinstance(hint, UnionType):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    return hint


def configuration_of(
    configuration: type[Configuration], values: Mapping[str, object]
) -> Configuration:
    """Build a configuration from values by the names of its options; what they lack, and what is
    None where the option can't be, has its default."""
    return configuration(
        **{
            name: options(**dict(_typed_values(options, values)))
            for name, _, options in _groups_of(configuration)
        }
    )


def _typed_values(options: type, values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for one, hint in _options_of(options):
        if one.name in values:
            value = values[one.name]
            is_path = _without_none(hint) is Path and isinstance(value, str)
            value = Path(value) if is_path else value
            yield one.name, tuple(value) if isinstance(value, list) else value


def plain_values(configuration: object) -> dict[str, object]:
    """Return a configuration's options, or those of a group, by their names, as YAML has them."""
    values: dict[str, object] = {}
    for one in fields(configuration):
        value = getattr(configuration, one.name)
        if "title" in one.metadata:
            values |= plain_values(value)
        else:
            value = str(value) if isinstance(value, Path) else value
            values[one.name] = list(value) if isinstance(value, tuple) else value
    return values
