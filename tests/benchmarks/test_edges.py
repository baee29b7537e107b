"""The page of edges: a figure that grew past its goal must say so, and the inputs must be what the page claims."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import edges


def test_the_page_says_what_is_too_slow_and_how_much_slower_a_busy_machine_is():
    source = {"commit": "0123456789", "changed": [], "device": "a CPU, 1 threads"}

    def part(found: dict[str, Any]) -> dict[str, Any]:
        return {"found": found, "source": source, "load": 0.5}

    parts = {"listing": part({"open_pool": 15.2}), "report": part({"first": 11.0, "with its check": 14.0})}
    found = edges.page(parts | {"kmeans": part({"passive": [2.0, 3.0]}), "pretrain": part({"small": [90.0, 60.0]})})
    assert found.count("**too slow**") == 1
    assert "| 15.20 **too slow** | 15 | 1 threads | 0123456789 |" in found
    assert "| passive | 2.00 s | 3.00 s | 1.50 |" in found
    assert "| small | 90.00 images/s | 60.00 images/s | 1.50 |" in found


def test_inputs_are_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = {"FILES": 6, "FOLDERS": 3, "LABELLED": 20, "ROWS": 600, "LEVELS": [20, 5], "DIM": 8, "DRAWN": 50}
    for name, value in sizes.items():
        monkeypatch.setattr(edges, name, value)
    for part, make in edges.MAKE.items():
        (tmp_path / part).mkdir()
        make(tmp_path / part)
        assert all(seconds > 0 for seconds in edges.measure(part, tmp_path, 1).values())
    assert (tmp_path / "report/report.html").exists()
