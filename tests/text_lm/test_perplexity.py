"""Perplexity: the number every conclusion of the text experiment rests on."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import CurationError
from text_lm.model import ModelSettings, build_model
from text_lm.perplexity import DomainScore, TextScores, evaluate_perplexity, score_domains, score_texts, summarise
from text_lm.split import split_by_document
from text_lm.tokenizer import open_tokenizer

BYTES = open_tokenizer("bytes")
MODEL = build_model(ModelSettings(width=32, layers=2, heads=2, context=16, init_std=0.2), BYTES, 0)
TEXTS = ["short", "é", "a longer text that needs several windows of sixteen tokens", "x", "", "sixteen tokens!!"]


def plain(text: str, length: int, stride: int) -> float:
    """Each token by itself, in float64: the window that first reaches it is its context."""
    ids = [BYTES.bos, *text.encode()]
    model = MODEL.double()
    total = 0.0
    for target in range(1, len(ids)):
        start = max(0, -(-(target - length) // stride)) * stride
        start = min(start, max(0, len(ids) - 1 - length))  # the last window slides back
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start:target]]), use_cache=False).logits[0, -1]
        total -= float(torch.log_softmax(logits, -1)[ids[target]])
    MODEL.float()
    return total


@pytest.mark.parametrize(("length", "stride"), [(16, 16), (16, 5), (7, 3), (16, 1)])
def test_scores_match_token_by_token_in_float64(length: int, stride: int):
    scores = score_texts(MODEL, BYTES, TEXTS, length, stride, batch_size=4)
    assert np.allclose(scores.nats, [plain(text, length, stride) for text in TEXTS], rtol=1e-5)
    assert scores.n_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert scores.n_tokens.tolist() == scores.n_bytes.tolist()


def test_scores_match_the_harness_of_eleutherai(tmp_path: Path):
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    from lm_eval.api.instance import Instance

    MODEL.save_pretrained(tmp_path)
    BYTES.save(tmp_path)
    harness = huggingface.HFLM(pretrained=str(tmp_path), device="cpu", batch_size=1, add_bos_token=False)
    texts = [text for text in TEXTS if text]
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    assert np.allclose(score_texts(MODEL, BYTES, texts).nats, [-x for x in harness.loglikelihood_rolling(requests)])


def test_batches_do_not_change_the_score():
    alone, together = (score_texts(MODEL, BYTES, TEXTS, batch_size=n).nats for n in (1, 50))
    assert np.allclose(alone, together, rtol=1e-6)


def test_domains_are_sums_before_quotients():
    scores = TextScores(np.array([10.0, 2.0, 3.0]), np.array([5, 1, 3]), np.array([10, 2, 3]))
    found = score_domains(scores, ["b", "b", "a"])
    assert list(found) == ["a", "b"]
    assert found["b"].bits_per_byte == pytest.approx(12 / 12 / math.log(2))
    assert found["b"].perplexity == pytest.approx(math.exp(12 / 6))


def test_summary_by_hand():
    domains = {name: DomainScore(1, 1, 1, value, 0.0) for name, value in zip("abcdef", [1, 2, 3, 4, 5, 9], strict=True)}
    shares = dict(zip("abcdef", [50, 20, 10, 10, 5, 5], strict=True))
    found = summarise(domains, shares)
    assert found == {
        "macro": 4.0,
        "worst": 9.0,
        "worst_domain": "f",
        "head": 1.5,
        "tail": 7.0,
        "raw_weighted": pytest.approx((50 + 40 + 30 + 40 + 25 + 45) / 100),
    }


def test_uniform_model_has_the_entropy_of_its_vocabulary():
    model = build_model(ModelSettings(width=32, layers=1, heads=2, context=16), BYTES, 0)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    found = evaluate_perplexity(model, BYTES, TEXTS, list("aabbcc"), {"a": 1, "b": 1, "c": 1})
    assert found["perplexity"]["macro"] == pytest.approx(320)  # 259 tokens, padded to a multiple of 64
    assert found["bits_per_byte"]["worst"] == pytest.approx(math.log2(320))


def test_bad_input_is_named():
    other = type(BYTES)(**{**vars(BYTES), "vocab_size": 999})
    with pytest.raises(CurationError, match="999 tokens but the model has 320"):
        score_texts(MODEL, other, TEXTS)
    with pytest.raises(CurationError, match="ends a text with token 5 but the model with 257"):
        score_texts(MODEL, type(BYTES)(**{**vars(BYTES), "eos": 5}), TEXTS)
    with pytest.raises(CurationError, match=r"length 17 must lie in 1\.\.16"):
        score_texts(MODEL, BYTES, TEXTS, 17)
    with pytest.raises(CurationError, match="6 texts but 1 domains"):
        score_domains(score_texts(MODEL, BYTES, TEXTS), ["a"])
    with pytest.raises(CurationError, match="lacks domain 'b'"):
        summarise({"b": DomainScore(1, 1, 1, 1.0, 1.0)}, {"a": 1.0})
    broken = build_model(ModelSettings(width=32, layers=1, heads=2, context=16), BYTES, 0)
    with torch.no_grad():
        broken.lm_head.weight[3] = float("nan")
    with pytest.raises(CurationError, match="loss on text 0 is nan"):
        score_texts(broken, BYTES, TEXTS)


def test_split_keeps_documents_whole_and_every_domain_on_both_sides():
    rng = np.random.default_rng(0)
    documents = rng.integers(0, 60, 1000)
    domains = [f"domain {document % 7}" for document in documents] + ["alone"] * 5
    documents = [f"doc {document}" for document in documents] + ["only"] * 5
    train, test = split_by_document(documents, domains, 0.2, seed=1)
    assert sorted([*train, *test]) == list(range(1005))
    assert not {documents[i] for i in train} & {documents[i] for i in test}
    assert {domains[i] for i in train} == set(domains)
    assert {domains[i] for i in test} == set(domains) - {"alone"}
    assert 0.2 <= len(test) / 1000 < 0.35
    assert not np.array_equal(split_by_document(documents, domains, 0.2, seed=2)[1], test)
