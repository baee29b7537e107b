"""`curate run` on text: a pile of texts must be as easy as a folder of images, and need no network."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from curation import CommunityTree, Subset, open_embeddings
from curation.baselines import retrieval_subset
from curation.cli import main
from curation.embedding.text_embedders import embed_any, resolve_embedder
from curation.pools.pool import open_pool
from curation.preparation.near_duplicates import near_held_out
from foundation.errors import CurationError
from foundation.files import load_json, save_json

WORDS = {
    "cooking": ["butter", "sugar", "flour", "oven", "pan", "salt", "pepper", "stir", "bake", "roast"],
    "sailing": ["wind", "mast", "sail", "harbour", "anchor", "tide", "rope", "deck", "hull", "knot"],
    "chess": ["pawn", "rook", "bishop", "queen", "king", "check", "castle", "gambit", "endgame", "mate"],
}
SIZES = {"cooking": 300, "sailing": 60, "chess": 40}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three topics of uneven sizes, one text repeated, one empty, under a column of another name."""
    rng = np.random.default_rng(0)
    rows = []
    for topic, size in SIZES.items():
        for _ in range(size):
            rows.append({"body": " ".join(rng.choice(WORDS[topic], 14)), "topic": topic})
    rows += [rows[0], {"body": "", "topic": "chess"}]
    path = tmp_path_factory.mktemp("texts") / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_a_pile_of_text_is_curated_in_one_command_and_leaves_as_jsonl(
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    column = ["--column", "body"]
    options = ["--embedder", "char_svd:16", "--no-check", "--json"]
    main(["run", str(texts), "-o", str(out), "--size", "90", *column, *options])
    said = capsys.readouterr()
    made = json.loads(said.out)
    assert made["rows"] == 90
    assert made["seconds"]["embed"] > 0
    assert "in all" in said.err
    assert (out / "report.html").exists()
    assert "pawn" in (out / "pool.html").read_text()
    subset = Subset.load(out / "subset")
    assert 401 not in subset.ids, "a row without text was drawn"
    assert not {0, 400} <= set(subset.ids.tolist()), "a text was drawn with its copy"
    main(["export", str(texts), str(out / "subset"), "-o", str(tmp_path / "s.jsonl"), "--format", "jsonl", *column])
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 90


def test_embedding_text_resumes_and_tells_empty_rows(tmp_path: Path):
    pool = Dataset.from_dict({"text": ["one two three", "  ", "four five six", "seven eight"] * 5})
    result = embed_any(pool, "byte_histogram", tmp_path, progress=False)
    assert result.n_rows == 15
    assert list(result.skipped) == [1, 5, 9, 13, 17]
    x = open_embeddings(tmp_path)
    assert np.asarray(x.row_ids).tolist() == [row for row in range(20) if row % 4 != 1]
    assert embed_any(pool, "byte_histogram", tmp_path, progress=False) == result


def test_the_embedder_must_be_of_what_the_pool_holds():
    text, images = Dataset.from_dict({"text": ["a"]}), Dataset.from_dict({"image": ["a.png"]})
    with pytest.raises(CurationError, match="one of images, and the pool holds text"):
        resolve_embedder("timm:resnet18", text)
    with pytest.raises(CurationError, match="one of text"):
        resolve_embedder("char_svd", images)
    with pytest.raises(CurationError, match="is unknown"):
        resolve_embedder("efficientnet_lite1", images)
    assert resolve_embedder("auto", images).startswith("timm:")
    assert resolve_embedder("auto", text).partition(":")[0] in ("sentence", "char_svd")
    for wrong in ("char_svd:0", "byte_histogram:9", "char_svd:x"):
        with pytest.raises(CurationError, match="is unknown"):
            embed_any(text, wrong, "nowhere", progress=False)


def test_later_text_is_embedded_on_the_axes_of_the_pool_and_no_others_are_placed(texts: Path, tmp_path: Path):
    pool = open_pool(texts, column="body")
    later = pool.select(range(60))
    embed_any(pool, "char_svd:16", tmp_path / "old", progress=False)
    embed_any(later, f"char_svd:{tmp_path / 'old'}", tmp_path / "later", progress=False)
    old, new = open_embeddings(tmp_path / "old"), open_embeddings(tmp_path / "later")
    np.testing.assert_array_equal(old.take(np.arange(60)), new.take(np.arange(60)))
    assert new.metadata["axes"] == old.metadata["axes"]
    embed_any(later, f"char_svd:{tmp_path / 'later'}", tmp_path / "further", progress=False)
    assert open_embeddings(tmp_path / "further").metadata["axes"] == old.metadata["axes"]
    with pytest.raises(CurationError, match="holds embeddings of axes_of="):  # its own axes would be others
        embed_any(later, "char_svd:16", tmp_path / "further", progress=False)
    with pytest.raises(CurationError, match="is what is read"):
        embed_any(later, f"char_svd:{tmp_path / 'old'}", tmp_path / "old", progress=False, overwrite=True)

    tree = CommunityTree(progress=False).fit(old, tmp_path / "tree")
    np.testing.assert_array_equal(tree.assign(new), tree.assign(old)[:60])
    embed_any(later, "char_svd:16", tmp_path / "alone", progress=False)  # as wide, on axes of its own
    for wrong in (lambda x: tree.assign(x), lambda x: near_held_out(old, x), lambda x: retrieval_subset(old, x, 9)):
        with pytest.raises(CurationError, match="are of different embedders"):
            wrong(tmp_path / "alone")

    about = tmp_path / "old" / "embeddings.json"
    content = load_json(about)
    for wrong_name in (3, None, ["char_svd:16"], "timm:resnet18"):
        save_json(about, {**content, "embedder": wrong_name}, seal=True)
        with pytest.raises(CurationError, match=r"must be text|holds no finished embeddings of char_svd"):
            embed_any(later, f"char_svd:{tmp_path / 'old'}", tmp_path / "damaged", progress=False)
    save_json(about, content, seal=True)
    axes = tmp_path / "old" / "axes.safetensors"
    axes.write_bytes(axes.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(CurationError, match=r"axes\.safetensors"):
        embed_any(later, f"char_svd:{tmp_path / 'old'}", tmp_path / "damaged", progress=False)
    axes.unlink()
    with pytest.raises(CurationError, match=r"axes\.safetensors"):
        embed_any(later, f"char_svd:{tmp_path / 'old'}", tmp_path / "damaged", progress=False)
    with pytest.raises(CurationError, match="embedder 'char_svd:"):
        embed_any(later, f"char_svd:{tmp_path / 'nowhere'}", tmp_path / "damaged", progress=False)
    assert not (tmp_path / "damaged").exists()
