"""The page of edges: a figure that grew past its goal must say so, and the inputs must be what the page claims."""

import json
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from warm import Server

from benchmarks import edges
from foundation.command import run_command


def test_the_page_says_what_is_too_slow_and_how_much_slower_a_busy_machine_is():
    def row(found: Any, commit: str = "0123456789") -> edges.Figure:
        return edges.Figure(found, 0.5, {"commit": commit, "changed": [], "device": "a CPU, 1 threads"})

    parts = {"listing": {"open_pool": row(15.2)}, "report": {"first": row(11.0), "with its check": row(14.0)}}
    parts |= {"kmeans": {"passive": row([2.0, 3.0])}}
    parts |= {"pretrain": {"small": row([90.0, 60.0]), "large": row([9.0, 3.0], "abcdef0123")}}
    found = edges.page(parts)
    assert found.count("**too slow**") == 1
    assert "| 15.20 **too slow** | 15 | 1 | 0123456789 |" in found
    assert "| passive | 2.00 s | 3.00 s | 1.50 | 0.5 | 0123456789 |" in found
    assert "| small | 90.00 images/s | 60.00 images/s | 1.50 | 0.5 | 0123456789 |" in found
    assert "| large | 9.00 images/s | 3.00 images/s | 3.00 | 0.5 | abcdef0123 |" in found


def test_one_shape_is_measured_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A page that a person wrote stays, too."""
    asked: list[str] = []

    def said(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
        asked.append(" ".join(command))
        return 1.0, f"1,{len(asked)}00.5 images/s"

    def run(*words: str) -> str:
        asked.clear()
        monkeypatch.setattr("sys.argv", ["edges", *words, "--work", str(tmp_path / "work")])
        with suppress(SystemExit):
            run_command("benchmarks.edges", edges.main)
        return capsys.readouterr().err

    monkeypatch.setattr(edges, "run_python", said)
    monkeypatch.setattr(edges, "busy_processes", lambda count: nullcontext())
    page, names = tmp_path / "page.md", list(edges.SHAPES)
    for number, shape in (("3", names[2]), (names[1], names[1])):
        assert run("pretrain", "--shapes", number, "-o", str(page)) == ""
        assert len(asked) == 4
        assert all(edges.SHAPES[shape] in command for command in asked)
        monkeypatch.setattr(edges, "provenance", lambda *_: {"commit": "later", "changed": [], "device": "a CPU, 2"})
    kept = json.loads(page.with_suffix(".json").read_text())["pretrain"]
    assert list(kept) == [names[2], names[1]]
    assert kept[names[2]]["found"] == [1200.5, 1300.5]
    assert kept[names[2]]["source"]["commit"] != kept[names[1]]["source"]["commit"] == "later"
    assert "| 1200.50 images/s | 1300.50 images/s | 0.92 |" in page.read_text()
    assert "--shapes has '5'; there are 1 transformer, batch 8; 2 " in run("pretrain", "--shapes", "5")
    assert "--shapes is of the part pretrain" in run("kmeans", "--shapes", "1")
    page.write_text("# By hand\n")
    assert "page.md is there already and this command did not make it; choose another -o, or move it away" in run(
        "pretrain", "--shapes", "1", "-o", str(page)
    )
    assert not asked


def test_inputs_are_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm: Server):
    def run(command: list[str], environment: dict[str, str]) -> tuple[float, str]:
        started = time.perf_counter()
        done = warm.run(*command, env=environment)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - started, done.stdout

    monkeypatch.setattr(edges, "run_python", run)
    monkeypatch.setattr(edges, "COMPILE", ["-c", ""])
    sizes = {"FILES": 6, "FOLDERS": 3, "LABELLED": 20, "ROWS": 600, "LEVELS": [20, 5], "DIM": 8, "DRAWN": 50}
    for name, value in sizes.items():
        monkeypatch.setattr(edges, name, value)
    for part, make in edges.MAKE.items():
        (tmp_path / part).mkdir()
        make(tmp_path / part)
        assert all(seconds > 0 for _, seconds in edges.measure(part, tmp_path, 1, []))
    assert (tmp_path / "report/report.html").exists()
