"""What comes from a file or a library, fit for one line of a message."""

from __future__ import annotations

from collections.abc import Iterable

MAX_LISTED = 5
LONGEST_SHOWN = 200


def listed(items: Iterable[object]) -> str:
    items = list(items)
    more = f" and {len(items) - MAX_LISTED} more" if len(items) > MAX_LISTED else ""
    return ", ".join(shown(str(item)) for item in items[:MAX_LISTED]) + more


def reason_of(error: BaseException) -> str:
    """The first line of what an error says."""
    return shown((str(error).splitlines() or [""])[0].strip() or type(error).__name__)


def shown(text: str) -> str:
    """What comes from a file, fit for one line of a terminal."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: LONGEST_SHOWN + 1])
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"
