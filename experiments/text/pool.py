"""The pool of the text experiment: passages, tokens and embeddings once for each pool file; split and draw by seed."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int

from curation.embeddings import open_embeddings
from curation.text_duplicates import exact_duplicates, near_duplicates
from experiments.stages import StageRun, fingerprint
from experiments.text.brown import SHA512, fetch_brown, read_brown
from foundation.errors import CurationError
from foundation.files import digest_json, load_json, save_array, save_json, write_atomically
from foundation.settings import Count, CountOrZero, NonNegative, Range, Share, check
from text_lm.documents import Document, count_domains, read_documents
from text_lm.embed import OFFLINE, embed_passages, open_sentence_model
from text_lm.filters import open_filters
from text_lm.passages import write_passages
from text_lm.perplexity import domain_bytes
from text_lm.split import split_by_document
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import tokenise_pool

BROWN = "brown"
DATA = "CURATED_SSL_DATA"
COLUMNS = ["text", "source", "domain"]
PASSAGES, COUNTS, TEST, POOL = "passages.parquet", "counts.json", "test.json", "pool.json"


@dataclass(frozen=True)
class PoolSettings:
    """Section ``science.pool``.

    Attributes:
        source: "brown", which is fetched, or what `text_lm.documents.read_documents` takes; a relative path is looked
            up in the folder that the variable CURATED_SSL_DATA names, so that results never depend on a machine.
        rows: passages in the pool of one seed, drawn at random from its training documents.
        passage: characters of a passage; 0: the documents of the source are passages already.
        filters: of passages, see `text_lm.filters.open_filter`.
        near_duplicates: Jaccard similarity of word 5-grams from which a passage repeats an earlier one and is left out,
            before the split, so that no test passage has a copy in the pool; 0: only exact copies are.
        merged: domains "NAME/..." of these names count as one: their parts are too alike to be domains of a web pool.
        zipf: the domains' passages in the pool fall as rank^-zipf, the ranks drawn by the seed, so that no domain is
            rare in every seed; 0: the sizes that the text has.
        min_documents: a domain of fewer documents is left out, for it cannot be tested on documents of its own.
        test_share: of the passages of every domain, by whole documents, that are held out.
        test_bytes: of held-out text of every domain, at most: for time.
        embedder, precision: see `text_lm.embed.open_sentence_model`; bfloat16 is twice as fast on CPUs that have it.
        max_tokens: of a passage that the embedder reads; 0: as many as it can.
        dim: of its embeddings; for estimates.
        tokenizer: see `text_lm.tokenizer.open_tokenizer`.
    """

    source: str
    rows: Count
    passage: CountOrZero = 0
    filters: list[str] = field(default_factory=list)
    near_duplicates: Share = 0.7
    merged: list[str] = field(default_factory=list)
    zipf: NonNegative = 0.0
    min_documents: Count = 5
    test_share: Annotated[float, Range(gt=0, lt=1)] = 0.2
    test_bytes: Count = 30_000
    embedder: str = OFFLINE
    precision: str = "auto"
    max_tokens: CountOrZero = 0
    dim: Count = 384
    tokenizer: str = "bytes"

    def __post_init__(self) -> None:
        check(self, "science.pool")


def locate(source: str) -> Path:
    """Where the text of ``science.pool.source`` lies (for "brown": where its package is kept)."""
    if source == BROWN:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "curated-ssl"
    path = Path(source)
    return path if path.is_absolute() or DATA not in os.environ else Path(os.environ[DATA]) / path


def input_files(pool: PoolSettings) -> list[Path]:
    """What decides the pool besides its settings. A missing one is left for `prepare` to name: a dry run needs none."""
    path = locate(pool.source)
    return [path] if pool.source != BROWN and path.exists() else []


@dataclass(frozen=True)
class Passages:
    """All passages of a pool file, in folders that every seed shares.

    Attributes:
        folder: holds passages.parquet, embeddings/, tokens/ and counts.json.
        texts, sources, domains: of each passage.
    """

    folder: Path
    texts: list[str]
    sources: list[str]
    domains: list[str]

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"

    @property
    def embeddings(self) -> Path:
        return self.folder / "embeddings"


def _documents(pool: PoolSettings) -> Iterator[Document]:
    path = locate(pool.source)
    if pool.source == BROWN:
        yield from read_brown(fetch_brown(path))
        return
    if not path.exists():
        raise CurationError(
            f"science.pool.source {pool.source!r} is not there; set {DATA} to the folder that it lies in, "
            "or science.pool.source to a file or folder of text with domains"
        )
    yield from read_documents(path)


def _kept(
    texts: list[str], sources: list[str], domains: list[str], pool: PoolSettings, run: StageRun
) -> tuple[Int[np.ndarray, "n"], dict[str, Any]]:
    """Rows that are no copies and of domains with enough documents, and the counts of both steps."""
    copies = exact_duplicates(texts)
    rows = copies.kept
    counts: dict[str, Any] = {"exact_copies": copies.counts}
    if pool.near_duplicates:
        near = near_duplicates([texts[i] for i in rows], pool.near_duplicates, progress=run.progress)
        counts["near_copies"] = near.counts
        rows = rows[near.kept]
    documents: dict[str, set[str]] = {}
    for i in rows:
        documents.setdefault(domains[i], set()).add(sources[i])
    small = sorted(domain for domain, found in documents.items() if len(found) < pool.min_documents)
    rows = rows[[domains[i] not in small for i in rows]] if len(rows) else rows
    if not len(rows):
        raise CurationError(
            f"no domain of {pool.source} has {pool.min_documents} documents; lower science.pool.min_documents, or give "
            "text with a domain and a source for each document"
        )
    counts["too_few_documents"] = {"domains": small, "rows_out": len(rows)}
    return rows, counts


def open_passages(pool: PoolSettings, run: StageRun) -> Passages:
    """Cut, filter, deduplicate, tokenise and embed; what was finished before is opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from filelock import FileLock

    shared = asdict(pool)
    for own in ("rows", "merged", "zipf", "test_share", "test_bytes", "dim"):
        shared.pop(own)
    shared["content"] = [SHA512] if pool.source == BROWN else [fingerprint(path) for path in input_files(pool)]
    folder = run.folder.parents[1] / f"passages-{digest_json(shared)[:8]}"  # beside the stages of all seeds
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PASSAGES
    with FileLock(folder / ".lock"):  # seeds that run side by side wait for the first
        if not (folder / COUNTS).exists():
            cut = folder / "cut.parquet"
            write_passages(
                _documents(pool), cut, pool.passage, filters=open_filters(pool.filters), progress=run.progress
            )
            table = pq.read_table(cut, columns=COLUMNS)
            texts, sources, domains = (table[name].to_pylist() for name in COLUMNS)
            rows, counts = _kept(texts, sources, domains, pool, run)
            kept = table.take(pa.array(rows))
            write_atomically(path, lambda stream: pq.write_table(kept, stream, compression="zstd"))
            save_json(folder / COUNTS, {"cut": load_json(folder / "cut.counts.json"), **counts})
            cut.unlink()
        table = pq.read_table(path)
        found = Passages(folder, *(table[name].to_pylist() for name in COLUMNS))
        passages = Dataset.from_dict({"text": found.texts})
        tokenise_pool(passages, open_tokenizer(pool.tokenizer), found.tokens, progress=run.progress)
        model = open_sentence_model(pool.embedder, str(run.speed.get("device", "cpu")), pool.precision)
        if pool.max_tokens:
            model.max_seq_length = min(pool.max_tokens, model.max_seq_length)
        embed_passages(passages, found.embeddings, model, rows_per_shard=2048, progress=run.progress)
    return found


