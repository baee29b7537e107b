"""The report: one HTML file, without a network: is a subset more even than random rows, and what is in it?"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from curation.pages.examples import Examples
from curation.pages.figures import cluster_sizes_figure, concept_counts_figure
from curation.pages.gallery import examples_of, gallery_clusters
from curation.pages.map import PoolMap, as_script, draw_maps
from curation.pages.verdict import (
    TONES,
    Comparison,
    Verdict,
    beside,
    compare_clusters,
    compare_labels,
    headline,
    notes,
    share_rows,
    verdict_by_findings,
    verdict_by_labels,
)
from curation.pools.labels import Labels, read_labels
from curation.soundness import Finding
from curation.trees.balance import gini
from curation.trees.subset import Subset
from curation.trees.tree import ClusterTree
from foundation.errors import CurationError
from foundation.files import require_own, write_atomically

GALLERY_BYTES = 1_300_000  # of all galleries together
CLUSTERS, PICTURES, TEXTS = 12, 12, 4  # of a gallery
MIN_ROWS = 4  # of a cluster in a gallery, where a level has such
EXAMPLES = 60
FINGERPRINTS = ("checksum", "fingerprint")
PAGE = "made by curated-ssl"  # what all pages say, by which they are known again
WHOSE = "give the tree it was sampled from"


def render(template: str, **content: Any) -> bytes:
    """One of the pages of this package."""
    loader = jinja2.PackageLoader("curation.pages", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["as_script"] = as_script
    return environment.get_template(template).render(generator=PAGE, **content).encode()


class Drawn:
    """A subset seen from its tree: what the report and the comparison both need.

    Args:
        labels: of all pool rows.
        all_names: keep concepts that the tree has no row of, so that several trees count the same concepts.

    Attributes:
        row_ids: (n,) int64 pool row of each row of the tree.
        rows: (m,) rows of the subset in the tree's numbering, repeated where copied.
        copies: how often a row of the subset may be there.
        labels: of the tree's rows, or None.
        of_tree: the subset was drawn from the tree, and not by a baseline that knows none.

    Raises:
        CurationError: an empty subset, one of another tree or of another pool, a pool that is not the tree's, labels
            that end before its rows.
    """

    def __init__(
        self, tree: ClusterTree, subset: Subset, pool: Any, labels: Labels | None, seed: int, all_names: bool = False
    ):
        drawn_from = subset.metadata.get("tree_checksum")
        if drawn_from is not None and drawn_from != tree.checksum:
            raise CurationError(f"the subset was drawn from another tree; {WHOSE}")
        pools = {subset.metadata.get("pool_fingerprint"), tree.settings.get("pool_fingerprint")} - {None}
        if len(pools) > 1:
            raise CurationError(f"the subset was drawn from another pool than that of the tree; {WHOSE}")
        if not len(subset.ids):
            raise CurationError("the subset is empty; sample at least one row")
        self.tree, self.subset, self.of_tree = tree, subset, drawn_from is not None
        self.row_ids = np.arange(tree.n_rows) if tree.row_ids is None else np.asarray(tree.row_ids)
        ids = subset.rows()
        rows = np.searchsorted(self.row_ids, ids)
        if rows.max() >= tree.n_rows or not np.array_equal(self.row_ids[rows], ids):
            raise CurationError(
                "the subset holds rows that are not in the tree, such as those that preparation left out; draw it from "
                f"the kept rows (--rows), or {WHOSE}"
            )
        for name, clusters in subset.clusters.items():
            if name not in {f"level_{i + 1}" for i in range(tree.n_levels)}:
                raise CurationError(
                    f"the subset has clusters {name!r}, but the tree has {tree.n_levels} levels; {WHOSE}"
                )
            of_tree = tree.row_clusters(int(name.removeprefix("level_")) - 1)[np.unique(rows)]
            if not np.array_equal(of_tree, clusters):
                raise CurationError(f"rows of the subset are in other clusters of {name} than in the tree; {WHOSE}")
        if pool is not None:
            tree.check_pool(pool)
        self.rows = rows
        self.copies = int(subset.copies.max())
        self.labels = None if labels is None else labels.take(self.row_ids, all_names)
        self.whole = None if labels is None else labels
        self.seed, self.all_names = seed, all_names

    def by_label(self) -> Comparison | None:
        """Over the labels. Rows that were left out before clustering count as pool: a random subset would have them."""
        if self.whole is None:
            return None
        labels = self.whole.take(np.arange(len(self.whole.codes)), self.all_names)
        return compare_labels(labels, self.subset.rows(), self.row_ids, self.copies, self.seed)

    def by_level(self) -> list[Comparison]:
        levels = range(self.tree.n_levels)
        return [compare_clusters(self.tree, level, self.rows, self.copies, self.seed) for level in levels]

    @property
    def beside(self) -> int:
        """Rows of the pool that are not in the tree, where the labels tell of them."""
        return 0 if self.whole is None else len(self.whole.codes) - self.tree.n_rows

    def settings(self) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
        """Of the tree, of the subset, and the checksums of both, as text."""
        parts = [self.tree.settings, {"size": len(self.rows), **self.subset.metadata}]
        checksums = {"tree": self.tree.checksum}
        for part in parts:
            checksums |= {key: _text(value) for key, value in part.items() if key.endswith(FINGERPRINTS)}
        tree, subset = (
            {key: _text(value) for key, value in part.items() if not key.endswith(FINGERPRINTS)} for part in parts
        )
        return tree, subset, checksums


def _text(value: Any, most: int = 300) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= most else text[:most] + " …"


def write_report(
    tree: ClusterTree,
    subset: Subset,
    path: str | Path,
    pool: Any = None,
    labels: Int[np.ndarray, "n"] | str | None = None,
    *,
    title: str = "Curation report",
    commands: list[str] | None = None,
    seed: int = 0,
    progress: bool = True,
    findings: list[Finding] | None = None,
    preparation: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Verdict:
    """Write the report.

    Args:
        tree: the cluster tree.
        subset: what was drawn from it.
        path: the HTML file.
        pool: `datasets.Dataset` with an ``image`` or ``text`` column, for galleries; None: figures and tables only.
        labels: a concept for each pool row (None, NaN, "" or -1: no label), or the name of a pool column: the honest
            measure of balance.
        commands: how it was made, shown at the foot.
        findings: of a soundness check; without labels the worst of them is the verdict.
        preparation: what was left out of the pool before clustering, as name -> count (or path of its report).
        overwrite: replace a file that is no page of ours, too.

    Returns:
        The verdict at its top.

    Raises:
        CurationError: the subset was drawn from another tree, the pool is not the tree's, labels do not fit, or the
            file is there and no page of ours.
    """
    require_own(Path(path), PAGE, overwrite)
    drawn = Drawn(tree, subset, pool, None if labels is None else read_labels(labels, pool), seed)
    examples = Examples(pool)
    by_label = drawn.by_label()
    by_level = drawn.by_level()
    verdict = verdict_by_findings(findings)
    if by_label is not None:
        told = verdict_by_labels(by_label, tree, subset)
        verdict = told if told.tone != "none" or not findings else verdict
    findings = beside(verdict, findings or [])
    tree_settings, subset_settings, checksums = drawn.settings()
    versions = {name: version(name) for name in ("torch", "numpy", "datasets")}
    pool_map = draw_maps([PoolMap(tree)], [drawn.rows], examples, [drawn.row_ids], [drawn.labels], seed)[0]
    html = render(
        "report.html.j2",
        title=title,
        verdict=verdict,
        headline=headline(by_label or next((found for found in by_level[::-1] if found.k > 1), by_level[0])),
        notes=_notes(by_label, verdict, findings),
        findings=findings,
        tones=TONES,
        preparation=preparation,
        n_rows=tree.n_rows,
        size=len(drawn.rows),
        distinct=len(subset.ids),
        levels=level_rows(tree),
        by_label=None if by_label is None else _section(by_label) | {"shares": share_rows(by_label)},
        by_level=[_section(found) for found in by_level],
        beside=drawn.beside,
        map=pool_map,
        sizes_figure=cluster_sizes_figure([tree.row_counts(level) for level in range(tree.n_levels)]),
        first_look=_first_look(drawn, examples, seed) if examples.kind else {},
        galleries=_galleries(drawn, examples, seed, progress),
        tree_settings=tree_settings,
        subset_settings=subset_settings,
        checksums=checksums | versions | {"python": platform.python_version()},
        commands=commands or [],
        unreadable=len(examples.unreadable),
    )
    write_atomically(Path(path), lambda stream: stream.write(html))
    return verdict


def _notes(by_label: Comparison | None, verdict: Any, findings: list[Finding]) -> list[str]:
    lines = [] if by_label is None else notes(by_label)
    bad = [finding for finding in findings if finding.severity == "bad"]
    if bad and by_label is not None and verdict.tone == "ok":
        lines.append(f"The check of the tree has {len(bad)} bad finding{'s' * (len(bad) > 1)}; see below.")
    return lines


def _section(found: Comparison) -> dict[str, Any]:
    drawn = {"random": found.randoms.mean(0), "subset": found.subset}
    figure = concept_counts_figure(found.pool, drawn, found.title, found.names)
    return {"title": found.title, "k": found.k, "lines": found.lines(), "figure": figure}


def level_rows(tree: ClusterTree) -> list[dict[str, Any]]:
    """For each level, how its rows are spread over its clusters."""
    found = []
    for number, level in enumerate(tree.levels):
        rows = tree.row_counts(number)
        found.append(
            {
                "level": number + 1,
                "k": len(rows),
                "empty": int((rows == 0).sum()),
                "singletons": int((rows == 1).sum()),
                "min": int(rows.min()),
                "median": float(np.median(rows)),
                "max": int(rows.max()),
                "largest": float(rows.max() / tree.n_rows),
                "gini": gini(rows),
                "inertia": level.inertia,
            }
        )
    return found


def _first_look(drawn: Drawn, examples: Examples, seed: int) -> dict[str, Any]:
    """The same number of rows of a random subset and of the subset."""
    random = drawn.tree.sample(len(drawn.rows), method="random", seed=seed, max_copies=drawn.copies)
    rows = {"a random subset": random, "this subset": drawn.rows}
    return {name: some_rows(drawn, part, examples, seed) for name, part in rows.items()}


def some_rows(drawn: Drawn, rows: Int[np.ndarray, "m"], examples: Examples, seed: int) -> dict[str, Any]:
    """Some of the rows at random, for a template."""
    chosen = np.random.default_rng(seed).choice(rows, min(EXAMPLES, len(rows)), replace=False)
    return examples.show(drawn.row_ids[chosen], columns=10, size=56, most=150_000, n_texts=8)


def _galleries(drawn: Drawn, examples: Examples, seed: int, progress: bool) -> list[dict[str, Any]]:
    """Examples of some clusters of every level, the top level first; clusters of one row are counted, not shown."""
    if examples.kind is None:
        return []
    tree, galleries = drawn.tree, []
    most = GALLERY_BYTES // (tree.n_levels * CLUSTERS)
    for level in tqdm(range(tree.n_levels - 1, -1, -1), desc="galleries", unit="level", disable=not progress):
        before = tree.row_counts(level)
        after = np.bincount(tree.row_clusters(level)[drawn.rows], minlength=len(before))
        min_rows = MIN_ROWS if before.max() >= MIN_ROWS else 2
        clusters = gallery_clusters(tree, level, CLUSTERS, seed, min_rows)
        members = examples_of(tree, level, clusters, PICTURES, seed)
        galleries.append(
            {
                "level": level + 1,
                "k": len(before),
                "more": len(clusters) < np.count_nonzero(before >= min_rows),
                "min_rows": min_rows,
                "singletons": int((before == 1).sum()),
                "clusters": [
                    {
                        "id": int(cluster),
                        "before": int(before[cluster]),
                        "after": int(after[cluster]),
                        "example": examples.show(drawn.row_ids[rows], columns=6, most=most, n_texts=TEXTS),
                    }
                    for cluster, rows in zip(clusters, members, strict=True)
                ],
            }
        )
    return galleries
