"""The tutorials: whoever types what stands there must get what is said there."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "docs/tutorials"
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.M | re.S)


def run_all(page: Path, where: Path) -> str:
    """Everything that the page shows, in its order, as typed by one who has just installed the project."""
    place = where / "bin"
    place.mkdir()
    for name, words in {"python": "", "curate": "-m curation"}.items():
        (place / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (place / name).chmod(0o755)
    away = where / "work"
    away.mkdir()
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = "set -e\n" + "\n".join(BLOCK.findall(page.read_text()))
    done = subprocess.run(["bash", "-c", script], cwd=away, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_a_folder_of_images(tmp_path: Path):
    said = run_all(TUTORIALS / "images.md", tmp_path)
    work = tmp_path / "work"
    assert "images/" in said, "the subset names its files"
    assert (work / "curated/report.html").exists()
    links = [path for path in (work / "subset").rglob("*") if path.is_file()]
    assert len(links) == 100
    assert all(path.stat().st_nlink > 1 for path in links)
    assert len((work / "files.txt").read_text().splitlines()) == 100
    assert (work / "compare.html").exists()


@pytest.mark.slow
def test_a_pile_of_text(tmp_path: Path):
    said = run_all(TUTORIALS / "text.md", tmp_path)
    counts = Counter({name: int(number) for name, number in re.findall(r"'(\w+)': (\d+)", said)})
    assert counts.total() == 300
    pool = Counter(json.loads(line)["package"] for line in (tmp_path / "work/pile.jsonl").read_text().splitlines())
    assert set(counts) == set(pool), "a package was left out"
    assert (tmp_path / "work/subset.parquet").exists()


@pytest.mark.parametrize("page", sorted(TUTORIALS.glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_is_short_and_its_pictures_are_there(page: Path):
    text = page.read_text()
    assert len(text.splitlines()) < 90
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures
    missing = [link for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", text) if not (page.parent / link).exists()]
    assert not missing
