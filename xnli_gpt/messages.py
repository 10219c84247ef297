"""How a message shows what comes from a user, a file or a library: on one line, cut where it is
long."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable

MAX_LISTED = 6
LONGEST_SHOWN = 200
_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2


def shown(value: object, longest: int = LONGEST_SHOWN) -> str:
    """Return a text as it is and anything else as Python writes it, fit for one line of a
    terminal and of at most `longest` characters."""
    try:
        # Lists of the same list several times, and so on, would print for ever.
        text = value if isinstance(value, str) else _SHORT.repr(value)
    except ValueError:
        text = "a number of thousands of digits"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}…"


def listed(items: Iterable[object]) -> str:
    """Return the first items, and how many more there are."""
    items = list(items)
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(map(shown, items[:MAX_LISTED])) + more


def with_flags(text: str) -> str:
    """Return a message as a terminal shows it: options, which stand in backticks, as flags."""
    return re.sub(r"`([a-z_]+)`", r"--\1", text)


def reason_of(error: BaseException) -> str:
    """Return the first line of what an error says, or its name where it says nothing."""
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0].strip())
