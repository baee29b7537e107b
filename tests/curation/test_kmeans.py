"""k-means: a wrong nearest centroid or a worse optimum would silently spoil every subset."""

import os
import subprocess
import sys
from itertools import pairwise

import numba
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed import AVX2_ALONE
from curation import CurationError, nearest_centroid, open_embeddings
from curation.kmeans import CentroidSearch, activity, greedy, grouped_seeding, kmeans, lloyd, seeding, update
from curation.kmeans.activity import ActiveSearch
from curation.kmeans.greedy import greedy_choices, greedy_kmeans_plusplus
from curation.kmeans.tiles import MATRICES, PAIRS, PANEL, multiply_block, pack_row
from curation.kmeans.update import ClusterSums


def mixture(n: int, d: int, n_concepts: int, seed: int = 0, spread: float = 0.3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_concepts, d))
    weights = 1 / np.arange(1, n_concepts + 1)
    labels = rng.choice(n_concepts, n, p=weights / weights.sum())
    return (centres[labels] + spread * rng.normal(size=(n, d))).astype(np.float32)


def adversarial(kind: str, d: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    x, c = rng.normal(size=(200, d)), rng.normal(size=(80, d))
    if kind == "duplicates":
        c[40:] = c[:40]
        x[:40] = c[:40]
    elif kind == "ties":
        x, c = np.round(x), np.round(c)
    elif kind == "far":
        x, c = x + 1000, c + 1000
    elif kind == "huge":
        x, c = x * 1e15, c * 1e15
    elif kind == "tiny":
        x, c = x * 1e-15, c * 1e-15
    elif kind == "single":  # one value makes up all of a row: the largest integers, and the largest sums of them
        x, c = x * (np.arange(d) == d // 2), c * (np.arange(d) == d // 2)
        x[:40], x[40:60] = c[:40] * 3, 0
    elif kind == "close":
        c = c[:1] + 1e-3 * c
        x = c[:1] + 1e-3 * x
    return x.astype(np.float32), c.astype(np.float32)


PATHS = [(path, precision) for path in ("cpu", "torch's products", "generic") for precision in ("float32", "bfloat16")]


@pytest.mark.parametrize(("path", "precision"), [*PATHS, ("cpu", "int16")])
@pytest.mark.parametrize("kind", ["plain", "duplicates", "ties", "far", "huge", "tiny", "single", "close"])
@pytest.mark.parametrize("d", [2, 33, 512])
def test_assignment_is_the_true_argmin(kind: str, d: int, precision: str, path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(CentroidSearch, "in_tiles", path == "cpu")  # else as where torch has faster products
    if path == "generic":  # what a GPU runs, here on the CPU
        monkeypatch.setattr(CentroidSearch, "compiled", False)
    x, c = adversarial(kind, d, np.random.default_rng(d))
    labels, distances = nearest_centroid(x, c, precision=precision)
    true = ((x[:, None].astype(np.float64) - c[None].astype(np.float64)) ** 2).sum(-1)
    best = true.min(axis=1)
    # the centroids themselves are rounded once when they are centred; nothing else may be lost
    allowed = best * (1 + 1e-5) + (np.abs(x).max() * 1e-6) ** 2
    assert (true[np.arange(len(x)), labels] <= allowed).all()
    np.testing.assert_allclose(distances, best, rtol=1e-4, atol=float((np.abs(x).max() * 1e-5) ** 2))
    if kind == "duplicates":
        assert labels.max() < 40, "a tie must go to the lower index"


@numba.njit
def _pack_one(x, low, tiles, place):
    pack_row(x, low, tiles, place)


@numba.njit
def _multiply_all(tiles, n_rows, packed, half_norms, units, scores, maxima):
    multiply_block(tiles, n_rows, packed, half_norms, units, scores, maxima)


TILES = """
import numba, numpy as np, torch
from curation.kmeans.assignment import CentroidSearch
from curation.kmeans.tiles import LANES, PackedCentroids, multiply_block, pack_row, round_centroids

@numba.njit
def products(x, packed, half_norms, tiles, low, units, scores, maxima):
    for i in range(len(x)):
        units[i] = pack_row(x[i], low, tiles, i)[2]
    multiply_block(tiles, len(x), packed, half_norms, units, scores, maxima)

rng = np.random.default_rng(0)
x, c = rng.normal(size=(9, 45)).astype(np.float32), rng.normal(size=(50, 45)).astype(np.float32)
norms = np.square(c).sum(axis=1) / 2
low, step, residual = round_centroids(c, float(np.linalg.norm(c, axis=1).max()))
for values, worth, error in ((c, 1.0, 1e-6), (low, step, 1e-4)):
    packed = PackedCentroids(values, norms, worth)
    tiles, one, units, scores, maxima = (room[0] for room in packed.rooms())
    products(x, packed.values, packed.half_norms, tiles, one, units, scores, maxima)
    found = scores.transpose(1, 0, 2).reshape(scores.shape[1], -1)[:9, :50] * worth
    exact = x.astype(np.float64) @ c.T
    assert np.abs(found - exact).max() < error * np.linalg.norm(x) * np.linalg.norm(c), values.dtype
assert residual <= step * 45**0.5 / 2 and LANES == 8
assert CentroidSearch(torch.from_numpy(np.concatenate([c, c]))).integers, "products by units that it was told to leave"
"""


def test_tiles_of_a_cpu_with_avx2_alone_multiply():
    """Most CPUs that users have; a newer one compiles other instructions for itself, which the other tests see."""
    environment = {**os.environ, **AVX2_ALONE}
    done = subprocess.run([sys.executable, "-c", TILES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not (MATRICES or PAIRS), reason="this CPU has no units for bfloat16")
@pytest.mark.parametrize(("n", "d", "k"), [(9, 45, 50), (33, 32, 64), (70, 200, 1000)])
def test_tiles_of_bfloat16_multiply_and_find_the_maxima(n: int, d: int, k: int):
    rng = np.random.default_rng(0)
    x, c = (torch.from_numpy(rng.normal(size=(m, d))).bfloat16().float() for m in (n, k))
    norms = (c.double().square().sum(dim=1) / 2).float()
    search = CentroidSearch(c, "bfloat16")
    assert search.packed is not None
    tiles, one, units, scores, maxima = (room[0] for room in search.packed.rooms())
    for i in range(n):
        _pack_one(x[i].numpy(), one, tiles, i)
    _multiply_all(tiles, n, search.packed.values, search.packed.half_norms, units, scores, maxima)
    found = torch.from_numpy(scores).transpose(0, 1).reshape(scores.shape[1], -1)[:n, :k]
    torch.testing.assert_close(found, (x.double() @ c.double().T).float(), rtol=1e-5, atol=1e-4)
    below = torch.nn.functional.pad(found - norms, (0, -k % PANEL), value=-torch.inf)
    assert (torch.from_numpy(maxima)[:n] == below.reshape(n, -1, PANEL).amax(dim=2)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 90), st.integers(0, 2**31))
def test_assignment_holds_for_any_shape(n: int, d: int, k: int, seed: int):
    rng = np.random.default_rng(seed)
    x, c = rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(k, d)).astype(np.float32)
    true = ((x[:, None].astype(np.float64) - c[None].astype(np.float64)) ** 2).sum(-1)
    labels, _ = nearest_centroid(x, c, precision="bfloat16")
    assert (true[np.arange(n), labels] <= true.min(axis=1) * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_gives_the_argmin_of_its_own_values(dtype: torch.dtype):
    x = torch.from_numpy(mixture(500, 16, 10)).to(dtype)
    c = torch.from_numpy(mixture(20, 16, 10, seed=1))
    labels, _ = nearest_centroid(x, c)
    np.testing.assert_array_equal(labels, torch.cdist(x.double(), c.double()).argmin(1).numpy())


@pytest.mark.parametrize(("path", "precision"), [*PATHS[:4], ("cpu", "int16")])
@pytest.mark.parametrize("kind", ["plain", "duplicates", "ties", "far", "close"])
@pytest.mark.parametrize("d", [17, 130])
def test_searching_only_what_moved_changes_no_label(
    kind: str, d: int, precision: str, path: str, monkeypatch: pytest.MonkeyPatch
):
    """Centroids jump, creep and stay, in turn; a wrong bound would show as another label than that of a full search."""
    monkeypatch.setattr(CentroidSearch, "in_tiles", path == "cpu")  # else as where torch has faster products
    rng = np.random.default_rng(d)
    x, c = (torch.from_numpy(part) for part in adversarial(kind, d, rng))
    x = torch.cat([x, x[:50]])
    active, spread = ActiveSearch(len(x)), float(c.std())
    for iteration in range(30):
        moved = torch.from_numpy(rng.random(len(c)) < rng.choice([0.02, 0.2, 0.5]))
        steps = torch.from_numpy(rng.normal(size=c.shape) * spread * rng.choice([1e-6, 0.05, 1.0])).float()
        if iteration:
            c = torch.where(moved[:, None], c.round() if kind == "ties" and iteration % 3 else c + steps, c)
        if iteration % 7 == 6:
            c[moved] = x[torch.from_numpy(rng.integers(0, len(x), int(moved.sum())))]
        full = active.begin(c, precision)
        for start in (0, 100):
            part = x[start : start + 100] if start == 0 else x[start:]
            labels, distances = active.nearest(start, part)
            expected, expected_distances = full.nearest(part)
            assert torch.equal(labels, expected), f"iteration {iteration}"
            assert torch.equal(distances, expected_distances)
    assert active.searched < 0.9 * active.asked


def test_late_iterations_search_less_and_end_with_the_same_bytes(monkeypatch: pytest.MonkeyPatch):
    x, searches = mixture(4000, 24, 60), []
    original = ActiveSearch.__init__
    monkeypatch.setattr(ActiveSearch, "__init__", lambda self, n: searches.append(self) or original(self, n))  # type: ignore[func-returns-value]
    fast = kmeans(x, 100, seed=1, max_iterations=40)
    monkeypatch.setattr(activity, "WORTH_IT", -1.0)
    slow = kmeans(x, 100, seed=1, max_iterations=40)
    assert searches[0].searched < 0.7 * searches[0].asked
    assert searches[1].searched == searches[1].asked
    assert fast.history == slow.history
    assert fast.centroids.tobytes() == slow.centroids.tobytes()
    assert fast.labels.tobytes() == slow.labels.tobytes()


def test_cosine_ignores_length():
    x, c = mixture(300, 8, 5), mixture(12, 8, 5, seed=2)
    scales = np.random.default_rng(0).uniform(0.01, 100, size=(300, 1)).astype(np.float32)
    labels, distances = nearest_centroid(x * scales, c, metric="cosine")
    cosine = (x @ c.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(c, axis=1)
    np.testing.assert_array_equal(labels, cosine.argmax(1))
    np.testing.assert_allclose(distances, 2 - 2 * cosine.max(1), atol=1e-5)


@pytest.mark.parametrize("path", ["cpu", "generic"])
def test_update_adds_in_float64(path: str):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(5000, 7)) + 1e4).astype(np.float32)
    labels = rng.integers(0, 11, 5000).astype(np.int32)
    weights = rng.uniform(1, 3, 5000)
    sums = ClusterSums(13, 7, torch.device("cpu"))
    add = sums.add if path == "cpu" else sums._add_anywhere
    for start in range(0, 5000, 700):
        part = slice(start, start + 700)
        add(torch.from_numpy(x[part]), torch.from_numpy(labels[part]), torch.from_numpy(weights[part]))
    for cluster in range(11):
        mine = labels == cluster
        expected = (x[mine].astype(np.float64) * weights[mine, None]).sum(0)
        np.testing.assert_allclose(sums.sums[cluster].numpy(), expected, rtol=1e-12)
    assert sums.counts[11:].sum() == 0


def test_sums_kept_between_iterations_change_no_byte(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lloyd, "rows_per_read", lambda dim: 300)
    x, shares, of_block = mixture(2000, 24, 12), [], update.KeptParts.of_block

    def recorded(*given: object) -> tuple[np.ndarray, np.ndarray]:
        stale, parts = of_block(*given)
        shares.append(stale.mean())
        return stale, parts

    monkeypatch.setattr(update.KeptParts, "of_block", recorded)
    kept = kmeans(x, 30, seeding="random", max_iterations=25)
    assert min(shares) < 0.2
    shares.clear()
    monkeypatch.setattr(update, "KEPT_BYTES", 0)
    anew = kmeans(x, 30, seeding="random", max_iterations=25)
    assert not shares
    assert kept.centroids.tobytes() == anew.centroids.tobytes()
    assert kept.history == anew.history


def test_only_clusters_whose_rows_changed_are_added_anew():
    kept = update.KeptParts(500, 500, 4, 3)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 500).astype(np.int32)
    assert kept.of_block(0, labels)[0].all()
    row = int(np.flatnonzero(labels == 1)[0])
    labels[row] = 3
    assert kept.of_block(0, labels)[0].tolist() == [False, True, False, True]


def test_lloyd_agrees_with_scikit_learn_from_the_same_start():
    from sklearn.cluster import KMeans

    x = mixture(3000, 12, 30)
    start = x[np.random.default_rng(0).choice(3000, 25, replace=False)]
    ours = kmeans(x, 25, initial=start, max_iterations=100)
    theirs = KMeans(25, init=start.astype(np.float64), n_init=1, max_iter=100, tol=0).fit(x.astype(np.float64))
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_inertia_never_rises():
    history = kmeans(mixture(2000, 10, 20), 40, seeding="random", max_iterations=30).history
    assert len(history) > 3
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(history))


