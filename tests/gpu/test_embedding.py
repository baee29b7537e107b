"""Embedding and judging on a GPU: features that differ from the CPU's would move every neighbour."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.pictures import noise_pool
from curation import EmbeddingWriter, open_embeddings
from curation.embedding.embed import embed_pool
from curation.embedding.embedders import open_embedder
from eval.knn import knn_scores
from eval.linear import LinearSettings, fit_linear

pytestmark = pytest.mark.gpu
NETWORK = "timm:vit_tiny_patch16_224?pretrained=false"


def embedded(folder: Path, device: str, precision: str) -> np.ndarray:
    pool = noise_pool(30, 64)
    embedder = open_embedder(NETWORK, 64, device, precision)
    embed_pool(pool, embedder, folder, batch_size=8, n_workers=0, rows_per_shard=10, progress=False, dtype="float32")
    return open_embeddings(folder).block(0, 30).double().numpy()


def test_embeddings_are_those_of_the_cpu(device: str, tmp_path: Path):
    torch.backends.cuda.matmul.allow_tf32 = False
    here = embedded(tmp_path / "here", "cpu", "float32")
    there = embedded(tmp_path / "there", device, "float32")
    np.testing.assert_allclose(there, here, rtol=2e-3, atol=2e-3 * np.abs(here).max())
    low = embedded(tmp_path / "low", device, "bfloat16")
    cosine = (low * here).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(here, axis=1)
    assert cosine.min() > 0.995


def test_a_killed_embedding_goes_on_to_the_same_bytes(device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = embedded(tmp_path / "whole", device, "auto")
    plain, written = EmbeddingWriter._write_shard, []

    def killed(self: EmbeddingWriter, rows: int) -> None:
        plain(self, rows)
        written.append(rows)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddingWriter, "_write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        embedded(tmp_path / "killed", device, "auto")
    monkeypatch.undo()
    assert embedded(tmp_path / "killed", device, "auto").tobytes() == whole.tobytes()


def test_judges_say_what_they_say_on_the_cpu(device: str):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(5, 24))
    labels = torch.from_numpy(rng.integers(5, size=400))
    x = torch.from_numpy(centres[labels.numpy()] + rng.normal(size=(400, 24))).float()
    bank, test = x[:300], x[300:]
    here, there = (knn_scores(bank, labels[:300], test, (10,), device=place)[10].cpu() for place in ("cpu", device))
    assert (here.argmax(1) == there.argmax(1)).double().mean() > 0.98
    settings = LinearSettings(learning_rates=(0.1, 1.0), steps=60, batch_size=64, seed=0)
    probes = [fit_linear(bank, labels[:300], settings, n_classes=5, device=place) for place in ("cpu", device)]
    right = [float((probe.scores(test).cpu().argmax(1) == labels[300:]).double().mean()) for probe in probes]
    assert right[1] == pytest.approx(right[0], abs=0.05)
