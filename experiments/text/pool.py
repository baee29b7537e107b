"""The pool of the text experiment: passages, tokens and embeddings once for each pool file; split and draw by seed."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int

from curation.embeddings import open_embeddings
from curation.lexical import embed_lexically, is_lexical
from curation.sentences import OFFLINE, embed_passages, open_sentence_model
from curation.text_duplicates import exact_duplicates, near_duplicates
from eval.overlap import seen
from eval.rarity import NEIGHBOURS, distance_to_pool
from experiments.engine.inputs import DATA, locate
from experiments.engine.stages import StageRun, fingerprint
from experiments.engine.zipf import zipf_sizes
from experiments.text.brown import SHA512, fetch_brown, read_brown
from foundation.errors import CurationError
from foundation.files import digest_json, load_json, save_array, save_json, write_atomically
from foundation.settings import Count, CountOrZero, NonNegative, Range, Share, check
from text_lm.documents import Document, count_domains, read_documents
from text_lm.filters import open_filters
from text_lm.passages import write_passages
from text_lm.perplexity import domain_bytes
from text_lm.split import split_by_document
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import tokenise_pool

BROWN = "brown"
COLUMNS = ["text", "source", "domain"]
PASSAGES, COUNTS, TEST, POOL = "passages.parquet", "counts.json", "test.json", "pool.json"
DISTANCE = "distance.npy"
# settings that the passages themselves do not depend on
OF_SEED = ["rows", "merged", "zipf", "test_share", "test_bytes", "trusted", "trusted_share", "dim"]
OF_SEED += ["embedder", "judge_embedder", "precision", "max_tokens"]

PartOfAll = Annotated[float, Range(gt=0, lt=1)]  # something is taken, something is left


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
        left_out: domains that are not taken.
        min_documents: a domain of fewer documents is left out, for it cannot be tested on documents of its own.
        sections: the documents of such a domain are cut into as many runs of passages in all, which then count as its
            documents; 0: they are not. For corpora that are one file of many texts.
        test_share: of the passages of every domain, by whole documents, that are held out.
        test_bytes: of held-out text of every domain, at most: for time.
        trusted: passages of every domain in the set that the arm `retrieval` starts from, of documents that are in
            neither pool nor test; 0: there is none.
        trusted_share: of the passages of every domain that are not tested on, by whole documents, it is drawn from.
        embedder: what the curation sees: one of `curation.lexical.is_lexical`, whose axes are fitted on the pool of the
            seed, or of `curation.sentences.open_sentence_model`.
        judge_embedder: another one, by which the test passages are ordered from common to rare; "": they are not.
        precision: of sentence models; bfloat16 is twice as fast on CPUs that have it.
        max_tokens: of a passage that a sentence model reads; 0: as many as it can.
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
    left_out: list[str] = field(default_factory=list)
    min_documents: Count = 5
    sections: CountOrZero = 0
    test_share: PartOfAll = 0.2
    test_bytes: Count = 30_000
    trusted: CountOrZero = 0
    trusted_share: PartOfAll = 0.05
    embedder: str = OFFLINE
    judge_embedder: str = ""
    precision: str = "auto"
    max_tokens: CountOrZero = 0
    dim: Count = 384
    tokenizer: str = "bytes"

    def __post_init__(self) -> None:
        check(self, "science.pool")


def place_of(source: str) -> Path:
    """Where the text of ``science.pool.source`` lies (for "brown": where its package is kept)."""
    if source == BROWN:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return Path(home) / "curated-ssl"
    return locate(source)


def input_files(pool: PoolSettings) -> list[Path]:
    """What decides the pool besides its settings. A missing one is left for `prepare` to name: a dry run needs none."""
    path = place_of(pool.source)
    return [path] if pool.source != BROWN and path.exists() else []


@dataclass(frozen=True)
class Passages:
    """All passages of a pool file, in folders that every seed shares.

    Attributes:
        folder: holds passages.parquet, tokens/, counts.json, and embeddings of sentence models.
        texts, sources, domains: of each passage.
    """

    folder: Path
    texts: list[str]
    sources: list[str]
    domains: list[str]

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens"


def _documents(pool: PoolSettings) -> Iterator[Document]:
    path = place_of(pool.source)
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
) -> tuple[Int[np.ndarray, "n"], list[str], dict[str, Any]]:
    """Rows that are no copies and of domains with enough documents, the document of each, and counts of all steps."""
    unknown = sorted(set(pool.left_out) - set(domains))
    if unknown:
        raise CurationError(f"science.pool.left_out: {pool.source} has no domain {unknown[0]!r}")
    start = np.flatnonzero([domain not in pool.left_out for domain in domains])
    copies = exact_duplicates([texts[i] for i in start])
    rows = start[copies.kept]
    counts: dict[str, Any] = {"left_out": len(texts) - len(start), "exact_copies": copies.counts}
    if pool.near_duplicates:
        near = near_duplicates([texts[i] for i in rows], pool.near_duplicates, progress=run.progress)
        counts["near_copies"] = near.counts
        rows = rows[near.kept]
    sources = list(sources)
    documents = _documents_of(rows, sources, domains)
    counts["in_sections"] = {}
    if pool.sections:
        for domain, found in documents.items():
            if len(found) < pool.min_documents:
                counts["in_sections"][domain] = len(found)
                mine = np.asarray([i for i in rows if domains[i] == domain])  # in the order of the documents
                for number, section in enumerate(np.array_split(mine, pool.sections)):
                    for i in section:
                        sources[i] = f"{sources[i]}, section {number + 1} of {domain}"
        documents = _documents_of(rows, sources, domains)
    small = sorted(domain for domain, found in documents.items() if len(found) < pool.min_documents)
    kept = rows[[domains[i] not in small for i in rows]] if len(rows) else rows
    if not len(kept):
        raise CurationError(
            f"no domain of {pool.source} has {pool.min_documents} documents; lower science.pool.min_documents, or give "
            "text with a domain and a source for each document"
        )
    counts["too_few_documents"] = {"domains": small, "rows_out": len(kept), "passages": len(rows) - len(kept)}
    return kept, [sources[i] for i in kept], counts


def _documents_of(rows: Int[np.ndarray, "n"], sources: list[str], domains: list[str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for i in rows:
        found.setdefault(domains[i], set()).add(sources[i])
    return found


def open_passages(pool: PoolSettings, run: StageRun) -> Passages:
    """Cut, filter, deduplicate and tokenise; what was finished before is opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from filelock import FileLock

    shared = asdict(pool)
    for own in OF_SEED:
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
            rows, documents, counts = _kept(texts, sources, domains, pool, run)
            kept = table.take(pa.array(rows)).set_column(table.column_names.index("source"), "source", [documents])
            write_atomically(path, lambda stream: pq.write_table(kept, stream, compression="zstd"))
            save_json(folder / COUNTS, {"cut": load_json(folder / "cut.counts.json"), **counts})
            cut.unlink()
        table = pq.read_table(path)
        found = Passages(folder, *(table[name].to_pylist() for name in COLUMNS))
        passages = Dataset.from_dict({"text": found.texts})
        tokenise_pool(passages, open_tokenizer(pool.tokenizer), found.tokens, progress=run.progress)
    return found