def test_rows_are_drawn_in_proportion_to_what_is_left_of_them():
    rng = np.random.default_rng(0)
    weights, closest = rng.integers(1, 5, 3000).astype(float), rng.exponential(size=3000).astype(np.float32)
    closest[rng.random(3000) < 0.5] = 0
    closest[-40:] = 0
    cumulative = np.cumsum(weights * closest)
    sums = np.array([(weights * closest)[i : i + greedy.CHUNK].sum() for i in range(0, 3000, greedy.CHUNK)])
    for uniform in [0.0, *rng.random(500), np.nextafter(1, 0)]:
        expected = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        assert greedy._drawn(uniform * cumulative[-1], sums, weights, closest) == min(expected, 2959)
    assert closest[greedy._drawn(2 * cumulative[-1], sums, weights, closest)] > 0


@pytest.mark.parametrize("strategy", ["auto", "kmeans++", "kmeans||"])
def test_seeding_is_about_as_good_as_greedy_kmeans_plusplus_of_scikit_learn(strategy: str):
    from sklearn.cluster import KMeans

    x = mixture(4000, 16, 100, spread=0.5)
    theirs = np.mean([KMeans(60, n_init=1, max_iter=20, tol=0, random_state=s).fit(x).inertia_ for s in range(5)])
    ours = np.mean([kmeans(x, 60, seed=s, seeding=strategy, max_iterations=20).inertia for s in range(5)])
    assert ours <= theirs * (1.05 if strategy == "kmeans||" else 1.02)


