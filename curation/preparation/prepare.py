"""Preparation of a pool, as the paper does it before clustering: near-duplicates and junk are left out, and counted."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from curation.group import Group
from curation.kmeans.assignment import rows_per_read
from curation.pools.pool import check_text, open_pool, pool_fingerprint
from curation.preparation.duplicates import alike, can_hash, same_colours, similar_hashes
from curation.preparation.filters.junk import JunkFilter
from curation.preparation.filters.text import TextJunk
from curation.preparation.kept import FORMAT_VERSION, Kept, load_kept, read_report, require_one_pool, rows_of, save_kept
from curation.preparation.looks import look_at
from curation.preparation.near_duplicates import NearDuplicates, NearRule, near_duplicates, near_held_out
from curation.store.bad_rows import find_bad_rows
from curation.store.embeddings import Embeddings, has_columns, open_embeddings, require_own_row_ids
from curation.store.rows import SelectedRows
from foundation.errors import CurationError
from foundation.files import digest_json, load_json, save_json
from foundation.images import read_image
from foundation.locks import locked_folder

BY = ("exact", "perceptual", "embedding", "text")
GROUPS_SHOWN = 20
MANY = 0.2  # share of the rows that is left out from which on somebody should look


@dataclass(frozen=True)
class Preparation:
    """What is left out.

    Attributes:
        by: signs of a duplicate: exact (equal bytes, or equal words), perceptual (hashes of pictures), embedding, text
            (overlapping word n-grams). One that the pool does not allow is left out with a note.
        near: rule for embeddings.
        metric: as for clustering: "cosine" compares rows of unit length.
        max_bits: of 64 bits of the perceptual hashes of duplicates that may differ;
        max_colour: and then the greatest mean difference of their colours, of 255 (`duplicates.same_colours`);
        confirm: and the least cosine of their embeddings, where there are some.
        alike_bits: of the hashes, and
        alike_colour: difference of the colours, up to which pictures whose embeddings are near neighbours are copies,
            or mirror images (`duplicates.alike`), and none else. Where hashes are not asked distances decide.
        overlap: least Jaccard similarity of the word n-grams of near-duplicate texts.
        junk: rules for pictures; None: none.
        text_junk: rules for texts; None: none.
        nsfw: greatest NSFW probability of pictures (extra ``filters``); 0: not asked.
    """

    by: tuple[str, ...] = ("exact", "perceptual", "embedding")
    near: NearRule = field(default_factory=NearRule)
    metric: str = "cosine"
    max_bits: int = 2
    max_colour: float = 4.0
    confirm: float = 0.7
    alike_bits: int = 8
    alike_colour: float = 8.0
    overlap: float = 0.7
    junk: JunkFilter | None = field(default_factory=JunkFilter)
    text_junk: TextJunk | None = None
    nsfw: float = 0.0

    def __post_init__(self) -> None:
        for name in self.by:
            if name not in BY:
                raise CurationError(f"by {name!r} is unknown; use one or more of {', '.join(BY)}")
        if self.metric not in ("cosine", "l2"):
            raise CurationError(f"metric {self.metric!r} is unknown; use cosine or l2")
        if not 0 <= self.max_bits <= 16 or not 0 < self.overlap <= 1 or not -1 <= self.confirm <= 1:
            raise CurationError(
                f"max_bits {self.max_bits} must lie in 0 to 16, overlap {self.overlap:g} in (0, 1], confirm "
                f"{self.confirm:g} in [-1, 1]"
            )
        if not 0 <= self.alike_bits <= 64:
            raise CurationError(f"alike_bits {self.alike_bits} are bits of a hash and must lie in 0 to 64")
        for name in ("max_colour", "alike_colour"):
            if not 0 <= getattr(self, name) <= 255:
                raise CurationError(
                    f"{name} {getattr(self, name):g} is a difference of colours and must lie in 0 to 255"
                )
        if not 0 <= self.nsfw <= 1:
            raise CurationError(f"nsfw {self.nsfw:g} is a probability and must lie in [0, 1]")


# reason of a row to the setting that decides it, and how that leaves out less
LOOSER = {
    "small": ("min_side", "lower"),
    "long": ("max_aspect", "raise"),
    "blank": ("min_spread", "lower"),
    "gradient": ("min_detail", "lower"),
    "noise": ("max_grain", "raise"),
    "short": ("min_characters", "lower"),
    "few letters": ("min_letters", "lower"),
    "repeated": ("max_repeat", "raise"),
    "nsfw": ("nsfw", "raise"),
    "held out": ("threshold", "raise"),
    "embedding": ("threshold", "raise"),
    "perceptual": ("max_bits", "lower"),
    "text": ("overlap", "raise"),
}
NO_SETTING = {"unreadable": "give another pool", "not finite or zero": "embed again"}


def _nothing_left(wanted: Preparation, n: int, dropped: dict[str, int], remedy: str) -> CurationError:
    """The error that names what took every row, and how to keep some."""
    parts, mend = [], []
    for reason, number in dropped.items():
        name, way = LOOSER.get(reason, ("", ""))
        parts.append(f"{number:,} {reason}")
        if name:
            owners = (wanted, wanted.near, wanted.junk, wanted.text_junk)
            value = next(getattr(owner, name) for owner in owners if hasattr(owner, name))
            parts[-1] += f": {name} is {value:g}"
            mend.append(f"{way} --{name.replace('_', '-')}")
        elif reason in NO_SETTING:
            mend.append(NO_SETTING[reason])
    remedy = remedy or " or ".join(dict.fromkeys(mend))
    return CurationError(f"preparation leaves none of the {n:,} rows ({', '.join(parts)}); {remedy}")


class _Ledger:
    """Which of some pool rows are still there, and why the others are not."""

    def __init__(self, rows: Int[np.ndarray, "n"]):
        self.rows = rows
        self.there = np.ones(len(rows), bool)
        self.reasons = np.full(len(rows), "", dtype=object)
        self.repeats = np.full(len(rows), -1, np.int64)
        self.similarity = np.full(len(rows), np.nan, np.float32)

    @property
    def left(self) -> Int[np.ndarray, "m"]:
        """Positions of the rows that are still there."""
        return np.flatnonzero(self.there)

    def drop(self, at: np.ndarray, reason: Any, repeats: Any = -1, similarity: Any = np.nan) -> None:
        """Take positions out; ``repeats`` are positions too."""
        self.there[at], self.reasons[at] = False, reason
        self.repeats[at], self.similarity[at] = repeats, similarity

    def resolved(self) -> Int[np.ndarray, "n"]:
        """Pool row that each repeats, through what was itself found to repeat another later."""
        last = self.repeats.copy()
        for _ in range(8):
            further = (last >= 0) & (self.repeats[last] >= 0)
            if not further.any():
                break
            last[further] = self.repeats[last[further]]
        return np.where(last >= 0, self.rows[last], -1)


def has_images(pool: Any) -> bool:
    """Whether a pool has pictures in the column ``image``."""
    from datasets import Image

    return pool is not None and "image" in pool.column_names and isinstance(pool.features["image"], Image)


def find_kept(
    pool: Any,
    embeddings: Any,
    wanted: Preparation,
    rows: Int[np.ndarray, "n"] | None = None,
    held_out: Any = None,
    *,
    work: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
    group: Group | None = None,
    remedy: str = "",
) -> Kept:
    """Look for duplicates and junk, and write nothing but the unfinished work.

    Args:
        pool: a `datasets.Dataset` with ``image`` or ``text``; None: the embeddings alone are asked.
        embeddings: of the rows of the pool; None: the pool alone is asked.
        rows: pool rows to look at, ascending; None: all that have an embedding, or all.
        held_out: embeddings of rows that must not be in the pool, such as a test set.
        work: finished blocks of a pass over the pictures, and of the search for near-duplicates, go here, and are
            removed at the end.
        group: the processes that share the search among embeddings; each of them gets the result.
        remedy: what to do where nothing is left; "": change the settings that took the rows.

    Raises:
        CurationError: nothing to look at, nothing is left, the embeddings are not of this pool, or see the steps.
    """
    if pool is None and embeddings is None:
        raise CurationError("nothing to prepare; give a pool, embeddings, or both")
    x = None if embeddings is None else open_embeddings(embeddings)
    known = rows_of(pool, x)
    if rows is None:
        rows = known
    elif not np.isin(rows, known).all():
        stranger = rows[~np.isin(rows, known)][0]
        raise CurationError(f"row {stranger} is to be kept, but it is not in the pool or has no embedding")
    started, ledger = time.monotonic(), _Ledger(np.asarray(rows, np.int64))
    notes: list[str] = []
    report: dict[str, Any] = {"format_version": FORMAT_VERSION, "rows": len(rows)}
    if pool is not None:
        report |= {"pool_rows": len(pool), "pool_fingerprint": pool_fingerprint(pool)}
    if x is not None:
        report["embeddings_fingerprint"] = x.fingerprint()
        report.setdefault("pool_fingerprint", x.metadata.get("pool_fingerprint"))
        # positions of the rows among the embeddings
        at = np.searchsorted(known, ledger.rows)
        bad = find_bad_rows(x, wanted.metric == "cosine", rows_per_read(x.dim), group)
        ledger.drop(np.flatnonzero(np.isin(at, bad)), "not finite or zero")
    looks = None
    if has_images(pool):
        looks = _pictures(pool, wanted, ledger, work, workers, progress, notes)
    elif pool is not None and "text" in pool.column_names:
        _texts(pool, wanted, ledger, progress)
    elif pool is not None and x is None:
        raise CurationError(f"the pool has no column image or text; it has {', '.join(pool.column_names)}")
    if x is not None and held_out is not None and len(ledger.left):
        left = ledger.left
        found = near_held_out(SelectedRows(x, at[left]), held_out, wanted.near, wanted.metric, progress)
        ledger.drop(left[found.dropped], "held out", -1, found.similarity)
        report["held_out"] = found.measured
    if x is not None and "embedding" in wanted.by and len(ledger.left) > 1:
        report["near"] = _embedded(x, at, wanted, ledger, looks, progress, group, work)
        if alike := report["near"]["alike"]:
            notes.append(
                f"{alike:,} rows lie as close to another as copies do and are kept, in groups of more than "
                f"{wanted.near.largest_group}: a rare concept looks the same (curate dedup --largest-group)"
            )
    elif looks is not None:
        _hashed(wanted, ledger, looks)
    if "embedding" in wanted.by and x is None:
        notes.append(
            "no embeddings were given, so none were compared, and none confirm what pictures' hashes and colours say"
        )
    return _finished(ledger, wanted, report, notes, time.monotonic() - started, remedy)


def _pictures(
    pool: Any, wanted: Preparation, ledger: _Ledger, work: Path | None, workers: int | None, progress: bool, notes: list
) -> np.ndarray | None:
    """Drop equal bytes and junk; looks of all positions, None where hashes are not wanted or not installed."""
    asked = "exact" in wanted.by or "perceptual" in wanted.by or wanted.junk or wanted.nsfw
    if not asked:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        title = "look at pictures" if progress else ""
        looks = look_at(pool, ledger.rows, work or Path(temporary), workers=workers, title=title)
    unreadable = ~looks["readable"]
    if unreadable.all():
        raise CurationError(f"none of the {len(looks)} pictures can be read; is this the right pool?")
    ledger.drop(np.flatnonzero(unreadable & ledger.there), "unreadable")
    if "exact" in wanted.by:
        left = ledger.left
        _digests, first, group = np.unique(looks["digest"][left], axis=0, return_index=True, return_inverse=True)
        repeated = left[first[group.ravel()]]
        ledger.drop(left[repeated != left], "exact", repeated[repeated != left])
    if wanted.junk is not None:
        for position in ledger.left:
            reason = wanted.junk.reason(tuple(looks["junk"][position].tolist()))
            if reason:
                ledger.drop(position, reason)
    if wanted.nsfw:
        _nsfw(pool, wanted.nsfw, ledger, progress)
    if "perceptual" not in wanted.by:
        return None
    if not looks["hashed"].any():
        notes.append("perceptual hashes were not compared: pip install 'curated-ssl[filters]'")
        return None
    return looks


def _look_alike(wanted: Preparation, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of pictures whose hashes and colours agree."""
    a, b = similar_hashes(looks["hash"], wanted.max_bits)
    same = same_colours(looks["colours"], a, b, wanted.max_colour)
    return a[same], b[same]


