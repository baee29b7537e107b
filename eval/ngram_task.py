"""``python -m eval ngram``: how well the texts of one file predict those of another, by domain and by rarity."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, Int

from eval.arrays import as_features, check_same_width
from eval.ngram import HIGHEST, ORDER, fit_ngrams
from eval.rarity import PARTS, distance_to_pool, parts_by_rank
from eval.results import METRICS, Pooling, Results, Row, inputs_of, require_same, row_of
from eval.settings import Resamples
from foundation.errors import CurationError
from foundation.files import load_array
from foundation.intervals import bootstrap, pooled_mean
from foundation.jsonl import bad_line
from foundation.overlap import SHARE, seen_shares
from foundation.paths import regular_file
from foundation.settings import CountOrZero, Range, Seed, check, fill, setting

TEXT, DOMAIN, SOURCE = "text", "domain", "source"


@dataclass
class NgramSettings:
    """Bits per byte of held-out texts under a byte n-gram model of the training texts."""

    train: str = setting("", "parquet or JSONL with a field text; domain and source where known")
    test: str = setting("", "the same, of other documents")
    pool: str = setting("", "what train was drawn from, the same: gives rare and frequent domains; empty: train")
    order: Annotated[int, Range(ge=1, le=HIGHEST)] = setting(ORDER, "bytes of the longest n-gram")
    train_bytes: CountOrZero = setting(0, "of training text, at random whole texts until it is reached; 0: all")
    pool_features: str = setting("", ".npy of an encoder that the curation did not see, one row a text of pool")
    test_features: str = setting("", "the same, one row a text of test: gives tenths of the test by rarity")
    allow_seen: bool = setting(False, "measure even where test texts or their documents are in train")
    resamples: Resamples = setting(1000, "bootstrap draws of every interval, over documents where they are known")
    seed: Seed = setting(0, "of train_bytes and of the bootstrap")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Texts:
    """Texts of a file with the domain and document of each; None where the file does not say."""

    texts: list[str]
    domains: list[str] | None
    sources: list[str] | None


def read_texts(path: str) -> Texts:
    """Columns text, domain and source of a parquet or JSONL file.

    Raises:
        CurationError: not there, not readable, or a row without text.
    """
    import pyarrow as pa
    import pyarrow.json as pj
    import pyarrow.parquet as pq

    if not path:
        raise CurationError("no texts are given; give train= and test=, parquet or JSONL with a field text")
    regular_file(path, "give train= and test=, parquet or JSONL with a field text")
    try:
        if path.endswith((".parquet", ".pq")):
            table = pq.read_table(path, page_checksum_verification=True)
        else:
            table = pj.read_json(path)
    except (OSError, pa.ArrowException) as error:
        if not path.endswith((".parquet", ".pq")) and (line := bad_line([Path(path)])):
            raise CurationError(line) from error
        raise CurationError(f"{path} cannot be read as parquet or JSONL: {' '.join(str(error).split())}") from error
    if TEXT not in table.column_names:
        raise CurationError(f"{path} has no field {TEXT!r}; it has {', '.join(table.column_names)}")
    texts = table[TEXT].to_pylist()
    bad = next((row for row, text in enumerate(texts) if not isinstance(text, str) or not text), None)
    if bad is not None or not texts:
        raise CurationError(f"{path} row {bad or 0} has no text; leave such rows out")
    others = [
        [str(value) for value in table[name].to_pylist()] if name in table.column_names else None
        for name in (DOMAIN, SOURCE)
    ]
    return Texts(texts, *others)


def refuse_seen(train: Texts, test: Texts, allow: bool) -> dict[str, int]:
    """How many test texts are in the training texts, whole or by 0.7 of their word 8-grams, and share a document.

    Raises:
        CurationError: there are some, and ``allow`` is false.
    """
    shares = seen_shares(train.texts, test.texts)
    found = {"texts": int((shares >= SHARE).sum()), "documents": 0}
    if train.sources and test.sources:
        found["documents"] = len(set(train.sources) & set(test.sources))
    if any(found.values()) and not allow:
        where = int(np.argmax(shares))
        raise CurationError(
            f"{found['texts']} of {len(test.texts)} test texts are in the training texts (such as row {where}) and "
            f"{found['documents']} documents in both; leave them out of test (python -m text_lm split does), or "
            "measure anyway with allow_seen=true"
        )
    return found


@dataclass(frozen=True)
class _Scored:
    """Test texts with their scores: what figures are made of.

    Attributes:
        bits, n_bytes: (n,) of each text.
        groups: (n,) the document of each, as a number.
    """

    test: Texts
    bits: Float[np.ndarray, "n"]
    n_bytes: Float[np.ndarray, "n"]
    groups: Int[np.ndarray, "n"]

    def add(
        self,
        results: Results,
        dataset: str,
        rows: Int[np.ndarray, "m"],
        parts: Int[np.ndarray, "n"] | None = None,
    ) -> float:
        """Keep bits per byte of some texts (of ``parts``: the mean over them), its interval, and all to pair it."""
        settings = results.settings["ngram"]
        pooling = Pooling(
            self.n_bytes[rows], np.zeros(len(rows), np.int64) if parts is None else parts[rows], self.groups[rows]
        )
        values = self.bits[rows] / self.n_bytes[rows]
        figure = pooled_mean(values, pooling.weights, pooling.parts)
        interval = bootstrap(  # over all documents: how many of them a domain has is left to chance, too
            lambda counts: figure(counts[:, rows]),
            len(self.bits),
            self.groups,
            settings["resamples"],
            seed=settings["seed"],
        )
        row = replace(row_of("ngram", dataset, "bits_per_byte", interval), n=len(rows))
        results.rows.append(row)
        results.per_row[row.key], results.pooling[row.key] = values, pooling
        results.per_row_ids[row.key] = _digest(self.test.texts, rows, pooling)
        return row.value


def run_ngram(given: Mapping[str, Any], output: str | Path | None = None, overwrite: bool = False) -> Results:
    """Measure training texts; see `NgramSettings`.

    Rows: ``bits_per_byte`` of each domain (dataset "domain NAME"), of all texts, and of tenths by rarity ("tenth 1" is
    nearest to the pool); of dataset "domains" the mean, worst, and the rare and frequent third by bytes in the pool.

    Raises:
        CurationError: bad settings or files, a test set that the training texts hold, or `require_same`.
    """
    settings = fill(NgramSettings, given)
    started = time.perf_counter()
    train, test = read_texts(settings.train), read_texts(settings.test)
    pool = read_texts(settings.pool) if settings.pool else train
    if bool(settings.pool_features) != bool(settings.test_features):
        raise CurationError("rarity needs both pool_features= and test_features=, of the same encoder")
    files = [settings.train, settings.test, settings.pool, settings.pool_features, settings.test_features]
    inputs = inputs_of(asdict(settings), files)
    if output is not None:
        require_same(Path(output) / METRICS, [inputs], overwrite)
    seen = refuse_seen(train, test, settings.allow_seen)
    texts = train.texts
    if settings.train_bytes:
        order = np.random.default_rng(settings.seed).permutation(len(texts))
        ends = np.cumsum([len(texts[i].encode()) for i in order])
        if ends[-1] < settings.train_bytes:
            raise CurationError(f"{settings.train} has {ends[-1]:,} bytes, fewer than train_bytes; lower train_bytes")
        texts = [texts[i] for i in order[: int(np.searchsorted(ends, settings.train_bytes)) + 1]]
    model = fit_ngrams(texts, settings.order)
    bits, n_bytes = model.bits(test.texts), np.asarray([len(text.encode()) for text in test.texts], np.float64)
    results = Results(settings.train, inputs=inputs)
    groups = np.arange(len(bits)) if test.sources is None else np.unique(test.sources, return_inverse=True)[1]
    results.settings = {"ngram": asdict(settings), "seen": seen, "train_bytes": model.n_bytes}
    results.settings["documents"] = len(np.unique(groups))
    scored = _Scored(test, bits, n_bytes, groups)
    scored.add(results, "all", np.arange(len(bits)))
    if test.domains is not None:
        _add_domains(results, scored, test.domains, pool)
    if settings.pool_features:
        of_test = _features(settings.test_features, len(test.texts))
        of_pool = _features(settings.pool_features, len(pool.texts))
        check_same_width(as_features(of_pool), as_features(of_test))
        parts = parts_by_rank(distance_to_pool(of_test, of_pool))
        for part in range(PARTS):
            scored.add(results, f"tenth {part + 1}", np.flatnonzero(parts == part))
    results.seconds = {"ngram": time.perf_counter() - started}
    if output is not None:
        results.save(output)
    return results


def _add_domains(results: Results, scored: _Scored, domains: list[str], pool: Texts) -> None:
    known, label = np.unique(domains, return_inverse=True)
    names = [str(name) for name in known]
    rows = {name: np.flatnonzero(label == i) for i, name in enumerate(names)}
    values = {name: scored.add(results, f"domain {name}", rows[name]) for name in names}
    scored.add(results, "domains, mean", np.arange(len(label)), label)
    worst = max(names, key=lambda name: values[name])
    results.rows.append(Row("ngram", f"domains, worst: {worst}", "bits_per_byte", values[worst], n=len(rows[worst])))
    if pool.domains is None:
        return
    if not set(names) & set(pool.domains):
        raise CurationError("the pool has none of the domains of the test; give pool=, what train was drawn from")
    size = dict.fromkeys(names, 0)
    for text, domain in zip(pool.texts, pool.domains, strict=True):
        if domain in size:
            size[domain] += len(text.encode())
    ranked = sorted(names, key=lambda name: (-size[name], name))
    third = max(round(len(names) / 3), 1)
    for title, some in (("frequent third", ranked[:third]), ("rare third", ranked[-third:])):
        scored.add(results, f"domains, {title}", np.sort(np.concatenate([rows[name] for name in some])), label)


def _features(path: str, n: int) -> np.ndarray:
    x = load_array(Path(path), mmap=False)
    if x.ndim != 2 or x.dtype.kind != "f":
        raise CurationError(f"features {path} are {x.dtype} of shape {x.shape}; give a row of floats for each text")
    if len(x) != n:
        raise CurationError(f"features {path} have {len(x)} rows for {n} texts; give one a text")
    return as_features(x.astype(np.float32), f"features {path}").numpy()


def _digest(texts: list[str], rows: Int[np.ndarray, "m"], pooling: Pooling) -> str:
    """Of the texts and of how they are pooled; their parts count as they follow each other, not by number."""
    digest = hashlib.blake2b(digest_size=8)
    for row in rows:
        digest.update(texts[row].encode() + b"\0")
    for labels in (pooling.parts, pooling.groups):
        digest.update(np.unique(labels, return_inverse=True)[1].astype("<i8").tobytes())
    return digest.hexdigest()