def test_seeding_within_groups_is_close_to_seeding_at_once(monkeypatch: pytest.MonkeyPatch):
    """What very many centroids get; here forced on few, where both can be run."""
    x = mixture(6000, 16, 150, spread=0.5)
    at_once = np.mean([kmeans(x, 120, seed=s, max_iterations=20).inertia for s in range(5)])
    monkeypatch.setattr(seeding, "GROUPED_WORK", 0)
    monkeypatch.setattr(grouped_seeding, "OF_A_GROUP", 12)
    grouped = [kmeans(x, 120, seed=s, max_iterations=20) for s in range(5)]
    drawn = np.mean([kmeans(x, 120, seed=s, seeding="random", max_iterations=20).inertia for s in range(5)])
    assert np.mean([item.inertia for item in grouped]) <= at_once * 1.03
    assert np.mean([item.inertia for item in grouped]) < drawn
    assert kmeans(x, 120, seed=0, max_iterations=20).centroids.tobytes() == grouped[0].centroids.tobytes()
    with pytest.raises(CurationError, match="distinct rows"):
        kmeans(np.repeat(x[:40], 20, axis=0), 60)


@pytest.mark.parametrize("kind", ["plain", "duplicates", "ties", "far", "close"])
def test_seeding_that_measures_few_rows_chooses_as_if_it_measured_all(kind: str, monkeypatch: pytest.MonkeyPatch):
    """A bound that is too tight would skip a closer row, and other seeds would come out."""
    x = np.concatenate(adversarial(kind, 40, np.random.default_rng(3)))
    few = greedy.greedy_choices(x, 60, np.random.default_rng(1), 4)
    # an infinite error of the products: every row is measured
    monkeypatch.setattr(greedy, "slack_terms", lambda *_: np.array([0.0, 0.0, np.inf]))
    everything = greedy.greedy_choices(x, 60, np.random.default_rng(1), 4)
    np.testing.assert_array_equal(few[0], everything[0])
    np.testing.assert_array_equal(few[1], everything[1])


