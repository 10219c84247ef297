"""The datasets that have a name here, and what a misspelt name of one stands for."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence

from xnli_gpt.flags import nearest

XNLI_LANGUAGES = {
    "ar": "arabic",
    "bg": "bulgarian",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "hi": "hindi",
    "ru": "russian",
    "sw": "swahili",
    "th": "thai",
    "tr": "turkish",
    "ur": "urdu",
    "vi": "vietnamese",
    "zh": "chinese",
}
BUILTIN_NAMES = ("demo",)
# A name of our own that is as long as this is near no dataset of the Hub without an owner, of
# which there have been no new ones for years.
LEAST_TELLING_LENGTH = 6
SURE_LIKENESS = 0.8


def _names_by_spelling() -> dict[str, str]:
    """All names, and how else somebody may call them: by the language's name, or turned round."""
    parts = {"all": "all", **{code: code for code in XNLI_LANGUAGES}}
    names = {"hindi_xnli": "hindi_xnli", **{f"xnli_{part}": f"xnli_{part}" for part in parts}}
    names |= {name: name for name in BUILTIN_NAMES}
    parts |= {language: code for code, language in XNLI_LANGUAGES.items()}
    for part, code in parts.items():
        for spelling in (f"xnli_{part}", f"{part}_xnli"):
            names.setdefault(spelling, f"xnli_{code}")
    return names


_NAMES = _names_by_spelling()


def nearest_dataset(name: str) -> str | None:
    """The dataset whose name is nearest to `name`, or None where none is near."""
    spelling = nearest(name, _NAMES)
    return None if spelling is None else _NAMES[spelling]


def problem_of_dataset(name: str, data_dir: str | None = None) -> str | None:
    """What is wrong with a name that is surely misspelt, or None: what might be a dataset of the
    Hub is for the Hub to know."""
    known = set(_NAMES.values())
    if data_dir is not None or name in known or "/" in name or os.path.exists(name):
        return None
    language = re.fullmatch(r"xnli_([a-z]{2})", name)
    if language:
        return (
            f"--dataset {name}: XNLI has no language {language[1]}, "
            f"expected one of {' '.join(XNLI_LANGUAGES)}"
        )
    spelling = _surely_meant(name.lower().replace("-", "_"))
    if spelling is None:
        return None
    return (
        f"--dataset {name}: no such folder, and on the Hub names are OWNER/NAME: "
        f"did you mean {_NAMES[spelling]}?"
    )


def problems_of_datasets(names: Sequence[str] | None, data_dir: str | None) -> list[str]:
    """What is surely wrong with the names of --dataset."""
    found = (problem_of_dataset(name, data_dir) for name in names or ())
    return [problem for problem in found if problem is not None]


def _surely_meant(name: str) -> str | None:
    if name in _NAMES:
        return name
    for i in range(len(name) - 1):
        swapped = name[:i] + name[i + 1] + name[i] + name[i + 2 :]
        if swapped in _NAMES:
            return swapped
    telling = [spelling for spelling in _NAMES if len(spelling) >= LEAST_TELLING_LENGTH]
    close = difflib.get_close_matches(name, telling, n=1, cutoff=SURE_LIKENESS)
    return close[0] if close else None
