"""Inputs that are each in order and do not belong together: equal in size, so that only what they remember tells them.

Else labels, texts and rows of one pool would silently be taken for those of another.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation import HierarchicalKMeans, Subset
from curation.cli import main

N = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pools of one size, a and b, the rows of a in another order, and what each command made of the first two."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for name in "ab":
        words = [f"{name}{i}" for i in range(99)]
        rows = [
            {
                "text": f"{' '.join(rng.choice(words, 12))} is row {i}",
                "title": f"{' '.join(rng.choice(words, 9))} is title {i}",
                "label": f"l{rng.integers(3)}",
            }
            for i in range(N)
        ]
        rows[5]["text"] = "too short"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (folder / "a.jsonl").read_text().splitlines(keepends=True)
    (folder / "turned.jsonl").write_text("".join(lines[::-1]))
    (folder / "longer.jsonl").write_text("".join([*lines, lines[0]]))
    np.save(folder / "x.npy", rng.normal(size=(N, 4)).astype(np.float32))
    bad = rng.normal(size=(N, 4)).astype(np.float32)
    bad[7] = np.nan
    np.save(folder / "bad.npy", bad)
    bad[8] = 1
    np.save(folder / "other_bad.npy", bad)
    for command in (
        "embed a.jsonl -o ea --embedder byte_histogram",
        "embed b.jsonl -o eb --embedder byte_histogram",
        "embed a.jsonl -o titles --embedder byte_histogram --column title",
        "cluster ea -o ta --levels 8,2 --resamples 0 --no-check",
        "cluster bad.npy -o tbad --levels 8,2 --resamples 0 --no-check --drop-bad-rows",
        "sample ta -o sa --size 12 --no-check",
        "baseline random ea -o base_a --size 12",
        "baseline random eb -o base_b --size 12",
        "dedup ea -o da",
        "filter a.jsonl -o fa --workers 0",
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert called(patch, command) == 0, command
    return folder


def called(patch: pytest.MonkeyPatch, command: str) -> int:
    words = command.split()
    patch.setattr(sys, "argv", ["curate", *words])
    try:
        main(words)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


OTHER_POOL = "came from another pool, or from another column of it"
PAIRS = {
    "cluster eb -o {} --levels 8,2 --rows fa": f"the kept rows {OTHER_POOL}",
    "cluster eb -o {} --levels 8,2 --rows da": "the kept rows were chosen by other embeddings",
    "baseline random eb -o {} --size 9 --rows fa": f"the kept rows {OTHER_POOL}",
    "advise eb --size 9 --rows fa": f"the kept rows {OTHER_POOL}",
    "dedup eb -o {} --rows da": f"the kept rows {OTHER_POOL}",
    "dedup eb -o {} --rows fa": f"the kept rows {OTHER_POOL}",
    "filter b.jsonl -o {} --rows da --workers 0": f"the kept rows {OTHER_POOL}",
    "filter b.jsonl -o {} --rows fa --workers 0": f"the kept rows {OTHER_POOL}",
    "dedup ea -o {} --pool b.jsonl --workers 0": f"the embeddings {OTHER_POOL}",
    "dedup ea -o {} --pool turned.jsonl --workers 0": f"the embeddings {OTHER_POOL}",
    "dedup ea -o {} --pool a.jsonl --column title --workers 0": f"the embeddings {OTHER_POOL}",
    "dedup x.npy -o {} --pool longer.jsonl --workers 0": "has 61 rows but the embeddings came from one of 60",
    "baseline oracle ea -o {} --size 9 --pool b.jsonl": f"the embeddings {OTHER_POOL}",
    "baseline oracle ea -o {} --size 9 --pool turned.jsonl": f"the embeddings {OTHER_POOL}",
    "baseline oracle x.npy -o {} --size 9 --pool longer.jsonl": "has 61 rows but the embeddings came from one of 60",
    "sample ta -o {} --size 9 --pool turned.jsonl": f"the tree {OTHER_POOL}",
    "sample tbad -o {} --size 9 --embeddings other_bad.npy": "the tree was made of other embeddings",
    "export b.jsonl base_a -o {}.parquet": "the subset was drawn from another pool",
    "export turned.jsonl sa -o {}.parquet": "the subset was drawn from another pool",
    "report ta base_b -o {}.html --no-check": "the subset was drawn from another pool than that of the tree",
    "report ta sa -o {}.html --pool turned.jsonl --no-check": f"the tree {OTHER_POOL}",
    "compare ta sa base_b -o {}.html --no-check": "the subset was drawn from another pool than that of the tree",
}
ALIKE = [
    "cluster ea -o {} --levels 8,2 --resamples 0 --no-check --rows fa",
    "dedup ea -o {} --rows fa",
    "filter a.jsonl -o {} --rows da --workers 0",
    "dedup titles -o {} --pool a.jsonl --column title --workers 0",
    "baseline oracle titles -o {} --size 9 --pool a.jsonl --column title",
    "sample tbad -o {} --size 9 --embeddings bad.npy --no-check",
    "export a.jsonl base_a -o {}.parquet",
    "compare ta sa base_a -o {}.html --no-check",
]


@pytest.mark.parametrize(("command", "said"), PAIRS.items())
def test_what_does_not_belong_together_is_refused(made: Path, tmp_path: Path, command, said, monkeypatch, capfd):
    monkeypatch.chdir(made)
    assert called(monkeypatch, command.format(tmp_path / "out")) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert said in line, line
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", ALIKE)
def test_what_belongs_together_is_taken(made: Path, tmp_path: Path, command: str, monkeypatch):
    monkeypatch.chdir(made)
    assert called(monkeypatch, command.format(tmp_path / "out")) == 0


def test_a_subset_has_nothing_of_the_one_that_was_there_before(made: Path, tmp_path: Path, monkeypatch):
    """Weights of another size, or a card that tells of another method, would be believed."""
    monkeypatch.chdir(made)
    sample = f"sample ta -o {tmp_path} --no-check"
    assert called(monkeypatch, f"{sample} --size 9 --weights") == 0
    assert (tmp_path / "weights.npy").exists()
    assert called(monkeypatch, f"baseline random ea -o {tmp_path} --size 12 --overwrite") == 0
    assert not (tmp_path / "weights.npy").exists()
    assert "drawn with Curated SSL: at random" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("my own")
    assert called(monkeypatch, f"{sample} --size 8 --overwrite") == 2
    assert (tmp_path / "README.md").read_text() == "my own"


def test_the_same_subset_again_gets_the_names_that_a_pool_has(tmp_path: Path):
    from datasets import Dataset

    from curation.pipeline import sample_folder

    tree = HierarchicalKMeans([3], seed=0, progress=False).fit(np.random.default_rng(0).normal(size=(20, 2)))
    how = {"strategy": "random", "method": "balanced", "max_copies": 1, "seed": 0, "overwrite": False}
    assert not sample_folder(tree, tmp_path, 5, **how)[1]
    pool = Dataset.from_dict({"key": [f"k{i}" for i in range(20)]})
    assert sample_folder(tree, tmp_path, 5, **how, pool=pool)[1]
    found = Subset.load(tmp_path)
    assert pq.read_table(tmp_path / "subset.parquet")["key"].to_pylist() == [f"k{i}" for i in found.ids]
