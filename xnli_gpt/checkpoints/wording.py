"""How messages show what a file calls something: on one line, and no longer than can be read."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LISTED = 6
LONGEST_NAME = 80


def listed(names: Iterable[object]) -> str:
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(shown, names[:MAX_LISTED])) + more


def shown(name: object) -> str:
    """What a file calls something, fit for one line of a terminal."""
    text = name if isinstance(name, str) else repr(name)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
