"""Text comes in damaged; a user must learn which line, and a passage must not lose a word."""

import gzip
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from curation import CurationError
from curation.pools.pool import open_pool
from text_lm.documents import Document, read_documents
from text_lm.filters import open_filters
from text_lm.passages import cut_passages, write_passages

RECORDS = [
    {"text": "First document.", "url": "http://a/1", "domain": "news"},
    {"text": "Zweites Dokument.", "url": "http://a/2", "domain": "books"},
]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def texts(source: object, **options: object) -> list[str]:
    return [document.text for document in read_documents(source, **options)]


def zstd(content: bytes) -> bytes:
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "c4-train.00000-of-01024.json.gz", "a.jsonl.zst"])
def test_json_lines_plain_and_packed(tmp_path: Path, name: str):
    pack = {"gz": gzip.compress, "zst": zstd}.get(name.rsplit(".", 1)[1], bytes)
    (tmp_path / name).write_bytes(pack(LINES))
    found = list(read_documents(tmp_path / name))
    assert [document.text for document in found] == [record["text"] for record in RECORDS]
    assert [document.source for document in found] == ["http://a/1", "http://a/2"]
    assert [document.domain for document in found] == ["news", "books"]
    assert found[1].place == f"{tmp_path / name} line 2"
    assert texts(tmp_path) == texts(tmp_path / name)


def test_ccnet_fields_parquet_text_files_and_datasets(tmp_path: Path):
    (tmp_path / "ccnet").mkdir()
    line = {"raw_content": "From the web.", "url": "u", "language": "en", "bucket": "head"}
    (tmp_path / "ccnet/en_head_0000.json.gz").write_bytes(gzip.compress(json.dumps(line).encode()))
    (found,) = read_documents(tmp_path / "ccnet", domain_field="bucket")
    assert (found.text, found.source, found.domain) == ("From the web.", "u", "head")
    pq.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "p.parquet")
    assert texts(tmp_path / "p.parquet") == texts(Dataset.from_list(RECORDS)) == [r["text"] for r in RECORDS]
    Dataset.from_list(RECORDS).save_to_disk(str(tmp_path / "saved"))
    assert texts(tmp_path / "saved") == [r["text"] for r in RECORDS]
    for folder, text in (("verse", "A line.\n"), ("prose", "Another.\n")):
        (tmp_path / "files" / folder).mkdir(parents=True)
        (tmp_path / "files" / folder / "x.txt").write_text(text)
    assert [(d.domain, d.text) for d in read_documents(tmp_path / "files")] == [
        ("prose", "Another.\n"),
        ("verse", "A line.\n"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"txt": "x"}', r"line 2 has no field 'text' or 'raw_content' or 'content'; it has txt"),
        (b'{"text": 5}', r"line 2 has int, not text, in field 'text'"),
        (b'{"text": null}', r"line 2 has NoneType, not text"),
        (b'{"text": "caf\xe9"}', r"line 2 is not valid UTF-8 \(byte 13\)"),
        (b'{"text": "cut of', r"line 2 is not JSON"),
        (b'{"text": "x", "text": "y"}', r"line 2 is not JSON \(the key 'text' is there twice"),
        (b"[1, 2]", r"line 2 holds list, not an object"),
        (b'{"text": "\\ud800"}', r"line 2 holds a zero byte or a lone surrogate"),
        (b'{"text": "' + b"x" * 500 + b'"}', r"line 2 has 513 bytes, more than max_line_bytes=200"),
        (b"[" * 1000 + b"]" * 1000, r"line 2 has 2,001 bytes"),
    ],
)
def test_a_bad_line_is_named_or_left_out(tmp_path: Path, line: bytes, message: str):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b'\n\n{"text": ""}\n{"text": "end"}\n')
    with pytest.raises(CurationError, match=rf"bad\.jsonl {message}"):
        texts(path, max_line_bytes=200)
    skipped: list[str] = []
    assert texts(path, bad="skip", max_line_bytes=200, skipped=skipped) == ["good", "", "end"]
    assert len(skipped) == 1


def test_fields_of_other_names_are_told_with_the_options_that_name_them(tmp_path: Path):
    rows = [{"body": "x", "package": "p"}]
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(CurationError, match=r"it has body, package; name .*--text-field, --domain-.*--bad skip"):
            texts(tmp_path / name)
        with pytest.raises(CurationError, match=r"no field 'domain'; it has body, package; name"):
            texts(tmp_path / name, text_field="body", domain_field="domain")
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(CurationError, match="; mend it, or leave such documents out with --bad skip"):
        texts(tmp_path / "b.jsonl")


