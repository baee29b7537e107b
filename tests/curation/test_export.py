"""Exports of a subset: a trainer that reads them must get the very rows, bytes and labels that were drawn."""

import contextlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, load_from_disk
from PIL import Image as Pillow

from curation import Subset, open_pool
from curation.cli import main
from curation.export import export_subset, row_names
from curation.pools.pool import pool_fingerprint
from foundation.errors import CurationError


def encoded(shade: int) -> bytes:
    stream = io.BytesIO()
    Pillow.new("RGB", (20, 20), (shade, 2 * shade, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pool")
    for i in range(12):
        place = root / ("cats" if i % 3 else "dogs") / f"{i:02d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encoded(i))
    return root


def drawn(pool: Dataset, rows: list[int]) -> Subset:
    return Subset.from_rows(np.array(rows), pool_fingerprint=pool_fingerprint(pool))


ROWS = [1, 4, 4, 9]


def test_parquet_holds_the_rows_with_their_features_and_opens_as_a_pool(folder: Path, tmp_path: Path):
    pool = open_pool(folder)
    assert export_subset(pool, drawn(pool, ROWS), tmp_path / "out.parquet", "parquet", progress=False) == 4
    again = open_pool(tmp_path / "out.parquet")
    assert again["id"][:] == ROWS
    assert again["label"][:] == [pool[i]["label"] for i in ROWS]
    assert again.features["label"].names == pool.features["label"].names
    for row, original in zip(again, ROWS, strict=True):
        assert np.array_equal(np.asarray(row["image"]), np.asarray(pool[original]["image"]))


def test_webdataset_shards_open_as_a_pool_of_the_same_pictures_and_copies_have_keys_of_their_own(
    folder: Path, tmp_path: Path
):
    pool = open_pool(folder)
    export_subset(pool, drawn(pool, ROWS), tmp_path / "out", "webdataset", rows_per_shard=3, progress=False)
    shards = sorted((tmp_path / "out").iterdir())
    assert [shard.name for shard in shards] == ["classes.json", "shard-00000.tar", "shard-00001.tar"]
    assert json.loads(shards.pop(0).read_text()) == pool.features["label"].names
    with tarfile.open(shards[0]) as shard:
        names = shard.getnames()
        assert shard.extractfile(names[0]).read() == Path(pool.data["image"][1].as_py()["path"]).read_bytes()
    again = open_pool(tmp_path / "out")
    assert len(set(again["key"][:])) == 4
    assert again["label"][:] == [pool[i]["label"] for i in ROWS]


def test_a_folder_links_to_the_files_and_keeps_the_labels(folder: Path, tmp_path: Path):
    pool = open_pool(folder)
    subset = drawn(pool, ROWS)
    export_subset(pool, subset, tmp_path / "links", "folder", progress=False)
    again = open_pool(tmp_path / "links")
    assert len(again) == 4
    assert sorted(again.features["label"].int2str(again["label"][:])) == sorted(
        pool.features["label"].int2str([pool[i]["label"] for i in ROWS])
    )
    source = Path(row_names(pool, np.array([9]))["path"][0])
    linked = next(path for path in (tmp_path / "links").rglob("*") if path.name == f"9-{source.name}")
    assert os.path.samefile(source, linked)
    export_subset(pool, subset, tmp_path / "copies", "folder", copies=True, progress=False)
    copied = next(path for path in (tmp_path / "copies").rglob("*") if path.name == f"9-{source.name}")
    assert not os.path.samefile(source, copied)
    assert copied.read_bytes() == source.read_bytes()


def test_a_list_of_files_repeats_what_is_taken_twice(folder: Path, tmp_path: Path):
    pool = open_pool(folder)
    export_subset(pool, drawn(pool, ROWS), tmp_path / "list.txt", "files", progress=False)
    assert (tmp_path / "list.txt").read_text().split("\n")[:-1] == [pool.data["image"][i].as_py()["path"] for i in ROWS]


def test_a_parquet_that_names_pictures_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    drawn(open_pool(folder), ROWS).save(tmp_path / "subset")
    for kind, said in (("parquet", True), ("webdataset", False)):
        command = ["export", str(folder), str(tmp_path / "subset"), "-o", str(tmp_path / f"out.{kind}")]
        with contextlib.suppress(SystemExit):
            main([*command, "--format", kind])
        assert ("not inside" in capsys.readouterr().err) == said


def test_text_leaves_as_jsonl_and_datasets_with_all_its_columns(tmp_path: Path):
    texts = [{"text": f"passage {i}: é", "source": f"book {i % 3}"} for i in range(8)]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    pool = open_pool(tmp_path / "pool.jsonl")
    subset = drawn(pool, [0, 5, 5])
    export_subset(pool, subset, tmp_path / "out.jsonl", "jsonl", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines == [{"id": row, **texts[row]} for row in (0, 5, 5)]
    export_subset(pool, subset, tmp_path / "saved", "datasets", progress=False)
    assert load_from_disk(tmp_path / "saved").to_list() == [texts[0], texts[5], texts[5]]


def test_the_subset_has_the_files_of_its_rows_beside_their_ids(folder: Path, tmp_path: Path):
    pool = open_pool(folder)
    subset = drawn(pool, ROWS)
    subset.names = row_names(pool, subset.ids)
    subset.save(tmp_path)
    again = Subset.load(tmp_path)
    assert again.names == subset.names
    assert again.clusters == {}
    assert [Path(path).name for path in again.names["path"]] == [
        Path(pool.data["image"][int(i)].as_py()["path"]).name for i in again.ids
    ]


def test_pictures_within_a_file_have_no_path_and_cannot_be_listed(tmp_path: Path):
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"]), "note": Value("string")})
    rows = [{"image": {"bytes": encoded(i), "path": None}, "label": i % 2, "note": "n"} for i in range(6)]
    pool = Dataset.from_list(rows, features=features)
    assert row_names(pool, np.arange(6)) == {}
    with pytest.raises(CurationError, match="no files of its own"):
        export_subset(pool, drawn(pool, [1]), tmp_path / "list", "files", progress=False)
    assert not (tmp_path / "list").exists()
    export_subset(pool, drawn(pool, [1, 3]), tmp_path / "out", "folder", progress=False)
    assert {path.read_bytes() for path in (tmp_path / "out" / "b").iterdir()} == {encoded(1), encoded(3)}


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "folder"])
def test_another_pool_and_an_output_that_is_there_are_refused(kind: str, folder: Path, tmp_path: Path):
    pool = open_pool(folder)
    with pytest.raises(CurationError, match="another pool; give its own"):
        export_subset(pool.select(range(11)), drawn(pool, ROWS), tmp_path / "out", kind, progress=False)
    (tmp_path / "out").mkdir()
    with pytest.raises(CurationError, match="is there already"):
        export_subset(pool, drawn(pool, ROWS), tmp_path / "out", kind, progress=False)


def test_a_picture_that_has_gone_is_named_and_nothing_is_left_behind(folder: Path, tmp_path: Path):
    pool = open_pool(folder)
    rows = pool.data["image"].to_pylist()
    lost = Dataset.from_list([{"image": {"bytes": None, "path": row["path"] + ".gone"}} for row in rows])
    lost = lost.cast_column("image", Image())
    for kind in ("webdataset", "folder"):
        with pytest.raises(CurationError, match="gone"):
            export_subset(lost, Subset.from_rows(np.array([2])), tmp_path / "out", kind, progress=False)
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["jsonl", "webdataset"])
@pytest.mark.parametrize(("value", "what"), [(b"\0\xff", "bytes"), (float("nan"), "NaN"), ([float("inf")], "infinity")])
def test_what_json_has_not_is_refused(kind: str, value: object, what: str, tmp_path: Path):
    """Bytes became the text of their Python literal, and NaN a word that other readers refuse."""
    pool = Dataset.from_dict({"text": ["a", "b"], "more": [value, value]})
    with pytest.raises(CurationError, match=f"column 'more' holds .*{what}"):
        export_subset(pool, Subset.from_rows(np.array([0])), tmp_path / "out", kind, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_row_of_nulls_is_a_sample_and_a_line_break_is_no_name(folder: Path, tmp_path: Path):
    pool = Dataset.from_dict({"text": [None, "b"]}, Features({"text": Value("string")}))
    export_subset(pool, Subset.from_rows(np.array([0, 1])), tmp_path / "out", "webdataset", progress=False)
    with tarfile.open(tmp_path / "out/shard-00000.tar") as shard:
        assert shard.getnames() == ["000000000.json", "000000001.txt"]
    (tmp_path / "pool").mkdir()
    for name in ("a\n.png", "b.png"):
        (tmp_path / "pool" / name).write_bytes(encoded(3))
    pool = open_pool(tmp_path / "pool")
    with pytest.raises(CurationError, match="line break"):
        export_subset(pool, drawn(pool, [0, 1]), tmp_path / "list.txt", "files", progress=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "out.jsonl"], "says another format than parquet; give --format jsonl"),
        (["-o", "out.parquet", "--format=jsonl"], "says another format than jsonl; give --format parquet"),
        (["-o", "out", "--copy"], "parquet does not take --copy, which is of folder"),
        (["-o", "out", "--format=folder", "--rows-per-shard=9"], "does not take --rows-per-shard, which is of webdata"),
        (["-o", "pool/cats/train", "--format=folder"], "lies within what is read (pool)"),
    ],
)
def test_what_would_be_passed_over_or_read_again_is_refused(
    words: list[str], said: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    shutil.copytree(folder, tmp_path / "pool")
    monkeypatch.chdir(tmp_path)
    drawn(open_pool("pool"), ROWS).save(tmp_path / "subset")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit):
        main(["export", "pool", "subset", *words])
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
