"""All passages of a pool file: cut, filtered, without what repeats, and tokenised, in shards that processes share.

Memory holds a block of passages, and of the whole some 200 bytes for each passage and document, never their texts. What
a step leaves for the next is removed when all are done; the small files that say so stay, for processes that come late.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

from curation.pools.pool import pool_fingerprint
from curation.preparation.text_duplicates import (
    Duplicates,
    bands_of,
    candidates,
    first_of_equals,
    joined_pairs,
    overlap,
    sketch,
)
from experiments.engine.shards import once, seen, unfinished
from foundation.errors import CurationError
from foundation.files import digest_json, load_array, load_json, save_array, save_json, write_atomically
from text_lm.documents import Document
from text_lm.filters import open_filters
from text_lm.passages import ROWS_PER_GROUP, write_passages
from text_lm.tokenizer import Tokenizer
from text_lm.tokens import TokenStore, join_tokens, tokenise_pool

PASSAGES, COUNTS, KEPT = "passages.parquet", "counts.json", "kept.json"
COLUMNS = ["text", "source", "domain"]
GROUPS_PER_BLOCK = 16  # row groups of parquet: a block has 65,536 passages at most
PAIRS_PER_JOB = 250_000
SKETCHES = ("digests", "keys", "starts", "grams")


@dataclass(frozen=True)
class Rules:
    """What becomes a passage; see `experiments.text.pool.PoolSettings`."""

    source: str
    passage: int
    filters: list[str]
    near_duplicates: float
    left_out: list[str]
    min_documents: int
    sections: int


@dataclass(frozen=True)
class Passages:
    """All passages of a pool file, in a folder that every seed shares; made by `open_passages`.

    Attributes:
        folder: holds passages.parquet/ (shards), tokens/, counts.json, and embeddings of sentence models.
    """

    folder: Path

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @cached_property
    def names(self) -> list[str]:
        """Domains, ascending."""
        return list(load_json(self.folder / KEPT)["domains"])

    @cached_property
    def domains(self) -> Int[np.ndarray, "n"]:
        """(n,) place of the domain of each passage in `names`."""
        return load_array(seen(self.folder / "domains.npy"))

    @cached_property
    def documents(self) -> Int[np.ndarray, "n"]:
        """(n,) number of the document of each passage, in the order of their names."""
        return load_array(seen(self.folder / "documents.npy"))

    @cached_property
    def n_bytes(self) -> Int[np.ndarray, "n"]:
        """(n,) UTF-8 bytes of each passage: none is empty, so documents of the token store are passages."""
        return TokenStore.open(self.tokens).n_bytes

    def __len__(self) -> int:
        return len(self.domains)

    def texts(self, rows: Int[np.ndarray, "m"] | range) -> list[str]:
        """Texts of some passages, in the order of ``rows``; the row groups that they lie in are read one by one."""
        return read_texts(self.folder, rows)

    def blocks(self, rows: Int[np.ndarray, "m"], size: int = ROWS_PER_GROUP) -> Iterator[list[str]]:
        """Texts of many passages, ``size`` at a time."""
        for start in range(0, len(rows), size):
            yield self.texts(rows[start : start + size])


def shards_of(folder: Path) -> list[Path]:
    """The files that hold a folder's passages, in order; folders of before have one."""
    place = folder / PASSAGES
    return sorted(place.glob("*.parquet")) if place.is_dir() else [place]


def read_texts(folder: Path, rows: Int[np.ndarray, "m"] | range) -> list[str]:
    """Texts of passages of a folder, in the order of ``rows``."""
    wanted = np.asarray(rows, np.int64)
    order = np.argsort(wanted, kind="stable")
    found: list[str] = [""] * len(wanted)
    first = 0
    for path in shards_of(folder):
        if not len(order):
            break
        with pq.ParquetFile(path) as file:
            for number in range(file.num_row_groups):
                last = first + file.metadata.row_group(number).num_rows
                here = order[: np.searchsorted(wanted[order], last)]
                if len(here):
                    column = file.read_row_group(number, ["text"])["text"]
                    for place, text in zip(here, column.take(pa.array(wanted[here] - first)).to_pylist(), strict=True):
                        found[place] = text
                    order = order[len(here) :]
                first = last
    if len(order):
        raise CurationError(f"{folder} has {first:,} passages, but passage {wanted[order[0]]:,} is asked for")
    return found


