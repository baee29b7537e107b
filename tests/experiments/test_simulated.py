"""Experiment 1: data other than the report says, or a run that reuses the wrong result, would void its numbers."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from curation import CurationError
from curation.trees.balance import kde_kl_to_uniform
from experiments.engine.results import Task, run_tasks
from experiments.engine.settings import compose
from experiments.engine.stages import run_stage
from experiments.simulated import data
from experiments.simulated.ablations import subset_measures, variants
from experiments.simulated.figures import voronoi_cells
from experiments.simulated.report import verdict
from experiments.simulated.studies import all_tasks, metric_rows, parse_studies, studies_stage
from experiments.simulated.table import TableSettings, final_points
from experiments.simulated.theory import cell_sizes, density_exponent, energy, power_centroids, power_kmeans
from foundation.intervals import paired_student_interval, student_interval

ROOT = Path(__file__).parents[2]
SMALL = [
    "seeds=[0,1]",
    "science.studies.table.three_levels=[600,200,60]",
    "science.studies.table.two_levels=[300,60]",
    "science.studies.table.peers=false",
    "science.studies.table.n_resamples=1",
    "science.studies.table.max_iterations=5",
    "science.studies.theory.n_points=2000",
    "science.studies.theory.n_clusters=40",
    "science.studies.ablations.max_iterations=2",
    "science.studies.ablations.n_resamples=1",
    "science.studies.ablations.toys.rings.levels=[60,20]",
    "speed.threads=1",
]


def test_mixture_is_the_papers():
    x = data.mixture(3)
    assert x.shape == (9000, 2)
    for start, stop, centre in ((0, 7000, (-1, -1)), (7000, 8000, (1, -1)), (8000, 8500, (0, 1))):
        part = x[start:stop].astype(np.float64)
        np.testing.assert_allclose(part.mean(axis=0), centre, atol=5 * 0.5 / np.sqrt(len(part)))
        np.testing.assert_allclose(part.std(axis=0), 0.5, rtol=5 / np.sqrt(2 * len(part)))
    background = x[8500:]
    assert np.abs(background).max() <= 3
    np.testing.assert_allclose(background.std(axis=0), 6 / np.sqrt(12), rtol=0.15)


def test_seeds_make_data_of_their_own_and_the_same_data_again():
    for make in (data.mixture, lambda seed: data.rings(seed).x, lambda seed: data.theory_points(seed, 100)):
        np.testing.assert_array_equal(make(1), make(1))
        assert not np.array_equal(make(1), make(2))


def test_rings_are_equal_separate_rings_of_the_stated_sizes():
    toy = data.rings(0)
    assert np.bincount(toy.concept_of).tolist() == [20_000, 200, 1000, 500, 8000]
    means = np.stack([toy.x[toy.concept_of == ring].mean(axis=0) for ring in range(5)])
    apart = np.linalg.norm(means[:, None] - means[None], axis=2)[~np.eye(5, dtype=bool)]
    assert apart.min() > 2 * data.RING_RADIUS + 6 * data.RING_NOISE
    for ring in range(5):
        turn = np.pi / 2 + 2 * np.pi * ring / 5
        centre = data.RING_CIRCLE * np.array([np.cos(turn), np.sin(turn)])
        radius = np.linalg.norm(toy.x[toy.concept_of == ring] - centre, axis=1)
        assert abs(radius.mean() - 1) < 0.04
        assert 0.07 < radius.std() < 0.13


def test_harder_toys_have_zipf_sizes_and_the_stated_clutter():
    toy = data.manifold(0)
    sizes = np.bincount(toy.concept_of, minlength=200)
    assert toy.x.shape == (12_000, 256)
    assert sizes.sum() == 12_000
    np.testing.assert_allclose(sizes[10:50] * np.arange(11, 51), sizes[10] * 11, rtol=0.05)
    assert sizes.min() >= 10  # the subset of 2,000 can hold 10 of each
    mess = data.clutter(0)
    assert (mess.concept_of == data.NOISE).mean() == 0.05
    assert mess.duplicate.mean() == 0.2
    copies = mess.x[mess.duplicate][:10]
    originals = mess.x[:7500]
    nearest = np.sqrt(((copies[:, None] - originals[None]) ** 2).sum(axis=2).min(axis=1))
    assert (nearest < 0.02).all()
    with pytest.raises(CurationError, match="too few"):
        data.zipf_sizes(100, 90)


def test_theory_points_follow_their_density():
    edges = np.linspace(-3, 3, 31)
    x = data.theory_points(0, 60_000)
    assert (np.diff(x) >= 0).all()
    fine = (
        data.theory_density(np.linspace(-3, 3, 30 * 40, endpoint=False) + 3 / 1200).reshape(30, 40).mean(axis=1) * 0.2
    )
    np.testing.assert_allclose(np.histogram(x, edges)[0] / len(x), fine, atol=5 * np.sqrt(fine.max() / len(x)))


@pytest.mark.parametrize("power", [2, 4, 8])
def test_power_centroids_minimise_the_sum(power: int):
    rng = np.random.default_rng(power)
    sizes = np.array([7, 0, 1, 30])
    x = np.sort(rng.normal(size=sizes.sum()))
    start = np.array([0.0, 123.0, 0.0, 0.0])
    found = power_centroids(x, sizes, start, power)
    assert found[1] == 123.0  # an empty interval keeps its place
    for cluster, first in ((0, 0), (2, 7), (3, 8)):
        run_ = x[first : first + sizes[cluster]]
        cost = lambda c, run_=run_: np.sum(np.abs(run_ - c) ** power)  # noqa: E731
        best = minimize_scalar(cost, bounds=(run_[0] - 1, run_[-1] + 1), method="bounded", options={"xatol": 1e-9})
        assert cost(found[cluster]) <= best.fun * (1 + 1e-6) + 1e-12


def test_centroids_follow_the_theory_and_beat_plain_quantiles():
    x = data.theory_points(0, 20_000)
    exponents = []
    for power in (2, 4, 8):
        found = power_kmeans(x, 400, power)
        assert cell_sizes(x, found).sum() == len(x)
        assert energy(x, found, power) < energy(x, np.quantile(x, (np.arange(400) + 0.5) / 400), power)
        exponents.append(density_exponent(found))
        assert abs(exponents[-1] - 1 / (1 + power)) < 0.06
    assert exponents[0] > exponents[1] > exponents[2]
    with pytest.raises(CurationError, match="even"):
        power_kmeans(x, 10, 3)


def test_rows_of_the_table_come_in_the_papers_order():
    """At a third of the size; the gaps are wide against the noise of one seed."""
    settings = TableSettings([1000, 300, 100], [500, 100], 2, 10, 20, 0.5, 0.05, False)
    kl = {
        row: kde_kl_to_uniform(final_points(row, 0, settings), step=0.05)
        for row in ("raw", "kmeans", "two_levels", "three_levels", "resampled")
    }
    assert kl["raw"] > kl["kmeans"] + 0.2 > kl["two_levels"] + 0.2
    assert kl["two_levels"] > kl["three_levels"] > kl["resampled"]


def test_voronoi_cells_tile_the_square():
    points = np.random.default_rng(0).uniform(-2.9, 2.9, (40, 2))
    area = 0.0
    for cell in voronoi_cells(points):
        x, y = cell.T
        area += abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(36.0)


def test_subset_measures_leave_the_background_out():
    toy = data.Toy(np.zeros((6, 2), np.float32), np.array([0, 0, 1, 1, data.NOISE, data.NOISE]), 2, np.arange(6) == 1)
    found = subset_measures(toy, np.array([0, 1, 2, 3, 4]))
    assert found == pytest.approx({"kl": 0.0, "concepts": 2, "noise_share": 0.2, "duplicate_share": 0.2})
    assert subset_measures(toy, np.array([0, 1]))["kl"] == pytest.approx(np.log(2))


@pytest.mark.parametrize("scale", sorted(path.stem for path in (ROOT / "configs/experiment/simulated").glob("*.yaml")))
def test_every_scale_composes_to_settings_and_tasks(scale: str):
    config = compose([f"scale={scale}"])
    studies, toys = parse_studies(config)
    tasks = all_tasks(studies, toys, config["seeds"])
    assert len({task.file(Path()) for task in tasks}) == len(tasks)
    for name in studies.ablations.names:
        rows = variants(toys[name], studies.ablations.n_resamples)
        assert {"levels", "resampling steps", "r_t", "sampling"} <= {variant.switch for variant in rows.values()}
    assert compose([f"scale={scale}", "seeds=[0,1,2]"])["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("science.studies.table.bandwith=1", "did you mean 'science.studies.table.bandwidth'"),
        ("sedes=[0]", "did you mean 'seeds'"),
        ("scale=labb", "did you mean 'lab'"),
        ("experiment=simulatd", "did you mean 'simulated'"),
        ("seeds=[0", "key=value"),
    ],
)
def test_a_misspelt_setting_is_an_error_that_names_the_nearest(override: str, message: str):
    with pytest.raises(CurationError, match=message) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_in_a_file_is_an_error():
    config = compose()
    config["science"]["studies"]["table"]["sample_sise"] = 3
    with pytest.raises(CurationError, match=r"table\.sample_sise is no setting; did you mean 'sample_size'"):
        parse_studies(config)


def test_resume_computes_only_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture):
    done = []

    def task(seed: int, size: int = 1) -> Task:
        return Task("study", "row", seed, {"size": size}, lambda: done.append(seed) or {"kl": seed * size})  # type: ignore

    def broken() -> dict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_tasks([task(0), task(1), Task("study", "row", 2, {}, broken), task(3)], tmp_path, {}, progress=False)
    assert done == [0, 1]
    records = run_tasks([task(0), task(1), task(3)], tmp_path, {}, progress=False)
    assert done == [0, 1, 3]
    assert "2 finished before and skipped, 1 to compute" in capsys.readouterr().out
    assert [record["result"]["kl"] for record in records] == [0, 1, 3]
    run_tasks([task(0, size=2)], tmp_path, {}, progress=False)  # other settings: another result
    run_tasks([task(0)], tmp_path, {}, fresh=True, progress=False)
    assert done == [0, 1, 3, 0, 0]


def test_intervals_and_verdicts():
    mean, half = student_interval([1.0, 2.0, 3.0])
    assert (mean, half) == pytest.approx((2.0, 4.302652729911275 / np.sqrt(3)))  # t table: 2 degrees of freedom
    assert np.isnan(student_interval([1.0])[1])
    assert paired_student_interval([2.0, 3.0], [1.0, 2.0]) == pytest.approx((1.0, 0.0))
    assert verdict([1.0, 1.1, 0.9], [2.0, 2.1, 1.95]).startswith("lower")
    assert verdict([1.0, 3.0], [2.0, 2.0]).startswith("no significant difference")
    with pytest.raises(ValueError, match="longer"):
        paired_student_interval([1.0], [1.0, 2.0])


def test_the_studies_write_report_pictures_and_metrics(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = compose([*SMALL, f"output.runs={tmp_path / 'runs'}", f"output.report={tmp_path / 'report'}"])
    stage = studies_stage(config)
    folder = run_stage(stage, tmp_path / "runs", config["speed"], {"commit": "c", "device": "d", "versions": {}}, False)
    text = (tmp_path / "report" / "simulated.md").read_text()
    for picture in ("density", "theory", "ablations"):
        image = tmp_path / "report" / "images" / f"simulated_{picture}.png"
        assert f"images/{image.name}" in text
        assert 1000 < image.stat().st_size < 300_000
    metrics = json.loads((folder / "metrics.json").read_text())
    kl = [row for row in metrics["metrics"] if row["measure"] == "kl" and row["study"] == "table"]
    assert [row["row"] for row in kl] == ["raw", "kmeans", "two_levels", "three_levels", "resampled", "floor"]
    lines = (folder / "metrics.csv").read_text().splitlines()
    values = [float(line.split(",")[4]) for line in lines if line.startswith("table,raw,") and ",kl," in line]
    assert np.mean(values) == pytest.approx(kl[0]["mean"])
    assert f"{kl[0]['mean']:.3f} ± " in text
    capsys.readouterr()
    (folder / "stage.json").unlink()
    run_stage(studies_stage(config), tmp_path / "runs", config["speed"], {"commit": "c"}, False)
    assert " 0 to compute" in capsys.readouterr().out
    assert (tmp_path / "report" / "simulated.md").read_text() == text
    assert metric_rows([]) == []


def test_the_script_ends_with_one_clear_line(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/run_experiment.py"), "experiment=simulated", "sciense.curation.size=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "run_experiment: error: sciense.curation.size is no setting; did you mean 'science.curation.size'?"
    ]
    assert not list(tmp_path.iterdir())  # no outputs/ folder appears
