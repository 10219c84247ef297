"""The datasets that have a name here, and what a misspelt name of one stands for."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from xnli_gpt.errors import DataError
from xnli_gpt.spelling import nearest

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
HUB_XNLI = "facebook/xnli"
# What is near a spelling of ours of so many letters or more is taken for a slip: no dataset of the
# Hub without an owner in its name is so near, and there have been no new ones for years.
LEAST_TELLING_LENGTH = 6
SURE_LIKENESS = 0.8


def _names_by_spelling() -> dict[str, str]:
    """Return all names, and how else somebody may call them: by the language's name, or with its
    words in the other order."""
    parts = {"all": "all", **{code: code for code in XNLI_LANGUAGES}}
    names = {"hindi_xnli": "hindi_xnli", **{f"xnli_{part}": f"xnli_{part}" for part in parts}}
    names |= {name: name for name in BUILTIN_NAMES}
    parts |= {language: code for code, language in XNLI_LANGUAGES.items()}
    for part, code in parts.items():
        for spelling in (f"xnli_{part}", f"{part}_xnli"):
            names.setdefault(spelling, f"xnli_{code}")
    return names


_NAMES = _names_by_spelling()
# Each means its dataset wherever a command is run; a folder of that name is meant by a slash.
KNOWN_NAMES = frozenset(_NAMES.values())


def language_of_name(dataset: str) -> str | None:
    """Return the code of the language that a dataset's name tells: xnli_LANG, hindi_xnli, a name
    whose last word is a code, or with the name of a language in it; of demo Hindi."""
    if dataset in BUILTIN_NAMES:
        return "hi"
    words = re.split(r"[_\W]+", dataset.lower())
    codes = {language: code for code, language in XNLI_LANGUAGES.items()}
    named = (codes[word] for word in words if word in codes)
    return words[-1] if words[-1] in XNLI_LANGUAGES else next(named, None)


def nearest_dataset(name: str) -> str | None:
    """Return the dataset whose name is nearest to `name`, or None where none is near."""
    spelling = nearest(name, _NAMES)
    return None if spelling is None else _NAMES[spelling]


def problem_of_dataset(name: str, data_dir: str | None = None) -> str | None:
    """Return what is wrong with a name that is surely misspelt, or None: what might be a dataset of
    the Hub is for the Hub to know."""
    if data_dir is not None or name in KNOWN_NAMES or "/" in name or os.path.exists(name):
        return None
    language = re.fullmatch(r"xnli_([a-z]{2})", name)
    if language:
        return (
            f"`dataset` {name}: XNLI has no language {language[1]}, "
            f"expected one of {' '.join(XNLI_LANGUAGES)}"
        )
    spelling = _surely_meant(name.lower().replace("-", "_"))
    if spelling is None:
        return None
    return (
        f"`dataset` {name}: no such folder, and on the Hub names are OWNER/NAME: "
        f"did you mean {_NAMES[spelling]}?"
    )


def problems_of_datasets(names: Sequence[str] | None, data_dir: str | None) -> list[str]:
    """Return what is surely wrong with names of datasets."""
    found = (problem_of_dataset(name, data_dir) for name in names or ())
    return [problem for problem in found if problem is not None]


def is_in_data_dir(name: str, data_dir: str | None) -> bool:
    """Return whether `data_dir` holds a folder of the dataset's name."""
    return data_dir is not None and os.path.isdir(os.path.join(data_dir, name))


def notes_of_datasets(names: Sequence[str], data_dir: str | None) -> list[str]:
    """Return what to say of known names where a folder may have been meant: where one here is
    called the same, and where `data_dir` has none of a built-in dataset's name."""
    known = dict.fromkeys(name for name in names if name in KNOWN_NAMES)
    if data_dir is not None:
        return [
            f"note: {name} is built in: {data_dir} has no folder {name}"
            for name in known
            if name in BUILTIN_NAMES and not is_in_data_dir(name, data_dir)
        ]
    folders = [name for name in known if os.path.isdir(name)]
    if not folders:
        return []
    paths = " ".join(f"./{name}" for name in folders)
    return [
        f"note: {', '.join(folders)}: taken by name; a folder here of the same name is "
        f"meant by {paths}"
    ]


def dataset_names(datasets: Sequence[str]) -> list[str]:
    """Return what names stand for, one by one: xnli_all is XNLI in its 15 languages."""
    all_of_xnli = [f"xnli_{language}" for language in XNLI_LANGUAGES]
    names = [n for name in datasets for n in (all_of_xnli if name == "xnli_all" else [name])]
    shorts = [short_name(name) for name in names]
    twice = sorted({short for short in shorts if shorts.count(short) > 1})
    if twice:
        raise DataError(f"`dataset`: {', '.join(twice)} more than once")
    return names


def is_xnli(dataset: str) -> bool:
    """Return whether a name is that of one of XNLI's sets, or of all."""
    return dataset in ("hindi_xnli", "xnli_all", *(f"xnli_{code}" for code in XNLI_LANGUAGES))


def short_name(dataset: str) -> str:
    """Return a dataset's name in files and tables: the last part of its path."""
    if dataset in KNOWN_NAMES:
        return dataset
    path = Path(dataset)
    return path.resolve().name if path.is_dir() else path.name


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
