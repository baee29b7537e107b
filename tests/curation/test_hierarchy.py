"""The tree: a fit that cannot be repeated, resumed or trusted is worth nothing to who paid for it."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from warm import Server

from curation import ClusterTree, CurationError, HierarchicalKMeans, Subset, open_embeddings
from curation.store.bad_rows import KeptRows
from curation.store.rows import SelectedRows
from curation.trees.sampling import members_to_resample


def rings(n: int = 4000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    radius = rng.choice([1.0, 2.0, 4.0], n, p=[0.9, 0.08, 0.02]) + 0.05 * rng.normal(size=n)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)


def small(**settings) -> HierarchicalKMeans:
    defaults = {"n_resamples": [1, 3], "sample_sizes": [5, 2], "max_iterations": 10, "progress": False}
    return HierarchicalKMeans([200, 30], **{**defaults, **settings})


def test_levels_are_nearest_centroid_assignments_of_the_level_below():
    x = rings()
    tree = HierarchicalKMeans([200, 30, 6], n_resamples=2, max_iterations=10, progress=False).fit(x)
    points = x
    for level in tree.levels:
        true = ((points[:, None].astype(np.float64) - level.centroids[None].astype(np.float64)) ** 2).sum(-1)
        np.testing.assert_allclose(true[np.arange(len(points)), level.assignment], true.min(1), rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(level.distance, true.min(1), rtol=1e-3, atol=1e-6)
        assert level.sizes.min() > 0
        points = level.centroids
    assert tree.row_counts(2).sum() == len(x)
    np.testing.assert_array_equal(tree.row_counts(1), np.bincount(tree.row_clusters(1), minlength=30))


def test_more_levels_and_resampling_flatten_the_density():
    x = rings(8000)
    rare = np.linalg.norm(x, axis=1) > 3

    def share_of_rare(**settings) -> float:
        trees = [HierarchicalKMeans(max_iterations=20, progress=False, seed=s, **settings).fit(x) for s in range(3)]
        return float(np.mean([rare[tree.sample(150, seed=0)].mean() for tree in trees]))

    flat = share_of_rare(levels=[50])
    resampled = share_of_rare(levels=[800, 50], n_resamples=[0, 10], sample_sizes=4)
    assert rare.mean() < 0.03
    assert rare.mean() < flat < resampled


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("levels", [[200, 30], ["20x10", 30]])
def test_assign_puts_every_row_back_where_fit_did(levels, metric: str):
    x = rings() + np.float32(0.5)
    tree = HierarchicalKMeans(levels, n_resamples=[1, 2], max_iterations=8, metric=metric, progress=False).fit(x)
    placed = tree.assign(x)
    for level in range(2):
        np.testing.assert_array_equal(placed[:, level], tree.row_clusters(level))


def test_split_level_has_children_near_their_coarse_centroid():
    tree = HierarchicalKMeans(["20x10", 30], max_iterations=8, progress=False).fit(rings())
    first = tree.levels[0]
    assert 150 < len(first.centroids) <= 200
    assert (np.bincount(first.coarse_of, minlength=20) <= 10).all()
    assert first.sizes.min() > 0


def test_resampled_set_holds_the_closest_members():
    labels, distances = np.array([0, 0, 0, 1, 1, 2]), np.array([3, 1, 2, 5, 4, 9], np.float32)
    rows = members_to_resample(labels, distances, 3, 2, "closest", np.random.default_rng(0))
    np.testing.assert_array_equal(rows, [1, 2, 3, 4, 5])


def test_number_of_kmeans_runs_is_one_more_than_the_resampling_steps():
    tree = small().fit(rings())
    assert [len(level.record["inertias"]) for level in tree.levels] == [2, 4]


def test_same_seed_same_bytes():
    x = rings()
    assert small(seed=1).fit(x).checksum == small(seed=1).fit(x).checksum
    assert small(seed=1).fit(x).checksum != small(seed=2).fit(x).checksum


def test_tree_and_subset_survive_a_round_trip(tmp_path: Path):
    tree = small().fit(rings())
    tree.save(tmp_path / "tree")
    loaded = ClusterTree.load(tmp_path / "tree")
    assert loaded.checksum == tree.checksum
    assert loaded.settings == tree.settings
    assert isinstance(loaded.levels[0].assignment, np.memmap)
    rows = loaded.sample(300, max_copies=2, seed=3)
    np.testing.assert_array_equal(rows, tree.sample(300, max_copies=2, seed=3))
    subset = Subset.from_rows(rows, loaded, seed=3)
    subset.save(tmp_path / "subset")
    again = Subset.load(tmp_path / "subset")
    np.testing.assert_array_equal(again.rows(), rows)
    np.testing.assert_array_equal(again.clusters["level_2"], loaded.row_clusters(1)[again.ids])
    assert again.metadata["tree_checksum"] == tree.checksum
    assert len(again) == 300
    assert loaded.statistics()[0]["inertia"] == pytest.approx(tree.levels[0].inertia)


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "version", "json"])
def test_a_damaged_tree_is_refused(tmp_path: Path, damage: str):
    small().fit(rings()).save(tmp_path)
    path = tmp_path / "level_1" / "assignment.npy"
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        path.write_bytes(data)
    elif damage == "remove":
        path.unlink()
    elif damage == "version":
        text = (tmp_path / "tree.json").read_text()
        (tmp_path / "tree.json").write_text(text.replace('"format_version": 1', '"format_version": 99'))
    else:
        (tmp_path / "tree.json").write_text('{"format_ver')
    with pytest.raises(CurationError, match=r"assignment\.npy|tree\.json"):
        ClusterTree.load(tmp_path)


def test_a_tampered_subset_is_refused(tmp_path: Path):
    Subset.from_rows(np.arange(10)).save(tmp_path)
    Subset.from_rows(np.arange(11)).save(tmp_path / "other")
    os.replace(tmp_path / "other" / "subset.parquet", tmp_path / "subset.parquet")
    with pytest.raises(CurationError, match=r"subset\.parquet"):
        Subset.load(tmp_path)


def test_a_tree_of_other_embeddings_is_refused():
    tree = small().fit(rings())
    tree.check_embeddings(rings())
    with pytest.raises(CurationError, match="other embeddings"):
        tree.check_embeddings(rings(seed=1))
    with pytest.raises(CurationError, match="3 dimensions"):
        tree.assign(np.ones((5, 3), np.float32))


@pytest.mark.parametrize("levels", [[200, 30], ["20x10", 30]])
def test_a_fit_stopped_after_any_iteration_resumes_to_the_same_tree(tmp_path: Path, levels, monkeypatch):
    """Stops the fit at one checkpoint after the other, each time going on from the last."""
    from curation.trees.checkpoint import FitCheckpoint

    x = rings(1500)
    settings = {"n_resamples": [1, 2], "sample_sizes": [4, 2], "max_iterations": 4, "progress": False}
    whole = HierarchicalKMeans(levels, **settings).fit(x)
    original, stops = FitCheckpoint._write, 0

    def save_then_stop(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(FitCheckpoint, "_write", save_then_stop)
    for _ in range(100):
        try:
            fit = HierarchicalKMeans(levels, work_dir=tmp_path, checkpoint_seconds=0, **settings)
            resumed = fit.fit(x)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops > 10
    assert resumed.checksum == whole.checksum


KILLED = """
import sys
import numpy as np
from curation import HierarchicalKMeans
x = np.load(sys.argv[1])
fit = HierarchicalKMeans([400, 60], n_resamples=[2, 6], sample_sizes=[5, 2], max_iterations=30, progress=False,
                         work_dir=sys.argv[2] + "/work", checkpoint_seconds=0)