def open_passages(
    folder: Path, rules: Rules, parts: Sequence[Any], read: Any, tokenizer: Tokenizer, progress: bool
) -> Passages:
    """The passages of a pool file, made by all processes that call this; what was finished before is kept.

    Args:
        parts: of the source, in order, and
        read: part -> its documents.

    Raises:
        CurationError: a domain that is not there, no domain with enough documents, or see `read_documents`.
    """
    found = Passages(folder)
    if (folder / COUNTS).exists():
        return found
    cuts = [folder / f"cut/{number:05}.parquet" for number in range(len(parts))]
    counted = [path.with_suffix(".counts.json") for path in cuts]
    for number in unfinished(counted, "cut", progress):
        documents: Iterable[Document] = read(parts[number])
        write_passages(documents, cuts[number], rules.passage, filters=open_filters(rules.filters), progress=False)
    once(folder / "blocks.json", lambda: _list_blocks(folder, cuts))
    blocks = _Blocks(folder, cuts)
    bands = bands_of(rules.near_duplicates or 0.7)
    for number in unfinished(blocks.sketched, "sketch", progress):
        _sketch(blocks, number, bands)
    once(folder / "distinct.json", lambda: _distinct(blocks, rules))
    distinct = load_array(seen(folder / "distinct.npy"))
    near = Duplicates(np.arange(len(distinct)))
    if rules.near_duplicates:
        near = _near(blocks, distinct, bands[0], rules.near_duplicates, progress)
    once(folder / KEPT, lambda: _decide(blocks, rules, distinct, near))
    shards = [folder / PASSAGES / f"{number:05}.parquet" for number in range(len(blocks))]
    for number in unfinished(shards, "passages", progress, folder / COUNTS):
        _write_kept(blocks, number, shards[number])
    seen(*shards)
    _tokenise(folder, shards, tokenizer, progress)
    once(folder / COUNTS, lambda: _finish(folder, counted))
    for heavy in (*cuts, *(folder / "sketch").glob("*/*.npy")):
        heavy.unlink(missing_ok=True)
    return found


class _Blocks:
    """The cut passages in stretches of at most `GROUPS_PER_BLOCK` row groups of one part."""

    def __init__(self, folder: Path, cuts: list[Path]):
        self.folder, self.cuts = folder, cuts
        self.places = load_json(folder / "blocks.json")["blocks"]  # part, first row group, one past the last, rows
        self.starts = np.cumsum([0, *(place[3] for place in self.places)])
        self.sketched = [folder / f"sketch/{number:05}/done" for number in range(len(self.places))]
        self._open: dict[tuple[int, str], np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int, columns: list[str]) -> pa.Table:
        part, first, last, _rows = self.places[number]
        with pq.ParquetFile(self.cuts[part]) as file:
            return file.read_row_groups(range(first, last), columns)

    def sketches(self, number: int, name: str) -> np.ndarray:
        """One array of a block's sketches, mapped."""
        key = number, name
        if key not in self._open:
            self._open[key] = load_array(seen(self.sketched[number].with_name(f"{name}.npy")))
        return self._open[key]

    def grams(self, row: int) -> np.ndarray:
        """N-grams of a passage of the whole."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        starts, at = self.sketches(number, "starts"), row - int(self.starts[number])
        return self.sketches(number, "grams")[starts[at] : starts[at + 1]]


def _list_blocks(folder: Path, cuts: list[Path]) -> None:
    blocks = []
    for part, path in enumerate(cuts):
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        for first in range(0, len(sizes), GROUPS_PER_BLOCK):
            last = min(first + GROUPS_PER_BLOCK, len(sizes))
            blocks.append([part, first, last, sum(sizes[first:last])])
    save_json(folder / "blocks.json", {"blocks": blocks})


def _sketch(blocks: _Blocks, number: int, bands: tuple[int, int]) -> None:
    done = blocks.sketched[number]
    found = sketch(blocks.read(number, ["text"])["text"].to_pylist(), bands)
    for name in SKETCHES:
        save_array(done.with_name(f"{name}.npy"), getattr(found, name))
    save_json(done, {})


def _column(blocks: _Blocks, name: str) -> tuple[pa.Array, Int[np.ndarray, "n"]]:
    """Distinct values of a column of strings, ascending, and the place of each row's among them."""
    chunks: list[Any] = []
    for path in blocks.cuts:
        table = pq.read_table(path, columns=[name], read_dictionary=[name])
        chunks += table[name].chunks
    if not chunks:
        return pa.array([], pa.string()), np.empty(0, np.int64)
    column = pa.chunked_array(chunks).unify_dictionaries()
    values = column.chunk(0).dictionary
    order = pc.sort_indices(values).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    codes = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    return values.take(pa.array(order)), rank[codes]


