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
from itertools import chain
from pathlib import Path
from urllib.parse import urlparse

from xnli_gpt.choices import SPLITS
from xnli_gpt.data import demo_grammar
from xnli_gpt.data.library import quiet_datasets, said_as_data_error
from xnli_gpt.data.names import (
    KNOWN_NAMES,
    XNLI_LANGUAGES,
    is_in_data_dir,
    is_xnli,
    nearest_dataset,
    problem_of_dataset,
)
from xnli_gpt.data.request import DataRequest
from xnli_gpt.data.text_files import (
    TEXT_FORMATS,
    compare_parquet,
    compare_with_plain_reading,
    load_file,
    read_plainly,
)
from xnli_gpt.errors import DataError
from xnli_gpt.messages import MAX_LISTED, listed, reason_of, shown

HUB_XNLI = "facebook/xnli"
# Names of datasets that are made here, and what makes their splits.
BUILTIN: dict[str, Callable[[], Mapping[str, Sequence[Mapping[str, str]]]]] = {
    "demo": demo_grammar.nli_splits,
}


@dataclass(frozen=True)
class Source:
    """Rows that can be loaded, and a hash of their content that is cheaper than loading them."""

    name: str
    content_hash: str
    load: Callable[[], Mapping[str, object]]  # split -> datasets.Dataset
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)

    def where(self, split: str) -> str:
        """A split as messages name it: by its file where it is one file."""
        files = self.files.get(split, ())
        return f"{files[0] if len(files) == 1 else self.name}: {split}"


def find_source(request: DataRequest, cache_dir: Path) -> Source:
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
    if _split_files(folder):
        return _files_source(folder, request, cache_dir)
    if config is None and is_xnli(folder.name):
        # The whole path of a copy means what its name alone does.
        config = _hub_name(replace(request, dataset=folder.name))[1]
    return _repository_source(folder, config, request, cache_dir)


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


def _builtin_source(name: str) -> Source:
    splits = {split: list(rows) for split, rows in BUILTIN[name]().items()}
    digest = hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()

    def load() -> Mapping[str, object]:
        with quiet_datasets() as datasets:
            return {split: datasets.Dataset.from_list(rows) for split, rows in splits.items()}

    return Source(name, digest, load)


def _saved_source(folder: Path, request: DataRequest) -> Source:
    inside = chain.from_iterable((folder / split).rglob("*") for split in request.splits)
    files = [folder / "dataset_dict.json", *sorted(path for path in inside if path.is_file())]

    def load() -> Mapping[str, object]:
        with said_as_data_error(str(folder)):
            splits = json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]
        loaded = {}
        for split in splits:
            # It stumbles over a split that was saved without rows.
            where = f"{folder}: {shown(str(split))}, empty or damaged"
            with quiet_datasets() as datasets, said_as_data_error(where):
                loaded[split] = datasets.load_from_disk(str(folder / split))
        return loaded

    return Source(str(folder), _hash_files(files, folder), load)


def _files_source(folder: Path, request: DataRequest, cache_dir: Path) -> Source:
    files = {
        split: paths for split, paths in _split_files(folder).items() if split in request.splits
    }
    digest = _hash_files(sorted(path for paths in files.values() for path in paths), folder)

    def load() -> Mapping[str, object]:
        return {
            split: load_file(split, paths, request, cache_dir / f"datasets-{digest[:16]}")
            for split, paths in files.items()
        }

    return Source(str(folder), digest, load, files)


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """The files of each split: `train.jsonl`, or shards `train-00000-of-00002.parquet`."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(r"(\w+?)(-\d+-of-\d+)?\.(\w+)", path.name)
        if match and match[1] in SPLITS and match[3] in TEXT_FORMATS and path.is_file():
            found.setdefault(match[1], []).append(path)
    for split, paths in found.items():
        stems = {re.sub(r"-\d+-of-\d+", "-shard", path.name) for path in paths}
        if len(stems) > 1:
            names = " and ".join(path.name for path in paths[:2])
            raise DataError(f"{folder}: {names} are both {split}; keep one of them")
        _require_all_shards(paths)
    return found


def _require_all_shards(paths: Sequence[Path]) -> None:
    shards = [re.search(r"-(\d+)-of-(\d+)\.", path.name) for path in paths]
    numbers = [(int(shard[1]), int(shard[2])) for shard in shards if shard]
    if numbers and numbers != [(i, numbers[0][1]) for i in range(numbers[0][1])]:
        names = listed([path.name for path in paths])
        raise DataError(f"{paths[0].parent}: found only {names} of the shards; copy all of them")


def _repository_source(
    folder: Path, config: str | None, request: DataRequest, cache_dir: Path
) -> Source:
    """A folder laid out as a repository of the Hub: a card, and data files by config."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not re.search(r"(^|/)\.", path.relative_to(folder).as_posix())
    )
    if not any(path.suffix.removeprefix(".") in TEXT_FORMATS for path in files):
        found = ", ".join(path.name for path in files[:MAX_LISTED]) or "nothing"
        raise DataError(
            f"{folder}: no dataset (found {found}); expected train, validation and test as "
            f"{', '.join(TEXT_FORMATS)}, a save_to_disk folder, or a copy of a Hub repository"
        )
    digest = _hash_files(files, folder)

    def load() -> Mapping[str, object]:
        # An absolute path: a relative one may be the name of a format, such as csv.
        where = {"path": str(folder.resolve()), "name": config}
        where["cache_dir"] = str(cache_dir / f"datasets-{digest[:16]}")
        with quiet_datasets() as datasets, said_as_data_error(str(folder)):
            reader = datasets.load_dataset_builder(**where).config
        paths = {
            split: [Path(path) for path in reader.data_files[split]]
            for split in request.splits
            if split in reader.data_files
        }
        separator = getattr(reader, "sep", "")
        plain = {split: read_plainly(paths[split], split, separator, request) for split in paths}
        with quiet_datasets() as datasets, said_as_data_error(str(folder)):
            loaded = dict(datasets.load_dataset(**where))
        for split in paths:
            compare_with_plain_reading(loaded[split], plain[split], paths[split], request)
            compare_parquet(loaded[split], paths[split], request)
        return loaded

    return Source(str(folder), digest, load)


def _hub_source(name: str, config: str | None, request: DataRequest, cache_dir: Path) -> Source:
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
            "run the same command with --prepare_only where there is network (and the same "
            f"HF_HOME), or give a local folder as `dataset`{perhaps}"
        ) from error
    files = [Path(f["filename"]) for split in loaded.values() for f in split.cache_files]
    digest = _hash_files(sorted(files), None)
    return Source(f"{name} {config or ''}".strip(), digest, lambda: loaded)


def _hub_reachable(timeout_s: float = 3.0) -> bool:
    """Whether the Hub's host, or the proxy that leads to it, takes a connection."""
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
