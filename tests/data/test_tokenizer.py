"""Where a tokenizer is found, which are refused, and what is read of one."""

import json

import pytest
from data_parts import (
    END,
    WORDS_WITH_THEIR_SIGNS,
    encode_rows,
    encoding_of,
    ids_of,
    rows_of,
    train_tokenizer,
)
from tokenizers import AddedToken, Tokenizer, models

from xnli_gpt.data.pairs import encode_pairs
from xnli_gpt.data.tokenizer import END_OF_TEXT_TOKENS, cuts_vowel_signs, load_pair_encoding
from xnli_gpt.errors import DataError


@pytest.mark.parametrize("name", ["path", "stem", "file", "folder", "folder inside"])
def test_where_a_tokenizer_is_found(tmp_path, tokenizer, tokenizer_path, name):
    (tmp_path / "folder").mkdir()
    tokenizer.save(str(tmp_path / "folder" / "tokenizer.json"))
    arguments = {
        "path": (str(tokenizer_path), None),
        "stem": (tokenizer_path.stem, str(tokenizer_path.parent)),
        "file": (tokenizer_path.name, str(tokenizer_path.parent)),
        "folder": (str(tmp_path / "folder"), None),
        "folder inside": ("folder", str(tmp_path)),
    }
    path, tokenizer_dir = arguments[name]
    found = load_pair_encoding(path, tokenizer_dir=tokenizer_dir)
    assert found.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert found.end_of_text == tokenizer.token_to_id(END)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[]", b"{}", b"\xff\xff", b'{"model": {"type": "BPE"}}', b'{"model": 3}'],
)
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(DataError, match="bad.json: not a tokenizer file"):
        load_pair_encoding(str(tmp_path / "bad.json"))


def two_tokens_of_one_id(parsed):
    parsed["model"]["vocab"]["क"] = 7


def a_token_far_beyond_any_table(parsed):
    """The library would end the process: it counts up to it where it writes the vocabulary."""
    parsed["model"]["vocab"]["क"] = 1 << 31


def merges_without_their_prefix(parsed):
    """The library would end the process: it cuts a letter in two."""
    parsed["model"]["continuing_subword_prefix"] = "x"


def a_name_of_two_lines(parsed):
    parsed["model"]["type"] = "a\n\x1b[31mb"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (two_tokens_of_one_id, "are both token 7"),
        (a_token_far_beyond_any_table, "'क' is token 2147483648: no model has so many rows"),
        (merges_without_their_prefix, "the merge .* lacks the prefix 'x'"),
        (a_name_of_two_lines, "not a tokenizer file"),
    ],
)
def test_a_tokenizer_that_contradicts_itself(tmp_path, tokenizer, change, said):
    parsed = json.loads(tokenizer.to_str())
    change(parsed)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(parsed))
    with pytest.raises(DataError, match=said) as caught:
        load_pair_encoding(str(path))
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_a_tokenizer_without_its_token_for_the_unknown(tmp_path):
    words = Tokenizer(models.WordLevel({END: 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"can't encode the texts \(.*is it the right one"):
        encode_pairs([("a", "b")], encoding_of(words, tmp_path / "words.json"))


def test_a_tokenizer_that_is_missing_names_the_places(tmp_path):
    with pytest.raises(DataError, match="looked at nothing.*nothing.json"):
        load_pair_encoding("nothing", tokenizer_dir=str(tmp_path))


@pytest.mark.parametrize("token", [*END_OF_TEXT_TOKENS, "<unk>"])
def test_the_end_of_text_token_is_one_of_the_list(tmp_path, token):
    tokenizer = train_tokenizer(special_tokens=["<pad>", token])
    if token == "<unk>":
        with pytest.raises(DataError, match="has none that is known .*<pad>, <unk>.*`end_of_text`"):
            encoding_of(tokenizer, tmp_path / "t.json")
    else:
        assert encoding_of(tokenizer, tmp_path / "t.json").end_of_text == 1


def test_num_tokens_counts_added_tokens(tmp_path, tokenizer):
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens([AddedToken("दिल्ली"), AddedToken("मैदान")])
    num_tokens = encoding_of(tokenizer, tmp_path / "a.json").num_tokens
    assert encoding_of(larger, tmp_path / "b.json").num_tokens == num_tokens + 2


def test_ids_above_sixteen_bits(tmp_path, tokenizer):
    parsed = json.loads(tokenizer.to_str())
    (end,) = [added for added in parsed["added_tokens"] if added["content"] == END]
    end["id"] = parsed["model"]["vocab"][END] = 70_000
    (tmp_path / "wide.json").write_text(json.dumps(parsed))
    encoding = load_pair_encoding(str(tmp_path / "wide.json"))
    assert encoding.num_tokens == 70_001
    assert encode_rows(rows_of(), encoding, tmp_path).splits["train"].row(0)[0] == 70_000


def test_cuts_vowel_signs(tokenizer):
    assert cuts_vowel_signs(tokenizer)
    keeping = train_tokenizer(WORDS_WITH_THEIR_SIGNS)
    assert not cuts_vowel_signs(keeping)
    word = "किताबें"
    assert len(ids_of(tokenizer, word)) > len(ids_of(keeping, word))
    assert not cuts_vowel_signs(Tokenizer(models.BPE()))
