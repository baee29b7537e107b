"""The page of pools: a command that refuses its own figures could not add to them."""

import shutil
import sys
from pathlib import Path

import pytest

from benchmarks import prepare

RESULTS = Path(__file__).parents[2] / "docs/results"


def test_the_command_goes_on_with_its_own_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its figures are there, so that nothing is measured."""
    for name in ("prepare.md", "prepare.json"):
        shutil.copy(RESULTS / name, tmp_path)
    (tmp_path / "images").mkdir()
    given = ["images", "--rows", "20000", "-o", str(tmp_path / "prepare.md"), "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", ["prepare", *given])
    prepare.main()
    assert (tmp_path / "prepare.md").read_text() == (RESULTS / "prepare.md").read_text()
    assert not (tmp_path / "work").exists()