def _distinct(blocks: _Blocks, rules: Rules) -> None:
    """``distinct.npy``: rows of domains that are not left out, each normalised text once."""
    names, domains = _column(blocks, "domain")
    known = names.to_pylist()
    unknown = sorted(set(rules.left_out) - set(known))
    if unknown:
        raise CurationError(f"science.pool.left_out: {rules.source} has no domain {unknown[0]!r}")
    out = [known.index(name) for name in rules.left_out]
    start = np.flatnonzero(~np.isin(domains, out))
    parts = [np.empty((0, 2), np.uint64), *(blocks.sketches(i, "digests") for i in range(len(blocks)))]
    copies = Duplicates(first_of_equals(np.concatenate(parts)[start]))
    save_array(blocks.folder / "distinct.npy", start[copies.kept])
    counts = {"left_out": len(domains) - len(start), "exact_copies": copies.counts}
    save_json(blocks.folder / "distinct.json", counts)


def _near(
    blocks: _Blocks, distinct: Int[np.ndarray, "n"], n_bands: int, threshold: float, progress: bool
) -> Duplicates:
    """Near-duplicates among the distinct rows, by their places there: bands, then stretches of pairs, are shared."""
    folder = blocks.folder
    bands = [folder / f"pairs/band-{number:03}.npy" for number in range(n_bands)]
    for number in unfinished(bands, "candidates", progress):
        save_array(bands[number], _candidates(blocks, distinct, number))
    together = folder / "pairs/all.npy"
    once(together, lambda: save_array(together, _unique_pairs([load_array(path) for path in bands])))
    pairs = load_array(together)
    starts = range(0, len(pairs), PAIRS_PER_JOB)
    alike = [folder / f"pairs/alike-{number:05}.npy" for number in range(len(starts))]
    for number in unfinished(alike, "compare", progress):
        mine = pairs[starts[number] : starts[number] + PAIRS_PER_JOB]
        similarity = np.array([overlap(blocks.grams(int(a)), blocks.grams(int(b))) for a, b in mine])
        save_array(alike[number], mine[similarity >= threshold])
    close = np.concatenate([np.empty((0, 2), np.int64), *(load_array(path) for path in alike)])
    return joined_pairs(len(distinct), np.searchsorted(distinct, close))


def _candidates(blocks: _Blocks, distinct: Int[np.ndarray, "n"], band: int) -> Int[np.ndarray, "p 2"]:
    keys = np.concatenate([np.empty(0, np.uint64), *(blocks.sketches(i, "keys")[:, band] for i in range(len(blocks)))])
    words = [np.diff(blocks.sketches(i, "starts")) > 0 for i in range(len(blocks))]  # a text without is like none
    rows = distinct[np.concatenate([np.empty(0, bool), *words])[distinct]]
    return candidates(keys[rows], rows)


def _unique_pairs(parts: list[np.ndarray]) -> Int[np.ndarray, "p 2"]:
    whole = np.concatenate([np.empty((0, 2), np.int64), *parts])
    order = np.lexsort((whole[:, 1], whole[:, 0]))
    whole = whole[order]
    new = np.ones(len(whole), bool)
    new[1:] = (whole[1:] != whole[:-1]).any(1)
    return whole[new]


def _decide(blocks: _Blocks, rules: Rules, distinct: Int[np.ndarray, "n"], near: Duplicates) -> None:
    """Which rows are kept, their domains and documents; ``kept.json`` comes last."""
    folder = blocks.folder
    counts: dict[str, Any] = load_json(folder / "distinct.json")
    if rules.near_duplicates:
        counts["near_copies"] = near.counts
    rows = distinct[near.kept]
    names, domains = _column(blocks, "domain")
    sources, documents = _column(blocks, "source")
    known, domain, document = names.to_pylist(), domains[rows], documents[rows]
    n_documents = _documents_of(domain, document, len(known))
    section = np.zeros(len(rows), np.int64)
    counts["in_sections"] = {}
    if rules.sections:
        for code in np.flatnonzero((n_documents > 0) & (n_documents < rules.min_documents)).tolist():
            counts["in_sections"][known[code]] = int(n_documents[code])
            mine = np.flatnonzero(domain == code)  # in the order of the documents
            for number, part in enumerate(np.array_split(mine, rules.sections), 1):
                section[part] = number
        # a section is a document of its own
        key = (document * (rules.sections + 1) + section) * len(known) + np.where(section > 0, domain, 0)
        n_documents = _documents_of(domain, np.unique(key, return_inverse=True)[1], len(known))
    small = np.flatnonzero((n_documents > 0) & (n_documents < rules.min_documents))
    keep = ~np.isin(domain, small)
    if not keep.any():
        raise CurationError(
            f"no domain of {rules.source} has {rules.min_documents} documents; lower science.pool.min_documents, or "
            "give text with a domain and a source for each document"
        )
    counts["too_few_documents"] = {
        "domains": [known[code] for code in small.tolist()],
        "rows_out": int(keep.sum()),
        "passages": int((~keep).sum()),
    }
    rows, domain, document, section = rows[keep], domain[keep], document[keep], section[keep]
    save_array(folder / "rows.npy", rows)
    save_array(folder / "sections.npy", section)
    if section.any():
        titles = [
            _title(sources[int(i)].as_py(), known[int(d)], int(s))
            for i, d, s in zip(document, domain, section, strict=True)
        ]
        document = np.unique(np.asarray(titles), return_inverse=True)[1]
    save_array(folder / "documents.npy", document.astype(np.int64))
    used, domain = np.unique(domain, return_inverse=True)
    save_array(folder / "domains.npy", domain.astype(np.int64))
    save_json(folder / KEPT, {"domains": [known[code] for code in used.tolist()], "counts": counts})