def _nsfw(pool: Any, threshold: float, ledger: _Ledger, progress: bool) -> None:
    from tqdm import tqdm

    from curation.preparation.filters.nsfw import NsfwFilter

    judge, stored = NsfwFilter(threshold), pool.select_columns("image").with_format("arrow")
    for position in tqdm(ledger.left, desc="NSFW scores", unit="image", disable=not progress):
        picture = read_image(stored[int(ledger.rows[position])]["image"][0].as_py())
        if not judge(picture).keep:
            ledger.drop(position, "nsfw")


def _texts(pool: Any, wanted: Preparation, ledger: _Ledger, progress: bool) -> None:
    """Drop equal and overlapping texts, and junk."""
    from curation.preparation.text_duplicates import exact_duplicates as equal_texts
    from curation.preparation.text_duplicates import near_duplicates as overlapping_texts

    check_text(pool, "text")
    plain = pool.with_format(None)["text"]
    if wanted.text_junk is not None:
        for position in ledger.left:
            reason = wanted.text_junk.reason(plain[int(ledger.rows[position])] or "")
            if reason:
                ledger.drop(position, reason)
    for name in ("exact", "text"):
        left = ledger.left
        if name not in wanted.by or len(left) < 2:
            continue
        texts = [plain[int(row)] or "" for row in ledger.rows[left]]
        found = equal_texts(texts) if name == "exact" else overlapping_texts(texts, wanted.overlap, progress=progress)
        repeated = left[found.representative]
        ledger.drop(left[repeated != left], name, repeated[repeated != left])


