"""Results as data: tidy rows in ``metrics.json``, the value of every test row beside it, and paired comparisons."""

import json
import os
import platform
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, fields
from math import isclose, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from foundation.errors import CurationError
from foundation.files import check_files, checksum, digest_json, load_json, save_json, write_atomically
from foundation.intervals import (
    NO_DIFFERENCE,
    Interval,
    Statistic,
    bootstrap,
    paired_interval,
    pooled_mean,
    weighted_mean,
)
from foundation.paths import is_regular, regular_file
from foundation.schema import check_content
from foundation.tables import text_table

FORMAT = 1
METRICS = "metrics.json"
PER_ROW = "per_row.safetensors"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        eval: name of the evaluation.
        dataset: test set.
        metric: name of the figure; settings that vary within an evaluation are part of it ("accuracy k=10").
        value: the figure; accuracies are in [0, 1].
        low, high: 95 % bootstrap interval over test rows, or None where there is none.
        n: test rows, 0 where that says nothing.
    """

    eval: str
    dataset: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0

    @property
    def key(self) -> str:
        return f"{self.eval}/{self.dataset}/{self.metric}"


def row_of(name: str, dataset: str, metric: str, interval: Interval) -> Row:
    """A row of an interval."""
    low, high = (edge if isfinite(edge) else None for edge in (interval.low, interval.high))
    return Row(name, dataset, metric, interval.value, low, high, interval.n)


@dataclass(frozen=True)
class Pooling:
    """How a figure comes from the values of its rows, where it is not their mean: see `pooled_mean`.

    Attributes:
        weights: (n,) of each row.
        parts: (n,) integers.
        groups: (n,) integers: rows of one document are drawn together.
    """

    weights: np.ndarray
    parts: np.ndarray
    groups: np.ndarray


@dataclass
class Results:
    """All figures of one model.

    Attributes:
        model: its identity.
        rows: the figures.
        seconds: cost of each evaluation, features included where they were not cached; and of the features alone.
        settings: of each evaluation.
        skipped: dataset to unreadable images and their reasons.
        warnings: what speaks against the figures, one line each.
        per_row: key of a figure to the value of every test row, for paired comparisons.
        per_row_ids: the same keys to a digest of which rows those are.
        pooling: some of these keys to how the figure comes from the values; the others are their mean.
        inputs: of `inputs_of`.
        truncated: task -> requests that were longer than the context of a language model, and all of its requests.
        data: dataset to what its images were (`eval.images.content_of`), one for each split that was opened.
    """

    model: str
    rows: list[Row] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    per_row: dict[str, np.ndarray] = field(default_factory=dict)
    per_row_ids: dict[str, str] = field(default_factory=dict)
    pooling: dict[str, Pooling] = field(default_factory=dict)
    inputs: str = ""
    truncated: dict[str, tuple[int, int]] = field(default_factory=dict)
    data: dict[str, list[str]] = field(default_factory=dict)

    def save(self, folder: str | Path) -> Path:
        """Write ``metrics.json`` and ``per_row.safetensors``, each whole or not at all; returns the first."""
        from safetensors.numpy import save as to_bytes

        folder = Path(folder)
        content = {
            "format": FORMAT,
            "model": self.model,
            "metrics": {row.key: row.value for row in self.rows},
            "rows": [asdict(row) for row in self.rows],
            "seconds": self.seconds,
            "settings": self.settings,
            "skipped": self.skipped,
            "warnings": self.warnings,
            "environment": environment(),
            "inputs": self.inputs,
            **({"truncated": self.truncated} if self.truncated else {}),
            "data": self.data,
        }
        arrays = {key: np.ascontiguousarray(values, dtype=np.float32) for key, values in self.per_row.items()}
        for key, pooling in self.pooling.items():
            arrays |= {f"{key}#{name}": np.ascontiguousarray(array) for name, array in vars(pooling).items()}
        values = to_bytes(arrays, metadata={"rows": json.dumps(self.per_row_ids)})
        write_atomically(folder / PER_ROW, lambda stream: stream.write(values))
        save_json(folder / METRICS, {**content, "per_row_checksum": checksum(folder / PER_ROW)}, seal=True)
        return folder / METRICS


def inputs_of(settings: Any, measured: Iterable[str | Path] = ()) -> str:
    """Digest of the settings of results and of what was measured.

    Args:
        measured: files, and folders whose own files count; what is neither, such as a name, is part of the settings.
    """
    paths = [Path(item) for item in measured if str(item)]
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return digest_json([settings, [checksum(file) for file in files if is_regular(file)]])


def require_same(path: Path, inputs: Collection[str], overwrite: bool) -> dict[str, list[str]]:
    """Refuse to put results in the place of others; those of the same inputs are measured again.

    Args:
        path: the JSON file of the results.
        inputs: digests of `inputs_of`, one of which they may have.

    Returns:
        `Results.data` of those that are there; {} where anything may replace them.

    Raises:
        CurationError: what is there is of other settings, of another model, or no result.
    """
    remedy = "choose another -o, or give --overwrite"
    if overwrite or not os.path.lexists(path):
        return {}
    there = load_json(path, remedy=remedy)
    if there.get("inputs") not in inputs:
        raise CurationError(f"{path} holds results of other settings or of another model; {remedy}")
    known: dict[str, list[str]] = there.get("data", {})
    check_content(dict[str, list[str]], known, str(path), remedy)
    return known


def environment() -> dict[str, str]:
    """Versions and device that the figures come from."""
    import timm
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or "cpu",
    }


@dataclass(frozen=True)
class Loaded:
    """Of a folder of results; see `Results`."""

    rows: list[Row]
    per_row: dict[str, np.ndarray]
    per_row_ids: dict[str, str]
    pooling: dict[str, Pooling]


def load_rows(folder: str | Path) -> Loaded:
    """Rows, the values of every test row, and how figures come from them.

    Raises:
        CurationError: not a folder of results.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    if folder.is_file():
        raise CurationError(
            f"{folder} is a file; give a folder of results, as `python -m eval` writes at -o (the JSON of `python -m "
            "text_lm perplexity` has no value of each text to pair)"
        )
    try:
        content = load_json(folder / METRICS, _Metrics, "evaluate again")
        rows = [Row(**row) for row in content["rows"]]
        check_files([(folder / PER_ROW, content.get("per_row_checksum"))], "evaluate again")
        with safe_open(regular_file(folder / PER_ROW, "evaluate again"), framework="np") as stored:
            ids = json.loads(stored.metadata()["rows"])
            values = {key: stored.get_tensor(key) for key in ids}
            known = set(stored.keys())
            pooling = {
                key: Pooling(*(stored.get_tensor(f"{key}#{part.name}") for part in fields(Pooling)))
                for key in ids
                if f"{key}#weights" in known
            }
            return Loaded(rows, values, ids, pooling)
    except CurationError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CurationError(f"{folder} is no folder of results of `python -m eval` ({error})") from error