def _documents_of(domain: np.ndarray, document: np.ndarray, n_domains: int) -> Int[np.ndarray, "domains"]:
    """Documents of each domain."""
    n = int(document.max()) + 1 if len(document) else 1
    return np.bincount(np.unique(domain * n + document) // n, minlength=n_domains)


def _title(source: str, domain: str, section: int) -> str:
    return f"{source}, section {section} of {domain}" if section else source


def _write_kept(blocks: _Blocks, number: int, path: Path) -> None:
    kept, sections = (load_array(seen(blocks.folder / f"{name}.npy")) for name in ("rows", "sections"))
    start = int(blocks.starts[number])
    low, high = np.searchsorted(kept, [start, int(blocks.starts[number + 1])])
    table = blocks.read(number, COLUMNS).take(pa.array(kept[low:high] - start))
    mine = sections[low:high]
    if mine.any():
        columns = (table[name].to_pylist() for name in ("source", "domain"))
        titles = [_title(*item) for item in zip(*columns, mine.tolist(), strict=True)]
        table = table.set_column(table.column_names.index("source"), "source", [titles])
    write_atomically(
        path, lambda stream: pq.write_table(table, stream, row_group_size=ROWS_PER_GROUP, compression="zstd")
    )


def _tokenise(folder: Path, shards: list[Path], tokenizer: Tokenizer, progress: bool) -> None:
    """``tokens/`` of all passages, shard by shard."""
    from datasets import Dataset

    whole, joined = folder / "tokens", folder / "tokens.done"
    filled = [path for path in shards if pq.read_metadata(path).num_rows]
    parts = [folder / f"tokens-parts/{path.stem}" for path in filled]
    done = [part.with_suffix(".done") for part in parts]
    for number in unfinished(done, "tokenise", progress, joined):
        pool = Dataset.from_dict({"text": pq.read_table(filled[number], columns=["text"])["text"].to_pylist()})
        tokenise_pool(pool, tokenizer, parts[number], progress=False)
        save_json(done[number], {"fingerprint": pool_fingerprint(pool)})

    def join() -> None:
        said = [load_json(path)["fingerprint"] for path in done]
        seen(*(part / "tokens.json" for part in parts))
        join_tokens(parts, whole, said[0] if len(said) == 1 else digest_json(said))
        save_json(joined, {})

    once(joined, join)
    seen(whole / "tokens.json")
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)


def _finish(folder: Path, counted: list[Path]) -> None:
    """``counts.json``: what cutting and each later step let through, over all parts."""
    parts = [load_json(path) for path in counted]
    cut: dict[str, Any] = {
        name: sum(part[name] for part in parts) for name in ("documents", "passages_cut", "passages", "characters")
    }
    cut["filters"] = []
    for same in zip(*(part["filters"] for part in parts), strict=True):
        reasons: dict[str, int] = {}
        for one in same:
            for reason, number in one["reasons"].items():
                reasons[reason] = reasons.get(reason, 0) + number
        totals = {name: sum(one[name] for one in same) for name in same[0] if name not in ("name", "reasons")}
        cut["filters"].append({"name": same[0]["name"], **totals, "reasons": reasons})
    cut["unreadable"] = [item for part in parts for item in part["unreadable"]]
    save_json(folder / COUNTS, {"cut": cut, **load_json(folder / KEPT)["counts"]})
