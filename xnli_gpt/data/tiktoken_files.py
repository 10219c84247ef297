"""A pickled tiktoken encoding, as nanochat leaves it, as a tokenizer of the tokenizers library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from xnli_gpt.checkpoints.pickles import Inert, read_pickle
from xnli_gpt.errors import CheckpointError, DataError


def read_tiktoken(path: Path) -> Tokenizer:
    """Return the tokenizer of a pickle, of which nothing is executed: its ranks and its pattern are
    read. Raises DataError for another pickle."""
    try:
        content, _ = read_pickle(path, path.read_bytes())
    except CheckpointError as error:
        raise DataError(str(error)) from error
    state = content.state if isinstance(content, Inert) else {}
    ranks, pattern = state.get("mergeable_ranks"), state.get("pat_str")
    if not isinstance(ranks, Mapping) or not isinstance(pattern, str):
        raise DataError(f"{path}: no pickled tiktoken encoding with its ranks and pattern")
    vocabulary = {_as_text(token): rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, _merges(ranks), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = sorted((state.get("special_tokens") or {}).items(), key=lambda item: item[1])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token, _ in special])
    wrong = [token for token, number in special if tokenizer.token_to_id(token) != number]
    if wrong:
        raise DataError(f"{path}: its special token {wrong[0]} does not follow its other tokens")
    return tokenizer


def _byte_letters() -> dict[int, str]:
    """Return the letter that byte-level BPE writes for each byte (GPT-2's encoder.py)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + place) for place, byte in enumerate(others)}


_LETTERS = _byte_letters()


def _as_text(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """Return the merge that makes each token, in the order of ranks: of the two parts that are left
    when only merges of lower ranks are done."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            at = min(range(len(pairs)), key=pairs.__getitem__)
            if pairs[at] >= rank:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append((_as_text(parts[0]), _as_text(parts[1])))
    return merges