def zipf_sizes(
    available: Int[np.ndarray, "k"], rows: int, exponent: float, rng: np.random.Generator
) -> Int[np.ndarray, "k"]:
    """Rows of each of k domains, falling as rank^-exponent, ``rows`` in all.

    The most frequent rank is drawn first, among the domains that have the text for it.

    Raises:
        CurationError: no domain has.
    """
    shares = np.arange(1, len(available) + 1) ** -exponent
    ends = np.round(np.cumsum(shares) / shares.sum() * rows).astype(np.int64)
    found = np.zeros(len(available), np.int64)
    left = np.arange(len(available))
    for size in np.diff(ends, prepend=0):
        fit = left[available[left] >= size]
        if not len(fit):
            raise CurationError(
                f"no domain has the {size:,} passages that science.pool.zipf={exponent} asks for; "
                "lower science.pool.rows"
            )
        chosen = rng.choice(fit)
        found[chosen] = size
        left = left[left != chosen]
    return found


def draw_pool(
    train: Int[np.ndarray, "n"], domains: np.ndarray, pool: PoolSettings, rng: np.random.Generator
) -> Int[np.ndarray, "rows"]:
    """``pool.rows`` of the training passages, ascending; ``domains`` are those of all passages."""
    if len(train) < pool.rows:
        raise CurationError(
            f"{pool.source} has {len(train):,} passages to train on, fewer than science.pool.rows={pool.rows:,}"
        )
    if not pool.zipf:
        return np.sort(rng.choice(train, pool.rows, replace=False))
    names, index = np.unique(domains[train], return_inverse=True)
    sizes = zipf_sizes(np.bincount(index, minlength=len(names)), pool.rows, pool.zipf, rng)
    parts = [rng.choice(train[index == i], size, replace=False) for i, size in enumerate(sizes)]
    return np.sort(np.concatenate(parts))


