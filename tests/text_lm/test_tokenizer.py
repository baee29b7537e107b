"""Tokenisers: text must come back as it went in, and a saved one must be the same one."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.errors import CurationError
from text_lm.tokenizer import Tokenizer, open_tokenizer, train_bpe

CORPUS = [f"the cat number {i} sat on the mat, and the other cats sat too" for i in range(50)]
BYTES = open_tokenizer("bytes")
BPE = train_bpe(CORPUS, 300)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str):
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_bytes_are_bytes_here_and_in_the_saved_tokeniser(tmp_path: Path):
    from transformers import AutoTokenizer

    text = "naïve <|bos|>日本 \x00\t\n"
    assert BYTES.encode([text])[0].tolist() == list(text.encode())
    BYTES.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    plain = text.replace("<|bos|>", "")
    assert theirs(plain, add_special_tokens=False).input_ids == list(plain.encode())
    assert theirs("a").input_ids == [BYTES.bos, ord("a")]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_a_text_that_spells_a_special_token_cannot_end_a_document(tokenizer: Tokenizer):
    (ids,) = tokenizer.encode(["a <|eos|><|bos|><|pad|> b"])
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad} & set(ids.tolist())


def test_bpe_is_shorter_repeatable_and_reopens(tmp_path: Path):
    assert len(BPE.encode([CORPUS[7]])[0]) < len(CORPUS[7]) / 2
    assert BPE.vocab_size == 300
    assert train_bpe(CORPUS, 300).fingerprint == BPE.fingerprint
    assert train_bpe(CORPUS[:20], 280).fingerprint != BPE.fingerprint
    BPE.save(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        again = open_tokenizer(place)
        assert again.fingerprint == BPE.fingerprint
        assert (again.vocab_size, again.bos, again.eos, again.pad) == (300, BPE.bos, BPE.eos, BPE.pad)
        assert again.encode(["the cat"])[0].tolist() == BPE.encode(["the cat"])[0].tolist()


def test_earlier_calls_leave_no_padding_or_truncation_behind():
    BPE.hf(["padded", "and truncated"], padding=True, truncation=True, max_length=3)
    short, long = BPE.encode(["a", CORPUS[0]])
    assert len(short) == 1
    assert len(long) > 3


def test_mistakes_are_named(tmp_path: Path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models

    with pytest.raises(CurationError, match="vocabulary size 258 is too small"):
        train_bpe(CORPUS, 258)
    with pytest.raises(CurationError, match=r"give only \d+ tokens, not 5000"):
        train_bpe(CORPUS, 5000)
    with pytest.raises(CurationError, match="cannot be opened"):
        open_tokenizer(tmp_path / "nothing")
    Backend(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CurationError, match="no end-of-text token"):
        open_tokenizer(tmp_path / "tokenizer.json")
