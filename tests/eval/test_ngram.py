"""The n-gram judge: exact against a dictionary in fractions, a distribution, and no leak goes unnamed."""

import json
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from math import log2
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from warm import Server

from eval.ngram import fit_ngrams
from eval.ngram_task import run_ngram
from eval.rarity import distance_to_pool, parts_by_rank
from eval.results import compare
from foundation.errors import CurationError
from foundation.overlap import seen, seen_shares

few_bytes = st.binary(max_size=30).map(lambda data: bytes(byte % 4 + 97 for byte in data))


def naive(texts: Sequence[bytes], text: bytes, order: int) -> float:
    """Bits of a text by the formula, one dictionary a length, in exact fractions until the logarithm."""
    grams: Counter[bytes] = Counter()
    for known in texts:
        for stop in range(1, len(known) + 1):
            for length in range(1, min(order, stop) + 1):
                grams[known[stop - length : stop]] += 1
    followers: dict[bytes, list[int]] = {}
    for gram, count in grams.items():
        followers.setdefault(gram[:-1], []).append(count)
    bits = 0.0
    for place, byte in enumerate(text):
        p = Fraction(1, 256)
        for length in range(min(order - 1, place) + 1):
            context = text[place - length : place]
            counts = followers.get(context, [])
            if counts:
                p = (grams[context + bytes([byte])] + len(counts) * p) / (sum(counts) + len(counts))
        bits -= log2(p)
    return bits


