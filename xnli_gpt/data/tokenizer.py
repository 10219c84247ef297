"""The tokenizer: finding its file, checking it, and what it is to encode pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from xnli_gpt.checkpoints.fine_tuned import content_error
from xnli_gpt.choices import TEMPLATES
from xnli_gpt.errors import DataError
from xnli_gpt.messages import reason_of

END_OF_TEXT_TOKENS = ("<|endoftext|>", "<ENDOFTEXT>", "</s>", "<eos>", "[EOS]", "[SEP]")
# Beyond any embedding table.
MOST_TOKENS = 1 << 24


@dataclass(frozen=True)
class PairEncoding:
    """How two texts become one row of token ids."""

    tokenizer: Tokenizer
    tokenizer_hash: str  # of `hash_of_tokenizer`: the same everywhere that it is named
    end_of_text: int
    template: str
    block_size: int
    file_hash: str = ""  # SHA-256 of the file's bytes, which older runs named it by

    @property
    def num_special_tokens(self) -> int:
        return sum(part == "end_of_text" for part in TEMPLATES[self.template])

    @property
    def num_tokens(self) -> int:
        """One more than the highest id: the embedding rows that the tokenizer needs."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())


def find_tokenizer(name: str, tokenizer_dir: str | None) -> Path:
    """Return the file that a path, or a name in `tokenizer_dir`, means; raises DataError."""
    places = [Path(name)]
    if tokenizer_dir is not None:
        places += [Path(tokenizer_dir) / name, Path(tokenizer_dir) / f"{name}.json"]
    for place in places:
        if place.is_dir():
            place = place / "tokenizer.json"
        if place.is_file():
            return place
    raise DataError(
        f"`tokenizer_name` {name}: no such file (looked at {', '.join(map(str, places))}); "
        "give its path, or a name in `tokenizer_dir`"
    )


def load_pair_encoding(
    tokenizer_name: str,
    *,
    tokenizer_dir: str | None = None,
    template: str = "documents",
    block_size: int = 1024,
) -> PairEncoding:
    """The tokenizer of a path, or of a name in `tokenizer_dir`, ready to encode pairs.

    What the file says of truncation, padding, post-processing and dropout is switched off: the
    template alone decides what a row is. Raises DataError for a file that is no tokenizer or has
    no end-of-text token.
    """
    path = find_tokenizer(tokenizer_name, tokenizer_dir)
    return pair_encoding(path.read_bytes(), template, block_size, name=str(path))


def pair_encoding(
    tokenizer_json: bytes | str, template: str, block_size: int, name: str = "the saved tokenizer"
) -> PairEncoding:
    """The same from the text of a tokenizer file; `name` is for the messages."""
    if isinstance(tokenizer_json, str):
        tokenizer_json = tokenizer_json.encode()
    with tokenizers_errors(
        f"{name}: not a tokenizer file", "give the tokenizer.json of the pretraining"
    ):
        parsed = json.loads(tokenizer_json)
        parsed |= {"truncation": None, "padding": None, "post_processor": None}
        if isinstance(parsed["model"], dict) and "dropout" in parsed["model"]:
            parsed["model"]["dropout"] = None
        for added in parsed.get("added_tokens") or []:
            # Only tokens marked special are left alone by encode_special_tokens below.
            if added["content"] in END_OF_TEXT_TOKENS:
                added["special"] = True
        _check_merges(parsed["model"])
        tokenizer = Tokenizer.from_str(json.dumps(parsed))
        _check_ids(tokenizer)
    # A special token spelled out in a text is text: it must not end the premise.
    tokenizer.encode_special_tokens = True
    candidates = (tokenizer.token_to_id(token) for token in END_OF_TEXT_TOKENS)
    end_of_text = next((token for token in candidates if token is not None), None)
    if end_of_text is None:
        raise DataError(
            f"{name}: has none of the end-of-text tokens {' '.join(END_OF_TEXT_TOKENS)}; "
            "add the one that pretraining put before every document"
        )
    file_hash = hashlib.sha256(tokenizer_json).hexdigest()
    return PairEncoding(
        tokenizer, hash_of_tokenizer(tokenizer), end_of_text, template, block_size, file_hash
    )


def hash_of_tokenizer(tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of a tokenizer as it is used here: of what the library writes of it, with
    its keys in order, without truncation, padding, post-processing and dropout.

    So the file of the pretraining, the copy in a fine-tuned checkpoint, and the same file indented
    in another way have one hash.
    """
    content = json.loads(tokenizer.to_str())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def tokenizers_errors(said: str, advice: str) -> Iterator[None]:
    """Turns what the tokenizers library and its parsers raise into a DataError."""
    try:
        yield
    # It raises bare Exception, and where its Rust code panics something that is none.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{said} ({reason_of(error)}); {advice}") from error


def _check_merges(model: Mapping[str, object]) -> None:
    """The library cuts the prefix off unseen, and ends the whole process where it is not there."""
    prefix = model.get("continuing_subword_prefix") or ""
    for merge in (model.get("merges") or []) if prefix else []:
        second = merge.split(" ")[-1] if isinstance(merge, str) else merge[-1]
        if not second.startswith(prefix):
            raise ValueError(f"the merge {merge!r} lacks the prefix {prefix!r}")


def _check_ids(tokenizer: Tokenizer) -> None:
    token_of: dict[int, str] = {}
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_of.setdefault(number, token) != token:
            raise ValueError(f"{token!r} and {token_of[number]!r} are both token {number}")
    # To write a vocabulary the library counts up to its largest number, and ends the process where
    # memory does not suffice.
    largest = max(token_of, default=0)
    if largest >= MOST_TOKENS:
        raise ValueError(f"{token_of[largest]!r} is token {largest}: no model has so many rows")


def cuts_vowel_signs(tokenizer: Tokenizer) -> bool:
    """Whether the pre-tokenizer cuts Devanagari words at their vowel signs, as the default
    byte-level pattern does: about twice the tokens of one that doesn't."""
    if tokenizer.pre_tokenizer is None:
        return False
    word = "किताबें"
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) > 1


def encoding_of_saved(saved: dict, path: Path) -> PairEncoding:
    """Return how the fine-tuned checkpoint of `path` turns pairs into tokens; raises RunError."""
    try:
        return pair_encoding(saved["tokenizer"], saved["template"], saved["block_size"])
    except (KeyError, DataError) as error:
        raise content_error(error, path) from error
