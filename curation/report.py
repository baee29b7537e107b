"""The report: one HTML file, without a network, that shows how unbalanced a pool was and how balanced its subset is."""

import base64
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from curation.balance import balance_row
from curation.figures import cluster_sizes_figure, concept_counts_figure
from curation.gallery import cluster_examples, contact_sheet, gallery_clusters
from curation.subset import Subset
from curation.tree import ClusterTree
from foundation.errors import CurationError
from foundation.files import write_atomically

N_RANDOM = 10  # random subsets of the same size: enough for a range
MEASURES = [
    ("effective", "effective number of concepts", "higher", "{:.1f}"),
    ("kl", "KL to uniform (nats)", "lower", "{:.3f}"),
    ("entropy", "normalised entropy", "higher", "{:.3f}"),
    ("gini", "Gini", "lower", "{:.3f}"),
    ("rare_covered", "rarest tenth of concepts covered", "higher", "{:.0%}"),
    ("rare_kept", "their rows kept", "higher", "{:.0%}"),
    ("concepts", "concepts with a row", "higher", "{:.0f}"),
]


def _compare(concept_of: np.ndarray, rows: np.ndarray, randoms: list[np.ndarray]) -> dict[str, Any]:
    """Measures of pool, random subsets (mean, lowest and highest) and subset over one set of concepts."""
    _values, codes = np.unique(concept_of, return_inverse=True)
    k = int(codes.max()) + 1
    pool = np.bincount(codes, minlength=k)
    chosen = np.bincount(codes[rows], minlength=k)
    drawn = [np.bincount(codes[random], minlength=k) for random in randoms]
    ours, theirs = balance_row(chosen, pool), [balance_row(counts, pool) for counts in drawn]
    whole = balance_row(pool, pool)
    lines = []
    for key, title, better, form in MEASURES:
        values = np.array([row[key] for row in theirs])
        low, high = values.min(), values.max()
        inside = low <= ours[key] <= high
        wins = not inside and (ours[key] > high) == (better == "higher")
        lines.append(
            {
                "title": title,
                "better": better,
                "pool": form.format(whole[key]),
                "random": f"{form.format(values.mean())} ({form.format(low)} to {form.format(high)})",
                "subset": form.format(ours[key]),
                "verdict": "within the range of random subsets" if inside else ("better" if wins else "worse"),
            }
        )
    counts = {"pool": pool, "random": drawn[0], "subset": chosen}
    return {"k": k, "lines": lines, "counts": counts, "pool": whole, "subset": ours, "random": theirs}


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _labels_of(pool: Any, labels: Any, n_rows: int) -> np.ndarray | None:
    if labels is None:
        return None
    if isinstance(labels, str):
        if pool is None or labels not in pool.column_names:
            have = "no pool was given" if pool is None else f"the pool has {', '.join(pool.column_names)}"
            raise CurationError(f"there is no label column {labels!r}: {have}")
        labels = pool[labels]
    found = np.asarray(labels)
    if len(found) < n_rows:
        raise CurationError(f"{len(found)} labels for {n_rows} rows; give one label for each pool row")
    return found