@given(st.lists(few_bytes, min_size=1, max_size=5).filter(any), st.lists(few_bytes, max_size=4), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_every_text_takes_the_bits_of_the_formula(train: list[bytes], test: list[bytes], order: int):
    model = fit_ngrams(train, order)
    expected = [naive(train, text, order) for text in test + train]
    np.testing.assert_allclose(model.bits(test + train), expected, rtol=1e-12, atol=1e-12)


@given(st.lists(few_bytes, min_size=1, max_size=5).filter(any), few_bytes, st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_probabilities_sum_to_one_after_any_context(train: list[bytes], context: bytes, order: int):
    p = fit_ngrams(train, order).distribution(context)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()


def test_unicode_is_bytes_and_a_text_never_borrows_from_its_neighbour():
    model = fit_ngrams(["naïve ☃", "abc"], 3)
    assert model.n_bytes == len("naïve ☃".encode()) + 3
    assert model.bits(["naïve", "abc"]).sum() == pytest.approx(model.bits(["abc"])[0] + model.bits(["naïve"])[0])
    joined = fit_ngrams(["ab", "cd"], 2)
    assert joined.bits([b"bc"])[0] > fit_ngrams(["abcd"], 2).bits([b"bc"])[0]


def test_no_text_and_an_order_too_high_are_one_line():
    with pytest.raises(CurationError, match="no text"):
        fit_ngrams([""])
    with pytest.raises(CurationError, match=r"order 9.*1\.\.8"):
        fit_ngrams(["a"], 9)


def test_rare_rows_are_far_from_the_pool():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(2, 16)) * 10
    pool = np.concatenate([centre[0] + rng.normal(size=(300, 16)), centre[1] + rng.normal(size=(4, 16))])
    test = centre[[0] * 30 + [1] * 30] + rng.normal(size=(60, 16))
    parts = parts_by_rank(distance_to_pool(test, pool), 2)
    assert parts[:30].mean() == 0
    assert parts[30:].mean() == 1
    with pytest.raises(CurationError, match="cannot be cut into 10 parts"):
        parts_by_rank(np.arange(3))


def test_a_copy_is_found_whatever_its_case_and_a_quotation_is_not():
    long = "one two three four five six seven eight nine ten eleven twelve"
    other = "a b c d e f g h i j k l m n o p q r s t u v w x y z and so on to the end of the page of the book"
    shares = seen_shares([f"before. {long.upper()}!", "nothing"], [long, f"{other} {long}", "", "nothing"])
    assert shares[0] == shares[3] == 1
    assert 0 < shares[1] < 0.5
    assert shares[2] == 0
    assert seen([long], [long, other]).tolist() == [True, False]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    alphabets = {"law": "abcdefgh ", "sport": "qrstuvwx ", "food": "ijklmnop "}

    def texts(counts: dict[str, int], name: str) -> str:
        rows = [
            {
                "text": "".join(rng.choice(list(alphabets[domain]), 300)),
                "domain": domain,
                "source": f"{name}{domain}{i}",
            }
            for domain, n in counts.items()
            for i in range(n)
        ]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
        return str(tmp_path / f"{name}.parquet")

    return {
        "train": texts({"law": 20, "sport": 4, "food": 1}, "train"),
        "even": texts({"law": 8, "sport": 8, "food": 8}, "even"),
        "test": texts(dict.fromkeys(alphabets, 5), "test"),
    }


def value(results, dataset: str) -> float:
    return next(row.value for row in results.rows if row.dataset == dataset)


def test_the_command_measures_domains_thirds_and_rarity(files: dict[str, str], tmp_path: Path, warm: Server):
    for name in ("train", "test"):
        labels = pq.read_table(files[name])["domain"].to_pylist()
        vectors = np.eye(3)[[["law", "sport", "food"].index(label) for label in labels]]
        noise = np.random.default_rng(1).normal(size=vectors.shape)
        np.save(tmp_path / f"{name}.npy", vectors + 0.05 * noise)
    features = {"pool_features": str(tmp_path / "train.npy"), "test_features": str(tmp_path / "test.npy")}
    raw = run_ngram({"train": files["train"], "test": files["test"], "resamples": 20, **features}, tmp_path / "raw")
    mean = np.mean([value(raw, f"domain {name}") for name in ("law", "sport", "food")])
    assert value(raw, "domains, mean") == pytest.approx(mean)
    assert value(raw, "domains, rare third") == value(raw, "domain food") == value(raw, "domains, worst: food")
    assert value(raw, "domains, frequent third") == value(raw, "domain law")
    assert value(raw, "tenth 10") > value(raw, "tenth 1")
    command = ["-m", "eval", "ngram", f"train={files['even']}", f"test={files['test']}"]
    command += [f"pool={files['train']}", "train_bytes=7000", "resamples=20", "-o", str(tmp_path / "even")]
    done = warm.run(*command)
    assert done.returncode == 0, done.stderr
    even = json.loads((tmp_path / "even" / "metrics.json").read_text())["metrics"]
    assert even["ngram/domains, rare third/bits_per_byte"] < value(raw, "domains, rare third")
    assert {row.dataset: row.n for row in raw.rows if row.dataset.startswith(("all", "domain"))} == {
        "all": 15, "domains, mean": 15, "domains, frequent third": 5, "domains, rare third": 5,
        "domains, worst: food": 5, "domain law": 5, "domain sport": 5, "domain food": 5,
    }  # fmt: skip


def test_compared_figures_are_those_of_the_tables(files: dict[str, str], tmp_path: Path):
    table = pq.read_table(files["test"])  # texts of unlike length, two of them of one document, law twice as often
    texts = [text[: 40 + 17 * i] for i, text in enumerate(table["text"].to_pylist())]
    sources = pa.array(["both", "both", *table["source"].to_pylist()[2:]])
    columns = {"text": texts, "domain": ["law", *table["domain"].to_pylist()[1:]], "source": sources}
    pq.write_table(pa.table(columns).take([*range(4), *range(5, 11)]), tmp_path / "test.parquet")
    given = {"test": str(tmp_path / "test.parquet"), "pool": files["train"], "resamples": 50}
    shown = [run_ngram({"train": files[name], **given}, tmp_path / name) for name in ("even", "train")]
    found = {item.key.split("/")[1]: item for item in compare(tmp_path / "even", tmp_path / "train", n_resamples=50)}
    assert list(found) == [row.dataset for row in shown[0].rows if "worst" not in row.dataset]
    for dataset, item in found.items():
        assert (item.value, item.base) == tuple(value(results, dataset) for results in shown)
        assert item.difference.value == pytest.approx(item.value - item.base, rel=1e-5)
    assert found["all"].difference.n == 9  # documents
    assert found["domains, mean"].verdict == "lower"

    content = load_file(tmp_path / "even/per_row.safetensors")  # of before: no word of bytes and documents
    for name in [name for name in content if "#" in name]:
        del content[name]
    metrics = json.loads((tmp_path / "even/metrics.json").read_text())
    ids = json.dumps(shown[0].per_row_ids)
    save_file(content, tmp_path / "even/per_row.safetensors", {"rows": ids})
    del metrics["seal"], metrics["per_row_checksum"]
    (tmp_path / "even/metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(CurationError, match=r"all/bits_per_byte of .*from its rows; evaluate again"):
        compare(tmp_path / "even", tmp_path / "train")
    with pytest.raises(CurationError, match=r"metrics\.json is a file; give a folder of results"):
        compare(tmp_path / "even/metrics.json", tmp_path / "train")


def test_a_test_set_that_was_seen_is_refused_with_counts(files: dict[str, str], tmp_path: Path):
    both = pa.concat_tables([pq.read_table(files["test"]), pq.read_table(files["train"]).slice(0, 2)])
    pq.write_table(both, tmp_path / "both.parquet")
    given = {"train": files["train"], "test": str(tmp_path / "both.parquet"), "resamples": 5}
    with pytest.raises(CurationError, match=r"2 of 17 test texts .*row 15.* 2 documents in both.*allow_seen"):
        run_ngram(given)
    given["allow_seen"] = True
    assert run_ngram(given, tmp_path / "out").settings["seen"] == {"texts": 2, "documents": 2}
    kept = (tmp_path / "out/metrics.json").read_bytes()
    pq.write_table(pq.read_table(files["test"]), tmp_path / "both.parquet")
    with pytest.raises(CurationError, match=r"metrics\.json holds results of other settings"):  # or of other texts
        run_ngram(given, tmp_path / "out")
    assert (tmp_path / "out/metrics.json").read_bytes() == kept


def test_mistakes_are_one_line(files: dict[str, str], tmp_path: Path):
    with pytest.raises(CurationError, match="does not exist"):
        run_ngram({"train": "none.parquet", "test": files["test"]})
    (tmp_path / "bad.jsonl").write_text('{"words": "a"}\n')
    with pytest.raises(CurationError, match="no field 'text'"):
        run_ngram({"train": str(tmp_path / "bad.jsonl"), "test": files["test"]})
    with pytest.raises(CurationError, match="lower train_bytes"):
        run_ngram({"train": files["train"], "test": files["test"], "train_bytes": 10**9})
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    with pytest.raises(CurationError, match="3 rows for 15 texts"):
        run_ngram(
            {
                "train": files["train"],
                "test": files["test"],
                "pool_features": str(tmp_path / "x.npy"),
                "test_features": str(tmp_path / "x.npy"),
            }
        )
