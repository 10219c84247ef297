"""Fonts with Devanagari: for the figures, and embedded in the page where its reader has none."""

from __future__ import annotations

import base64
import importlib.util
import re
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

from matplotlib.font_manager import fontManager, get_font

FONT_PACKAGE = "fontpkg_noto_sans_devanagari"
# Installed fonts that draw Devanagari, where the package is missing.
DEVANAGARI_FONTS = (
    "Noto Sans Devanagari",
    "Lohit Devanagari",
    "Mukta",
    "Hind",
    "Poppins",
    "Nirmala UI",
    "Kohinoor Devanagari",
    "Devanagari MT",
    "Mangal",
    "FreeSans",
)
# Letters, Vedic signs, and the joiners and the dotted circle that stand between them.
DEVANAGARI = re.compile("[\u0900-\u097f\u1cd0-\u1cff\ua830-\ua839\ua8e0-\ua8ff\u20b9]")
BESIDE_DEVANAGARI = "\u200c\u200d\u25cc\u00a0"
UNICODE_RANGE = "U+0900-097F, U+1CD0-1CFF, U+200C-200D, U+20B9, U+25CC, U+A830-A839, U+A8E0-A8FF"


def _package_font() -> Path | None:
    package = importlib.util.find_spec(FONT_PACKAGE)
    if package is None or package.origin is None:
        return None
    return next(iter(sorted(Path(package.origin).parent.glob("files/*.ttf"))), None)


@cache
def font_families() -> tuple[str, ...]:
    """Return matplotlib's own font, and where there is one, a font with Devanagari behind it."""
    path = _package_font()
    if path is not None:
        fontManager.addfont(path)
    installed = set(fontManager.get_font_names())
    found = next((name for name in DEVANAGARI_FONTS if name in installed), None)
    return ("DejaVu Sans",) if found is None else ("DejaVu Sans", found)


@cache
def drawable_characters() -> frozenset[int]:
    """Return the code points that the figures' fonts have signs for."""
    fonts = [get_font(fontManager.findfont(name)) for name in font_families()]
    return frozenset().union(*(font.get_charmap() for font in fonts))


def drawable(names: Sequence[str], kind: str, width: int) -> tuple[list[str], str]:
    """Return the names as a figure can show them, in lines of `width` characters, and a note where
    numbers stand for them."""
    if all(map(_can_draw, names)):
        return [textwrap.fill(name, width) for name in names], ""
    numbers = [f"{kind} {number}" for number in range(1, len(names) + 1)]
    return numbers, "Numbered as in the table: no font here has the letters of the names."


def _can_draw(text: str) -> bool:
    # Joiners and direction marks have no sign of their own.
    return all(ord(c) in drawable_characters() or not c.isprintable() for c in text)


def embedded_font(characters: Iterable[str]) -> str:
    """Return the CSS rule of a font that holds the Devanagari among the characters, with all that
    joins them; nothing where there is none, or no font package is installed.

    One weight and width of the variable font: a page needs no more, and is smaller by half.
    """
    used = set(filter(DEVANAGARI.match, characters))
    path = _package_font()
    if not used or path is None:
        return ""
    # Compressed to a third by brotli, where it is installed, and to a half without.
    flavor = "woff2" if importlib.util.find_spec("brotli") else "woff"
    source = base64.b64encode(_subset(path, used | set(BESIDE_DEVANAGARI), flavor)).decode()
    return (
        '@font-face { font-family: "Report Devanagari"; font-weight: 100 900; '
        f"unicode-range: {UNICODE_RANGE};\n"
        f'  src: url("data:font/{flavor};base64,{source}") format("{flavor}"); }}'
    )


def _subset(path: Path, characters: set[str], flavor: str) -> bytes:
    from fontTools import subset
    from fontTools.ttLib import TTFont
    from fontTools.varLib import instancer

    options = subset.Options(layout_features=["*"], hinting=False, notdef_outline=True)
    # No date of today: the same page has the same bytes.
    font = TTFont(path, recalcTimestamp=False, lazy=True)
    subsetter = subset.Subsetter(options)
    subsetter.populate(text="".join(sorted(characters)))
    subsetter.subset(font)
    if "fvar" in font:
        regular = {axis.axisTag: axis.defaultValue for axis in font["fvar"].axes}
        instancer.instantiateVariableFont(font, regular, inplace=True)
    font.flavor = flavor
    buffer = BytesIO()
    font.save(buffer)
    return buffer.getvalue()