def write_report(
    tree: ClusterTree,
    subset: Subset,
    path: str | Path,
    pool: Any = None,
    labels: Int[np.ndarray, "n"] | str | None = None,
    title: str = "Curation report",
    commands: list[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write the report.

    Args:
        tree: the cluster tree.
        subset: what was drawn from it.
        path: the HTML file.
        pool: `datasets.Dataset` with an ``image`` column, for galleries; None: figures and tables only.
        labels: a concept for each pool row, or the name of a pool column: the honest measure of balance.
        commands: how it was made, shown at the foot.

    Raises:
        CurationError: the subset was drawn from another tree, or labels do not fit.
    """
    drawn_from = subset.metadata.get("tree_checksum")
    if drawn_from is not None and drawn_from != tree.checksum:
        raise CurationError("the subset was drawn from another tree; give the tree it was sampled from")
    row_ids = np.arange(tree.n_rows) if tree.row_ids is None else np.asarray(tree.row_ids)
    rows = np.searchsorted(row_ids, subset.rows())
    if len(rows) and (rows.max() >= tree.n_rows or not np.array_equal(row_ids[rows], subset.rows())):
        raise CurationError("the subset holds rows that the tree does not know; give the tree it was sampled from")
    randoms = [
        tree.sample(len(rows), method="random", seed=seed + i, max_copies=_copies(subset)) for i in range(N_RANDOM)
    ]
    concept_of = _labels_of(pool, labels, tree.n_rows)
    sections = []
    if concept_of is not None:
        found = _compare(concept_of[row_ids], rows, randoms)
        sections.append({"name": "labels", "circular": False, **found})
    for level in range(tree.n_levels):
        found = _compare(tree.row_clusters(level), rows, randoms)
        sections.append({"name": f"clusters of level {level + 1}", "circular": True, **found})
    for section in sections:
        noun = section["name"] if section["name"] != "labels" else "labels"
        section["figure"] = concept_counts_figure(section["counts"], noun)
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("curation", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    ).get_template("report.html.j2")
    html = page.render(
        title=title,
        tree=tree,
        n_rows=tree.n_rows,
        size=len(rows),
        distinct=len(subset.ids),
        sections=sections,
        headline=_headline(sections[0]),
        n_random=N_RANDOM,
        statistics=tree.statistics(),
        sizes_figure=cluster_sizes_figure([tree.row_counts(level) for level in range(tree.n_levels)]),
        examples=_examples(pool, row_ids, rows, randoms[0], seed),
        galleries=_galleries(tree, pool, row_ids, rows, seed, progress),
        subset=subset,
        commands=commands or [],
        versions={name: version(name) for name in ("torch", "numpy", "datasets")}
        | {"python": platform.python_version()},
    )
    write_atomically(Path(path), lambda stream: stream.write(html.encode()))


def _copies(subset: Subset) -> int:
    return int(subset.copies.max()) if len(subset.copies) else 1


def _headline(section: dict[str, Any]) -> dict[str, str]:
    noun = "labelled concepts" if section["name"] == "labels" else section["name"]
    random = np.mean([row["effective"] for row in section["random"]])
    counts = section["counts"]["pool"]
    top = max(1, round(len(counts) / 10))
    return {
        "pool": f"The most frequent tenth of the {section['k']} {noun} holds "
        f"{np.sort(counts)[::-1][:top].sum() / counts.sum():.0%} of the pool.",
        "subset": f"The subset is as diverse as {section['subset']['effective']:.0f} equally frequent ones; "
        f"a random subset of the same size as {random:.0f}, the whole pool as {section['pool']['effective']:.0f}.",
    }


def _examples(pool: Any, row_ids: np.ndarray, rows: np.ndarray, random: np.ndarray, seed: int) -> dict[str, str] | None:
    if pool is None or "image" not in pool.column_names:
        return None
    rng = np.random.default_rng(seed)
    n = min(60, len(rows))
    return {
        name: _data_uri(contact_sheet(pool, row_ids[rng.choice(found, n, replace=False)], columns=10, size=56))
        for name, found in (("random", random), ("subset", rows))
    }


def _galleries(
    tree: ClusterTree, pool: Any, row_ids: np.ndarray, rows: np.ndarray, seed: int, progress: bool
) -> list[dict[str, Any]]:
    if pool is None or "image" not in pool.column_names:
        return []
    galleries = []
    for level in tqdm(range(tree.n_levels - 1, -1, -1), desc="galleries", unit="level", disable=not progress):
        before, of_row = tree.row_counts(level), tree.row_clusters(level)
        after = np.bincount(of_row[rows], minlength=len(before))
        clusters = [
            {
                "id": int(cluster),
                "before": int(before[cluster]),
                "after": int(after[cluster]),
                "sheet": _data_uri(contact_sheet(pool, row_ids[cluster_examples(tree, level, cluster, 12, seed)])),
            }
            for cluster in gallery_clusters(tree, level, 12, seed)
        ]
        galleries.append({"level": level + 1, "k": len(before), "clusters": clusters})
    return galleries
