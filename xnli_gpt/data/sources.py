"""Where the rows of a dataset are: built in, a folder of files, a saved dataset, a copy of a Hub
repository, or the Hub; and a hash of their content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from urllib.parse import urlparse

import yaml

from xnli_gpt.choices import SPLITS
from xnli_gpt.data import demo_grammar
from xnli_gpt.data.folders import SPLIT_NAMES, split_files
from xnli_gpt.data.library import quiet_datasets, said_as_data_error
from xnli_gpt.data.names import (
    HUB_XNLI,
    KNOWN_NAMES,
    XNLI_LANGUAGES,
    is_in_data_dir,
    is_xnli,
    nearest_dataset,
    problem_of_dataset,
)
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.row_files import TEXT_KINDS, kind_of
from xnli_gpt.data.tables import (
    DATA_KINDS,
    DataTable,
    require_one_meaning,
    table_of_files,
    table_of_library,
    table_of_parquet,
    table_of_rows,
)
from xnli_gpt.errors import DataError
from xnli_gpt.messages import MAX_LISTED, reason_of, shown

# Names of datasets that are made here, and what makes their splits.
BUILTIN: dict[str, Callable[[], Mapping[str, Sequence[Mapping[str, str]]]]] = {
    "demo": demo_grammar.nli_splits,
}


@dataclass(frozen=True)
class DataSource:
    """Rows that can be loaded, and a hash of their content that is cheaper than loading them."""

    name: str
    content_hash: str
    load: Callable[[], Mapping[str, DataTable]]  # by split
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def where(self, split: str) -> str:
        """Return a split as messages name it: by its file where it is one file."""
        files = self.files.get(split, ())
        return f"{files[0] if len(files) == 1 else self.name}: {split}"


def find_source(request: DataRequest, cache_dir: Path) -> DataSource:
    """Return where the rows asked for are; raises DataError where they are nowhere."""
    if request.dataset in BUILTIN and not is_in_data_dir(request.dataset, request.data_dir):
        return _builtin_source(request.dataset)
    name, config = _hub_name(request)
    folder = _local_folder(request)
    if folder is None:
        if problem := problem_of_dataset(request.dataset):
            raise DataError(problem)
        return _hub_source(name, config, request, cache_dir)
    if (folder / "dataset_dict.json").exists():
        return _saved_source(folder, request)
    if (folder / "state.json").exists() or (folder / "dataset_info.json").exists():
        raise DataError(
            f"{folder}: one dataset without splits; save a DatasetDict with {', '.join(SPLITS)}"
        )
    if config is None and is_xnli(folder.name):
        # The whole path of a copy means what its name alone does.
        config = _hub_name(replace(request, dataset=folder.name))[1]
    if _has_card(folder) and not any(map(_is_data_file, folder.iterdir())):
        return _repository_source(folder, config, request, cache_dir)
    return _files_source(folder, config, request, cache_dir)


def _hub_name(request: DataRequest) -> tuple[str, str | None]:
    language = {"hindi_xnli": "hi"}.get(request.dataset)
    match = re.fullmatch(r"xnli_([a-z]{2})", request.dataset)
    if match and match[1] in XNLI_LANGUAGES:
        language = match[1]
    if language:
        return HUB_XNLI, request.dataset_config or language
    return request.dataset, request.dataset_config


def _local_folder(request: DataRequest) -> Path | None:
    if request.data_dir is not None:
        base = Path(request.data_dir)
        if not base.is_dir():
            raise DataError(f"`data_dir` {base}: no such folder; give one that holds the dataset")
        inside = base / request.dataset
        return inside if inside.is_dir() else base
    if request.dataset in KNOWN_NAMES:
        return None
    folder = Path(request.dataset)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(
            f"`dataset` {folder}: a file, expected a folder with train, validation and test files"
        )
    looks_like_path = request.dataset.startswith((".", "/", "~")) or request.dataset.count("/") > 1
    if looks_like_path:
        raise DataError(f"`dataset` {folder}: no such folder")
    return None


def _builtin_source(name: str) -> DataSource:
    splits = {split: list(rows) for split, rows in BUILTIN[name]().items()}
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    return DataSource(
        name, digest, lambda: {split: table_of_rows(rows) for split, rows in splits.items()}
    )


def _saved_source(folder: Path, request: DataRequest) -> DataSource:
    inside = chain.from_iterable(
        (folder / name).rglob("*")
        for name in sorted({request.validation_split or "", *SPLIT_NAMES})
        if name and SPLIT_NAMES.get(name, "validation") in request.splits
    )
    files = [folder / "dataset_dict.json", *sorted(path for path in inside if path.is_file())]

    def load() -> Mapping[str, DataTable]:
        with said_as_data_error(str(folder)):
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        loaded = {}
        for split in splits:
            # It stumbles over a split that was saved without rows.
            where = f"{folder}: {shown(str(split))}, empty or damaged"
            with quiet_datasets() as datasets, said_as_data_error(where):
                loaded[split] = datasets.load_from_disk(str(folder / split))
        return _tables(loaded, str(folder), request)

    return DataSource(str(folder), _hash_files(files, folder), load)


def _tables(loaded: Mapping[str, object], name: str, request: DataRequest) -> dict[str, DataTable]:
    """Return the tables of splits that the library loaded, under our names of splits."""
    tables = {}
    for found, split in _own_names(loaded, name, request.validation_split).items():
        if split in request.splits:
            tables[split] = table_of_library(loaded[found], f"{name}: {found}")
    return tables


def _own_names(found: Iterable[str], name: str, validation_split: str | None) -> dict[str, str]:
    """Return which of our splits each split is that was found. Raises DataError where two are the
    validation split, and nothing says which."""
    found = list(found)
    if validation_split is not None:
        if validation_split not in found:
            raise DataError(
                f"`validation_split` {validation_split}: {name} has no such split "
                f"(found {', '.join(found)})"
            )
        others = {split: split for split in found if split in ("train", "test")}
        return others | {validation_split: "validation"}
    names = {split: SPLIT_NAMES[split] for split in found if split in SPLIT_NAMES}
    validations = [split for split in found if names.get(split) == "validation"]
    validations = validations or [s for s in found if s.startswith(("validation_", "dev_"))]
    if len(validations) > 1:
        raise DataError(
            f"{name}: has the splits {' and '.join(validations)}; name one of them by "
            "`validation_split`"
        )
    return names | dict.fromkeys(validations, "validation")


def _files_source(
    folder: Path, config: str | None, request: DataRequest, cache_dir: Path
) -> DataSource:
    """Return a folder of files by split, or with folders of them: its own files, or by
    configuration."""
    files = {
        split: paths
        for split, paths in split_files(folder, config, request.validation_split).items()
        if split in request.splits
    }
    if not files:
        _refuse_folder(folder)
    digest = _hash_files(sorted(path for paths in files.values() for path in paths), folder)

    def load() -> Mapping[str, DataTable]:
        tables = {}
        for split, paths in files.items():
            if kind_of(paths[0]) in TEXT_KINDS:
                tables[split] = table_of_files(split, paths, request)
            else:
                place = cache_dir / f"datasets-{digest[:16]}"
                tables[split] = table_of_parquet(split, paths, request, place)
        return tables

    return DataSource(str(folder), digest, load, files)


def _is_data_file(path: Path) -> bool:
    return kind_of(path) in DATA_KINDS and path.is_file()


def _refuse_folder(folder: Path) -> None:
    names = (path.name for path in sorted(folder.rglob("*")) if path.is_file())
    found = ", ".join(islice(names, MAX_LISTED)) or "nothing"
    raise DataError(
        f"{folder}: no dataset (found {found}); expected train, validation and test as "
        f"{', '.join(DATA_KINDS)}, a save_to_disk folder, or a copy of a Hub repository"
    )


def _has_card(folder: Path) -> bool:
    """Return whether a copy of a Hub repository says which files are which: in its card. Without
    that, `datasets` takes the files of all its configurations for one."""
    card = folder / "README.md"
    if not card.is_file():
        return False
    match = re.match(r"---\s*\n(.*?)\n---", card.read_text("utf-8", "replace"), re.DOTALL)
    try:
        content = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        return False
    return isinstance(content, dict) and bool({"configs", "dataset_info"} & content.keys())


def _repository_source(
    folder: Path, config: str | None, request: DataRequest, cache_dir: Path
) -> DataSource:
    """Return a folder laid out as a repository of the Hub: a card, and data files by config."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not re.search(r"(^|/)\.", path.relative_to(folder).as_posix())
    )
    if not any(map(_is_data_file, files)):
        _refuse_folder(folder)
    digest = _hash_files(files, folder)

    def load() -> Mapping[str, DataTable]:
        # An absolute path: a relative one may be the name of a format, such as csv.
        where = {"path": str(folder.resolve()), "name": config}
        where["cache_dir"] = str(cache_dir / f"datasets-{digest[:16]}")
        with quiet_datasets() as datasets, said_as_data_error(str(folder)):
            builder = datasets.load_dataset_builder(**where)
        found = builder.config.data_files or {}
        paths = {str(name): [Path(path) for path in of_split] for name, of_split in found.items()}
        names = _own_names(paths, str(folder), request.validation_split)
        if all(kind_of(path) in TEXT_KINDS for of_split in paths.values() for path in of_split):
            return {
                split: _table_of_card(split, paths[name], request, builder)
                for name, split in names.items()
                if split in request.splits
            }
        with quiet_datasets() as datasets, said_as_data_error(str(folder)):
            loaded = dict(datasets.load_dataset(**where))
        for name in paths:
            require_one_meaning(loaded[name], paths[name], request)
        return _tables(loaded, str(folder), request)

    return DataSource(str(folder), digest, load)


