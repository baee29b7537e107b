"""The command line: what users type must work as documented, and their mistakes must cost one line, not a traceback."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from curation import ClusterTree, Subset
from curation.cli import app, main

RANDOM_NET = "timm:resnet10t?pretrained=false"


def curate(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    argv, sys.argv = sys.argv, ["curate", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "x.npy"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, n in {"cat": 30, "dog": 12, "owl": 4}.items():
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)  # smooth, since noise is junk
            Image.fromarray(pixels).resize((24, 24)).save(tmp_path / "images" / label / f"{i}.png")
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"not a picture")
    return tmp_path / "images"


def test_every_step_from_images_to_report(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "out"
    code, _, err = curate(
        capsys, "embed", images, "-o", out / "e", "--embedder", RANDOM_NET, "--image-size", 32, "--workers", 0
    )
    assert (code, "46 embeddings" in err, "skipped row" in err) == (0, True, True), err
    code, _, err = curate(capsys, "cluster", out / "e", "-o", out / "t", "--levels", "12,4", "--resamples", "0,2")
    assert code == 0, err
    code, _, err = curate(capsys, "sample", out / "t", "-o", out / "s", "--size", 20, "--weights")
    assert code == 0, err
    subset, tree = Subset.load(out / "s"), ClusterTree.load(out / "t")
    assert len(subset) == 20
    assert np.load(out / "s" / "weights.npy").sum() == pytest.approx(1)
    # ids are rows of the pool, where the broken picture has one, and not rows of the embeddings
    assert set(subset.ids) <= set(np.load(out / "e" / "row_ids.npy"))
    assert tree.settings["pool_fingerprint"] == subset.metadata["pool_fingerprint"]
    code, _, err = curate(
        capsys, "report", out / "t", out / "s", "-o", out / "r.html", "--pool", images, "--labels", "label"
    )
    assert code == 0, err
    assert "labels were not used" in (out / "r.html").read_text()
    assert "random rows on your labels" in err, "the verdict is not said"
    code, _, err = curate(capsys, "assign", out / "t", out / "e", "-o", out / "placed.parquet")
    placed = pq.read_table(out / "placed.parquet")
    np.testing.assert_array_equal(placed["level_2"].to_numpy(), tree.row_clusters(1))


def test_run_does_everything_and_skips_what_is_done(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["run", images, "-o", tmp_path / "all", "--size", 12, "--embedder", RANDOM_NET, "--image-size", 32]
    code, _, err = curate(capsys, *command, "--levels", "10,3", "--resamples", 1)
    assert code == 0, err
    before = Subset.load(tmp_path / "all" / "subset").rows()
    code, _, err = curate(capsys, *command, "--levels", "10,3", "--resamples", 1)
    assert "not done again: embeddings, prepared, tree, subset" in err
    np.testing.assert_array_equal(Subset.load(tmp_path / "all" / "subset").rows(), before)
    # hours of clustering are not thrown away for a setting that was mistyped
    code, _, err = curate(capsys, *command, "--levels", "11,3", "--resamples", 1)
    assert (code, "finished tree of levels=[10, 3], not [11, 3]" in err) == (2, True)
    np.testing.assert_array_equal(Subset.load(tmp_path / "all" / "subset").rows(), before)
    code, _, err = curate(capsys, *command, "--levels", "11,3", "--resamples", 1, "--overwrite")
    assert "not done again: embeddings, prepared\n" in err
    assert (tmp_path / "all" / "report.html").exists()


def test_run_does_not_replace_a_subset_unasked(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    command = ["run", images, "-o", tmp_path, "--embedder", RANDOM_NET, "--image-size", 32, "--levels", "10,3"]
    command += ["--no-check", "--size"]
    assert curate(capsys, *command, 12)[0] == 0
    before = Subset.load(tmp_path / "subset").rows()
    code, _, err = curate(capsys, *command, 9)
    assert (code, "finished subset of size 12, not 9" in err) == (2, True)
    np.testing.assert_array_equal(Subset.load(tmp_path / "subset").rows(), before)
    assert (tmp_path / "report.html").exists()
    with pytest.MonkeyPatch.context() as patch:  # killed before the new report
        patch.setattr("curation.pipeline.write_report", lambda *_args, **_options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            curate(capsys, *command, 9, "--overwrite")
    assert len(Subset.load(tmp_path / "subset")) == 9
    assert not (tmp_path / "report.html").exists()  # of twelve rows
    code, _, err = curate(capsys, *command, 9)
    assert "not done again: embeddings, prepared, tree, subset" in err
    assert (code, (tmp_path / "report.html").exists()) == (0, True)


def test_run_takes_the_embeddings_that_somebody_has(tmp_path: Path, capsys: pytest.CaptureFixture):
    rng = np.random.default_rng(0)
    concept = rng.choice(4, 500, p=[0.7, 0.15, 0.1, 0.05])
    x = (2 * rng.normal(size=(4, 12))[concept] + rng.normal(size=(500, 12))).astype(np.float32)
    x[480:] = x[:20]
    x[7] = np.nan  # has none
    np.save(tmp_path / "x.npy", x)
    pq.write_table(pa.table({"url": [f"u{i}" for i in range(500)], "kind": concept}), tmp_path / "rows.parquet")
    command = ["run", tmp_path / "rows.parquet", "--embeddings", tmp_path / "x.npy", "-o", tmp_path / "out"]
    command += ["--size", 60, "--labels", "kind"]
    code, _, err = curate(capsys, *command)
    assert code == 0, err
    left_out = re.search(r"left out: (\d+) embedding, 1 not finite or zero", err)
    assert left_out is not None
    assert int(left_out[1]) >= 19
    assert "GOOD: Better than random rows" in err
    assert not (tmp_path / "out/embeddings").exists()
    assert 7 not in Subset.load(tmp_path / "out/subset").rows()
    code, _, err = curate(capsys, *command)
    assert (code, "not done again: prepared, tree, subset" in err) == (0, True)
    code, _, err = curate(capsys, *command, "--embedder", "byte_histogram")
    assert (code, "means nothing where embeddings are given" in err) == (2, True)
    np.save(tmp_path / "x.npy", x[:499])
    code, _, err = curate(capsys, *command)
    assert (code, "the pool has 500 rows but the embeddings came from one of 499" in err) == (2, True)


def test_plan_of_the_paper(capsys: pytest.CaptureFixture):
    arguments = ["plan", "--rows", "743e6", "--dim", 1024, "--levels", "100000x100,500000,50000,10000", "--gpus", 8]
    code, out, _ = curate(capsys, *arguments, "--resamples", "0,10,10,10", "--sample-sizes", "0,10,5,3")
    assert code == 0
    assert "device hours" in out
    code, out, _ = curate(capsys, *arguments, "--json")
    stages = {stage["name"]: stage for stage in json.loads(out)["stages"]}
    assert stages["level 1: 50 iterations"]["operations"] == 2 * 743e6 * 100_000 * 1024 * 50
    assert json.loads(out)["storage"] > 743e6 * 1024 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "a100"], "--gpus 0 does not take --gpu, which is of --gpus N"),
        (["--gpus", 1, "--image-size", 96], "does not take --image-size, which is of --embedder timm:NAME"),
        (["--gpus", 1, "--embedder", "sentence", "--image-size", 96], "which is of --embedder timm:NAME"),
        (["--gpus", 1, "--resamples", 3], "resamples and sample sizes belong to the paper's levels"),
        (["--gpus", 1, "--sample-sizes", 3], "resamples and sample sizes belong to the paper's levels"),
    ],
)
def test_a_plan_refuses_what_it_would_not_count(options: list, message: str, capsys: pytest.CaptureFixture):
    """A user takes the figure for that of the options that he gave."""
    code, out, err = curate(capsys, "plan", "--rows", "1e6", "--dim", 384, *options)
    assert (code, out, message in err) == (2, "", True), err


def test_dry_run_writes_nothing(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    code, out, _ = curate(capsys, "cluster", rows, "-o", tmp_path / "t", "--levels", "50,5", "--dry-run")
    assert (code, "level 2" in out, (tmp_path / "t").exists()) == (0, True, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("cluster {absent} -o {out} --levels 5", "does not exist"),
        ("cluster {rows} -o {out} --levels 601", "601 clusters of 600 rows"),
        ("cluster {rows} -o {out} --levels 5,50", "levels must shrink"),
        ("cluster {rows} -o {out} --levels 50,x", "level 'x'"),
        ("cluster {rows} -o {out} --levels 50,5 --resamples 1,2,3", "n_resamples has 3 values"),
        ("cluster {rows} -o {out} --levels 5 --resamples few", "--resamples 'few'"),
        ("cluster {rows} -o {out} --levels 5 --device cuda:99", "device 'cuda:99'"),
        ("cluster {nan} -o {out} --levels 5", "row 7 of nan.npy holds NaN"),
        ("cluster {zero} -o {out} --levels 5 --metric cosine", "row 9 of zero.npy is all zeros"),
        ("cluster {cut} -o {out} --levels 5", "cut.npy is not a whole .npy"),
        ("cluster {empty} -o {out} --levels 5", "holds no .npy"),
        ("sample {empty} -o {out} --size 5", "no finished tree"),
        ("embed {empty} -o {out} --embedder efficientnet_lite0", "empty"),
        ("embed {absent} -o {out} --embedder efficientnet_lite0", "does not exist"),
        ("embed {empty} -o {out} --embedder best", "empty"),
        ("plan --rows 10 --dim 4 --levels 20 --gpus 1", "20 clusters of 10 rows"),
        ("plan --rows 10 --dim 4 --levels 5 --gpus 1 --gpu b9", "--gpu 'b9'"),
    ],
)
def test_mistakes_cost_one_line(arguments: str, message: str, rows: Path, tmp_path: Path, capsys):
    x = np.load(rows)
    nan, zero = x.copy(), x.copy()
    nan[7, 2], zero[9] = np.nan, 0
    np.save(tmp_path / "nan.npy", nan)
    np.save(tmp_path / "zero.npy", zero)
    (tmp_path / "cut.npy").write_bytes(rows.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    names = {name: tmp_path / f"{name}.npy" for name in ("nan", "zero", "cut", "absent")}
    names |= {"rows": rows, "out": tmp_path / "out", "empty": tmp_path / "empty"}
    code, _, err = curate(capsys, *arguments.format(**names).split())
    assert code == 2
    assert message in err
    assert err.startswith("curate: error: ")
    assert err.count("\n") == 1
    assert not [path for path in tmp_path.glob("out/*") if path.name not in ("unfinished",)]


def test_a_sample_larger_than_the_pool_or_over_a_finished_one(rows: Path, tmp_path: Path, capsys):
    tree = tmp_path / "t"
    assert curate(capsys, "cluster", rows, "-o", tree, "--levels", "50,5")[0] == 0
    code, _, err = curate(capsys, "sample", tree, "-o", tmp_path / "s", "--size", 601)
    assert (code, "between 1 and 600" in err) == (2, True)
    assert curate(capsys, "sample", tree, "-o", tmp_path / "s", "--size", 60)[0] == 0
    code, _, err = curate(capsys, "sample", tree, "-o", tmp_path / "s", "--size", 61)
    assert (code, "finished subset" in err) == (2, True)
    code, _, err = curate(capsys, "cluster", rows, "-o", tree, "--levels", "40,5")
    assert (code, "finished tree" in err) == (2, True)
    assert curate(capsys, "sample", tree, "-o", tmp_path / "s", "--size", 61, "--overwrite")[0] == 0
    assert len(Subset.load(tmp_path / "s")) == 61


def test_help_teaches_and_is_quick_to_import():
    commands = [command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands]
    assert {"embed", "cluster", "sample", "export", "demo", "run"} <= set(commands)
    for command in ([], *([name] for name in commands)):
        shown = CliRunner().invoke(app, [*command, "--help"], prog_name="curate")
        assert shown.exit_code == 0, shown.output
        assert "curate" in shown.output
        assert not command or "Example:" in shown.output
    assert CliRunner().invoke(app, ["--version"]).output.startswith("curate ")
    probe = "import sys, curation.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip() == "False"


def test_interrupt_is_one_line(rows: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    from curation.trees.hierarchy import HierarchicalKMeans

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(HierarchicalKMeans, "fit", interrupted)
    code, _, err = curate(capsys, "cluster", rows, "-o", tmp_path / "t", "--levels", "5")
    assert code == 130
    assert "run the same command again" in err


def test_a_full_disk_is_one_line(rows: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    import foundation.files

    class Full:
        free = 10

    monkeypatch.setattr(foundation.files.shutil, "disk_usage", lambda _path: Full)
    code, _, err = curate(capsys, "cluster", rows, "-o", tmp_path / "t", "--levels", "50,5")
    assert code == 2
    assert "are free there" in err
