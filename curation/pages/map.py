"""A map of the pool: clusters as dots, near each other where their centroids are, coloured by what lies above them."""

import json
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from curation.pages.examples import Examples, data_uri, jpeg
from curation.pages.gallery import closest_rows
from curation.pools.labels import Labels
from curation.trees.tree import ClusterTree

MOST_DOTS = 2_000  # t-SNE of them takes seconds
MOST_PICTURES, TILE, EACH = 1_800, 48, 4
MOST_TEXTS = 4_000
PICTURE_BYTES = 1_300_000
PERPLEXITY, STEPS = 30, 500  # of t-SNE
N_COLOURS = 12  # groups with a colour of their own; the rest share a grey


def dots_of(tree: ClusterTree, most: int = MOST_DOTS) -> tuple[int, Int[np.ndarray, "m"]]:
    """The level of the map and its clusters: all of the finest level that has few enough, if those are not too few.

    Else as many of level 1, evenly over the tree: every branch has its share of dots.
    """
    counts = [tree.row_counts(level) for level in range(tree.n_levels)]
    for level, rows in enumerate(counts):
        present = np.flatnonzero(rows)
        if len(present) <= most and (level == 0 or len(present) >= most // 4):
            return level, present
    present = np.flatnonzero(counts[0])
    # the last key, the top level, sorts first
    order = np.lexsort([tree.ancestors(present, 0, level) for level in range(tree.n_levels)])
    return 0, np.sort(present[order[np.linspace(0, len(present) - 1, most).astype(np.int64)]])


def project(points: Float[np.ndarray, "m d"], unit: bool = False, seed: int = 0) -> Float[np.ndarray, "m 2"]:
    """Positions in [0, 1]^2 by t-SNE from a start by PCA; of fewer than 8 points by PCA alone.

    Args:
        points: centroids.
        unit: bring them to unit length first, where the distance is the cosine.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    points = np.asarray(points, np.float32)
    if unit:
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    width = min(32, *points.shape)
    varied = len(points) > 1 and float(np.ptp(points, axis=0).max()) > 0
    found = PCA(width, random_state=seed).fit_transform(points) if varied else np.zeros((len(points), 2))
    if varied and len(points) >= 8:
        neighbours = min(PERPLEXITY, (len(points) - 1) / 3)
        start = (found[:, :2] if width > 1 else np.repeat(found, 2, axis=1)) * (1e-4 / max(found[:, 0].std(), 1e-30))
        # one thread: the same map on every machine, and none of them waits for the others of so small a task
        with threadpool_limits(1):
            found = TSNE(2, perplexity=neighbours, init=start, max_iter=STEPS, random_state=seed).fit_transform(found)
    if found.shape[1] < 2:
        found = np.column_stack([found, np.zeros(len(found))])
    low, span = found[:, :2].min(0), np.ptp(found[:, :2], axis=0)
    return np.where(span > 0, (found[:, :2] - low) / np.where(span > 0, span, 1), 0.5)


class PoolMap:
    """The dots of one tree, and what a page needs to draw them.

    Args:
        most: dots at most.
    """

    def __init__(self, tree: ClusterTree, most: int = MOST_DOTS):
        self.tree = tree
        self.level, self.clusters = dots_of(tree, most)
        self.centroids = np.asarray(tree.levels[self.level].centroids)[self.clusters]
        self.unit = tree.settings.get("metric") == "cosine"
        self.slot_of = np.full(len(tree.levels[self.level].centroids), -1)
        self.slot_of[self.clusters] = np.arange(len(self.clusters))

    def slots(self, rows: Int[np.ndarray, "m"] | None = None) -> Int[np.ndarray, "m"]:
        """The dot of each of the rows (all by default), -1 where its cluster is not on the map."""
        found = np.asarray(self.tree.levels[0].assignment)
        return self.slot_of[self.tree.ancestors(found if rows is None else found[rows], 0, self.level)]

    def parents(self) -> Int[np.ndarray, "m"] | None:
        """Cluster of the top level above each dot; None where the map shows the top level."""
        top = self.tree.n_levels - 1
        return None if self.level == top else self.tree.ancestors(self.clusters, self.level, top)

    def payload(
        self,
        places: Float[np.ndarray, "m 2"],
        rows: Int[np.ndarray, "s"],
        examples: Examples,
        row_ids: Int[np.ndarray, "n"],
        labels: Labels | None = None,
        most_bytes: int = PICTURE_BYTES,
    ) -> dict[str, Any]:
        """What the page's script draws, and ``sprite``, one picture with all that hovering shows.

        Args:
            places: of the dots, in [0, 1]^2.
            rows: of the subset, repeated where copied.
            row_ids: pool row of each row of the tree.
            labels: of the tree's rows.
            most_bytes: of the pictures.
        """
        m = len(self.clusters)
        slots = self.slots(rows)
        found: dict[str, Any] = {
            "level": self.level + 1,
            "k": int((self.tree.row_counts(self.level) > 0).sum()),
            "x": np.round(1_000 * places[:, 0]).astype(int).tolist(),
            "y": np.round(1_000 * places[:, 1]).astype(int).tolist(),
            "id": self.clusters.tolist(),
            "pool": self.tree.row_counts(self.level)[self.clusters].tolist(),
            "subset": np.bincount(slots[slots >= 0], minlength=m).tolist(),
            "rows": self.tree.n_rows,
            "size": len(rows),
        }
        parents = self.parents()
        if parents is not None:
            counts = self.tree.row_counts(self.tree.n_levels - 1)
            found["parent"] = _coloured(parents, counts, [f"cluster {i}" for i in range(len(counts))])
        if labels is not None:
            found["label"] = self._labels(labels)
        return found | self._hover(examples, row_ids, most_bytes)

    def _labels(self, labels: Labels) -> dict[str, Any]:
        """The most frequent label of each dot and its share of the labelled rows."""
        slots = self.slots()
        known = (slots >= 0) & (labels.codes >= 0)
        pairs, counts = np.unique(slots[known] * len(labels.names) + labels.codes[known], return_counts=True)
        slot, code = np.divmod(pairs, len(labels.names))
        order = np.lexsort((-counts, slot))
        slot, code, counts = slot[order], code[order], counts[order]
        dots, first = np.unique(slot, return_index=True)
        most = np.full(len(self.clusters), -1)
        share = np.zeros(len(self.clusters))
        most[dots] = code[first]
        share[dots] = counts[first] / np.add.reduceat(counts, first) if len(first) else 0
        pool = np.bincount(labels.codes[labels.codes >= 0], minlength=len(labels.names))
        return _coloured(most, pool, labels.names) | {"share": np.round(share, 3).tolist()}

    def _hover(self, examples: Examples, row_ids: Int[np.ndarray, "n"], most_bytes: int) -> dict[str, Any]:
        if examples.kind is None:
            return {}
        most = MOST_PICTURES if examples.kind == "image" else MOST_TEXTS
        counts = self.tree.row_counts(self.level)[self.clusters]
        shown = np.argsort(-counts, kind="stable")[:most]
        found = closest_rows(self.tree, self.level, self.clusters[shown], EACH)
        spare = most - len(shown)  # one for each dot, the rest to the largest
        found = [rows[: 1 + int(np.clip(spare - i * (EACH - 1), 0, EACH - 1))] for i, rows in enumerate(found)]
        order = np.argsort(shown)
        shown, found = shown[order], [found[i] for i in order]
        if examples.kind == "text":
            texts: list[list[str]] = [[] for _ in self.clusters]
            for slot, rows in zip(shown, found, strict=True):
                texts[slot] = [examples.snippet(row) for row in row_ids[rows]]
            return {"texts": texts}
        lengths = np.zeros(len(self.clusters), np.int64)
        lengths[shown] = [len(rows) for rows in found]
        columns = int(np.ceil(np.sqrt(max(1, lengths.sum()))))
        sheet = examples.sheet(row_ids[np.concatenate(found)], columns, TILE, gap=0)
        return {
            "tiles": lengths.tolist(),
            "columns": min(columns, int(lengths.sum())),
            "tile": TILE,
            "sprite": data_uri(jpeg(sheet, most_bytes)),
        }


def _coloured(group: Int[np.ndarray, "m"], rows: Int[np.ndarray, "g"], names: list[str]) -> dict[str, Any]:
    """Groups of dots: those of most rows get a colour each, in that order; names of all that occur, and their rows."""
    present = np.unique(group[group >= 0])
    order = present[np.argsort(-rows[present], kind="stable")]
    position = np.full(len(rows) + 1, -1)  # the last entry serves dots without a group
    position[order] = np.arange(len(order))
    return {
        "of": position[group].tolist(),
        "names": [names[i] for i in order],
        "rows": rows[order].tolist(),
        "coloured": min(N_COLOURS, len(order)),
    }


def as_script(content: Any) -> str:
    """JSON that may stand inside a ``<script>`` element whatever the strings hold."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def draw_maps(
    maps: list[PoolMap],
    subsets: list[Int[np.ndarray, "s"]],
    examples: Examples,
    row_ids: list[Int[np.ndarray, "n"]],
    labels: list[Labels | None],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Payloads of maps, on one projection where their centroids have one width and embedder, else each on its own.

    Args:
        maps: one for each subset; the same object twice is one tree with two subsets.
        subsets: rows of each tree, repeated where copied.
        row_ids, labels: of each tree's rows.
    """
    trees = list({id(item): item for item in maps}.values())
    spaces = {(item.centroids.shape[1], str(item.tree.settings.get("embedder"))) for item in trees}
    unit = any(item.unit for item in trees)
    if len(spaces) == 1:
        together = project(np.concatenate([item.centroids for item in trees]), unit, seed)
        parts = np.split(together, np.cumsum([len(item.clusters) for item in trees])[:-1])
    else:
        parts = [project(item.centroids, item.unit, seed) for item in trees]
    places = {id(item): part for item, part in zip(trees, parts, strict=True)}
    return [
        item.payload(places[id(item)], rows, examples, ids, names, PICTURE_BYTES // len(maps))
        for item, rows, ids, names in zip(maps, subsets, row_ids, labels, strict=True)
    ]