@dataclass
class _Metrics:
    """What ``metrics.json`` holds at least."""

    rows: list[Row]
    per_row_checksum: str | None = None


@dataclass(frozen=True)
class Difference:
    """A figure of two models on the same test rows.

    Attributes:
        key: of the figure.
        value, base: of each model.
        difference: value - base, paired, with its interval.
    """

    key: str
    value: float
    base: float
    difference: Interval

    @property
    def verdict(self) -> str:
        if self.difference.low > 0:
            return "higher"
        return "lower" if self.difference.high < 0 else NO_DIFFERENCE


def not_compared(folder: str | Path, base: str | Path) -> list[str]:
    """Figures that both folders have and that `compare` leaves out: without a value for each row, or of other rows."""
    ours, theirs = load_rows(folder), load_rows(base)
    both = [row.key for row in ours.rows if row.key in {other.key for other in theirs.rows}]
    return [key for key in both if key not in ours.per_row or theirs.per_row_ids.get(key) != ours.per_row_ids[key]]


def compare(folder: str | Path, base: str | Path, **options: Any) -> list[Difference]:
    """Paired differences of every figure that both folders measured on the same test rows, in the order of the table.

    Args:
        options: of `bootstrap`.

    Raises:
        CurationError: they share none, or a figure is not that of its rows, as in n-gram results of before.
    """
    ours, theirs = load_rows(folder), load_rows(base)
    shared = [key for key in ours.per_row if theirs.per_row_ids.get(key) == ours.per_row_ids[key]]
    if not shared:
        raise CurationError(f"{folder} and {base} have no figure of the same test rows in common")
    return [_difference(key, (folder, ours), (base, theirs), options) for key in shared]


def _difference(
    key: str, ours: tuple[str | Path, Loaded], theirs: tuple[str | Path, Loaded], options: dict[str, Any]
) -> Difference:
    figures = []
    for folder, results in (ours, theirs):
        values, pooling = results.per_row[key], results.pooling.get(key)
        figure = float(_statistic(values, pooling)(np.ones((1, len(values)), np.int64))[0])
        shown = next((row.value for row in results.rows if row.key == key), figure)
        if not isclose(figure, shown, rel_tol=1e-4, abs_tol=1e-6):  # values are kept in float32
            raise CurationError(f"{key} of {folder} is {shown:.4f}, but {figure:.4f} from its rows; evaluate again")
        figures.append(shown)
    x, y, pooling = ours[1].per_row[key], theirs[1].per_row[key], ours[1].pooling.get(key)
    if pooling is None:
        return Difference(key, figures[0], figures[1], paired_interval(x, y, **options))
    # weights and parts are of the test rows, which both share: a difference of figures is a figure of differences
    statistic = _statistic(x.astype(np.float64) - y, pooling)
    return Difference(key, figures[0], figures[1], bootstrap(statistic, len(x), pooling.groups, **options))


def _statistic(values: np.ndarray, pooling: Pooling | None) -> Statistic:
    return weighted_mean(values) if pooling is None else pooled_mean(values, pooling.weights, pooling.parts)


def table(rows: list[Row]) -> str:
    """Rows as text, for a terminal."""
    lines = []
    for row in rows:
        interval = "" if row.low is None or row.high is None else f"{row.low:.4f} ... {row.high:.4f}"
        lines.append((row.eval, row.dataset, row.metric, f"{row.value:.4f}", interval, str(row.n or "")))
    return text_table(("evaluation", "dataset", "metric", "value", "95 % interval", "n"), lines)
