"""A user points at a folder or file: the same pictures must come back, in a fixed order, with their labels."""

import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Image
from PIL import Image as PillowImage

from curation.pools.pool import open_pool, pool_fingerprint
from foundation.errors import CurationError

DEMO = Path(__file__).parents[2] / "data" / "openclipart.parquet"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads what another one, or the user, left in the cache of Hugging Face datasets."""
    cache = str(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", Path(cache))
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def png(value: int) -> bytes:
    """A 4 x 4 picture of one grey."""
    stream = io.BytesIO()
    PillowImage.new("RGB", (4, 4), (value, value, value)).save(stream, "png")
    return stream.getvalue()


def greys(pool: Dataset) -> list[int]:
    return [row["image"].convert("RGB").getpixel((0, 0))[0] for row in pool]


def image_folder(root: Path) -> Path:
    for i, name in enumerate(["cat/1.png", "cat/kitten/2.PNG", "dog/3.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(10 * i))
    (root / "cat" / ".hidden.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("a side file")
    return root


def test_image_folder_of_any_depth_gives_labels_by_folder(tmp_path):
    pool = open_pool(image_folder(tmp_path / "pictures"))
    assert greys(pool) == [0, 10, 20]
    label = pool.features["label"]
    assert [label.int2str(i) for i in pool["label"]] == ["cat", "cat/kitten", "dog"]


def test_flat_image_folder_has_no_label(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    assert open_pool(tmp_path).column_names == ["image"]
    assert greys(open_pool(tmp_path / "a.png")) == [7]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_link_to_a_folder_above_ends(tmp_path):
    root = image_folder(tmp_path / "pictures")
    (root / "dog" / "up").symlink_to(root)
    assert len(open_pool(root)) == 3


def test_opening_decodes_nothing(tmp_path):
    """A broken picture must not stop a pool of a million from opening."""
    (tmp_path / "a.png").write_bytes(b"this is no picture")
    pool = open_pool(tmp_path)
    assert len(pool) == 1
    with pytest.raises(OSError, match="cannot identify"):
        pool[0]


@pytest.mark.parametrize("kind", ["bytes", "struct", "other name"])
def test_parquet_images_in_every_usual_layout(tmp_path, kind):
    pictures = [png(i) for i in range(5)]
    struct = [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(pictures)]
    name = "picture" if kind == "other name" else "image"
    table = pa.table({name: struct if kind == "struct" else pictures, "label": list(range(5))})
    pq.write_table(table.slice(0, 3), tmp_path / "a.parquet")
    pq.write_table(table.slice(3), tmp_path / "b.parquet")
    pool = open_pool(tmp_path, column=name)
    assert greys(pool) == pool["label"][:] == [0, 1, 2, 3, 4]
    assert greys(open_pool(tmp_path / "b.parquet", column=name)) == [3, 4]


def test_splits_by_file_name_do_not_mix(tmp_path):
    """Test rows in a training pool would spoil every evaluation after it."""
    for i, split in enumerate(["train", "test"]):
        pq.write_table(pa.table({"image": [png(i)]}), tmp_path / f"{split}-00000-of-00001.parquet")
    assert greys(open_pool(tmp_path)) == [0]
    assert greys(open_pool(tmp_path, split="test")) == [1]
    with pytest.raises(CurationError, match=r"no split 'dev'; it has test, train"):
        open_pool(tmp_path, split="dev")


def add_member(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))


def test_webdataset_shards(tmp_path):
    for s in range(2):
        with tarfile.open(tmp_path / f"{s:05d}.tar", "w") as shard:
            for i in range(3):
                add_member(shard, f"x/{i}.cls", str(3 * s + i).encode())
                add_member(shard, f"x/{i}.png", png(3 * s + i))
    pool = open_pool(tmp_path)
    assert greys(pool) == pool["label"][:] == [0, 1, 2, 3, 4, 5]
    assert greys(open_pool(tmp_path / "00001.tar")) == [3, 4, 5]


def test_truncated_shard_is_named(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for i in range(20):
            add_member(shard, f"{i}.png", png(i) + bytes(2000))
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(CurationError, match=r"0\.tar is not a whole tar shard"):
        open_pool(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x[:1024] + b"?" + x[1025:], "a header in its middle is broken"),  # of the second member
        (lambda x: x + x, "another archive follows"),
        (lambda x: x[:2048], "without the zeros"),
    ],
)
def test_a_shard_whose_later_members_would_be_passed_over_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
):
    """tarfile takes a header that it cannot read for the end, and says nothing."""
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for i in range(3):
            add_member(shard, f"{i}.txt", b"some words")
    (tmp_path / "0.tar").write_bytes(change((tmp_path / "0.tar").read_bytes()))
    with pytest.raises(CurationError, match=said):
        open_pool(tmp_path / "0.tar")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("b.cls", b"cat", "sample b has the label 'cat'"),
        ("b.cls", b"\xff", "sample b has a label that is not UTF-8"),
        ("b.txt", b"cat", r"sample b has a member for text, the first \(a\) has none"),
        ("caf\udce9.png", b"x", "is not UTF-8"),
    ],
)
def test_a_member_that_cannot_be_a_row_is_named(tmp_path: Path, name: str, content: bytes, said: str):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for member, inside in (("a.png", b"x"), ("a.cls", b"1"), (name, content)):
            add_member(shard, member, inside)
    with pytest.raises(CurationError, match=said):
        open_pool(tmp_path / "0.tar")


@pytest.mark.parametrize("change", [lambda x: x[:-8] + b"0123" + x[-4:], lambda x: x + b"more", lambda x: x[:-4]])
def test_a_compressed_shard_that_changed_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]):
    """tarfile itself never compares the checksum of gzip."""
    with tarfile.open(tmp_path / "0.tar.gz", "w:gz") as shard:
        add_member(shard, "a.txt", b"some words")
    assert len(open_pool(tmp_path / "0.tar.gz")) == 1
    (tmp_path / "0.tar.gz").write_bytes(change((tmp_path / "0.tar.gz").read_bytes()))
    with pytest.raises(CurationError, match="is not a whole tar shard"):
        open_pool(tmp_path / "0.tar.gz")


@pytest.mark.parametrize("second", ["a.png", "a.seg.png", "a.jpg"])
def test_a_sample_with_two_pictures_is_refused(tmp_path: Path, second: str):
    """The last one would win: a mask would be embedded in place of its picture."""
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name in ("a.png", second):
            add_member(shard, name, b"x")
    with pytest.raises(CurationError, match=f"sample a has two members for image, {second} is the second"):
        open_pool(tmp_path / "0.tar")


@pytest.mark.parametrize("end", ["", ".gz", ".zst"])
def test_jsonl_and_text_also_compressed(tmp_path, end):
    def write(name: str, text: str) -> Path:
        path = tmp_path / (name + end)
        if end == ".zst":
            with pa.output_stream(str(path), compression="zstd") as stream:
                stream.write(text.encode())
        else:
            path.write_bytes(gzip.compress(text.encode()) if end else text.encode())
        return path

    jsonl = write("rows.jsonl", "".join(json.dumps({"text": f"line {i}", "label": i}) + "\n" for i in range(4)))
    assert open_pool(jsonl)[3] == {"text": "line 3", "label": 3}
    renamed = write("others.jsonl", json.dumps({"body": "hello"}) + "\n")
    assert open_pool(renamed, column="body")["text"][:] == ["hello"]
    assert open_pool(write("lines.txt", "first\nsecond\n"))["text"][:] == ["first", "second"]


def test_jsonl_image_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png(9))
    (tmp_path / "rows.jsonl").write_text('{"file": "pictures/a.png"}\n')
    monkeypatch.chdir("/")
    assert greys(open_pool(tmp_path / "rows.jsonl", column="file")) == [9]


def test_saved_dataset(tmp_path):
    pool = Dataset.from_dict({"image": [{"bytes": png(i), "path": None} for i in range(3)]}).cast_column(
        "image", Image()
    )
    pool.save_to_disk(tmp_path / "one")
    DatasetDict(train=pool, test=pool.select([1])).save_to_disk(tmp_path / "splits")
    assert greys(open_pool(tmp_path / "one")) == [0, 1, 2]
    assert greys(open_pool(tmp_path / "splits", split="test")) == [1]
    with pytest.raises(CurationError, match="it has test, train"):
        open_pool(tmp_path / "splits", split="dev")
    assert greys(open_pool(pool)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root, "it is empty"),
        (lambda root: root / "missing", "does not exist"),
        (
            lambda root: (root / "pictures").mkdir() or root / "picture",
            r"did you mean .*/pictures\?",
        ),
        (lambda root: (root / "a.npy").write_bytes(b"1") and root, "embeddings are for `curate cluster`"),
        (lambda root: (root / "a.xyz").write_bytes(b"1") and root, "none of its 1 files"),
        (lambda root: (root / "a.jsonl").write_bytes(b"{broken\n") and root, "line 1 is not JSON"),
        (
            lambda root: (root / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "b", "text": "c"}\n') and root,
            "line 2 is not JSON .*'text' is there twice",
        ),
        (
            lambda root: (root / "a.jsonl").write_bytes(b'{"text": "b", "text": "c"}\n') and root,
            "'text' is there twice",
        ),
        (lambda root: (root / "a.parquet").write_bytes(b"PAR1") and root, "cannot be read as parquet"),
        (lambda root: [(root / n).write_bytes(b"1") for n in ("a.png", "a.tar")] and root, "holds both"),
        (lambda root: "nobody/has-this-pool", "no local path"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, make, message):
    with pytest.raises(CurationError, match=message) as caught:
        open_pool(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_saved_dataset_whose_text_leaves_its_file_is_refused(tmp_path: Path):
    """A flipped bit of an offset ended in a traceback, or in memory of somebody else."""
    Dataset.from_dict({"text": ["some words", "more words"]}).save_to_disk(tmp_path / "saved")
    file = next((tmp_path / "saved").glob("*.arrow"))
    content = file.read_bytes()
    offsets = np.array([0, 10, 20], np.int32).tobytes()
    assert content.count(offsets) == 1
    file.write_bytes(content.replace(offsets, np.array([0, 10, 2**31 - 1], np.int32).tobytes()))
    with pytest.raises(CurationError, match="cannot be opened as a saved dataset"):
        open_pool(tmp_path / "saved")


def test_a_cache_that_cannot_be_made_is_not_the_fault_of_the_pool(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """With HF_HOME a file, texts.jsonl could not "be read as json"."""
    (tmp_path / "a.jsonl").write_text('{"text": "a row"}\n')
    (tmp_path / "file").write_bytes(b"mine")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file/datasets"))
    with pytest.raises(CurationError, match="set HF_HOME"):
        open_pool(tmp_path / "a.jsonl")


def test_unknown_column_lists_the_columns(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(CurationError, match=r"no column 'picture'; it has image"):
        open_pool(tmp_path, column="picture")


def test_fingerprint_is_of_contents_not_of_places(tmp_path):
    """A tree fitted on one machine must recognise the same pool on another, and refuse a changed one."""
    here, there = image_folder(tmp_path / "here"), tmp_path / "elsewhere" / "copy"
    shutil.copytree(here, there)
    mine = pool_fingerprint(open_pool(here))
    assert pool_fingerprint(open_pool(there)) == mine
    code = f"from curation.pools.pool import *; print(pool_fingerprint(open_pool({str(there)!r})))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"}
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert other.stdout.strip() == mine

    (there / "dog" / "3.png").write_bytes(png(99))
    assert pool_fingerprint(open_pool(there)) != mine
    assert pool_fingerprint(open_pool(here).select([0, 1])) != mine
    assert pool_fingerprint(open_pool(here).select([1, 0, 2])) != mine
    with open(here / "dog" / "sparse.png", "wb") as stream:
        stream.truncate(1 << 40)
    assert pool_fingerprint(open_pool(here)) != mine  # in the memory that is there


def test_demo_pool_is_a_long_tail_of_clip_art():
    pool = open_pool(DEMO)
    assert len(pool) == 6900
    sizes = np.sort(np.bincount(pool["label"][:]))[::-1]
    assert len(sizes) == pool.features["label"].num_classes == 159
    assert sizes[0] == 1378
    assert sizes[-1] == 1
    assert np.bincount(pool["group"][:]).max() == 1797
    assert DEMO.stat().st_size < 15e6
    sample = pool.select(range(0, 6900, 100))
    assert all(max(row["image"].size) <= 96 and row["image"].mode == "RGB" for row in sample)
    label, group = pool.features["label"], pool.features["group"]
    for row in sample.cast_column("image", Image(decode=False)):
        folder = row["image"]["path"].rpartition("/")[0]
        assert folder == label.int2str(row["label"])
        assert folder.partition("/")[0] == group.int2str(row["group"])
