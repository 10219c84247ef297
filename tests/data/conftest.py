"""A tokenizer trained once, its file, and pairs encoded with it."""

import pytest
from data_parts import train_tokenizer

from xnli_gpt.data.tokenizer import load_pair_encoding


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer()


@pytest.fixture(scope="session")
def tokenizer_path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers") / "bpe-hindi.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="session")
def encoding(tokenizer_path):
    return load_pair_encoding(str(tokenizer_path))