def test_more_choices_begin_with_the_same_ones():
    """A group whose limit was too low is asked again; what it had must stay as it was."""
    x = mixture(300, 8, 20)
    few, left = greedy_choices(x, 7, np.random.default_rng(4), 3)
    many, more_left = greedy_choices(x, 30, np.random.default_rng(4), 3)
    np.testing.assert_array_equal(many[:7], few)
    np.testing.assert_array_equal(more_left[:7], left)


def test_weighted_seeding_never_picks_a_row_twice():
    x = np.repeat(mixture(30, 4, 30), 5, axis=0)
    rows = greedy_kmeans_plusplus(x, 25, np.ones(len(x)), np.random.default_rng(0), 4)
    assert len(np.unique(x[rows], axis=0)) == 25


@pytest.mark.parametrize("strategy", ["auto", "kmeans++", "kmeans||", "random"])
def test_same_seed_same_bytes_whatever_the_storage(strategy: str, tmp_path):
    x = mixture(3000, 9, 20)
    np.save(tmp_path / "a.npy", x[:1234])
    np.save(tmp_path / "b.npy", x[1234:])
    in_memory = kmeans(x, 30, seed=5, seeding=strategy, max_iterations=5)
    in_shards = kmeans(tmp_path, 30, seed=5, seeding=strategy, max_iterations=5)
    other = kmeans(x, 30, seed=6, seeding=strategy, max_iterations=5)
    assert in_memory.centroids.tobytes() == in_shards.centroids.tobytes()
    assert in_memory.labels.tobytes() == in_shards.labels.tobytes()
    assert in_memory.centroids.tobytes() != other.centroids.tobytes()


