"""`curate` under bent settings and files: what a user must never get is a wrong tree with exit code 0, or a hang."""

import io
import json
import os
import pickle
import subprocess
import sys
import typing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation import ClusterTree, Subset, open_embeddings
from curation.cli import main as curate
from curation.preparation.kept import load_kept
from curation.store.embedding_writer import EmbeddingWriter
from foundation.files import checksum, digest_json

sys.path.insert(0, str(Path(__file__).parent))
from hostile_engine import Command, Hostile, bend_calls

ROOT = Path(__file__).parents[2]
ROWS = 200
NET = "timm:resnet10t?pretrained=false"


def tree_is_whole(folder: Path) -> None:
    tree = ClusterTree.load(folder / "out")
    assert tree.levels[0].sizes.sum() == tree.n_rows
    for level in range(tree.n_levels):
        assert tree.row_counts(level).sum() == tree.n_rows
        assert np.isfinite(tree.levels[level].centroids).all()
        assert np.isfinite(tree.levels[level].distance).all()


def subset_is_whole(folder: Path) -> None:
    subset = Subset.load(folder / "out")
    rows = subset.rows()
    assert len(rows) == subset.metadata["target"]
    assert ((rows >= 0) & (rows < 2 * ROWS)).all()


def placed_is_whole(folder: Path) -> None:
    table = pq.read_table(folder / "out.parquet")
    assert len(table)
    for name, most in (("level_1", 20), ("level_2", 4)):
        assert ((table[name].to_numpy() >= 0) & (table[name].to_numpy() < most)).all()


def page_is_whole(folder: Path) -> None:
    assert (folder / "out.html").read_bytes().lower().rstrip().endswith(b"</html>")


def kept_is_whole(folder: Path) -> None:
    kept = load_kept(folder / "out")
    assert not np.isin(kept.rows, kept.dropped).any()


def embeddings_are_whole(folder: Path) -> None:
    x = open_embeddings(folder / "out")
    assert np.isfinite(x.block(0, x.n_rows).float().numpy()).all()