def _table_of_card(
    split: str, paths: Sequence[Path], request: DataRequest, builder: object
) -> DataTable:
    """Return the rows of text files, with the names that the card gives to numbers of classes."""
    table = table_of_files(split, paths, request, getattr(builder.config, "sep", None))
    features = builder.info.features or {}
    names = {
        name: tuple(feature.names)
        for name, feature in features.items()
        if getattr(feature, "names", None)
    }
    return replace(table, class_names=names)


def _hub_source(name: str, config: str | None, request: DataRequest, cache_dir: Path) -> DataSource:
    if Path(name).is_dir():
        raise DataError(
            f"`dataset` {request.dataset}: is {name} on the Hub, which the folder {name} here "
            f"hides; run from another folder, or read the copy by `data_dir` {name}"
        )
    online = _hub_reachable()
    try:
        with quiet_datasets(offline=not online) as datasets:
            loaded = dict(datasets.load_dataset(name, config))
    # The errors of the HTTP library below `datasets` have no base of their own.
    except Exception as error:
        reason = reason_of(error)
        meant = None if "/" in name else nearest_dataset(name)
        perhaps = "" if meant is None else f"; did you mean {meant}?"
        if online:
            raise DataError(
                f"`dataset` {request.dataset}: can't load {name} ({reason}); check the name and "
                f"the network, or give a local folder as `dataset`{perhaps}"
            ) from error
        raise DataError(
            f"`dataset` {request.dataset}: no network, and {name} is not in the cache of datasets; "
            "run the same command with `prepare_only` where there is network (and the same "
            f"HF_HOME), or give a local folder as `dataset`{perhaps}"
        ) from error
    files = [Path(f["filename"]) for split in loaded.values() for f in split.cache_files]
    digest = _hash_files(sorted(files), None)
    full_name = f"{name} {config or ''}".strip()
    return DataSource(full_name, digest, lambda: _tables(loaded, full_name, request))


def _hub_reachable(timeout_s: float = 3.0) -> bool:
    """Return whether the Hub's host, or the proxy that leads to it, takes a connection."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    url = urlparse(proxy or os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        address = (url.hostname, url.port or (80 if url.scheme == "http" else 443))
        with socket.create_connection(address, timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False


def _hash_files(files: Iterable[Path], root: Path | None) -> str:
    digest = hashlib.sha256()
    for path in files:
        name = path.name if root is None else str(path.relative_to(root))
        digest.update(name.encode() + b"\0")
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