def test_threads_do_not_change_the_result():
    import numba

    x = mixture(3000, 9, 20)
    many = kmeans(x, 64, max_iterations=5)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = kmeans(x, 64, max_iterations=5)
    finally:
        numba.set_num_threads(threads)
    assert many.centroids.tobytes() == one.centroids.tobytes()


def test_no_cluster_stays_empty():
    x = mixture(400, 3, 4, spread=0.01)
    start = np.concatenate([x[:1], np.full((39, 3), 1e3, np.float32) + np.arange(39)[:, None]])
    result = kmeans(x, 40, initial=start, max_iterations=3)
    assert np.bincount(result.labels, minlength=40).min() > 0


@pytest.mark.parametrize(
    ("x", "settings_", "message"),
    [
        (np.ones((3, 2), np.float32), {"k": 4}, "at least 4 rows"),
        (np.ones((30, 2), np.float32), {"k": 4}, "distinct rows"),
        (np.eye(9, dtype=np.float32), {"k": 0}, "k=0"),
        (np.eye(9, dtype=np.float32), {"k": 2, "metric": "dot"}, "metric 'dot'"),
        (np.eye(9, dtype=np.float32), {"k": 2, "seeding": "best"}, "seeding 'best'"),
        (np.diag([1.0] * 8 + [np.nan]).astype(np.float32), {"k": 2}, "row 8 of array holds NaN"),
        (np.diag([1.0] * 8 + [0.0]).astype(np.float32), {"k": 2, "metric": "cosine"}, "row 8 of array is all zeros"),
        (np.diag([1.0] * 8 + [1e-21]).astype(np.float32), {"k": 2, "metric": "cosine"}, "row 8 .* is as good"),
        (np.eye(9, dtype=np.float32) * np.float32(1e-20), {"k": 2}, "no row of array is longer than 1e-20"),
        (np.eye(9, dtype=np.float32) * np.float32(1e-25), {"k": 2}, "no row of array is longer than 1e-25"),
        (np.eye(9, dtype=np.int64), {"k": 2}, "int64"),
        (np.ones(9, np.float32), {"k": 2}, "two dimensions"),
    ],
)
def test_bad_input_is_named(x, settings_, message: str):
    with pytest.raises(CurationError, match=message):
        kmeans(x, **settings_)


