"""Which files of a folder are which split: by their own names, or by the folders that they are in,
and which configuration of a dataset they are of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xnli_gpt.data.names import XNLI_LANGUAGES
from xnli_gpt.data.row_files import kind_of
from xnli_gpt.data.tables import DATA_KINDS
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed

# How people call the splits.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_SHARD = re.compile(r"-\d+-of-\d+")


@dataclass(frozen=True)
class DataFile:
    """A file of a split. `configuration` is what else its path says: words of its name and of the
    folders that it is in; `name` is the file's without ending and number of a shard."""

    path: Path
    split: str
    name: str
    configuration: tuple[str, ...]


def split_files(
    folder: Path, config: str | None = None, validation_split: str | None = None
) -> dict[str, list[Path]]:
    """Return the files of each split: those that the folder itself holds, else those within its
    folders. Of several configurations `config` names one.

    Raises DataError where two are for one split and nothing says which.
    """
    direct = list(_data_files(folder, folder.iterdir(), validation_split))
    within = (path for path in folder.rglob("*") if not _is_hidden(path, folder))
    found = direct or list(_data_files(folder, within, validation_split))
    found = _of_configuration(folder, found, config)
    files: dict[str, list[Path]] = {}
    for split in dict.fromkeys(file.split for file in found):
        of_split = sorted((f for f in found if f.split == split), key=lambda file: file.path)
        _require_one(folder, split, of_split)
        files[split] = [file.path for file in of_split]
        _require_all_shards(files[split])
    return files


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _data_files(
    folder: Path, paths: Iterable[Path], validation_split: str | None
) -> Iterable[DataFile]:
    for path in sorted(paths):
        if kind_of(path) in DATA_KINDS and path.is_file():
            file = _data_file(path, path.relative_to(folder), validation_split)
            if file is not None:
                yield file


def _data_file(path: Path, relative: Path, validation_split: str | None) -> DataFile | None:
    """Return what a file's path says, or None where it names no split."""
    stem = relative.name.lower().removesuffix(".gz").rsplit(".", 1)[0]
    name = _SHARD.sub("", stem)
    parents = [part.lower() for part in relative.parts[:-1]]
    if validation_split is not None and validation_split.lower() in (name, *parents):
        rest = [part for part in (*parents, name) if part != validation_split.lower()]
        return DataFile(path, "validation", name, tuple(rest))
    words = [word for word in re.split(r"[._-]+", name) if word]
    of_name = [word for word in words if word in SPLIT_NAMES]
    of_parents = [part for part in parents if part in SPLIT_NAMES]
    if len(of_name) == 1:
        split = SPLIT_NAMES[of_name[0]]
        rest = [*parents, *(word for word in words if word != of_name[0])]
    elif len(of_parents) == 1 and not of_name:
        split = SPLIT_NAMES[of_parents[0]]
        rest = [*(part for part in parents if part != of_parents[0]), *words]
    else:
        return None
    if split == "validation" and validation_split is not None:
        return None
    return DataFile(path, split, name, tuple(rest))


def _of_configuration(
    folder: Path, files: Sequence[DataFile], config: str | None
) -> list[DataFile]:
    """Return the files of the configuration that is asked for, where splits have several."""
    by_split: dict[str, set[tuple[str, ...]]] = {}
    for file in files:
        by_split.setdefault(file.split, set()).add(file.configuration)
    several = {split: found for split, found in by_split.items() if len(found) > 1}
    wanted = None if config is None else config.lower()
    if not several:
        _require_no_other_language(folder, files, wanted)
        return list(files)
    told = listed(sorted({"/".join(words) or "." for words in set.union(*several.values())}))
    if wanted is None:
        return _plain_files(folder, files, several, told)
    chosen = [
        file
        for file in files
        if file.split not in several
        or wanted in file.configuration
        or wanted == "/".join(file.configuration)
    ]
    lacking = [split for split in several if split not in {file.split for file in chosen}]
    if lacking:
        raise DataError(f"{folder}: no configuration {config} (found {told})")
    return chosen


def _plain_files(
    folder: Path, files: Sequence[DataFile], several: Mapping[str, set], told: str
) -> list[DataFile]:
    """Return the files whose names say nothing but their split, where every split has one."""
    plain = [file for file in files if file.split not in several or not file.configuration]
    if several.keys() <= {file.split for file in plain}:
        return plain
    raise DataError(
        f"{folder}: holds several configurations ({told}), which are never read as one; name one "
        "by `dataset_config`, or of several validation splits one by `validation_split`"
    )


def _require_no_other_language(folder: Path, files: Sequence[DataFile], wanted: str | None) -> None:
    """Raise DataError where another language is asked for than the only one that is there."""
    there = {word for file in files for word in file.configuration if word in XNLI_LANGUAGES}
    if wanted in XNLI_LANGUAGES and there and wanted not in there:
        raise DataError(f"{folder}: no configuration {wanted} (found {', '.join(sorted(there))})")


def _require_one(folder: Path, split: str, files: Sequence[DataFile]) -> None:
    kinds = {(file.path.parent, _SHARD.sub("", file.path.name)) for file in files}
    if len(kinds) > 1:
        names = " and ".join(str(file.path.relative_to(folder)) for file in files[:2])
        raise DataError(f"{folder}: {names} are both {split}; keep one of them")


def _require_all_shards(paths: Sequence[Path]) -> None:
    shards = [re.search(r"-(\d+)-of-(\d+)\.", path.name) for path in paths]
    numbers = [(int(shard[1]), int(shard[2])) for shard in shards if shard]
    if numbers and numbers != [(i, numbers[0][1]) for i in range(numbers[0][1])]:
        names = listed([path.name for path in paths])
        raise DataError(f"{paths[0].parent}: found only {names} of the shards; copy all of them")