def test_files_that_break_off_or_hold_nothing_are_named(tmp_path: Path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES * 100)[:-20])
    with pytest.raises(CurationError, match=r"a\.jsonl\.gz breaks off after line"):
        texts(tmp_path / "a.jsonl.gz")
    (tmp_path / "b.jsonl.zst").write_bytes(b"not zstd")
    with pytest.raises(CurationError, match=r"b\.jsonl\.zst breaks off after line 0"):
        texts(tmp_path / "b.jsonl.zst")
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(CurationError, match=r"c\.parquet cannot be read as parquet"):
        texts(tmp_path / "c.parquet")
    (tmp_path / "d.txt").write_bytes(b"ok\nna\xefve")
    with pytest.raises(CurationError, match=r"d\.txt line 2 is not valid UTF-8"):
        texts(tmp_path / "d.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CurationError, match="holds no text"):
        texts(tmp_path / "empty")
    with pytest.raises(CurationError, match="does not exist"):
        texts(tmp_path / "nowhere.jsonl")


def test_a_line_of_50_megabytes_is_cut_in_linear_time(tmp_path: Path):
    path = tmp_path / "long.jsonl"
    path.write_bytes(json.dumps({"text": "word " * 2_500_000 + "x" * 12_500_000 + "A b. " * 5_000_000}).encode())
    start = time.perf_counter()
    (document,) = read_documents(path)
    pieces = cut_passages(document.text)
    assert max(map(len, pieces)) <= 1200
    assert sum(map(len, pieces)) > 0.98 * 49_000_000
    assert time.perf_counter() - start < 40


PROSE = st.lists(st.sampled_from(["word", " ", ". ", "! ", "\n\n", "”", "Mr. ", "é", "\n", "longerword", "。"]))


@given(PROSE.map("".join), st.integers(5, 60), st.integers(0, 5))
def test_passages_lose_nothing_but_white_space(text: str, target: int, shortest: int):
    pieces = cut_passages(text, target, shortest)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() == piece and piece for piece in pieces)
    assert all(len(piece) <= target for piece in pieces[:-1])
    assert not pieces or len(pieces[-1]) <= target + shortest


def test_passages_end_with_sentences_where_they_fit():
    text = " ".join(f"This is sentence number {i}." for i in range(100))
    pieces = cut_passages(text, 200, 50)
    assert all(piece.endswith(".") and piece.startswith("This") for piece in pieces)
    assert min(map(len, pieces[:-1])) > 150
    assert cut_passages("", 100) == cut_passages(" \n ", 100) == []
    assert cut_passages("word", 100) == ["word"]


def test_written_passages_are_a_pool_and_every_filter_is_counted(tmp_path: Path):
    documents = [
        Document("One two three. " * 40, "doc-a", "x", "a 1"),
        Document("Hm.", "doc-b", "y", "b 1"),
        Document("", "doc-c", "y", "c 1"),
    ]
    counts = write_passages(
        documents, tmp_path / "p.parquet", 150, 20, open_filters(["length:10-", "words:1-1000"]), progress=False
    )
    pool = open_pool(tmp_path / "p.parquet")
    assert (counts.documents, counts.passages_cut, counts.passages) == (3, 5, 4)
    assert len(pool) == 4
    assert set(pool["source"]) == {"doc-a"}
    first, second = counts.filters
    assert (first.texts_in, first.texts_out, dict(first.reasons)) == (5, 4, {"too short": 1})
    assert (second.texts_in, second.texts_out) == (4, 4)
    saved = json.loads((tmp_path / "p.counts.json").read_text())
    assert saved["filters"][0]["reasons"] == {"too short": 1}
    assert saved["characters"] == sum(map(len, pool["text"]))


def test_language_and_datatrove_filters():
    pytest.importorskip("py3langid")
    pytest.importorskip("datatrove")
    pytest.importorskip("spacy")
    english = "The quick brown fox jumps over the lazy dog, and then the rain begins to fall on the hills."
    german = "Der schnelle braune Fuchs springt über den faulen Hund, und dann beginnt der Regen zu fallen."
    language, repetition, quality = open_filters(["language:en,fr", "gopher_repetition", "gopher_quality"])
    assert (language.reason(english), language.reason(german)) == (None, "de")
    assert repetition.reason("the cat sat. " * 50) is not None
    assert quality.reason(english) == "gopher_short_doc"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nonsense", "filter 'nonsense' is unknown"),
        ("length:abc", "needs bounds such as 200-2000"),
        ("length:300-200", "keeps nothing: 300 is above 200"),
        ("language:", r"language \(none\) is not known"),
        ("language:en,klingon", "language klingon is not known"),
    ],
)
def test_bad_filters_are_named(name: str, message: str):
    if name.startswith("language"):
        pytest.importorskip("py3langid")
    with pytest.raises(CurationError, match=message):
        open_filters([name])


def test_an_empty_result_is_refused_where_one_passage_is_wanted(tmp_path: Path):
    (tmp_path / "blank.jsonl").write_text('{"text": "  "}\n' * 3)
    with pytest.raises(CurationError, match="3 documents give 0 passages"):
        write_passages(read_documents(str(tmp_path / "blank.jsonl")), tmp_path / "out.parquet", progress=False, least=1)
    assert [path.name for path in tmp_path.iterdir()] == ["blank.jsonl"]


def test_a_field_that_is_null_is_not_said_to_lack(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "topic": null}\n')
    for field in ("domain_field", "source_field"):
        with pytest.raises(CurationError, match="line 1 has null in field 'topic'"):
            texts(tmp_path / "a.jsonl", **{field: "topic"})