FIT = ("-o", "out", "--levels=20,4", "--no-check")
EMBEDDED = ("emb/embeddings.json", "emb/shard-00000.npy", "emb/shard-00001.npy", "emb/row_ids.npy")
TREE = ("tree/tree.json", *(f"tree/level_{i}/{n}.npy" for i in (1, 2) for n in ("centroids", "assignment", "distance")))
FITTING = ("--levels=", "--resamples=", "--sample-sizes=", "--iterations=", "--tolerance=", "--seed=", "--fit-rows=")
DEDUP = ("--threshold=", "--ratio=", "--max-bits=", "--overlap=", "--workers=")
JUNK = ("--min-side=", "--max-aspect=", "--min-spread=", "--min-detail=", "--max-grain=", "--nsfw=")
COMMANDS = {
    "cluster": Command("curation.cli", ("cluster", "x.npy", *FIT), FITTING, ("x.npy",), valid=tree_is_whole),
    "cluster shards": Command("curation.cli", ("cluster", "emb", *FIT), FITTING, EMBEDDED, valid=tree_is_whole),
    "cluster parquet": Command("curation.cli", ("cluster", "x.parquet", *FIT), (), ("x.parquet",), valid=tree_is_whole),
    "cluster arrow": Command("curation.cli", ("cluster", "x.arrow", *FIT), (), ("x.arrow",), valid=tree_is_whole),
    "sample": Command(
        "curation.cli",
        ("sample", "tree", "-o", "out", "--size=40", "--no-check"),
        ("--size=", "--max-copies=", "--seed="),
        TREE,
        valid=subset_is_whole,
    ),
    "assign": Command(
        "curation.cli",
        ("assign", "tree", "x.npy", "-o", "out.parquet"),
        (),
        (*TREE, "x.npy"),
        ("out.parquet",),
        placed_is_whole,
    ),
    "report": Command(
        "curation.cli",
        ("report", "tree", "subset", "-o", "out.html", "--pool", "texts.jsonl", "--labels", "label", "--no-check"),
        (),
        ("subset/subset.json", "subset/subset.parquet", "texts.jsonl"),
        ("out.html",),
        page_is_whole,
    ),
    "baseline": Command(
        "curation.cli",
        ("baseline", "d4", "x.npy", "-o", "out", "--size=30", "--clusters=5"),
        ("--size=", "--clusters=", "--seed=", "--dedup-share="),
        ("x.npy",),
        valid=subset_is_whole,
    ),
    "dedup": Command(
        "curation.cli", ("dedup", "emb", "-o", "out", "--workers=0"), DEDUP, EMBEDDED, valid=kept_is_whole
    ),
    "filter": Command(
        "curation.cli",
        ("filter", "texts.jsonl", "-o", "out", "--workers=0"),
        ("--min-characters=", "--min-letters=", "--max-repeat=", "--workers="),
        ("texts.jsonl",),
        valid=kept_is_whole,
    ),
    "filter images": Command(
        "curation.cli",
        ("filter", "images", "-o", "out", "--workers=0", "--max-grain=0"),
        (*JUNK, "--workers="),
        valid=kept_is_whole,
    ),
    "advise": Command("curation.cli", ("advise", "x.npy", "--size=20"), ("--size=", "--seed="), ("x.npy",)),
    "plan": Command(
        "curation.cli",
        ("plan", "--rows=1e6", "--dim=8", "--levels=100", "--gpus=1"),
        ("--rows=", "--dim=", "--levels=", "--resamples=", "--sample-sizes=", "--iterations=", "--gpus="),
    ),
    "embed": Command(
        "curation.cli",
        ("embed", "images", "-o", "out", "--embedder", NET, "--image-size=32", "--workers=0"),
        ("--image-size=", "--batch-size=", "--workers="),
        ("images/a/0.png", "images/b/1.jpg"),
        valid=embeddings_are_whole,
    ),
}
SEVERAL = {"embed": 0.5, "advise": 0.5}  # slow commands get fewer examples
BY_NUMBERS = [name for name, command in COMMANDS.items() if command.numbers]
BY_FILES = [name for name, command in COMMANDS.items() if command.files]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 8)).astype(np.float32)
    np.save(folder / "x.npy", x)
    table = pa.table({"e": pa.array(x.tolist(), pa.list_(pa.float32())), "n": list(range(ROWS))})
    pq.write_table(table, folder / "x.parquet", row_group_size=90)
    with pa.OSFile(str(folder / "x.arrow"), "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)
    with EmbeddingWriter(folder / "emb", 8, "float32", 128, {"embedder": "toy"}) as writer:
        writer.append(x)
        np.save(folder / "emb" / "row_ids.npy", np.arange(ROWS) * 2)
        writer.finish(skipped={"1": "broken"})
    rows = [{"text": f"A row with the number {i} and some words", "label": f"l{i % 3}"} for i in range(ROWS)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.jpg"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / "images" / name)
    for words in (
        ["cluster", folder / "x.npy", "-o", folder / "tree", "--levels=20,4", "--no-check"],
        ["sample", folder / "tree", "-o", folder / "subset", "--size=40", "--no-check"],
    ):
        sys.argv, argv = ["curate", *map(str, words)], sys.argv
        curate()
        sys.argv = argv
    return folder


@pytest.fixture
def hostile(world: Path, tmp_path: Path) -> Hostile:
    os.environ["CURATED_SSL_VERIFY"] = "1"
    return Hostile(world, tmp_path)


bend = partial(bend_calls, COMMANDS)


@pytest.mark.parametrize("name", BY_NUMBERS)
def test_bent_numbers_are_refused_in_a_line_or_give_a_result(hostile: Hostile, name: str):
    bend(6 if name not in SEVERAL else 3, "bend_settings")(hostile, name)


@pytest.mark.parametrize("name", BY_FILES)
def test_bent_files_are_refused_in_a_line_or_give_a_result(hostile: Hostile, name: str):
    bend(6 if name not in SEVERAL else 3, "bend_file")(hostile, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_NUMBERS)
def test_many_bent_numbers(hostile: Hostile, name: str):
    bend(150 if name not in SEVERAL else 40, "bend_settings")(hostile, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_FILES)
def test_many_bent_files(hostile: Hostile, name: str):
    bend(200 if name not in SEVERAL else 40, "bend_file")(hostile, name)


def test_every_number_of_curate_has_a_range():
    """A number without a range is checked nowhere, or after hours."""
    from curation.cli import app

    seen = 0
    for command in app.registered_commands:
        assert command.callback is not None
        for name, hint in typing.get_type_hints(command.callback, include_extras=True).items():
            kind, *rules = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
            if {kind, *typing.get_args(kind)} & {int, float}:
                seen += 1
                assert any(hasattr(rule, "number_range") for rule in rules), f"{command.callback.__name__} {name}"
    assert seen > 30


HOLD = """
import sys
from foundation.locks import locked_file, locked_folder
with (locked_file if sys.argv[2:] else locked_folder)(sys.argv[1]):
    print(flush=True)
    input()
"""


@pytest.mark.parametrize("name", ["cluster", "sample", "baseline", "filter", "embed"])
def test_a_folder_that_another_process_writes_is_refused_and_free_again_when_that_dies(hostile: Hostile, name: str):
    command = COMMANDS[name]
    hostile.fresh(command)
    words = [sys.executable, "-c", HOLD, str(hostile.work / "out")]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused = hostile.call(command, command.words)
        other.kill()
    assert refused.code == 2
    assert f"in use by process {other.pid} on " in refused.err
    assert hostile.call(command, command.words).code == 0
    command.valid(hostile.work)
    assert not (hostile.work / "out" / ".lock").exists()


@pytest.mark.parametrize("name", ["assign", "report"])
def test_a_file_that_another_process_writes_is_refused(hostile: Hostile, name: str):
    """Two at once both said that they had written it, and the results of one were gone."""
    command = COMMANDS[name]
    hostile.fresh(command)
    out = hostile.work / command.writes[0]
    words = [sys.executable, "-c", HOLD, str(out), "file"]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        refused = hostile.call(command, command.words)
        other.kill()
    assert refused.code == 2
    assert f"{out.name} is in use by process {other.pid} on " in refused.err
    assert not out.exists()
    assert hostile.call(command, command.words).code == 0
    command.valid(hostile.work)
    assert not list(hostile.work.glob(".*"))


def test_the_same_tree_again_is_there_and_another_is_refused_and_kept(hostile: Hostile):
    command = COMMANDS["cluster"]
    hostile.fresh(command)
    assert hostile.call(command, command.words).code == 0
    before = ClusterTree.load(hostile.work / "out").checksum
    again = hostile.call(command, command.words)
    assert again.code == 0
    assert "holds this tree already" in again.err
    other = ("cluster", "x.npy", "-o", "out", "--levels=10,3", "--no-check")
    assert "finished tree" in hostile.call(command, other).err
    assert hostile.call(command, (*other[:-2], "--levels=300,3", "--overwrite")).code == 2
    assert ClusterTree.load(hostile.work / "out").checksum == before, "a tree stays until the new one is there"
    assert hostile.call(command, (*other, "--overwrite")).code == 0
    assert ClusterTree.load(hostile.work / "out").checksum != before


def _header(shape: str, order: str = "<f4") -> bytes:
    text = f"{{'descr': '{order}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (10 + len(text)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _saved(array: np.ndarray, **options: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def _archive(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=array)
    return stream.getvalue()


def _with(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[123, 3] = value
    return array


NO_EMBEDDINGS = {  # what an .npy may hold in place of embeddings
    "npz": _archive,
    "a pickle": lambda x: pickle.dumps(x),
    "objects": lambda x: _saved(np.array([[1.0, None]], object), allow_pickle=True),
    "big-endian": lambda x: _saved(x.astype(">f4")),
    "uint8": lambda x: _saved(np.abs(x * 10).astype(np.uint8)),
    "complex": lambda x: _saved(x.astype(np.complex64)),
    "text": lambda x: _saved(x.astype(str)),
    "fields": lambda x: _saved(np.zeros((200, 8), [("a", "f4")])),
    "flat": lambda x: _saved(x.ravel()),
    "three dimensions": lambda x: _saved(x.reshape(200, 4, 2)),
    "no rows": lambda x: _saved(x[:0]),
    "no columns": lambda x: _saved(x[:, :0]),
    "NaN": lambda x: _saved(_with(x, np.nan)),
    "infinite float16": lambda x: _saved(_with(x, np.inf).astype(np.float16)),
    "1e300": lambda x: _saved(_with(x.astype(float), 1e300)),
    "two arrays": lambda x: _saved(x) + _saved(x),
    "bytes behind it": lambda x: _saved(x) + b"x",
    "negative shape": lambda x: _header("(-200, -8)") + x.tobytes(),
    "huge shape": lambda x: _header("(99999999999, 8)") + x.tobytes(),
    "shape that overflows": lambda x: _header("(4611686018427387904, 8)") + x.tobytes(),
    "shape of floats": lambda x: _header("(200.0, 8)") + x.tobytes(),
    "pointers": lambda x: _header("(200, 8)", "|O") + x.tobytes(),
    "cut in its header": lambda x: _saved(x)[:50],
}


@pytest.mark.parametrize("name", NO_EMBEDDINGS)
def test_an_npy_that_holds_no_embeddings_is_refused_in_one_line(hostile: Hostile, name: str):
    for command in (COMMANDS["cluster"], COMMANDS["assign"]):
        hostile.fresh(command)
        (hostile.work / "x.npy").write_bytes(NO_EMBEDDINGS[name](np.load(hostile.world / "x.npy")))
        before = dict(os.environ)
        ended = hostile.check(command, command.words, name)
        assert ended.code == 2
        assert ended.err.count("\n") == 1, ended.err  # no warning beside it
        assert dict(os.environ) == before


def _lists(rows: list) -> "pa.Array":
    return pa.array(rows, pa.list_(pa.float32()))


NO_COLUMN = {  # what a column of a parquet file may hold in place of embeddings
    "a row of null": lambda x: _lists([*x[:99], None, *x[100:]]),
    "nulls alone": lambda x: _lists([None] * 200),
    "a null in a row": lambda x: _lists([*x[:99], [*x[99][:7], None], *x[100:]]),
    "rows of 5 and 11": lambda x: _lists([*x[:99], x[99][:5], x[100] + x[101][:3], *x[101:]]),
    "empty rows": lambda x: _lists([[]] * 200),
    "nested rows": lambda x: pa.array([[row] for row in x], pa.list_(pa.list_(pa.float32()))),
    "whole numbers": lambda x: pa.array([[int(v) for v in row] for row in x], pa.list_(pa.int32())),
    "no rows": lambda x: _lists([]),
    "row groups of two widths": lambda x: _lists([*x[:90], *(row[:4] for row in x[90:])]),
    "a null in rows of fixed size": lambda x: pa.array([*x[:99], None, *x[100:]], pa.list_(pa.float32(), 8)),
}


@pytest.mark.parametrize("name", NO_COLUMN)
def test_a_parquet_that_holds_no_embeddings_is_refused_in_one_line(hostile: Hostile, name: str):
    command = COMMANDS["cluster parquet"]
    hostile.fresh(command)
    table = pa.table({"e": NO_COLUMN[name](np.load(hostile.world / "x.npy").tolist())})
    pq.write_table(table, hostile.work / "x.parquet", row_group_size=90)
    assert hostile.check(command, command.words, name).code == 2


def test_an_empty_column_name_is_no_default(hostile: Hostile):
    command = COMMANDS["cluster parquet"]
    hostile.fresh(command)
    assert "no column ''" in hostile.check(command, (*command.words, "--column="), "--column=").err


def test_a_column_of_an_array_is_refused(hostile: Hostile):
    """It was left out without a word: of dedup with --pool it was meant for the pool."""
    for command, words in ((COMMANDS["cluster"], FIT), (COMMANDS["dedup"], COMMANDS["dedup"].words[2:])):
        hostile.fresh(command)
        source = command.words[1]
        ended = hostile.call(command, (command.words[0], source, *words, "--column=e"))
        assert (ended.code, "has no columns" in ended.err) == (2, True), ended.err


AGAIN = {  # command -> a setting that makes it another result
    "cluster": "--levels=10,3",
    "sample": "--size=30",
    "assign": "y.npy",
    "baseline": "--seed=3",
    "dedup": "--ratio=0.4",
    "filter": "--min-letters=0.5",
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_finished_command_says_so_and_never_replaces_another_result(hostile: Hostile, name: str):
    command = COMMANDS[name]
    hostile.fresh(command)
    np.save(hostile.work / "y.npy", np.load(hostile.work / "x.npy") + 1)
    assert hostile.call(command, command.words).code == 0
    place = hostile.work / command.writes[0]
    files = [path for path in (place.rglob("*") if place.is_dir() else [place]) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    assert hostile.call(command, command.words).code == 0
    other = tuple("y.npy" if name == "assign" and word == "x.npy" else word for word in command.words)
    ended = hostile.check(command, other if name == "assign" else (*other, AGAIN[name]), AGAIN[name])
    assert ended.code == 2
    assert {path: path.read_bytes() for path in files} == before


def test_one_changed_value_of_a_large_pool_is_seen(hostile: Hostile):
    """The fingerprint looks at 1,024 rows; a resumed or repeated command must see the others too."""
    x = np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32)
    (hostile.work / "embeddings").mkdir()
    place = hostile.work / "embeddings/x.npy"
    np.save(place, x)
    fit = ("cluster", "embeddings", "-o", "out", "--levels=20,4", "--no-check")
    command = Command("curation.cli", fit)
    assert hostile.call(command, fit).code == 0
    sample = ("sample", "out", "-o", "drawn", "--size=40", "--embeddings=embeddings")
    assert hostile.call(command, sample).code == 0
    known = open_embeddings(place).fingerprint()
    x[1] += 1
    np.save(place, x)
    assert open_embeddings(place).fingerprint() == known, "row 1 is one that the fingerprint looks at"
    for words in (fit, sample):
        ended = hostile.call(command, words)
        assert (ended.code, "other embeddings" in ended.err) == (2, True), ended.err
    assert hostile.call(command, (*fit, "--no-verify")).code == 0
    os.environ["CURATED_SSL_VERIFY"] = "1"
    assert hostile.call(command, (*fit, "--overwrite")).code == 0


def test_an_unfinished_fit_is_not_resumed_on_changed_rows(hostile: Hostile, monkeypatch: pytest.MonkeyPatch):
    from curation.trees import hierarchy

    x = np.random.default_rng(0).normal(size=(4000, 8)).astype(np.float32)
    np.save(hostile.work / "x.npy", x)
    fit = ("cluster", "x.npy", "-o", "out", "--levels=20,4", "--no-check")
    command = Command("curation.cli", fit)
    with monkeypatch.context() as patch:

        def stop(*_arguments: object, **_options: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(hierarchy, "members_to_resample", stop)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - the interruption itself or its exit code
            assert hostile.call(command, fit).code == 0
    assert (hostile.work / "out/unfinished/fit.json").exists()
    x[1] += 1
    np.save(hostile.work / "x.npy", x)
    ended = hostile.call(command, fit)
    assert (ended.code, "embeddings_digest" in ended.err) == (2, True), ended.err


def test_embeddings_without_their_json_are_no_pool_of_their_own(hostile: Hostile):
    """Their row_ids.npy would be left out, and rows of the tree would be taken for rows of the pool."""
    command = COMMANDS["cluster shards"]
    for how in ("gone", "dangling"):
        hostile.fresh(command)
        path = hostile.work / "emb/embeddings.json"
        path.unlink()
        if how == "dangling":
            path.symlink_to("nowhere")
        assert hostile.check(command, command.words, how).code == 2


def test_distances_that_are_no_numbers_are_refused(hostile: Hostile):
    """Even where every checksum was made again: --strategy closest would order rows by them."""
    command = COMMANDS["sample"]
    hostile.fresh(command)
    tree = hostile.work / "tree"
    path = tree / "level_1/distance.npy"
    distance = np.load(path)
    distance[0] = np.nan
    np.save(path, distance)
    content = json.loads((tree / "tree.json").read_text())
    del content["seal"]
    content["files"]["level_1/distance.npy"] = checksum(path)
    content["checksum"] = digest_json(content["files"])
    (tree / "tree.json").write_text(json.dumps(content))
    ended = hostile.call(command, command.words)
    assert (ended.code, "distances hold NaN" in ended.err) == (2, True), ended.err


def _reseal(folder: Path, name: str) -> None:
    """Make the checksums of a changed file of a tree or subset fit again."""
    tree = (folder / "tree.json").exists()
    path = folder / ("tree.json" if tree else "subset.json")
    content = json.loads(path.read_text())
    del content["seal"]
    if tree:
        content["files"][name] = checksum(folder / name)
        content["checksum"] = digest_json(content["files"])
    else:
        content["checksum"] = checksum(folder / name)
    path.write_text(json.dumps(content))


def test_centroids_of_another_width_are_refused(hostile: Hostile):
    """Even where every checksum was made again: the levels would be those of two trees."""
    command = COMMANDS["sample"]
    hostile.fresh(command)
    path = hostile.work / "tree/level_2/centroids.npy"
    np.save(path, np.load(path)[:, :5])
    _reseal(hostile.work / "tree", "level_2/centroids.npy")
    ended = hostile.call(command, command.words)
    assert (ended.code, "5 dimensions" in ended.err) == (2, True), ended.err


def _move_a_row(folder: Path, value: int | None = None) -> None:
    """Another cluster of level 2 for row 3 of a subset; None: the next one."""
    path = folder / "subset.parquet"
    table = pq.read_table(path)
    column = table["level_2"].to_numpy().copy()
    column[3] = (column[3] + 1) % 4 if value is None else value
    pq.write_table(table.set_column(table.column_names.index("level_2"), "level_2", pa.array(column)), path)
    _reseal(folder, "subset.parquet")


@pytest.mark.parametrize("value", [-1, 7])
def test_clusters_of_a_subset_that_its_tree_does_not_have_are_refused(hostile: Hostile, value: int):
    """A trainer would weigh or split rows by them. There is no cluster 7 on a level of 4."""
    for words in (COMMANDS["report"].words, ("export", "texts.jsonl", "subset", "-o", "out.html", "--format=parquet")):
        hostile.fresh(COMMANDS["report"])
        _move_a_row(hostile.work / "subset", value)
        ended = hostile.call(COMMANDS["report"], words)
        assert (ended.code, f"level_2 holds cluster {value}" in ended.err) == (2, True), ended.err


def test_a_row_of_a_subset_in_another_cluster_than_in_its_tree_is_refused(hostile: Hostile):
    command = COMMANDS["report"]
    hostile.fresh(command)
    _move_a_row(hostile.work / "subset")
    ended = hostile.call(command, command.words)
    assert (ended.code, "other clusters of level_2" in ended.err) == (2, True), ended.err


def test_a_pool_longer_than_its_tree_is_refused(hostile: Hostile):
    """Rows that were never clustered would count as pool, and labels would be those of other rows."""
    command = COMMANDS["report"]
    hostile.fresh(command)
    with open(hostile.work / "texts.jsonl", "a") as stream:
        stream.write(json.dumps({"text": "one row more", "label": "l0"}) + "\n")
    ended = hostile.check(command, command.words, "a row more")
    assert (ended.code, "the pool has 201 rows but the tree came from one of 200" in ended.err) == (2, True), ended.err


def test_a_page_that_somebody_else_wrote_stays_where_it_is(hostile: Hostile):
    command = COMMANDS["report"]
    hostile.fresh(command)
    page = hostile.work / "out.html"
    page.write_text("<!doctype html><title>my own</title>")
    ended = hostile.call(command, command.words)
    assert (ended.code, "did not make it" in ended.err) == (2, True), ended.err
    assert "my own" in page.read_text()
    assert hostile.call(command, (*command.words, "--overwrite")).code == 0
    assert hostile.call(command, command.words).code == 0, "its own page is written again"
    page_is_whole(hostile.work)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "webdataset", "datasets"])
def test_the_same_export_again_is_there_and_another_is_refused(hostile: Hostile, kind: str):
    """A script that is run again goes on; what it wrote is never another subset under the same name."""
    command = COMMANDS["report"]
    hostile.fresh(command)
    words = ("export", "texts.jsonl", "subset", "-o", "out.html", f"--format={kind}")
    (hostile.work / ".out.html.export.json").unlink(missing_ok=True)
    assert hostile.call(command, words).code == 0
    assert hostile.call(command, words).code == 0
    other = ("sample", "tree", "-o", "subset_b", "--size=30", "--no-check")
    assert hostile.call(command, other).code == 0
    ended = hostile.call(command, (*words[:2], "subset_b", *words[3:]))
    assert (ended.code, "not this export" in ended.err) == (2, True), ended.err


@pytest.mark.parametrize("name", ["assign", "report"])
def test_the_ending_of_a_name_says_what_is_written(hostile: Hostile, name: str):
    """A page went by the name x.pdf."""
    command = COMMANDS[name]
    hostile.fresh(command)
    ended = hostile.call(command, tuple("x.pdf" if word.startswith("out.") else word for word in command.words))
    assert (ended.code, ended.err.count(": error: "), "must end in" in ended.err) == (2, 1, True), ended.err


def test_a_column_of_no_pool_is_refused(hostile: Hostile):
    command = COMMANDS["report"]
    hostile.fresh(command)
    ended = hostile.call(command, ("report", "tree", "subset", "-o", "out.html", "--column=text"))
    assert (ended.code, "give --pool too" in ended.err) == (2, True), ended.err


def test_a_sample_whose_check_cannot_be_made_writes_nothing(hostile: Hostile):
    command = COMMANDS["sample"]
    hostile.fresh(command)
    words = (*(word for word in command.words if word != "--no-check"), "--embeddings=tree")
    ended = hostile.check(Command(command.main, command.words), words, "--embeddings of a tree")
    assert ended.code == 2


def test_a_folder_that_is_read_is_never_written(hostile: Hostile):
    """A dedup into its own embeddings replaced their row ids and ended with 0."""
    hostile.fresh(COMMANDS["dedup"])
    before = {path: path.read_bytes() for path in (hostile.work / "emb").iterdir()}
    ended = hostile.call(COMMANDS["dedup"], ("dedup", "emb", "-o", "emb", "--workers=0"))
    assert (ended.code, "-o emb is what is read" in ended.err) == (2, True), ended.err
    assert {path: path.read_bytes() for path in (hostile.work / "emb").iterdir()} == before


@pytest.mark.parametrize(
    ("place", "reason"),
    [(".", "is a folder that is there"), ("..", "is the folder above another"), ("/", "/ is no place for a result")],
)
@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_an_export_to_a_folder_that_is_there_is_one_line(hostile: Hostile, kind: str, place: str, reason: str):
    command = COMMANDS["report"]
    hostile.fresh(command)
    ended = hostile.call(command, ("export", "texts.jsonl", "subset", "-o", place, f"--format={kind}"))
    assert (ended.code, ended.err.count(": error: "), reason in ended.err) == (2, 1, True)


def test_an_export_is_the_same_bytes_wherever_its_pool_lies(hostile: Hostile):
    command = COMMANDS["report"]
    hostile.fresh(command)
    (hostile.work / "copy").mkdir()
    (hostile.work / "copy/texts.jsonl").write_bytes((hostile.work / "texts.jsonl").read_bytes())
    made = []
    for place in (".", "copy"):
        words = ("export", f"{place}/texts.jsonl", "subset", "-o", f"{place}/made", "--format=datasets")
        assert hostile.call(command, words).code == 0
        made.append({path.name: path.read_bytes() for path in (hostile.work / place / "made").iterdir()})
    assert made[0] == made[1]