def embed(
    name: str, passages: Passages, rows: Int[np.ndarray, "n"], others: list[Int[np.ndarray, "m"]], run: StageRun
) -> list[Float[np.ndarray, "n d"]]:
    """Embeddings of ``rows``, which the axes are fitted on where there are any, and of the other lists of passages.

    Those of a sentence model are made once for all passages, and kept beside them.
    """
    pool = PoolSettings(**run.settings)
    if is_lexical(name):
        texts = [[passages.texts[i] for i in part] for part in (rows, *others)]
        return embed_lexically(name, texts[0], *texts, seed=run.seed or 0)
    from datasets import Dataset
    from filelock import FileLock

    folder = passages.folder / f"embeddings-{digest_json([name, pool.precision, pool.max_tokens])[:8]}"
    folder.mkdir(exist_ok=True)
    with FileLock(passages.folder / ".lock"):
        state = folder / "embeddings.json"
        if not (state.exists() and load_json(state)["complete"]):
            model = open_sentence_model(name, str(run.speed.get("device", "cpu")), pool.precision)
            if pool.max_tokens:
                model.max_seq_length = min(pool.max_tokens, model.max_seq_length)
            whole = Dataset.from_dict({"text": passages.texts})
            embed_passages(whole, folder, model, rows_per_shard=2048, progress=run.progress)
    x = open_embeddings(str(folder))
    return [np.asarray(x.take(part)) for part in (rows, *others)]


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

    Writes ``embeddings.npy``, ``labels.npy`` (domain of each passage) and ``trusted.npy`` as all experiments do;
    ``rows.npy``, the place of each in the shared passages; ``test.json``, the held-out passages of each domain;
    ``distance.npy``, of each of these, in order, to the pool; ``pool.json``.

    Raises:
        CurationError: the judge's embedder is the one that the curation sees.
    """
    pool, seed = PoolSettings(**run.settings), run.seed or 0
    kinds = [name.partition(":")[0] if is_lexical(name) else name for name in (pool.embedder, pool.judge_embedder)]
    if kinds[0] == kinds[1]:
        raise CurationError(
            f"science.pool.judge_embedder is {pool.judge_embedder!r}, which the curation has seen: rare passages must "
            "be found by another one; name another, or none"
        )
    passages = open_passages(pool, run)
    heads = [name.split("/")[0] for name in passages.domains]
    domains = np.asarray([h if h in pool.merged else d for h, d in zip(heads, passages.domains, strict=True)])
    sources = passages.sources
    train, test = split_by_document(sources, domains.tolist(), pool.test_share, seed)
    names = sorted(set(domains.tolist()))
    trusted = np.empty(0, np.int64)
    if pool.trusted:
        train, trusted = _set_apart(train, sources, domains, names, pool, seed)
    rng = np.random.default_rng([seed, 21])
    rows = draw_pool(train, domains, pool, rng)
    texts, of_row = [passages.texts[i] for i in rows], domains[rows].tolist()
    # copies of a passage are out already; this finds one that several passages of the pool hold together
    known = set(test[seen(texts, [passages.texts[i] for i in test])].tolist())
    held, untested = {}, []
    for name in names:
        mine = rng.permutation([i for i in test[domains[test] == name] if i not in known])
        if not len(mine):
            untested.append(name)
            continue
        size = np.cumsum([len(passages.texts[i].encode()) for i in mine])
        held[name] = np.sort(mine[: max(int(np.searchsorted(size, pool.test_bytes, side="right")), 1)]).tolist()
    if not held:
        raise CurationError("the pool holds every test passage; lower science.pool.near_duplicates")
    asked = np.concatenate([np.asarray(mine, np.int64) for mine in held.values()])
    both = {sources[i] for i in asked} & {sources[i] for i in rows}
    if both:  # cannot be: the split is by documents
        raise CurationError(f"{len(both)} documents are in both pool and test set, such as {sorted(both)[0]!r}")
    x, *reference = embed(pool.embedder, passages, rows, [trusted] if len(trusted) else [], run)
    save_array(run.folder / "embeddings.npy", x)
    save_array(run.folder / "labels.npy", np.searchsorted(names, domains[rows]).astype(np.int64))
    if reference:
        save_array(run.folder / "trusted.npy", reference[0])
    if pool.judge_embedder:
        theirs, of_test = embed(pool.judge_embedder, passages, rows, [asked], run)
        save_array(run.folder / DISTANCE, distance_to_pool(of_test, theirs, min(NEIGHBOURS, len(rows))))
    save_json(run.folder / TEST, held)
    save_array(run.folder / "rows.npy", rows)
    about = {
        "passages": str(os.path.relpath(passages.folder, run.folder)),
        "rows": len(rows),
        "documents": len({sources[i] for i in rows}),
        "rows_of": count_domains(of_row),
        "bytes_of": domain_bytes(texts, of_row),
        "test_documents": len({sources[i] for i in asked}),
        "test_passages": len(asked),
        "test_bytes_of": domain_bytes([passages.texts[i] for i in asked], domains[asked].tolist()),
        "test_passages_in_pool": len(known),
        "untested": untested,
        "trusted_passages": len(trusted),
        "counts": load_json(passages.folder / COUNTS),
    }
    save_json(run.folder / POOL, about)
    return {"samples": float(len(rows))}


def _set_apart(
    train: Int[np.ndarray, "n"],
    sources: list[str],
    domains: np.ndarray,
    names: list[str],
    pool: PoolSettings,
    seed: int,
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "k"]]:
    """Training passages without the documents of the trusted set, and as many passages of every domain from these."""
    mine = [sources[i] for i in train], domains[train].tolist()
    left, apart = split_by_document(*mine, pool.trusted_share, seed + 1)
    apart = train[apart]
    rng = np.random.default_rng([seed, 22])
    chosen = [rng.permutation(apart[domains[apart] == name])[: pool.trusted] for name in names]
    return train[left], np.sort(np.concatenate(chosen))


def passages_of(prepared: Path) -> Path:
    """Folder of the shared passages that a folder of `prepare` was drawn from."""
    return (prepared / load_json(prepared / POOL)["passages"]).resolve()
