"""Shards of a prepared pool: a killed stage that starts over, or mixes rows up, costs a day of a large pool."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from curation.embedding.embed import embed_pool
from curation.embedding.embedders import Embedder
from curation.pools.pool import open_pool
from curation.store.embeddings import open_embeddings
from experiments.engine.shards import embed_shards, read_column, seen, write_shards
from foundation.errors import CurationError
from foundation.files import load_json

FEATURES = Features({"text": Value("string"), "cover": Value("int64")})


def row(i: int) -> dict[str, Any]:
    return {"text": f"row {i}", "cover": i % 3}


@pytest.mark.parametrize(("n_rows", "stop"), [(25, 13), (20, 10), (7, 0)])
def test_a_killed_writer_goes_on_after_its_last_whole_shard(n_rows: int, stop: int, tmp_path: Path):
    asked: list[int] = []

    def dies(i: int) -> dict[str, Any]:
        if i == stop:
            raise KeyboardInterrupt
        return row(i)

    def counted(i: int) -> dict[str, Any]:
        asked.append(i)
        return row(i)

    folder = tmp_path / "pool.parquet"
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, n_rows, dies, FEATURES, rows_per_shard=5)
    write_shards(folder, n_rows, counted, FEATURES, rows_per_shard=5)
    assert asked == list(range(stop // 5 * 5, n_rows))
    assert open_pool(folder)["text"][:] == [f"row {i}" for i in range(n_rows)]
    np.testing.assert_array_equal(read_column(folder, "cover"), np.arange(n_rows) % 3)


def test_processes_share_the_shards_and_each_waits_for_all(tmp_path: Path):
    """A row that two processes make is time lost; a process that returns early trains on half a pool."""
    import multiprocessing
    import time

    folder, log = tmp_path / "pool.parquet", tmp_path / "log"

    def slow(i: int) -> dict[str, Any]:
        time.sleep(0.002)
        with open(log, "a") as stream:
            stream.write(f"{i} {multiprocessing.current_process().pid}\n")
        return row(i)

    def work() -> None:
        write_shards(folder, 60, slow, FEATURES, rows_per_shard=5)
        assert len(list(folder.glob("*.parquet"))) == 12

    workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    asked = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(i) for i, _ in asked) == list(range(60))
    assert len({process for _, process in asked}) == 2


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)


def test_embeddings_in_parts_are_those_of_the_whole(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(11):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": None})
    rows[6] = {"bytes": b"no picture", "path": None}
    pool = Dataset.from_dict({"image": rows}, features=Features({"image": ImageFeature()}))
    embedder = Embedder("mean", 3, 8, pixels, lambda x: x.mean((2, 3)), {"embedder": "mean"})
    embed_pool(pool, embedder, tmp_path / "whole", n_workers=0, progress=False)
    embed_shards(pool, embedder, tmp_path / "parts", rows_per_part=4)
    whole, parts = (open_embeddings(str(tmp_path / name)) for name in ("whole", "parts"))
    assert len(list((tmp_path / "parts").glob("part-*/shard-*.npy"))) == 3
    np.testing.assert_array_equal(whole.row_ids, parts.row_ids)
    assert 6 not in parts.row_ids
    np.testing.assert_array_equal(whole.block(0, 10).numpy(), parts.block(0, 10).numpy())
    infos = [load_json(tmp_path / name / "embeddings.json") for name in ("whole", "parts")]
    assert infos[0]["skipped"] == infos[1]["skipped"]
    assert {info["rows"] for info in infos} == {10}


def test_no_more_rows_than_a_shard_are_held(tmp_path: Path):
    """Rows are asked for in order, and those of a shard lie on disk before the next is asked for."""

    def watched(i: int) -> dict[str, Any]:
        assert len(list(tmp_path.glob("*.parquet"))) == i // 4
        return row(i)

    write_shards(tmp_path, 11, watched, FEATURES, rows_per_shard=4)
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_a_file_behind_its_marker_is_waited_for_and_named_where_it_never_comes(tmp_path: Path):
    """On a shared file system that lags, half of the shards would be read as the whole pool."""
    there, late = tmp_path / "00000.parquet", tmp_path / "00001.parquet"
    there.touch()
    with pytest.raises(CurationError, match=r"00001\.parquet is marked as done but was not seen for 0 s"):
        seen(there, late, seconds=0.05)
    with pytest.raises(CurationError, match="was not seen"):  # not even its folder
        seen(tmp_path / "part-00000/row_ids.npy", seconds=0.05)
    appears = threading.Timer(0.3, late.touch)
    appears.start()
    assert seen(there, late, seconds=30) == there
    assert late.exists()
    appears.join()
