"""The pool of the text experiment: split and drawn by seed, from passages that all seeds share."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int

from curation.embedding.lexical import BYTES, is_lexical, lexical_dimensions, lexical_embedder
from curation.embedding.sentences import OFFLINE, PRECISIONS, embed_passages, open_sentence_model
from curation.store.embeddings import open_embeddings
from eval.rarity import NEIGHBOURS, distance_to_pool
from experiments.engine.inputs import DATA, locate
from experiments.engine.shards import ROWS_PER_PART, array_in_parts, embed_in_parts, once, own_device, unfinished
from experiments.engine.stages import StageRun, fingerprint
from experiments.engine.zipf import zipf_sizes
from experiments.text.brown import SHA512, fetch_brown, read_brown
from experiments.text.passages import COUNTS, Passages, Rules, open_passages
from foundation.errors import CurationError
from foundation.files import digest_json, load_array, load_json, save_array, save_json
from foundation.hub import require_model_name
from foundation.overlap import SHARE, found_grams, shares_of, wanted_grams
from foundation.settings import Count, CountOrZero, NonNegative, Range, Share, check, nearest_name
from text_lm.documents import Document, document_parts, read_documents
from text_lm.filters import open_filters, require_filter
from text_lm.split import split_by_document
from text_lm.tokenizer import open_tokenizer

BROWN = "brown"
TEST, POOL = "test.json", "pool.json"
LAYOUT = 2  # of the folder of passages: one of before is left to the stages that were made from it
CONSIDERED, LEAST_CONSIDERED = 8, 4 << 20  # of a domain: times `test_bytes`, or bytes, that are looked for in the pool
FIT_ROWS = 32_768  # passages that the axes of a lexical embedder are fitted on at most
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
        embedder: what the curation sees: one of `curation.embedding.lexical`, whose axes are fitted on the pool of
            the seed, or of `curation.embedding.sentences.open_sentence_model`.
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


def check_names(pool: PoolSettings, _train: Any, _evaluate: Any) -> None:
    """Refuse what names nothing before a pool is made of it.

    Raises:
        CurationError: an unknown filter, lexical embedder or precision, a path of a tokenizer or sentence model where
            there is none, or a judge's embedder that the curation sees.
    """
    for name in pool.filters:
        require_filter(name)
    for key in ("embedder", "judge_embedder"):
        name = getattr(pool, key)
        if name and is_lexical(name):
            lexical_dimensions(name)
        elif name or key == "embedder":
            require_model_name(name, f"science.pool.{key}")
    if pool.precision not in PRECISIONS:
        raise CurationError(f"science.pool.precision is {pool.precision!r}; use {', '.join(PRECISIONS)}")
    if pool.tokenizer != "bytes":
        require_model_name(pool.tokenizer, "science.pool.tokenizer")
    kinds = [name.partition(":")[0] if is_lexical(name) else name for name in (pool.embedder, pool.judge_embedder)]
    if kinds[0] == kinds[1]:
        raise CurationError(
            f"science.pool.judge_embedder is {pool.judge_embedder!r}, which the curation has seen: rare passages must "
            "be found by another one; name another, or none"
        )


def opens(pool: PoolSettings) -> list[Callable[[], object]]:
    """Calls that open what the pool will be made with, each for a moment.

    They raise `CurationError` where the source, a filter's package, the tokenizer or a sentence model is not there.
    """
    names = [name for name in (pool.embedder, pool.judge_embedder) if name and not is_lexical(name)]
    models: list[Callable[[], object]] = [partial(open_sentence_model, name, "cpu", pool.precision) for name in names]
    own = partial(_parts, pool), partial(open_filters, pool.filters), partial(open_tokenizer, pool.tokenizer)
    return [*own, *models]


def _parts(pool: PoolSettings) -> tuple[Sequence[Any], Callable[[Any], Iterator[Document]]]:
    """The source in parts, each cut by one process, and what reads one.

    Raises:
        CurationError: the source is not there.
    """
    path = place_of(pool.source)
    if pool.source == BROWN:
        return [None], lambda _part: read_brown(fetch_brown(path))
    if not path.exists():
        raise CurationError(
            f"science.pool.source {pool.source!r} is not there; set {DATA} to the folder that it lies in, "
            "or science.pool.source to a file or folder of text with domains"
        )
    return document_parts(path), lambda files: read_documents(path, files=files)


def shared_passages(pool: PoolSettings, run: StageRun) -> Passages:
    """The passages that all seeds draw from, beside their stages; see `open_passages`."""
    shared = asdict(pool)
    for own in OF_SEED:
        shared.pop(own)
    rules = Rules(**{entry.name: shared[entry.name] for entry in fields(Rules)})
    shared["layout"] = LAYOUT
    shared["content"] = [SHA512] if pool.source == BROWN else [fingerprint(path) for path in input_files(pool)]
    folder = run.folder.parents[1] / f"passages-{digest_json(shared)[:8]}"  # beside the stages of all seeds
    return open_passages(folder, rules, *_parts(pool), open_tokenizer(pool.tokenizer), run.progress)


def open_embedder(
    name: str, passages: Passages, rows: Int[np.ndarray, "n"], run: StageRun
) -> Callable[[Int[np.ndarray, "m"]], Float[np.ndarray, "m d"]]:
    """What gives the embeddings of passages; its axes are fitted on ``rows`` where there are any.

    Those of a sentence model are made once for all passages, and kept beside them.
    """
    pool = PoolSettings(**run.settings)
    if is_lexical(name):
        fitted_on = rows
        if len(rows) > FIT_ROWS:
            fitted_on = np.sort(np.random.default_rng([run.seed or 0, 23]).choice(rows, FIT_ROWS, replace=False))
        needed = [] if name == BYTES else passages.texts(fitted_on)
        embed = lexical_embedder(name, needed, run.seed or 0)
        return lambda wanted: embed(passages.texts(wanted))
    from datasets import Dataset

    folder = passages.folder / f"embeddings-{digest_json([name, pool.precision, pool.max_tokens])[:8]}"
    if not (folder / "embeddings.json").exists():
        model = open_sentence_model(name, own_device(str(run.speed.get("device", "cpu"))), pool.precision)
        if pool.max_tokens:
            model.max_seq_length = min(pool.max_tokens, model.max_seq_length)

        def embed_part(mine: range, part: Path) -> None:
            texts = Dataset.from_dict({"text": passages.texts(mine)})
            embed_passages(texts, part, model, rows_per_shard=2048, progress=run.progress)

        embed_in_parts(len(passages), embed_part, folder, progress=run.progress)
    x = open_embeddings(str(folder))
    return lambda wanted: np.asarray(x.take(wanted))


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
    check_names(pool, None, None)
    passages = shared_passages(pool, run)
    domains, names = _merged(passages, pool.merged)
    if len(np.unique(domains)) < 2 and not pool.judge_embedder:
        raise CurationError(
            f"all passages of {pool.source} are of one domain, and nothing else tells rare ones: give its documents a "
            "field domain, or set science.pool.judge_embedder"
        )
    documents = passages.documents
    train, test = split_by_document(documents, domains, pool.test_share, seed)
    trusted = np.empty(0, np.int64)
    if pool.trusted:
        train, trusted = _set_apart(train, documents, domains, len(names), pool, seed)
    rng = np.random.default_rng([seed, 21])
    rows = draw_pool(train, domains, pool, rng)
    held, n_known, untested = _held_out(passages, domains, names, test, rows, pool, run, rng)
    asked = np.concatenate(list(held.values()))
    both = np.intersect1d(documents[asked], documents[rows])
    if len(both):  # cannot be: the split is by documents
        raise CurationError(f"{len(both)} documents are in both pool and test set, such as number {both[0]}")
    embed = open_embedder(pool.embedder, passages, rows, run)
    array_in_parts(
        run.folder / "embeddings.npy", len(rows), lambda start, stop: embed(rows[start:stop]), progress=run.progress
    )
    save_array(run.folder / "labels.npy", domains[rows].astype(np.int64))
    if len(trusted):
        save_array(run.folder / "trusted.npy", embed(trusted))
    if pool.judge_embedder:
        judge = open_embedder(pool.judge_embedder, passages, rows, run)
        theirs = run.folder / ".judge.npy"
        once(
            run.folder / DISTANCE,
            lambda: save_array(
                run.folder / DISTANCE,
                distance_to_pool(
                    judge(asked),
                    array_in_parts(theirs, len(rows), lambda start, stop: judge(rows[start:stop])),
                    min(NEIGHBOURS, len(rows)),
                ),
            ),
        )
        theirs.unlink(missing_ok=True)
    save_json(run.folder / TEST, {name: mine.tolist() for name, mine in held.items()})
    save_array(run.folder / "rows.npy", rows)
    n_bytes = passages.n_bytes
    about = {
        "passages": str(os.path.relpath(passages.folder, run.folder)),
        "rows": len(rows),
        "documents": len(np.unique(documents[rows])),
        "rows_of": _of_domains(domains[rows], names),
        "bytes_of": _of_domains(domains[rows], names, n_bytes[rows]),
        "test_documents": len(np.unique(documents[asked])),
        "test_passages": len(asked),
        "test_bytes_of": _of_domains(domains[asked], names, n_bytes[asked]),
        "test_passages_in_pool": n_known,
        "untested": untested,
        "trusted_passages": len(trusted),
        "counts": load_json(passages.folder / COUNTS),
    }
    save_json(run.folder / POOL, about)
    return {"samples": float(len(rows))}


def _merged(passages: Passages, merged: list[str]) -> tuple[Int[np.ndarray, "n"], list[str]]:
    """Domain of each passage, as its place among the names, where the merged count as one."""
    heads = [name.split("/")[0] for name in passages.names]
    few = load_json(passages.folder / COUNTS)["too_few_documents"]["domains"]
    known = {*heads, *(name.split("/")[0] for name in few)}
    unknown = sorted(set(merged) - known)
    if unknown:
        raise CurationError(
            f"science.pool.merged: there is no domain {unknown[0]!r}; {nearest_name(unknown[0], known)}"
        )
    own = [head if head in merged else name for head, name in zip(heads, passages.names, strict=True)]
    names = sorted(set(own))
    return np.array([names.index(name) for name in own])[passages.domains], names


def _of_domains(domains: Int[np.ndarray, "n"], names: list[str], weights: Any = None) -> dict[str, int]:
    """Passages, or their bytes, of each domain that has any, the largest first."""
    totals = np.bincount(domains, weights, minlength=len(names)).astype(np.int64)
    order = np.argsort(-totals, kind="stable")
    return {names[i]: int(totals[i]) for i in order if totals[i]}


def _held_out(
    passages: Passages,
    domains: Int[np.ndarray, "all"],
    names: list[str],
    test: Int[np.ndarray, "m"],
    rows: Int[np.ndarray, "n"],
    pool: PoolSettings,
    run: StageRun,
    rng: np.random.Generator,
) -> tuple[dict[str, Int[np.ndarray, "k"]], int, list[str]]:
    """Test passages of each domain up to `test_bytes`, how many the pool holds already, and domains that have none.

    Raises:
        CurationError: no domain has one.
    """
    n_bytes, few = passages.n_bytes, np.random.default_rng([run.seed or 0, 24])
    considered, most = [], max(CONSIDERED * pool.test_bytes, LEAST_CONSIDERED)
    for code in range(len(names)):
        mine = test[domains[test] == code]
        if n_bytes[mine].sum() > most:  # of a large pool, not all that could be tested on
            mine = few.permutation(mine)
            mine = np.sort(mine[: np.searchsorted(np.cumsum(n_bytes[mine]), most) + 1])
        considered.append(mine)
    candidates = np.concatenate(considered)
    # copies of a passage are out already; this finds one that several passages of the pool hold together
    wanted = wanted_grams(passages.texts(candidates))
    grams = sorted(set().union(*wanted))
    number = {gram: i for i, gram in enumerate(grams)}
    starts = range(0, len(rows), ROWS_PER_PART)
    parts = [run.folder / f".seen/{i:05}.npy" for i in range(len(starts))]
    for i in unfinished(parts, "seen in the pool", run.progress):
        blocks = passages.blocks(rows[starts[i] : starts[i] + ROWS_PER_PART])
        found = found_grams(itertools.chain.from_iterable(blocks), number.keys())
        save_array(parts[i], np.array(sorted(number[gram] for gram in found), np.int64))
    there = {grams[i] for i in np.unique(np.concatenate([load_array(part) for part in parts])).tolist()}
    known = candidates[shares_of(wanted, there) >= SHARE]
    held, untested = {}, []
    for name, mine in zip(names, considered, strict=True):
        mine = rng.permutation(mine[~np.isin(mine, known)])
        if not len(mine):
            untested.append(name)
            continue
        size = np.cumsum(n_bytes[mine])
        held[name] = np.sort(mine[: max(int(np.searchsorted(size, pool.test_bytes, side="right")), 1)])
    if not held:
        raise CurationError("the pool holds every test passage; lower science.pool.near_duplicates")
    return held, len(known), untested


def _set_apart(
    train: Int[np.ndarray, "n"],
    documents: Int[np.ndarray, "all"],
    domains: Int[np.ndarray, "all"],
    n_domains: int,
    pool: PoolSettings,
    seed: int,
) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "k"]]:
    """Training passages without the documents of the trusted set, and as many passages of every domain from these."""
    left, apart = split_by_document(documents[train], domains[train], pool.trusted_share, seed + 1)
    apart = train[apart]
    rng = np.random.default_rng([seed, 22])
    chosen = [rng.permutation(apart[domains[apart] == code])[: pool.trusted] for code in range(n_domains)]
    return train[left], np.sort(np.concatenate(chosen))


def passages_of(prepared: Path) -> Path:
    """Folder of the shared passages that a folder of `prepare` was drawn from."""
    return (prepared / load_json(prepared / POOL)["passages"]).resolve()