print("fitting", flush=True)
fit.fit(x, save_to=sys.argv[2] + "/tree")
"""


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_fit_resumes_to_the_same_tree(tmp_path: Path, kills: int, warm: Server):
    np.save(tmp_path / "x.npy", rings(6000))
    command = ["-c", KILLED, tmp_path / "x.npy"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    warm.run(*command, tmp_path / "whole").check_returncode()
    delays = np.random.default_rng(0).uniform(0.05, 1.0, kills)
    for delay in delays:
        process = warm.start(*command, tmp_path / "killed")
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
    warm.run(*command, tmp_path / "killed").check_returncode()
    whole, killed = (ClusterTree.load(tmp_path / name / "tree") for name in ("whole", "killed"))
    assert whole.checksum == killed.checksum
    assert not (tmp_path / "killed" / "work").exists()


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path):
    small(work_dir=tmp_path).fit(rings())
    with pytest.raises(CurationError, match="seed=0, not 7"):
        small(work_dir=tmp_path, seed=7).fit(rings())
    with pytest.raises(CurationError, match="embeddings_fingerprint"):
        small(work_dir=tmp_path).fit(rings(seed=9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": []}, "levels is empty"),
        ({"levels": [10, 10]}, "levels must shrink"),
        ({"levels": ["10y3"]}, "'10y3'"),
        ({"levels": [0]}, "level 0"),
        ({"levels": [100, 10], "n_resamples": [1]}, "n_resamples has 1 values for 2 levels"),
        ({"levels": [100, 10], "n_resamples": -1}, "n_resamples is -1; it must be at least 0"),
        ({"levels": [5000, 10]}, "5000 clusters of 4000 rows"),
        ({"levels": [100], "metric": "dot"}, "metric 'dot'"),
        ({"levels": [100], "resample_strategy": "near"}, "resample_strategy 'near'"),
        ({"levels": [100], "max_iterations": 0}, "max_iterations"),
    ],
)
def test_bad_settings_are_named(settings, message: str):
    with pytest.raises(CurationError, match=message):
        HierarchicalKMeans(**settings, progress=False).fit(rings())


def test_a_full_disk_is_one_clear_error_and_leaves_no_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tree = small().fit(rings())

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    tree.__dict__["file_checksums"] = {}
    with pytest.raises(CurationError, match="No space left on device"):
        tree.save(tmp_path / "tree")
    assert not [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_dropped_rows_leave_the_tree_of_the_others(metric: str, tmp_path: Path):
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(900, 8)).astype(np.float32)
    bad = np.array([0, 1, 299, 300, 301, 600, 904])
    x = np.empty((907, 8), np.float32)
    good = np.setdiff1d(np.arange(907), bad)
    x[good] = clean
    x[bad] = np.nan
    x[bad[3], :] = [np.inf, *[0.0] * 7]
    if metric == "cosine":
        x[bad[4]] = 0
    for start in range(0, 907, 300):
        np.save(tmp_path / f"shard-{start:05d}.npy", x[start : start + 300])
    fit = {"levels": [40, 8], "n_resamples": 1, "metric": metric, "max_iterations": 5, "progress": False}
    with pytest.raises(CurationError, match=r"row 0 of shard-00000\.npy holds NaN or infinity \(7 bad rows in all\)"):
        HierarchicalKMeans(**fit).fit(tmp_path)
    tree = HierarchicalKMeans(**fit, bad_rows="drop").fit(tmp_path)
    expected = HierarchicalKMeans(**fit).fit(clean)
    assert tree.settings["dropped_rows"] == 7
    for found, wanted in zip(tree.levels, expected.levels, strict=True):
        assert np.asarray(found.centroids).tobytes() == np.asarray(wanted.centroids).tobytes()
        assert np.asarray(found.assignment).tobytes() == np.asarray(wanted.assignment).tobytes()
    np.testing.assert_array_equal(tree.row_ids, good)
    rows = tree.sample(50, seed=3)
    np.testing.assert_array_equal(Subset.from_rows(rows, tree).ids, good[np.unique(rows)])
    with pytest.raises(CurationError, match="all 5 rows are bad"):
        HierarchicalKMeans([2], bad_rows="drop", progress=False).fit(np.full((5, 3), np.nan, np.float32))


def test_kept_rows_are_the_rows_that_were_kept():
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    dropped = np.array([0, 3, 4, 5, 19])
    kept = KeptRows(open_embeddings(x), dropped)
    expected = np.delete(x, dropped, axis=0)
    for size in (1, 2, 7, 100):
        np.testing.assert_array_equal(np.concatenate([b.numpy() for _, b in kept.blocks(size)]), expected)
    np.testing.assert_array_equal(kept.take(np.array([14, 0, 7])).numpy(), expected[[14, 0, 7]])
    assert kept.locate(1) == "row 2 of array"


def test_a_resampled_set_too_large_for_memory_is_read_from_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from curation.store import rows

    np.save(tmp_path / "x.npy", rings(1500).astype(np.float16))
    held = small(n_resamples=2).fit(tmp_path / "x.npy")
    monkeypatch.setattr(rows, "HELD_BYTES", 0)
    assert small(n_resamples=2).fit(tmp_path / "x.npy").checksum == held.checksum


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_coarse_clusters_are_read_many_at_once(tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch):
    from curation.kmeans import two_step

    np.save(tmp_path / "x.npy", rings(1500))
    settings = {"max_iterations": 4, "progress": False, "metric": metric}
    at_once = HierarchicalKMeans(["20x10", 12], **settings).fit(tmp_path / "x.npy")
    monkeypatch.setattr(two_step, "READ_BYTES", 1)  # one cluster at a time
    assert HierarchicalKMeans(["20x10", 12], **settings).fit(tmp_path / "x.npy").checksum == at_once.checksum


def test_level_1_can_be_fitted_on_some_rows_and_assigned_to_all(tmp_path: Path):
    x = rings(1500)
    some, whole = small(fit_rows=1200), small()
    tree = some.fit(x)
    assert tree.n_rows == len(x)
    assert tree.settings["fit_rows"] == 1200
    assert "fit_rows" not in whole.fit(x).settings
    assert some.fit(x).checksum == tree.checksum
    assert whole.fit(x).levels[0].record["inertias"][0] < tree.levels[0].record["inertias"][0]
    np.testing.assert_array_equal(small(fit_rows=10**9).fit(x).levels[0].centroids, whole.fit(x).levels[0].centroids)
    with pytest.raises(CurationError, match="too few for 200 clusters"):
        small(fit_rows=199)
    with pytest.raises(CurationError, match="must not be negative"):
        small(fit_rows=-1)


def test_rows_that_are_held_are_those_of_the_source(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curation.store.rows.ROWS_PER_READ", 7)
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    chosen = np.arange(0, 60, 2)
    held = SelectedRows(open_embeddings(x), chosen, (3, 28))
    for start, stop in ((3, 28), (9, 12), (0, 30)):
        assert np.array_equal(held.block(start, stop).numpy(), x[chosen[start:stop]])
