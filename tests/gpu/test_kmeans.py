"""k-means on a GPU: another nearest centroid, or another tree than the CPU's, would spoil subsets without a word."""

from pathlib import Path

import numpy as np
import pytest
import torch

from curation import HierarchicalKMeans, nearest_centroid
from curation.kmeans import CentroidSearch, kmeans
from curation.kmeans.lloyd import LloydState, fit_centroids
from curation.kmeans.settings import KMeansSettings
from curation.kmeans.update import ClusterSums
from curation.store.embeddings import open_embeddings

pytestmark = pytest.mark.gpu


def mixture(n: int, d: int, concepts: int = 60, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres, shares = rng.normal(size=(concepts, d)), 1 / np.arange(1, concepts + 1)
    labels = rng.choice(concepts, n, p=shares / shares.sum())
    return (centres[labels] + 0.3 * rng.normal(size=(n, d))).astype(np.float32)


def case(kind: str, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(d)
    x, c = rng.normal(size=(700, d)), rng.normal(size=(300, d))
    if kind == "ties":
        x, c = np.round(x), np.round(c)
        c[150:] = c[:150]
    elif kind == "far":
        x, c = x + 1000, c + 1000
    elif kind == "close":
        x, c = c[:1] + 1e-3 * x, c[:1] + 1e-3 * c
    return x.astype(np.float32), c.astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["plain", "ties", "far", "close"])
@pytest.mark.parametrize("d", [2, 33, 1024])
def test_assignment_is_the_true_argmin(kind: str, d: int, precision: str, device: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CentroidSearch, "compiled", False)
    x, c = case(kind, d)
    labels, distances = nearest_centroid(x, c, device=device, precision=precision)
    true = np.stack([((row.astype(np.float64) - c.astype(np.float64)) ** 2).sum(-1) for row in x])
    best, scale = true.min(axis=1), float(np.abs(x).max())
    assert (true[np.arange(len(x)), labels] <= best * (1 + 1e-5) + (scale * 1e-6) ** 2).all()
    np.testing.assert_allclose(distances, best, rtol=1e-4, atol=(scale * 1e-5) ** 2)
    if kind == "ties":
        assert labels.max() < 150, "a tie must go to the lower index"


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(5000, 333, 100), (65, 5, 17), (700, 1300, 1024), (1, 1, 3)])
def test_the_kernel_finds_what_plain_torch_finds(shape: tuple[int, int, int], precision: str, cuda: str):
    pytest.importorskip("triton")
    n, k, d = shape
    x, c = (torch.from_numpy(mixture(rows, d, seed=rows)).to(cuda) for rows in (n, k))
    fused, plain = CentroidSearch(c, precision), CentroidSearch(c, precision)
    plain.fused = False
    assert fused._use_kernel()
    for mine, theirs in zip(fused.nearest(x), plain.nearest(x), strict=True):
        assert torch.equal(mine, theirs)


def test_every_block_shape_of_the_kernel_gives_the_same_best_scores(cuda: str):
    fused = pytest.importorskip("curation.kmeans.fused")
    x, c = (torch.from_numpy(mixture(n, 200, seed=n)).to(cuda, torch.bfloat16) for n in (1000, 700))
    half = c.float().square().sum(1) / 2
    scores = x.float() @ c.float().T - half
    best = scores.max(1).values
    run = 0
    for shape in fused.SHAPES:
        try:
            found, second, index = fused.best_two(x, c, half, shape)
        except Exception as error:
            if "out of resource" not in str(error):
                raise
            continue  # too large for this GPU
        run += 1
        torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(scores.gather(1, index.long()[:, None])[:, 0], best, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(second, scores.topk(2, 1).values[:, 1], rtol=1e-4, atol=1e-3)
    assert run


def test_sums_of_clusters_are_those_of_float64(device: str):
    rng = np.random.default_rng(0)
    x, labels = (rng.normal(size=(5000, 7)) + 1e4).astype(np.float32), rng.integers(0, 11, 5000)
    sums = ClusterSums(13, 7, torch.device(device))
    for start in range(0, 5000, 700):
        part = slice(start, start + 700)
        rows, mine = torch.from_numpy(x[part]).to(device), torch.from_numpy(labels[part].astype(np.int32)).to(device)
        sums._add_anywhere(rows, mine, None)
    for cluster in range(11):
        expected = x[labels == cluster].astype(np.float64).sum(0)
        np.testing.assert_allclose(sums.sums[cluster].cpu().numpy(), expected, rtol=1e-12)
    assert float(sums.counts.sum()) == 5000


@pytest.mark.parametrize("seeding", ["auto", "kmeans++", "kmeans||", "random"])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_fit_is_the_one_of_the_cpu(seeding: str, metric: str, device: str):
    x = mixture(6000, 48)
    options = {"seed": 3, "seeding": seeding, "metric": metric, "max_iterations": 8}
    here, there = kmeans(x, 80, **options), kmeans(x, 80, device=device, **options)  # type: ignore[arg-type]
    assert there.inertia == pytest.approx(here.inertia, rel=1e-4)
    assert (here.labels == there.labels).mean() > 0.999
    again = kmeans(x, 80, device=device, **options)  # type: ignore[arg-type]
    assert again.centroids.tobytes() == there.centroids.tobytes(), "the same device must give the same bytes"


def test_a_stopped_fit_goes_on_to_the_same_bytes(device: str, tmp_path: Path):
    np.save(tmp_path / "x.npy", mixture(6000, 48).astype(np.float16))
    x, kept = open_embeddings(tmp_path / "x.npy"), []
    settings = KMeansSettings(max_iterations=9, device=device)

    def stop(state: LloydState) -> None:
        kept.append(state)
        if len(kept) == 4:
            raise KeyboardInterrupt

    whole = fit_centroids(x, 70, np.random.default_rng(1), settings)
    with pytest.raises(KeyboardInterrupt):
        fit_centroids(x, 70, np.random.default_rng(1), settings, on_iteration=stop)
    rest = fit_centroids(x, 70, np.random.default_rng(1), settings, resume=kept[-1])
    assert rest[0].tobytes() == whole[0].tobytes()
    assert rest[1] == whole[1]


@pytest.mark.parametrize("levels", [[60, 10], ["12x6", 8]])
def test_a_tree_is_the_one_of_the_cpu(levels: list[int | str], device: str):
    x = mixture(4000, 32)
    options = {"n_resamples": 2, "max_iterations": 6, "progress": False}
    here = HierarchicalKMeans(levels, **options).fit(x)  # type: ignore[arg-type]
    there = HierarchicalKMeans(levels, device=device, **options).fit(x)  # type: ignore[arg-type]
    for mine, theirs in zip(here.levels, there.levels, strict=True):
        assert len(mine.centroids) == len(theirs.centroids)
    inertia = [float(np.asarray(tree.levels[0].distance, np.float64).sum()) for tree in (here, there)]
    # rounding in the last bit may choose another member of a resampled set, and so another optimum
    assert inertia[1] == pytest.approx(inertia[0], rel=0.02)
