"""A small pool of sentences and its tokens, shared by the tests of this folder."""

from pathlib import Path

import pytest
from datasets import Dataset

from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import tokenise_pool


@pytest.fixture(scope="session")
def sentences() -> Dataset:
    texts = [f"The number {i} is here; its square is {i * i}, and after it comes {i + 1}." for i in range(200)]
    return Dataset.from_dict({"text": texts, "domain": [["even", "odd"][i % 2] for i in range(200)]})


@pytest.fixture(scope="session")
def tokens(sentences: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool") / "tokens"
    tokenise_pool(sentences, open_tokenizer("bytes"), folder, progress=False)
    return folder