def test_one_cluster_and_one_row():
    x = mixture(50, 3, 2)
    np.testing.assert_allclose(kmeans(x, 1).centroids[0], x.astype(np.float64).mean(0), rtol=1e-5)
    assert kmeans(x[:1], 1).inertia == 0


def test_only_blocks_of_a_file_are_read(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A user whose array is larger than memory loses the run if anything asks for all of it."""
    import curation.kmeans.assignment as assignment
    import curation.kmeans.lloyd as lloyd

    for module in (assignment, lloyd):
        monkeypatch.setattr(module, "rows_per_read", lambda dim: 256)
    np.save(tmp_path / "x.npy", mixture(20_000, 4, 10))
    source = open_embeddings(tmp_path / "x.npy")
    largest = 0
    original = source.block

    def block(start: int, stop: int) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, stop - start)
        return original(start, stop)

    monkeypatch.setattr(source, "block", block)
    kmeans(source, 20, max_iterations=2)
    assert largest == 256


FUSED = """
import numpy as np, torch
from curation.kmeans.assignment import CentroidSearch
rng = np.random.default_rng(0)
for n, k, dim, shift in ((300, 333, 100, 0.0), (65, 5, 17, 0.0), (200, 130, 64, 30.0), (1, 1, 3, 0.0)):
    x = torch.from_numpy(rng.normal(size=(n, dim)) + shift).float()
    centroids = torch.from_numpy(rng.normal(size=(k, dim)) + shift).float()
    centroids[k // 2 :] = centroids[: k - k // 2].clone()  # ties, which go to the lower index
    x[: min(n, k) // 3] = centroids[: min(n, k) // 3]
    plain, fused = CentroidSearch(centroids, "float32"), CentroidSearch(centroids, "float32")
    plain.compiled = False
    fused._use_kernel = lambda: True
    for mine, theirs in zip(fused.nearest(x), plain.nearest(x)):
        assert torch.equal(mine, theirs), (n, k, dim)
print("equal")
"""


def test_the_kernel_for_gpus_finds_the_same_centroids():
    """Run by Triton's interpreter, which has no bfloat16 products; on a GPU it has not been run."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", FUSED], env=environment, capture_output=True, text=True)
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize("dim", [3, 40])
def test_choices_do_not_depend_on_where_the_loop_hears_ctrl_c(dim: int, monkeypatch: pytest.MonkeyPatch):
    x = np.random.default_rng(0).normal(size=(3000, dim)).astype(np.float32)
    whole = greedy_choices(x, 40, np.random.default_rng(1), 5)
    monkeypatch.setattr(greedy, "STRETCH", 7 * x.size * 5)  # pauses after every 7
    again = greedy_choices(x, 40, np.random.default_rng(1), 5)
    for one, other in zip(whole, again, strict=True):
        np.testing.assert_array_equal(one, other)
    few = np.repeat(x[:9], 4, axis=0)
    assert len(greedy_choices(few, 20, np.random.default_rng(1), 5)[0]) == 9
