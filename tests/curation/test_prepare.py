"""Preparation: what it leaves out is gone from training, so it must be right, counted, and the same after a kill."""

import io
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image
from PIL import Image as Pillow
from PIL import ImageChops, ImageOps

from curation import ClusterTree, HierarchicalKMeans, Subset, open_embeddings
from curation.baselines import CLUSTERED
from curation.cli import main
from curation.export import export_subset
from curation.pipeline import lost_labels, skipped_lines
from curation.pools.labels import Labels
from curation.pools.pool import open_pool
from curation.preparation.duplicates import perceptual_hash
from curation.preparation.filters.junk import JunkFilter, measure
from curation.preparation.filters.text import TextJunk
from curation.preparation.kept import Kept, kept_rows, load_kept, save_kept
from curation.preparation.near_duplicates import NearRule
from curation.preparation.prepare import Preparation, find_kept, keep_in_folder, prepare_folder
from curation.soundness import check_subset
from experiments.web_images.faults import junk
from foundation.errors import CurationError

RNG = np.random.default_rng(0)


def picture(seed: int, side: int = 48) -> Pillow.Image:
    """A smooth picture of its own."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Pillow.fromarray(coarse).resize((side, side), Pillow.Resampling.BICUBIC)


def shifted(seed: int) -> Pillow.Image:
    """The same picture, a pixel to the right: 8 to 10 bits of its hash differ."""
    return ImageChops.offset(picture(seed), 1, 0)


def stored(image: Pillow.Image, **options) -> dict:
    stream = io.BytesIO()
    image.save(stream, options.pop("format", "PNG"), **options)
    return {"bytes": stream.getvalue(), "path": None}


def pool_of(images: list[dict]) -> Dataset:
    return Dataset.from_dict({"image": images}, features=Features({"image": Image()}))


@pytest.fixture(scope="module")
def spoiled() -> tuple[Dataset, np.ndarray, dict[int, str]]:
    """Pool, embeddings, and why rows must go: 40 good pictures, an equal, a re-encoded and an embedded copy, junk."""
    images = [stored(picture(i)) for i in range(40)]
    x = RNG.normal(size=(47, 24)).astype(np.float32) + 5
    images += [images[3], stored(picture(7), format="JPEG", quality=80), stored(shifted(9))]
    x[41], x[42] = x[7] + 0.2 * RNG.normal(size=24), x[9] + 1e-3
    images += [stored(Pillow.new("RGB", (48, 48), "white")), stored(picture(101).resize((48, 4)))]
    images += [
        stored(Pillow.fromarray(RNG.integers(0, 255, (48, 48, 3), dtype=np.uint8))),
        {"bytes": b"no", "path": None},
    ]
    why = {40: "exact", 41: "perceptual", 42: "embedding", 43: "blank", 44: "small", 45: "noise", 46: "unreadable"}
    return pool_of(images), x, why


def test_each_fault_is_found_for_its_reason_and_good_rows_stay(spoiled):
    pool, x, why = spoiled
    kept = find_kept(pool, x, Preparation(), workers=0, progress=False)
    assert dict(zip(kept.dropped.tolist(), kept.reasons.tolist(), strict=True)) == why
    assert kept.rows.tolist() == list(range(40))
    assert kept.repeats.tolist()[:3] == [3, 7, 9]
    assert kept.report["dropped"] == dict.fromkeys(why.values(), 1)
    assert sum(kept.report["dropped"].values()) + kept.report["kept"] == kept.report["rows"] == 47


def close_rows(n: int, of: int) -> np.ndarray:
    """(n, 32) float32 of which the first ``of`` lie as close to each other as copies do."""
    x = np.random.default_rng(1).normal(size=(n, 32)).astype(np.float32)
    x[:of] = x[0] + 0.03 * x[:of]
    return x


def test_rows_as_close_as_copies_stay_where_their_pictures_differ_and_go_where_these_are_alike():
    """By distances a rare concept and one picture with its copies are the same; looks tell them apart."""
    others = [stored(picture(200 + i)) for i in range(60)]
    concept = [stored(picture(i)) for i in range(3)]
    burst = [stored(shifted(0), format="JPEG", quality=60 + i) for i in range(12)]
    burst[0], burst[1] = stored(picture(0)), stored(ImageOps.mirror(picture(0)))
    for few, gone in ((concept, 0), (burst, 11)):
        x = close_rows(60 + len(few), len(few))
        kept = find_kept(pool_of([*few, *others]), x, Preparation(junk=None), workers=0, progress=False)
        assert len(kept.dropped) == gone
        assert {*kept.dropped.tolist(), *kept.repeats.tolist()} == {*range(12 if gone else 0)}
        by_size = Preparation(("exact", "embedding"), junk=None)  # looks are not asked
        dropped = find_kept(pool_of([*few, *others]), x, by_size, workers=0, progress=False).dropped
        assert len(dropped) == (2 if few is concept else 0)


def test_drawings_of_one_motif_in_other_colours_are_no_copies_of_each_other():
    """Their perceptual hashes are equal: those see shades of grey alone. Darker copies of one of them are found."""
    shape, colours = np.asarray(picture(0).convert("L")) > 128, np.random.default_rng(0).integers(60, 196, (12, 3))
    drawn = [np.where(shape[..., None], colour + 59, colour - 60).astype(np.uint8) for colour in colours]
    drawn += [(drawn[3] * 0.8).astype(np.uint8), (drawn[3] * 0.9).astype(np.uint8)]
    images = [stored(Pillow.fromarray(pixels)) for pixels in drawn]
    x = RNG.normal(size=24) + 0.3 * RNG.normal(size=(len(images), 24))
    others = [stored(picture(seed)) for seed in range(200, 260)]
    x = np.concatenate([x, RNG.normal(size=(60, 24))]).astype(np.float32)
    hashes = np.stack([perceptual_hash(Pillow.fromarray(pixels)) for pixels in drawn])
    assert (np.bitwise_count(hashes ^ hashes[0]).sum(1) <= 2).sum() > 6
    for embeddings in (x, None):
        kept = find_kept(pool_of(images + others), embeddings, Preparation(), workers=0, progress=False)
        assert {tuple(sorted(pair)) for pair in zip(kept.dropped, kept.repeats, strict=True)} <= {
            (3, 12),
            (3, 13),
            (12, 13),
        }
        assert len(kept.dropped) == 2


def test_drawings_whose_embeddings_are_as_close_as_copies_stay_if_their_colours_differ():
    """Of one hash and other colours, some of them went, told as perceptual, and no option of that sign kept them."""
    shape = np.asarray(picture(0).convert("L")) > 128
    images = [
        stored(Pillow.fromarray(np.where(shape[..., None], np.uint8(high), np.uint8(low)).astype(np.uint8)))
        for high, low in (((250, 120, 60), (130, 0, 0)), ((120, 160, 250), (0, 40, 130)))
    ]
    x = RNG.normal(size=(62, 24)).astype(np.float32)
    x[1] = x[0] + 0.01
    kept = find_kept(
        pool_of(images + [stored(picture(seed)) for seed in range(200, 260)]),
        x,
        Preparation(),
        workers=0,
        progress=False,
    )
    assert kept.report["dropped"] == {}


def test_row_ids_stay_pool_rows_through_tree_and_subset(spoiled, tmp_path: Path):
    pool, x, _ = spoiled
    np.save(tmp_path / "shard.npy", x)
    source = open_embeddings(tmp_path / "shard.npy")
    source.row_ids = np.arange(47)  # of a pool whose rows 46 and 5 have no embedding
    left = np.delete(np.arange(47), [5, 46])
    source = open_embeddings(x[left])
    source.row_ids = left
    kept, _ = prepare_folder(pool, source, tmp_path / "kept", Preparation(), workers=0, progress=False)
    assert kept.rows.tolist() == [row for row in range(40) if row != 5]
    rows = kept_rows(source, tmp_path / "kept")
    np.testing.assert_array_equal(rows.block(0, len(rows)), x[kept.rows])
    tree = HierarchicalKMeans([8, 3], progress=False).fit(rows)
    np.testing.assert_array_equal(tree.row_ids, kept.rows)
    assert set(Subset.from_rows(tree.sample(20), tree).ids) <= set(kept.rows)


def test_a_kill_at_any_step_leaves_the_same_result(spoiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pool, x, _ = spoiled
    monkeypatch.setattr("curation.preparation.looks.ROWS_PER_FILE", 10)
    whole, _ = prepare_folder(pool, x, tmp_path / "whole", Preparation(), workers=0, progress=False)

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    steps = ("prepare.find_bad_rows", "prepare.near_duplicates", "kept.dropped_page", "kept.save_json")
    for number, name in enumerate(steps):
        folder = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(f"curation.preparation.{name}", killed)
            with pytest.raises(KeyboardInterrupt):
                prepare_folder(pool, x, folder, Preparation(), workers=0, progress=False)
        with pytest.raises(CurationError, match="no finished preparation"):
            load_kept(folder)
        if number:
            assert len(list((folder / "unfinished").glob("looks-*.npy"))) == 5
        again, there = prepare_folder(pool, x, folder, Preparation(), workers=0, progress=False)
        assert not there
        np.testing.assert_array_equal(again.rows, whole.rows)
        assert (folder / "dropped.parquet").read_bytes() == (tmp_path / "whole" / "dropped.parquet").read_bytes()
        assert not (folder / "unfinished").exists()
    assert prepare_folder(pool, x, tmp_path / "whole", Preparation(), workers=0, progress=False)[1]
    other = Preparation(near=NearRule(0.99))
    assert not prepare_folder(pool, x, tmp_path / "whole", other, workers=0, progress=False)[1]


def test_the_page_shows_what_was_dropped_next_to_what_it_repeats(spoiled, tmp_path: Path):
    pool, x, _ = spoiled
    kept = find_kept(pool, x, Preparation(), workers=0, progress=False)
    save_kept(kept, tmp_path, pool)
    page = (tmp_path / "dropped.html").read_text()
    assert "row 42 repeats 9" in page
    assert page.count("data:image/jpeg") == 3 * 2 + 4  # three pairs, junk, a grey square for the broken one
    table = pq.read_table(tmp_path / "dropped.parquet")
    assert table["row"].to_pylist() == kept.dropped.tolist()


def test_embeddings_alone_and_rows_that_no_distance_can_be_taken_to():
    x = RNG.normal(size=(80, 12)).astype(np.float32)
    x[4], x[5], x[6, 3] = 0, x[0], np.nan
    kept = find_kept(None, x, Preparation(), progress=False)
    assert dict(zip(kept.dropped.tolist(), kept.reasons.tolist(), strict=True)) == {
        4: "not finite or zero",
        5: "embedding",
        6: "not finite or zero",
    }


def test_the_kept_rows_of_other_embeddings_are_refused(tmp_path: Path):
    x = RNG.normal(size=(50, 8)).astype(np.float32)
    save_kept(find_kept(None, x, Preparation(), progress=False), tmp_path)
    assert len(kept_rows(x, tmp_path)) == 50
    with pytest.raises(CurationError, match="chosen by other embeddings"):
        kept_rows(x + 1, tmp_path)
    np.save(tmp_path / "row_ids.npy", np.arange(7))
    with pytest.raises(CurationError, match=r"not what report\.json describes"):
        kept_rows(x, tmp_path)


def test_a_tree_of_kept_rows_knows_its_pool_and_that_near_copies_are_out(tmp_path: Path):
    """Small concepts look like near-copies: who has removed these must not be told to remove them again."""
    x = RNG.normal(size=(600, 8)).astype(np.float32)
    x[300:] = x[:300]
    kept = find_kept(None, x, Preparation(), progress=False)
    rows = kept_rows(x, kept)
    tree = HierarchicalKMeans([30, 6], progress=False).fit(rows)
    assert (tree.settings["pool_rows"], tree.settings["near_copies_out"]) == (600, True)
    for n, message in ((601, "the pool has 601 rows but the tree came from one of 600"), (599, "has 599 rows")):
        with pytest.raises(CurationError, match=message):
            tree.check_pool(Dataset.from_dict({"text": ["a"] * n}))
    tree.check_pool(Dataset.from_dict({"text": ["a"] * 600}))
    subset = Subset.from_rows(tree.sample(50), tree)
    with pytest.raises(CurationError, match="drawn from another pool"):
        export_subset(Dataset.from_dict({"text": ["a"] * 601}), subset, tmp_path / "out.jsonl", "jsonl", progress=False)
    told = next(found for found in check_subset(tree, subset, rows) if "far nearer to one" in found.sentence)
    assert told.severity == "ok"
    clean = kept_rows(x[:300], find_kept(None, x[:300], Preparation(), progress=False))
    assert clean.metadata["near_copies_out"]
    save_kept(kept, tmp_path / "near")
    again, _ = keep_in_folder(None, open_embeddings(x), tmp_path / "all", Preparation(by=()), rows=tmp_path / "near")
    assert kept_rows(x, again).metadata["near_copies_out"]
    assert not kept_rows(x, find_kept(None, x, Preparation(by=()), progress=False)).metadata["near_copies_out"]


def test_what_cannot_be_read_and_labels_of_which_most_is_left_out_are_told(tmp_path: Path):
    labels = Labels(np.repeat([0, 1, 2], [20, 40, 9]), ["stripes", "dots", "few"])
    nothing = np.empty(0)
    kept = Kept(nothing, np.append(np.arange(12), [60, 61, 62, 63, 64, 65]), nothing, nothing, nothing, {})
    assert lost_labels(labels, None, kept) == [
        "12 of the 20 rows of 'stripes' are left out: are they copies of each other?"
    ]
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    pool = open_pool(tmp_path)
    lines = skipped_lines(pool, dict.fromkeys(range(8), "truncated"), tmp_path)
    assert lines[1] == f"skipped row 1 ({tmp_path}/1.png): truncated"
    assert lines[-1] == f"... and 3 more; all are in {tmp_path}/embeddings.json"


def test_two_choices_of_equally_many_rows_have_two_fingerprints():
    """Else a tree of one would be taken for a tree of the other."""
    x = RNG.normal(size=(5000, 4)).astype(np.float32)
    x[11] = x[12]
    prints = set()
    for dropped in (11, 12):
        kept = find_kept(None, x, Preparation(by=()), np.delete(np.arange(5000), dropped), progress=False)
        prints.add(kept_rows(x, kept).fingerprint())
    assert len(prints) == 2


@pytest.mark.parametrize(("kind", "least"), [("noise", 1.0), ("flat", 1.0), ("gradient", 0.8)])
def test_pictures_of_nothing_are_junk(kind: str, least: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.web_images.faults.JUNK", (kind,))
    drawn = [junk(side, np.random.default_rng(i)) for i in range(15) for side in (32, 96)]
    assert np.mean([not JunkFilter()(image).keep for image in drawn]) >= least


def test_pictures_of_something_are_no_junk_whatever_their_size_and_code():
    for i in range(20):
        image = picture(i, 64)
        grainy = np.clip(np.asarray(image, float) + RNG.normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8)
        for shown in (image, image.resize((16, 160)), image.convert("L"), Pillow.fromarray(grainy)):
            assert JunkFilter().reason(measure(shown)) is None
    assert JunkFilter().reason(measure(picture(0).resize((400, 20)))) == "long"
    off = JunkFilter(0, 0, 0, 0, 0)
    assert off(Pillow.new("RGB", (1, 300))).keep


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The cat sat on the mat and looked at the rain.", None),
        ("Кошка сидит на окне и смотрит на дождь.", None),
        ("猫は窓辺に座って雨を眺めているのが好きなようだ。", None),
        ("short", "short"),
        ("   \n\t " * 20, "short"),
        ("=" * 80, "repeated"),
        ("A fine text that ends in a line of dashes and goes on for a while longer, and then " + "-" * 60, "repeated"),
        ("12 34 56 78 90 12 43 56 71 | 19 28 37 46 55", "few letters"),
    ],
)
def test_texts_without_words_are_junk(text: str, reason: str | None):
    assert TextJunk().reason(text) == reason


def curate(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    argv, sys.argv = sys.argv, ["curate", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = argv
    return code, capsys.readouterr().err


@pytest.fixture
def files(spoiled, tmp_path: Path) -> Path:
    pool, x, _ = spoiled
    pool.to_parquet(tmp_path / "pool.parquet")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "same.npy", np.ones((20, 4), np.float32))
    np.save(tmp_path / "narrow.npy", np.ones((20, 4), np.float32) * np.arange(1, 21)[:, None] ** [[1, 2, 3, 4]])
    texts = [f"A sentence about cats, number {i} of the list." for i in range(12)]
    Dataset.from_dict({"text": [*texts, texts[0], "=" * 90]}).to_json(tmp_path / "text.jsonl")
    Dataset.from_dict({"number": [1, 2]}).to_parquet(tmp_path / "numbers.parquet")
    return tmp_path


def test_the_command_that_is_kept_can_be_typed_again(files: Path, capsys: pytest.CaptureFixture):
    (files / "a b.npy").write_bytes((files / "x.npy").read_bytes())
    assert curate(capsys, "dedup", files / "a b.npy", "-o", files / "d", "--by", "embedding")[0] == 0
    (command,) = json.loads((files / "d" / "report.json").read_text())["commands"]
    assert shlex.split(command)[:3] == ["curate", "dedup", str(files / "a b.npy")]


def test_dedup_filter_cluster_and_baseline_in_a_row(files: Path, capsys: pytest.CaptureFixture):
    x, pool = files / "x.npy", files / "pool.parquet"
    code, err = curate(capsys, "dedup", x, "-o", files / "d", "--pool", pool, "--workers", 0, "--dry-run")
    assert (code, "left out: " in err, (files / "d").exists()) == (0, True, False), err
    assert curate(capsys, "dedup", x, "-o", files / "d", "--pool", pool, "--workers", 0)[0] == 0
    code, err = curate(capsys, "filter", pool, "-o", files / "f", "--rows", files / "d", "--workers", 0)
    assert (code, "40 of 43 rows kept" in err) == (0, True), err
    report = json.loads((files / "d" / "report.json").read_text())
    assert report["dropped"] == {"unreadable": 1, "exact": 1, "perceptual": 1, "embedding": 1}
    assert report["near"]["ratio"] <= 0.5
    code, err = curate(capsys, "cluster", x, "-o", files / "t", "--rows", files / "f", "--levels", "8,3")
    assert code == 0, err
    assert ClusterTree.load(files / "t").row_ids.tolist() == list(range(40))
    for method in ("random", "flat", "semdedup", "d4"):
        arguments = [method, x, "-o", files / method, "--size", 12, "--rows", files / "f"]
        arguments += ["--clusters", 4] if method in CLUSTERED else []
        assert curate(capsys, "baseline", *arguments)[0] == 0
        assert set(Subset.load(files / method).ids) <= set(range(40))
    code, err = curate(capsys, "baseline", "d4", x, "-o", files / "d4", "--size", 12)
    assert (code, "finished subset" in err) == (2, True)
    code, err = curate(capsys, "filter", files / "text.jsonl", "-o", files / "w")
    assert (code, "13 of 14 rows kept; left out: 1 repeated" in err) == (0, True), err
    code, err = curate(capsys, "dedup", files / "text.jsonl", "-o", files / "v", "--by", "exact")
    assert (code, "13 of 14 rows kept; left out: 1 exact" in err) == (0, True), err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("dedup {x} -o {out} --threshold 1.5", "--threshold is 1.5; it must be above 0"),
        ("dedup {x} -o {out} --by exact", "needs the pool of the embeddings"),
        ("dedup {x} -o {out} --by sound", "by 'sound' is unknown"),
        ("dedup {pool} -o {out} --by embedding", "needs embeddings"),
        ("dedup {pool} -o {out} --by exact --threshold 0.9", "exact does not take --threshold, which is of embedding"),
        ("dedup {pool} -o {out} --by exact,text --max-bits 2", "exact, text does not take --max-bits"),
        ("dedup {pool} -o {out} --held-out {x}", "--held-out compares embeddings"),
        ("dedup {x} -o {out} --held-out {narrow}", "24 dimensions but the held-out set 4"),
        ("dedup {same} -o {out}", "all 20 embeddings are alike"),
        ("dedup {x} -o {out} --pool {numbers}", "the pool has 2 rows but row 46 is in the embeddings"),
        ("dedup {absent} -o {out}", "does not exist"),
        ("filter {numbers} -o {out}", "no column image or text"),
        ("filter {pool} -o {out} --workers 0 --min-side 500", "none of the 47 rows (46 small: min_side is 500,"),
        ("filter {pool} -o {out} --workers 0 --min-side 500", "1 unreadable); lower --min-side or give another pool"),
        ("filter {text} -o {out} --min-characters 900", "(14 short: min_characters is 900); lower --min-characters"),
        ("dedup {x} -o {out} --held-out {x}", "(47 held out: threshold is 0.95); raise --threshold"),
        ("dedup {shards} -o {shards}/kept", "shards/kept lies within what is read"),
        ("dedup {shards} -o {shards}/a/kept --by embedding --pool {pool}", "a/kept lies within what is read"),
        ("filter {pool} -o {shards}/kept --rows {shards}", "lies within what is read"),
        ("embed {shards} -o {shards}/more --embedder {net}", "lies within what is read"),
        ("run {shards} -o {shards}/curated --size 5 --embedder {net}", "lies within what is read"),
        ("run {pool} -o {shards}/curated --size 5 --embeddings {shards}", "lies within what is read"),
        ("cluster {shards} -o {shards}/tree", "lies within what is read"),
        ("sample {shards} -o {shards}/subset --size 5", "lies within what is read"),
        ("baseline random {shards} -o {shards}/subset --size 5", "lies within what is read"),
        ("export {shards} {x} -o {shards}/out", "lies within what is read"),
        ("export {pool} {shards} -o {shards}/out", "lies within what is read"),
        ("filter {pool} -o {out} --max-aspect 0.5", "at least 1"),
        (
            "filter {pool} -o {out} --min-letters 0.5",
            "a pool of images does not take --min-letters, which is of a pool",
        ),
        (
            "filter {text} -o {out} --min-side 9",
            "a pool of text does not take --min-side, which is of a pool of images",
        ),
        ("filter {pool} -o {out} --nsfw 2", "--nsfw is 2.0; it must be at least 0 and at most 1"),
        ("filter {pool} -o {out} --rows {empty}", "no finished preparation"),
        ("baseline oracle {x} -o {out} --size 5", "needs the true labels"),
        ("baseline oracle {x} -o {out} --size 5 --pool {pool}", "no label column 'label'"),
        ("baseline retrieval {x} -o {out} --size 5", "give --trusted"),
        ("baseline random {x} -o {out} --size 48", "between 1 and the 47 rows"),
        (
            "baseline random {x} -o {out} --size 5 --clusters 4",
            "random does not take --clusters, which is of flat, sem",
        ),
        ("baseline oracle {x} -o {out} --size 5 --metric l2", "oracle does not take --metric, which is of flat;"),
        ("baseline flat {x} -o {out} --size 5 --pool {pool}", "flat does not take --pool, which is of oracle;"),
        ("baseline semdedup {x} -o {out} --size 5 --dedup-share 0.75", "does not take --dedup-share, which is of d4"),
        ("baseline d4 {x} -o {out} --size 5 --trusted {x}", "d4 does not take --trusted, which is of retrieval"),
        ("baseline retrieval {x} -o {out} --size 5 --trusted {x} --seed 0", "retrieval does not take --seed"),
        ("baseline flat {x} -o {out} --size 5 --clusters 99", "99 clusters of 47 rows"),
        ("run {pool} -o {out} --size 50 --embedder {net}", "between 1 and 47"),
        ("run {pool} -o {out} --size 5 --embedder {net} --levels 9,x", "level 'x'"),
        ("run {pool} -o {out} --size 5 --embedder {net} --levels 9,3 --resamples 1,2,3", "n_resamples has 3 values"),
        ("run {pool} -o {out} --size 5 --embedder {net} --levels 99,3", "99 clusters of 47 rows"),
        ("run {pool} -o {out} --size 5 --embedder {net} --labels class", "no label column 'class'"),
        ("run {pool} -o {out} --size 5 --embedder {net} --device cuda:77", "device 'cuda:77'"),
    ],
)
def test_mistakes_cost_one_line_and_write_nothing(files: Path, arguments: str, message: str, capsys):
    (files / "empty").mkdir()
    names = {name: files / f"{name}.npy" for name in ("x", "same", "narrow", "absent")}
    names |= {"pool": files / "pool.parquet", "numbers": files / "numbers.parquet"}
    names |= {"out": files / "out", "empty": files / "empty", "net": "timm:resnet10t?pretrained=false"}
    names |= {"text": files / "text.jsonl", "shards": files / "shards"}
    (files / "shards").mkdir()
    np.save(files / "shards/x.npy", np.load(files / "x.npy"))
    capsys.readouterr()
    code, err = curate(capsys, *arguments.format(**names).split())
    assert code == 2, err
    lines = [line for line in err.replace("\r", "\n").split("\n") if line.startswith("curate: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert [path.name for path in (files / "shards").iterdir()] == ["x.npy"]
    assert not (files / "out").exists()
