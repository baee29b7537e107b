"""Embeddings: whoever brings an array in another format must get the same rows, and a kill must lose nothing."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from curation import CurationError, EmbeddingWriter, open_embeddings
from curation.store.embeddings import require_own_row_ids

ROWS = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)


def make(kind: str, folder: Path):
    if kind == "array":
        return ROWS.copy()
    if kind == "read-only":
        array = ROWS.copy()
        array.flags.writeable = False
        return array
    if kind == "tensor":
        return torch.from_numpy(ROWS.copy())
    if kind == "npy":
        np.save(folder / "x.npy", ROWS)
        return folder / "x.npy"
    if kind in ("folder", "list"):
        for i, part in enumerate(np.array_split(ROWS, 3)):
            np.save(folder / f"part-{i}.npy", part)
        return folder if kind == "folder" else sorted(folder.glob("*.npy"))
    if kind == "writer":
        with EmbeddingWriter(folder / "w", 6, "float32", rows_per_shard=300) as writer:
            writer.append(ROWS)
            writer.finish()
        return folder / "w"
    column = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 6)
    table = pa.table({"name": [str(i) for i in range(1000)], "vector": column})
    if kind == "parquet":
        pq.write_table(table, folder / "x.parquet", row_group_size=170)
        return folder / "x.parquet"
    if kind == "arrow":
        with pa.OSFile(str(folder / "x.arrow"), "wb") as stream, pa.ipc.new_file(stream, table.schema) as file:
            file.write_table(table, max_chunksize=130)
        return folder / "x.arrow"
    import datasets

    dataset = datasets.Dataset(table)
    return dataset.select(range(1000)) if kind == "dataset" else dataset


KINDS = ["array", "read-only", "tensor", "npy", "folder", "list", "writer", "parquet", "arrow", "dataset"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_storage_gives_the_same_rows(kind: str, tmp_path: Path):
    x = open_embeddings(make(kind, tmp_path))
    assert x.shape == (1000, 6)
    assert x.dtype == "float32"
    np.testing.assert_array_equal(x.block(150, 720).numpy(), ROWS[150:720])
    np.testing.assert_array_equal(torch.cat([block for _, block in x.blocks(333)]).numpy(), ROWS)
    wanted = np.array([999, 3, 3, 512, 0])
    np.testing.assert_array_equal(x.take(wanted).numpy(), ROWS[wanted])
    assert x.fingerprint() == open_embeddings(ROWS).fingerprint()
    assert open_embeddings(x) is x


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_writer_keeps_the_dtype(dtype: str, tmp_path: Path):
    expected = torch.from_numpy(ROWS).to(getattr(torch, dtype))
    with EmbeddingWriter(tmp_path, 6, dtype, rows_per_shard=400) as writer:
        writer.append(expected)
        writer.finish()
    x = open_embeddings(tmp_path)
    assert x.dtype == dtype
    assert torch.equal(x.block(0, 1000), expected)


def test_writer_goes_on_after_whole_shards(tmp_path: Path):
    with EmbeddingWriter(tmp_path, 6, rows_per_shard=300, metadata={"embedder": "a"}) as writer:
        writer.append(ROWS[:700])  # 100 rows are lost with the process
    with pytest.raises(CurationError, match="not finished"):
        open_embeddings(tmp_path)
    with pytest.raises(CurationError, match="embedder='a', not 'b'"):
        EmbeddingWriter(tmp_path, 6, rows_per_shard=300, metadata={"embedder": "b"})
    with EmbeddingWriter(tmp_path, 6, rows_per_shard=300, metadata={"embedder": "a"}) as writer:
        assert writer.n_written == 600
        writer.append(ROWS[600:])
        writer.finish()
    np.testing.assert_array_equal(open_embeddings(tmp_path).block(0, 1000).numpy(), ROWS.astype(np.float16))


def test_writer_refuses_rows_that_its_dtype_cannot_hold(tmp_path: Path):
    writer = EmbeddingWriter(tmp_path, 6)
    with pytest.raises(CurationError, match="row 1 is NaN or beyond the range of float16"):
        writer.append(np.array([[0] * 6, [1e9] * 6], np.float32))
    with pytest.raises(CurationError, match="do not fit"):
        writer.append(np.ones((2, 5)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda d: d / "absent.npy", "does not exist"),
        (lambda d: d, "holds no .npy"),
        (lambda d: (d / "x.txt").write_text("a") and d / "x.txt", "not an .npy"),
        (lambda d: (d / "x.npy").write_bytes(b"\x93NUMPY broken") and d / "x.npy", "not a whole .npy"),
        (lambda d: np.ones((0, 4), np.float32), "empty"),
        (lambda d: [np.ones((2, 4), np.float32), np.ones((2, 5), np.float32)], "must agree"),
        (lambda d: np.array([["a", "b"]]), "must be one of"),
    ],
)
def test_bad_sources_are_named(content, message: str, tmp_path: Path):
    with pytest.raises(CurationError, match=message):
        open_embeddings(content(tmp_path))


def test_objects_are_never_unpickled(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.array([[object()]], dtype=object), allow_pickle=True)
    with pytest.raises(CurationError, match=r"not a whole \.npy"):
        open_embeddings(tmp_path / "x.npy")


def test_ambiguous_columns_are_asked_for(tmp_path: Path):
    column = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 6)
    pq.write_table(pa.table({"a": column, "b": column}), tmp_path / "x.parquet")
    with pytest.raises(CurationError, match="found a, b; name it"):
        open_embeddings(tmp_path / "x.parquet")
    assert open_embeddings(tmp_path / "x.parquet", column="b").shape == (1000, 6)
    with pytest.raises(CurationError, match="no column 'c'"):
        open_embeddings(tmp_path / "x.parquet", column="c")
    pq.write_table(pa.Table.from_arrays([column, column], names=["a", "a"]), tmp_path / "x.parquet")
    with pytest.raises(CurationError, match="2 columns 'a'"):
        open_embeddings(tmp_path / "x.parquet", column="a")


def test_a_flipped_byte_of_parquet_is_found_where_its_pages_have_checksums(tmp_path: Path):
    column = pa.FixedSizeListArray.from_arrays(pa.array(ROWS.ravel()), 6)
    pq.write_table(pa.table({"a": column}), tmp_path / "x.parquet", compression="none", write_page_checksum=True)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.parquet").write_bytes(content)
    with pytest.raises(CurationError, match="cannot be read as parquet"):
        open_embeddings(tmp_path / "x.parquet").block(0, 1000)


def test_reading_ahead_changes_nothing(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(5000, 40)).astype(np.float16)
    for i, part in enumerate(np.array_split(x, 3)):
        np.save(tmp_path / f"{i}.npy", part)
    source = open_embeddings(tmp_path)
    found = np.concatenate([block.numpy() for _, block in source.blocks(700)])
    np.testing.assert_array_equal(found, x)
    part = [block.numpy() for _, block in source.blocks(700, (100, 4900))]
    np.testing.assert_array_equal(np.concatenate(part), x[100:4900])
    source.ask_for(4990, 99_999)  # beyond the end
    source.ask_for(5000, 5001)
    open_embeddings(np.load(tmp_path / "0.npy", mmap_mode="r")[10:]).ask_for(0, 20)  # a view of a map


def _mapped_kib(path: Path) -> int:
    """Resident memory of this process that is pages of a file."""
    kib, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            kib += int(line.split()[1])
    return kib


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="counts pages as Linux shows them")
def test_rows_that_were_read_are_no_memory_of_the_process(tmp_path: Path):
    """A pool larger than memory may not fill what the scheduler of a cluster grants."""
    x = np.random.default_rng(0).normal(size=(40_000, 96)).astype(np.float32)  # 15 MB
    path = tmp_path / "x.npy"
    np.save(path, x)
    source = open_embeddings(path)
    rows = np.random.default_rng(1).permutation(40_000)[:5000]
    np.testing.assert_array_equal(source.take(rows).numpy(), x[rows])
    np.testing.assert_array_equal(torch.cat([block for _, block in source.blocks(1000)]).numpy(), x)
    assert _mapped_kib(path) < 500  # the header, and what the system maps around
    whole = np.load(path, mmap_mode="r")
    assert whole.sum(dtype=np.float64) == x.sum(dtype=np.float64)
    assert _mapped_kib(path) > 10_000  # the count finds pages


def test_changes_to_a_private_map_stay(tmp_path: Path):
    np.save(tmp_path / "x.npy", np.ones((3000, 64), np.float32))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[:] = 2
    private.flags.writeable = False
    source = open_embeddings(private)
    for _pass in range(2):
        assert (source.block(0, 3000) == 2).all()
        assert (source.take(np.arange(2999, 0, -3)) == 2).all()


def parts_of_a_pool(folder: Path, embedders: tuple[str, str] = ("a", "a")) -> Path:
    """Two parts of 6 and 5 pool rows, of which row 2 of the first and row 0 of the second have no embedding."""
    for name, embedder, ids, rows in zip(("00", "01"), embedders, ([0, 1, 3, 4, 5], [1, 2, 3, 4]), (6, 5), strict=True):
        metadata = {"embedder": embedder, "pool_rows": rows, "pool_fingerprint": name}
        with EmbeddingWriter(folder / name, 6, "float32", metadata=metadata) as writer:
            writer.append(ROWS[np.array(ids) + 6 * int(name)])
            (folder / name).mkdir(exist_ok=True)
            np.save(folder / name / "row_ids.npy", np.array(ids))
            writer.finish()
    return folder


def test_no_result_takes_the_row_ids_of_another(tmp_path: Path):
    """Kept rows in the folder of embeddings were taken for the pool rows of these."""
    with EmbeddingWriter(tmp_path, 4) as writer:
        writer.append(np.ones((2, 4), np.float32))
        writer.finish()
    require_own_row_ids(tmp_path, "embeddings.json")
    for mine in ("tree.json", "dropped.parquet"):
        with pytest.raises(CurationError, match=r"holds embeddings, whose row_ids\.npy would be replaced"):
            require_own_row_ids(tmp_path, mine)


def test_parts_of_a_pool_are_one_in_the_order_of_their_names(tmp_path: Path):
    x = open_embeddings(parts_of_a_pool(tmp_path))
    assert np.asarray(x.row_ids).tolist() == [0, 1, 3, 4, 5, 7, 8, 9, 10]
    np.testing.assert_array_equal(x.block(0, 9).numpy(), ROWS[np.asarray(x.row_ids)])
    assert (x.metadata["embedder"], x.metadata["pool_rows"]) == ("a", 11)
    assert "pool_fingerprint" not in x.metadata, "that of the first part would refuse the pool"
    assert str(x.digest_of_files()).startswith("files ")


def test_a_part_is_not_taken_twice(tmp_path: Path):
    shutil.copytree(parts_of_a_pool(tmp_path) / "00", tmp_path / "00 copy")
    with pytest.raises(CurationError, match=r"00 copy is of the same rows as .*00, and they would count twice"):
        open_embeddings(tmp_path)


def test_parts_of_different_embedders_are_refused(tmp_path: Path):
    with pytest.raises(CurationError, match=r"01 has embedder 'b', the parts before 'a'"):
        open_embeddings(parts_of_a_pool(tmp_path, ("a", "b")))
