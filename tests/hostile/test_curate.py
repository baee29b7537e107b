"""`curate` under bent settings and files: what a user must never get is a wrong tree with exit code 0, or a hang."""

import json
import os
import subprocess
import sys
import typing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation import ClusterTree, Subset
from curation.cli import main as curate
from curation.embeddings import EmbeddingWriter
from curation.prepare import load_kept

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
    from curation import open_embeddings

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
        ("baseline", "semdedup", "x.npy", "-o", "out", "--size=30", "--clusters=5"),
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
        (*JUNK, "--min-characters=", "--min-letters=", "--max-repeat=", "--workers="),
        ("texts.jsonl",),
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
    import pyarrow as pa

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
from foundation.locks import locked_folder
with locked_folder(sys.argv[1]):
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
