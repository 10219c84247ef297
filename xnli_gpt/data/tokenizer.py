"""The tokenizer: finding its file, checking it, and what it is to encode pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import Tokenizer

from xnli_gpt.checkpoints.fine_tuned import content_error
from xnli_gpt.choices import TEMPLATES
from xnli_gpt.data.tokenizer_files import declared_end_of_text, find_tokenizer, tokenizer_text
from xnli_gpt.errors import DataError
from xnli_gpt.messages import listed, reason_of, shown

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
    notes: tuple[str, ...] = ()  # for the user

    @property
    def num_special_tokens(self) -> int:
        return sum(part == "end_of_text" for part in TEMPLATES[self.template])

    @property
    def num_tokens(self) -> int:
        """Return one more than the highest id: the embedding rows that the tokenizer needs."""
        return 1 + max(self.tokenizer.get_vocab(with_added_tokens=True).values())

    @property
    def end_of_text_token(self) -> str:
        return self.tokenizer.id_to_token(self.end_of_text)


def load_pair_encoding(
    tokenizer_name: str,
    *,
    tokenizer_dir: str | None = None,
    template: str = "documents",
    block_size: int = 1024,
    end_of_text: str | None = None,
    normalize: str | None = None,
) -> PairEncoding:
    """Return the tokenizer of a path, or of a name in `tokenizer_dir`, ready to encode pairs.

    What the file says of truncation, padding, post-processing and dropout is switched off: the
    template alone decides what a row is. The end-of-text token is the one given, else what a file
    beside it says, else the only candidate. `normalize` is a Unicode form that texts get first.
    Raises DataError for a file that is no tokenizer, and where no end-of-text token can be told.
    """
    path = find_tokenizer(tokenizer_name, tokenizer_dir)
    declared = None if end_of_text else declared_end_of_text(path)
    parsed, tokenizer = _parsed(tokenizer_text(path), str(path), normalize)
    token, notes = _end_of_text(tokenizer, str(path), end_of_text, declared)
    encoding = _pair_encoding(parsed, tokenizer, token, template, block_size)
    file_hash = hashlib.sha256(tokenizer_text(path)).hexdigest()
    return replace(encoding, file_hash=file_hash, notes=notes)


def pair_encoding(
    tokenizer_json: bytes | str, template: str, block_size: int, end_of_text: str | None = None
) -> PairEncoding:
    """Return the same from the text of a fine-tuned checkpoint's tokenizer. Checkpoints of older
    versions don't say their end-of-text token: it was the first of END_OF_TEXT_TOKENS."""
    parsed, tokenizer = _parsed(tokenizer_json, "the saved tokenizer", None)
    token = end_of_text or first_end_of_text(tokenizer)
    if token is None or tokenizer.token_to_id(token) is None:
        raise DataError(f"the saved tokenizer: has no end-of-text token {token or ''}")
    return _pair_encoding(parsed, tokenizer, token, template, block_size)


def _parsed(
    tokenizer_json: bytes | str, name: str, normalize: str | None
) -> tuple[dict, Tokenizer]:
    """Return the content of a tokenizer.json, without what the template decides, and its
    tokenizer."""
    with tokenizers_errors(
        f"{name}: not a tokenizer file", "give the tokenizer.json of the pretraining"
    ):
        parsed = json.loads(tokenizer_json)
        parsed |= {"truncation": None, "padding": None, "post_processor": None}
        if isinstance(parsed["model"], dict) and "dropout" in parsed["model"]:
            parsed["model"]["dropout"] = None
        if normalize is not None:
            # In the tokenizer itself, so that every later use of it does the same.
            before = [parsed["normalizer"]] if parsed.get("normalizer") else []
            parsed["normalizer"] = {
                "type": "Sequence",
                "normalizers": [{"type": normalize}, *before],
            }
        for added in parsed.get("added_tokens") or []:
            # Only tokens marked special are left alone by encode_special_tokens.
            if added["content"] in END_OF_TEXT_TOKENS:
                added["special"] = True
        _check_merges(parsed["model"])
        tokenizer = Tokenizer.from_str(json.dumps(parsed))
        _check_ids(tokenizer)
    return parsed, tokenizer


