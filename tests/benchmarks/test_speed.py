"""The page of speeds: a run on one kind of CPU must never take away what another kind had shown."""

from pathlib import Path

from benchmarks.speed import keep, markdown


def run(part: str, units: str, ours: float) -> dict:
    source = {"commit": "0123456789ab", "changed": [], "device": "a CPU, 2 threads", "versions": {}}
    rows = [
        {"name": "ours", "seconds": [ours, ours], "mean_squared_distance": [0.5, 0.5]},
        {"name": "faiss.Kmeans", "seconds": [6.0, 8.0], "mean_squared_distance": [0.5, 0.5]},
    ]
    return {"part": part, "units": units, "load": 0.0, "rows": rows, "command": "the command", "source": source}


def test_a_run_replaces_its_own_kind_alone(tmp_path: Path):
    path = tmp_path / "speed.json"
    keep(path, run("lloyd", "avx512_bf16", 3.0))
    keep(path, run("lloyd", "avx2", 4.0))
    keep(path, run("rings", "avx2", 1.0))
    runs = keep(path, run("lloyd", "avx512_bf16", 2.0))
    assert sorted((r["part"], r["units"], r["rows"][0]["seconds"][0]) for r in runs) == [
        ("lloyd", "avx2", 4.0),
        ("lloyd", "avx512_bf16", 2.0),
        ("rings", "avx2", 1.0),
    ]
    page = markdown(runs)
    assert "| ours | 2.00 (2.00 to 2.00) | 3.5 | 0.50000 |" in page  # median of 6/2 and 8/2
    assert page.index("Lloyd iterations from the same start: avx512_bf16") < page.index("Toy of rings")
