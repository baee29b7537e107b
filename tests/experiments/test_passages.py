"""Passages in shards: parts, blocks, kills and several processes must not show, or two runs train on different text."""

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import experiments.text.passages as module
import text_lm.passages
from curation.preparation.text_duplicates import exact_duplicates, near_duplicates
from experiments.text.passages import COUNTS, PASSAGES, Passages, Rules, open_passages, read_texts
from foundation.errors import CurationError
from foundation.files import load_json
from text_lm.documents import document_parts, read_documents
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import TokenStore

RULES = Rules("the source", 0, ["length:20-"], 0.7, ["food"], 3, 4)
STEPS = ("write_passages", "_sketch", "_decide", "tokenise_pool")  # the others are like these


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files of four domains: copies, near-copies, short lines, a domain of one document."""
    rng, folder = random.Random(0), tmp_path_factory.mktemp("source")
    written: list[str] = []
    for number in range(6):
        rows = []
        for i in range(40):
            domain = rng.choice(["law", "sport", "food"])
            words = [f"{domain}{rng.randrange(300)}" for _ in range(20)]
            if written and i % 5 == 0:
                words = rng.choice(written).split()
                words[-1] = "changed"
            text = "short" if i % 13 == 0 else " ".join(words)
            written += [text] if i % 13 else []
            rows.append({"text": text, "domain": domain, "source": f"{domain}/{number}/{i // 4}"})
        rows += [{**row, "text": row["text"].upper()} for row in rows[:3]]
        rows += [{"text": f"{number} lone " * 9 + str(i), "domain": "lone", "source": "lone"} for i in range(3)]
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def made(folder: Path, source: Path, part_bytes: int = 1 << 30, rules: Rules = RULES) -> Passages:
    read: Any = lambda files: read_documents(source, files=files)  # noqa: E731
    return open_passages(folder, rules, document_parts(source, part_bytes), read, open_tokenizer("bytes"), False)


def content(found: Passages) -> dict[str, Any]:
    counts = load_json(found.folder / COUNTS)
    store = TokenStore.open(found.tokens)
    return {
        "texts": found.texts(range(len(found))),
        "sources": pq.read_table(found.folder / PASSAGES, columns=["source"])["source"].to_pylist(),
        "documents": found.documents.tolist(),
        "domains": [found.names[i] for i in found.domains],
        "tokens": store.tokens.tobytes(),
        "bytes": store.n_bytes.tolist(),
        "counts": counts,
    }


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return content(made(tmp_path_factory.mktemp("whole"), source))


def small_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "GROUPS_PER_BLOCK", 1)
    patch.setattr(module, "PAIRS_PER_JOB", 7)
    patch.setattr(text_lm.passages, "ROWS_PER_GROUP", 16)


def test_what_is_kept_is_what_the_rules_say(whole: dict[str, Any], source: Path):
    documents = [d for d in read_documents(source) if len(d.text) >= 20 and d.domain != "food"]
    rows = exact_duplicates([d.text for d in documents]).kept
    rows = rows[near_duplicates([documents[i].text for i in rows], 0.7, progress=False).kept]
    assert whole["texts"] == [documents[i].text for i in rows]
    assert whole["domains"] == [documents[i].domain for i in rows]
    order = {name: i for i, name in enumerate(sorted(set(whole["sources"])))}
    assert np.unique(whole["documents"], return_inverse=True)[1].tolist() == [order[s] for s in whole["sources"]]
    lone = {s for s, d in zip(whole["sources"], whole["domains"], strict=True) if d == "lone"}
    assert lone == {f"lone, section {i} of lone" for i in range(1, 5)}, "a domain of one document is cut in sections"
    assert whole["bytes"] == [len(text.encode()) for text in whole["texts"]]
    assert whole["counts"]["near_copies"]["dropped"] > 10
    assert whole["counts"]["cut"]["filters"][0]["texts_in"] == whole["counts"]["cut"]["passages_cut"] == 276


def test_parts_and_blocks_do_not_show(
    whole: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    assert len(document_parts(source, 1)) == 6
    found = made(tmp_path, source, 1)
    assert len(list((tmp_path / PASSAGES).glob("*.parquet"))) == 18
    assert content(found) == whole
    assert not list(tmp_path.rglob("cut/*.parquet")), "what is no longer needed is removed"
    assert not list(tmp_path.rglob("sketch/*/*.npy"))
    rows = np.array([70, 3, 3, 41])
    assert read_texts(tmp_path, rows) == [whole["texts"][i] for i in rows]
    assert [t for block in found.blocks(np.arange(50), 13) for t in block] == whole["texts"][:50]
    with pytest.raises(CurationError, match="passage 9,999 is asked for"):
        read_texts(tmp_path, np.array([9999]))


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_costs_one_shard_and_no_result(
    step: str, whole: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    real, calls = getattr(module, step), [0]

    def dies(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == (1 if step in ("_distinct", "_decide", "_finish") else 3):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, dies)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, source, 1)
    before = calls[0]
    monkeypatch.setattr(module, step, lambda *a, **o: (calls.__setitem__(0, calls[0] + 1), real(*a, **o))[1])
    assert content(made(tmp_path, source, 1)) == whole
    whole_calls = {"write_passages": 6, "_sketch": 18, "_candidates": 14, "_write_kept": 18}.get(step)
    if whole_calls:
        assert calls[0] - before == whole_calls - 2, "what was finished is not done again"


def test_processes_share_the_shards(
    whole: dict[str, Any], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    small_blocks(monkeypatch)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=made, args=(tmp_path, source, 1)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert content(made(tmp_path, source, 1)) == whole


def test_mistakes_are_one_line(source: Path, tmp_path: Path):
    from dataclasses import replace

    with pytest.raises(CurationError, match="the source has no domain 'nothing'"):
        made(tmp_path / "a", source, rules=replace(RULES, left_out=["nothing"]))
    with pytest.raises(CurationError, match="no domain of the source has 99 documents"):
        made(tmp_path / "b", source, rules=replace(RULES, min_documents=99, sections=0))
