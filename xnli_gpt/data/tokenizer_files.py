"""A tokenizer's files: the one that a name means, its text, and what lies beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from xnli_gpt.data.tiktoken_files import read_tiktoken
from xnli_gpt.errors import DataError

SLOW_FILES = ("vocab.json", "merges.txt")
TIKTOKEN_FILE = "tokenizer.pkl"
# What nanochat puts in front of every document.
NANOCHAT_BEGIN = "<|bos|>"
# Files that say which tokens have a role, the one that counts first.
ROLE_FILES = ("tokenizer_config.json", "special_tokens_map.json")
# What else a folder may hold, and what it is.
FOREIGN_FILES = {
    "*.model": "a SentencePiece model",
    "vocab.txt": "a WordPiece vocabulary",
}


def find_tokenizer(name: str, tokenizer_dir: str | None) -> Path:
    """Return the file that a path, or a name in `tokenizer_dir`, means: a tokenizer.json, a
    pickled tiktoken, or the folder of a vocab.json with its merges.txt. Raises DataError."""
    places = [Path(name)]
    if tokenizer_dir is not None:
        places += [Path(tokenizer_dir) / name, Path(tokenizer_dir) / f"{name}.json"]
    for place in places:
        if place.is_dir():
            if (place / "tokenizer.json").is_file():
                return place / "tokenizer.json"
            if (place / TIKTOKEN_FILE).is_file():
                return place / TIKTOKEN_FILE
            if _is_slow(place):
                return place
            _refuse_foreign(place)
        if place.is_file():
            return place.parent if place.name in SLOW_FILES and _is_slow(place.parent) else place
    raise DataError(
        f"`tokenizer_name` {name}: no such file (looked at {', '.join(map(str, places))}); "
        "give its path, or a name in `tokenizer_dir`"
    )


def _is_slow(folder: Path) -> bool:
    return all((folder / file).is_file() for file in SLOW_FILES)


def _refuse_foreign(folder: Path) -> None:
    """Raise DataError for a folder that holds a tokenizer of another kind."""
    for pattern, what in FOREIGN_FILES.items():
        found = sorted(folder.glob(pattern))
        if found:
            raise DataError(
                f"`tokenizer_name` {folder}: holds {what} ({found[0].name}), expected a "
                "tokenizer.json, or a vocab.json with its merges.txt; with transformers, "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(OTHER) writes a "
                "tokenizer.json"
            )


def tokenizer_text(path: Path) -> bytes:
    """Return the tokenizer.json of what `find_tokenizer` returns; of a vocab.json and a merges.txt
    the byte-level BPE that they are."""
    if path.suffix == ".pkl":
        return read_tiktoken(path).to_str().encode()
    if path.is_file():
        return path.read_bytes()
    vocabulary, merges = (str(path / name) for name in SLOW_FILES)
    try:
        tokenizer = Tokenizer(models.BPE.from_file(vocabulary, merges))
    # It raises bare Exception.
    except Exception as error:
        raise DataError(f"{path}: its vocab.json and merges.txt can't be read ({error})") from error
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    roles = dict.fromkeys([*_roles(path), "<|endoftext|>"])
    tokenizer.add_special_tokens([t for t in roles if tokenizer.token_to_id(t) is not None])
    return tokenizer.to_str().encode()


def declared_end_of_text(path: Path) -> tuple[str, str] | None:
    """Return the end-of-text token that a file beside the tokenizer names, and that file's name."""
    if path.suffix == ".pkl":
        return NANOCHAT_BEGIN, "nanochat"
    folder = path if path.is_dir() else path.parent
    for name in ROLE_FILES:
        token = dict(_roles_in(folder / name)).get("eos_token")
        if token:
            return token, name
    return None


def _roles(folder: Path) -> list[str]:
    """Return all tokens that have a role."""
    return [token for name in ROLE_FILES for _, token in _roles_in(folder / name)]


def _roles_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield what a file says: the role of a token (eos_token and so on), and the token."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for role, token in content.items() if isinstance(content, dict) else ():
        token = token.get("content") if isinstance(token, dict) else token
        if role.endswith("_token") and isinstance(token, str) and token:
            yield role, token
