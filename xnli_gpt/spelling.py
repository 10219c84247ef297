"""What a user probably meant: the name that a misspelt or shortened one stands for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Of difflib's ratio: one or two letters wrong, but no other word.
LEAST_LIKENESS = 0.75
SHORTEST_PART = 3


def nearest(given: str, names: Iterable[str]) -> str | None:
    """Return the name that `given` most likely stands for, or None where none is near.

    Case, hyphens and underscores count for nothing; a beginning or an end of a name stands for it,
    and so does what is short for it.
    """
    by_key: dict[str, str] = {}
    for name in names:
        by_key.setdefault(_key(name), name)
    key = _key(given)
    if key in by_key:
        return by_key[key]
    if len(key) >= SHORTEST_PART:
        for name_key, name in by_key.items():
            if name_key.startswith(key) or name_key.endswith(f"_{key}"):
                return name
    close = difflib.get_close_matches(key, by_key, n=1, cutoff=LEAST_LIKENESS)
    if close:
        return by_key[close[0]]
    long = [name for name_key, name in by_key.items() if _is_short_for(key, name_key)]
    return long[0] if len(long) == 1 else None


def _is_short_for(key: str, name: str) -> bool:
    """Return whether letters were left out: lr of learning_rate, bf16 of bfloat16."""
    if key == "".join(part[0] for part in name.split("_") if part):
        return len(key) > 1
    letters = iter(name)
    ends_meet = key[:1] == name[:1] and key[-1:] == name[-1:]
    return len(key) >= SHORTEST_PART and ends_meet and all(letter in letters for letter in key)


def _key(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_").strip("_")