def _pair_encoding(
    parsed: dict, tokenizer: Tokenizer, token: str, template: str, block_size: int
) -> PairEncoding:
    plain = [a for a in parsed.get("added_tokens") or [] if a["content"] == token]
    if any(not added["special"] for added in plain):
        for added in plain:
            added["special"] = True
        tokenizer = Tokenizer.from_str(json.dumps(parsed))
    # A special token spelled out in a text is text: it must not end the premise.
    tokenizer.encode_special_tokens = True
    return PairEncoding(
        tokenizer,
        hash_of_tokenizer(tokenizer),
        tokenizer.token_to_id(token),
        template,
        block_size,
    )


def first_end_of_text(tokenizer: Tokenizer) -> str | None:
    """Return the first of END_OF_TEXT_TOKENS that a tokenizer has: what older versions took."""
    return next((t for t in END_OF_TEXT_TOKENS if tokenizer.token_to_id(t) is not None), None)


def _end_of_text(
    tokenizer: Tokenizer, name: str, asked: str | None, declared: tuple[str, str] | None
) -> tuple[str, tuple[str, ...]]:
    """Return the token that pretraining put before every document, and notes on it.

    It must be a row that pretraining had: what was added behind the tokenizer's own vocabulary was
    not trained. Raises DataError where it can't be told.
    """
    own = tokenizer.get_vocab(with_added_tokens=False)
    known = [token for token in END_OF_TEXT_TOKENS if tokenizer.token_to_id(token) is not None]
    trained = [token for token in known if token in own]
    candidates = trained or known
    if asked is not None:
        token, told_by = asked, "as `end_of_text` says"
    elif declared is not None and tokenizer.token_to_id(declared[0]) is not None:
        token, told_by = declared[0], f"as {declared[1]} says"
    elif len(candidates) == 1:
        token, told_by = candidates[0], "the only known one of the tokenizer"
    else:
        special = [a.content for a in tokenizer.get_added_tokens_decoder().values() if a.special]
        found = f"several, {' '.join(candidates)}" if candidates else "none that is known"
        raise DataError(
            f"{name}: of the end-of-text tokens {' '.join(END_OF_TEXT_TOKENS)} it has {found} "
            f"(its special tokens: {listed(special) or 'none'}); say by `end_of_text` which one "
            "pretraining put before every document"
        )
    number = tokenizer.token_to_id(token)
    if number is None:
        raise DataError(f"`end_of_text` {shown(token)}: {name} has no such token")
    notes = [f"end-of-text token: {token} ({number}), {told_by}"]
    if token not in own:
        said = (
            f"{token} is token {number}, behind the {len(own)} of the tokenizer's own vocabulary: "
            "it was added later, and pretraining did not train it"
        )
        if trained:
            raise DataError(f"{name}: {said}; `end_of_text` says another ({' '.join(trained)})")
        notes.append(f"warning: {said}, unless it was there already")
    return token, tuple(notes)


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
    """Turn what the tokenizers library and its parsers raise into a DataError."""
    try:
        yield
    # It raises bare Exception, and where its Rust code panics something that is none.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{said} ({reason_of(error)}); {advice}") from error


def _check_merges(model: Mapping[str, object]) -> None:
    """Raise DataError for merges without the prefix, which the library cuts off unseen: it ends the
    whole process where it is not there."""
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
    """Return whether the pre-tokenizer cuts Devanagari words at their vowel signs, as the default
    byte-level pattern does: about twice the tokens of one that doesn't."""
    if tokenizer.pre_tokenizer is None:
        return False
    word = "किताबें"
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(word)) > 1


def encoding_of_saved(saved: dict, path: Path) -> PairEncoding:
    """Return how the fine-tuned checkpoint of `path` turns pairs into tokens; raises RunError."""
    try:
        return pair_encoding(
            saved["tokenizer"], saved["template"], saved["block_size"], saved.get("end_of_text")
        )
    except (KeyError, DataError) as error:
        raise content_error(error, path) from error
