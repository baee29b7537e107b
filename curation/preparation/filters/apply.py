"""The filter interface, and the pass over a pool that applies a list of filters."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from foundation.errors import CurationError


@dataclass(frozen=True)
class Verdict:
    """What a filter says of one picture.

    Attributes:
        keep: whether the row stays.
        score: what the filter measured (probability, number of faces, ...).
        replacement: the picture to go on with, where the filter changed it.
    """

    keep: bool
    score: float
    replacement: Image.Image | None = None


class ImageFilter(Protocol):
    """One RGB picture in, a verdict out; ``name`` heads its score column and its counts."""

    name: str

    def __call__(self, picture: Image.Image) -> Verdict: ...


@dataclass
class FilterReport:
    """Rows in, rows dropped by each filter, rows changed by each filter, unreadable rows, rows out."""

    rows_in: int
    rows_out: int = 0
    unreadable: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)


def apply_filters(pool: Any, filters: Sequence[ImageFilter], column: str = "image") -> tuple[Any, FilterReport]:
    """Run filters one after the other over a pool of images; a dropped row is not shown to the filters after.

    Args:
        pool: a `datasets.Dataset` with an image column.

    Returns:
        The remaining pool with the column ``row_id`` (row in ``pool``) and one ``score_NAME`` column for each filter,
        and the counts. Unreadable pictures are dropped and counted.

    Raises:
        CurationError: no image column, two filters of one name, or nothing is left.
    """
    from datasets import Image as ImageFeature

    if column not in pool.column_names or not isinstance(pool.features[column], ImageFeature):
        raise CurationError(f"the pool has no image column {column!r}; it has {', '.join(pool.column_names)}")
    names = [each.name for each in filters]
    if len(set(names)) != len(names):
        raise CurationError(f"two filters have the same name: {', '.join(names)}")
    counts: Counter[str] = Counter()

    def judge(batch: dict[str, list[Any]], rows: list[int]) -> dict[str, list[Any]]:
        from foundation.images import read_image

        out: dict[str, list[Any]] = {key: [] for key in (*batch, "row_id", *(f"score_{name}" for name in names))}
        for position, row in enumerate(rows):
            try:
                picture = read_image(batch[column][position])
            except Exception:  # Pillow raises many types on broken files
                counts["unreadable"] += 1
                continue
            scores: dict[str, float] = {}
            changed = False
            for each in filters:
                verdict = each(picture)
                scores[each.name] = verdict.score
                if verdict.replacement is not None:
                    picture, changed = verdict.replacement, True
                    counts[f"changed {each.name}"] += 1
                if not verdict.keep:
                    counts[f"dropped {each.name}"] += 1
                    break
            else:
                for key in batch:
                    out[key].append(picture if key == column and changed else batch[key][position])
                out["row_id"].append(row)
                for name in names:
                    out[f"score_{name}"].append(scores[name])
        return out

    raw = pool.cast_column(column, ImageFeature(decode=False))
    features = pool.features.copy()
    from datasets import Value

    features["row_id"] = Value("int64")
    for name in names:
        features[f"score_{name}"] = Value("float32")
    # the counts come from this very pass, so no cached result may stand in for it
    found = raw.map(
        judge,
        with_indices=True,
        batched=True,
        batch_size=100,
        features=features,
        load_from_cache_file=False,
        desc="filters",
    )
    if not len(found):
        raise CurationError("the filters dropped every row; loosen them")
    report = FilterReport(len(pool), len(found), counts["unreadable"])
    report.dropped = {name: counts[f"dropped {name}"] for name in names}
    report.changed = {name: counts[f"changed {name}"] for name in names}
    return found, report