def prepare(run: StageRun) -> dict[str, float]:
    """Stage action: the documents held out by this seed, and ``pool.rows`` passages of the others as its pool.

    Writes ``embeddings.npy`` and ``labels.npy`` (domain of each passage) as all experiments do; ``rows.npy``, the
    place of each in the shared passages; ``test.json``, the held-out passages of each domain; ``pool.json``.
    """
    pool, seed = PoolSettings(**run.settings), run.seed or 0
    passages = open_passages(pool, run)
    heads = [name.split("/")[0] for name in passages.domains]
    domains = np.asarray([h if h in pool.merged else d for h, d in zip(heads, passages.domains, strict=True)])
    sources = passages.sources
    train, test = split_by_document(sources, domains.tolist(), pool.test_share, seed)
    rng = np.random.default_rng([seed, 21])
    rows = draw_pool(train, domains, pool, rng)
    names = sorted(set(domains.tolist()))
    x = open_embeddings(str(passages.embeddings))
    save_array(run.folder / "embeddings.npy", np.asarray(x.take(rows)))
    save_array(run.folder / "labels.npy", np.searchsorted(names, domains[rows]).astype(np.int64))
    held = {}
    for name in names:
        mine = rng.permutation(test[domains[test] == name])
        size = np.cumsum([len(passages.texts[i].encode()) for i in mine])
        held[name] = np.sort(mine[: max(int(np.searchsorted(size, pool.test_bytes, side="right")), 1)]).tolist()
    save_json(run.folder / TEST, held)
    save_array(run.folder / "rows.npy", rows)
    texts, of_row = [passages.texts[i] for i in rows], domains[rows].tolist()
    about = {
        "passages": str(os.path.relpath(passages.folder, run.folder)),
        "rows": len(rows),
        "documents": len({sources[i] for i in rows}),
        "rows_of": count_domains(of_row),
        "bytes_of": domain_bytes(texts, of_row),
        "test_documents": len({sources[i] for i in test}),
    }
    assert not {sources[i] for i in test} & {sources[i] for i in rows}, "a document is on both sides of the split"
    save_json(run.folder / POOL, about)
    return {"samples": float(len(rows))}


def passages_of(prepared: Path) -> Path:
    """Folder of the shared passages that a folder of `prepare` was drawn from."""
    return (prepared / load_json(prepared / POOL)["passages"]).resolve()