def _embedded(
    x: Embeddings,
    at: np.ndarray,
    wanted: Preparation,
    ledger: _Ledger,
    looks: np.ndarray | None,
    progress: bool,
    group: Group | None,
    work: Path | None,
) -> dict[str, float]:
    """Drop near-duplicates by embedding that may be copies to the eye, and those that look the same and are close."""
    left = ledger.left
    pairs = None if looks is None else _look_alike(wanted, looks[left])

    def to_the_eye(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        assert looks is not None
        return alike(looks["hash"], looks["colours"], left[a], left[b], wanted.alike_bits, wanted.alike_colour)

    found: NearDuplicates = near_duplicates(
        SelectedRows(x, at[left]),
        wanted.near,
        wanted.metric,
        pairs,
        wanted.confirm,
        alike=None if looks is None else to_the_eye,
        progress=progress,
        group=group,
        work=None if work is None else work / "near",
    )
    reasons = np.full(len(found.dropped), "embedding", dtype=object)
    if looks is not None:
        mine, theirs = left[found.dropped], left[found.duplicate_of]
        close = np.bitwise_count(looks["hash"][mine] ^ looks["hash"][theirs]).sum(1) <= wanted.max_bits
        reasons[close & same_colours(looks["colours"], mine, theirs, wanted.max_colour)] = "perceptual"
    ledger.drop(left[found.dropped], reasons, left[found.duplicate_of], found.similarity)
    return found.measured


def _hashed(wanted: Preparation, ledger: _Ledger, looks: np.ndarray) -> None:
    """Drop near-duplicates by their looks alone."""
    from curation.preparation.near_duplicates import star_groups

    left = ledger.left
    centre = star_groups(len(left), *_look_alike(wanted, looks[left]))
    gone = np.flatnonzero(centre != np.arange(len(left)))
    ledger.drop(left[gone], "perceptual", left[centre[gone]])


def _finished(
    ledger: _Ledger, wanted: Preparation, report: dict[str, Any], notes: list[str], seconds: float, remedy: str
) -> Kept:
    counts = Counter(str(reason) for reason in ledger.reasons[~ledger.there])
    dropped = dict(counts.most_common())
    if not len(ledger.left):
        raise _nothing_left(wanted, len(ledger.rows), dropped, remedy)
    share = 1 - len(ledger.left) / len(ledger.rows)
    if share > MANY:
        notes.append(f"{share:.0%} of the rows are left out: look at dropped.html before you trust it")
    gone = ~ledger.there
    repeats = ledger.resolved()[gone]
    groups = Counter(repeats[repeats >= 0].tolist()).most_common(GROUPS_SHOWN)
    report |= {
        "kept": len(ledger.left),
        "dropped": dropped,
        "dropped_share": round(share, 6),
        "largest_groups": [{"row": row, "repeated": number} for row, number in groups],
        "settings": asdict(wanted) | {"by": list(wanted.by)},
        "notes": notes,
        "seconds": round(seconds, 2),
    }
    kept = ledger.rows[ledger.there]
    return Kept(kept, ledger.rows[gone], ledger.reasons[gone], repeats, ledger.similarity[gone], report)


def prepare_folder(
    pool: Any,
    embeddings: Any,
    folder: Path,
    wanted: Preparation,
    workers: int | None = None,
    commands: Sequence[str] = (),
    progress: bool = True,
) -> tuple[Kept, bool]:
    """The kept folder of a pool: loaded where it was made with these settings of these inputs, else made.

    Returns:
        What is kept, and whether it was already there.
    """
    x = None if embeddings is None else open_embeddings(embeddings)
    key = _inputs_key(pool, x, wanted)
    if (folder / "report.json").exists() and read_report(folder).get("inputs") == key:
        return load_kept(folder), True
    work = folder / "unfinished"
    if work.exists() and (not (work / "inputs.json").exists() or load_json(work / "inputs.json").get("key") != key):
        shutil.rmtree(work)
    save_json(work / "inputs.json", {"key": key})
    remedy = "leave preparation out (curate run --no-prepare)"  # its rules are no options there
    kept = find_kept(pool, x, wanted, work=work, workers=workers, progress=progress, remedy=remedy)
    kept.report["inputs"] = key
    save_kept(kept, folder, pool, commands)
    shutil.rmtree(work)
    return kept, False


def _inputs_key(
    pool: Any, x: Embeddings | None, wanted: Preparation, before: Kept | None = None, held_out: Embeddings | None = None
) -> str:
    """Of all that decides what is kept: the same key, the same rows."""
    inputs: dict[str, Any] = {"settings": asdict(wanted) | {"by": list(wanted.by)}, "hashes": can_hash()}
    inputs["pool_fingerprint"] = None if pool is None else pool_fingerprint(pool)
    inputs["embeddings_fingerprint"] = None if x is None else x.fingerprint()
    if x is not None:
        inputs["embeddings_digest"] = x.digest()
    if before is not None:
        inputs["rows"] = before.report["checksum"]
    if held_out is not None:
        inputs["held_out"] = [held_out.fingerprint(), held_out.digest()]
    return digest_json(inputs)


def open_sources(source: str, pool: str | None, column: str | None) -> tuple[Any, Embeddings | None]:
    """The pool and the embeddings that ``curate dedup`` is given: one of them as ``source``.

    Raises:
        CurationError: both are pools, or see `open_pool` and `open_embeddings`.
    """
    path = Path(source)
    folder = path.is_dir() and (
        (path / "embeddings.json").exists() or any(path.glob("*.npy")) or any(path.glob("*/embeddings.json"))
    )
    if pool is not None:
        of_pool = None if has_columns(path) else column
        return open_pool(pool, column=of_pool), open_embeddings(path, None if of_pool else column)
    if folder or path.suffix in (".npy", ".arrow", ".feather", ".ipc"):
        return None, open_embeddings(path, column)
    return open_pool(source, column=column), None


def keep_in_folder(
    pool: Any,
    embeddings: Any,
    folder: Path,
    wanted: Preparation,
    *,
    rows: Path | None = None,
    held_out: Path | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    commands: Sequence[str] = (),
    progress: bool = True,
    group: Group | None = None,
) -> tuple[Kept, bool]:
    """What ``curate dedup`` and ``curate filter`` do: look, and write a kept folder unless it is a dry run.

    Args:
        rows: kept folder of an earlier step: only its rows are looked at.
        group: the processes that share the search among embeddings; the first one writes.

    Returns:
        What is kept, and whether the folder was already there, of the same settings and inputs.

    Raises:
        CurationError: a finished folder of others is there, several processes are given a pool, or see `find_kept`.
    """
    group = group or Group()
    if group.size > 1 and pool is not None:
        raise CurationError(
            "several processes compare embeddings alone: run --by exact,perceptual by one process first, then this "
            "without the pool and with --rows KEPT"
        )
    before = None if rows is None else load_kept(rows)
    if before is not None:
        require_one_pool(before, pool, embeddings)
    others = None if held_out is None else open_embeddings(held_out)
    key = _inputs_key(pool, embeddings, wanted, before, others)
    with ExitStack() as held:
        with group.all_or_none():
            there = (folder / "report.json").exists() and not overwrite and not dry_run
            if there and read_report(folder).get("inputs") != key:
                raise CurationError(
                    f"{folder} holds a finished preparation of other settings or inputs; choose another -o, or give "
                    "--overwrite"
                )
            if group.first and not there and not dry_run:
                require_own_row_ids(folder, "dropped.parquet")
                held.enter_context(locked_folder(folder))
        if there:
            return load_kept(folder), True
        work = None
        if group.size > 1 and not dry_run:  # of one process, which is not waited for, nothing is kept
            group.scratch = work = folder / f"unfinished-{key[:8]}"
        asked, shown = None if before is None else before.rows, progress and group.first
        kept = find_kept(
            pool, embeddings, wanted, asked, others, work=work, workers=workers, progress=shown, group=group
        )
        kept.report["inputs"] = key
        if before is not None and "near" in before.report:  # near-duplicates that are out stay out
            kept.report.setdefault("near", before.report["near"])
        if not dry_run and group.first:
            save_kept(kept, folder, pool, commands)
        group.barrier()
        if group.first and work is not None:
            shutil.rmtree(work, ignore_errors=True)
    return kept, False
