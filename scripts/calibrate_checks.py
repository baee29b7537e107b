"""Do the checks of a tree, which see no labels, fire where labels say that its subset is bad, and only there?

python scripts/calibrate_checks.py [--cells clutter,manifold,clipart | all] [--work runs/balance] [--seed 0]

Every cell of the benchmark of balance whose data are there, clustered in four ways; the end counts how often a tree
whose subset is worse than random rows is called bad, or a warning is given, and how often one that is good.
"""

from pathlib import Path

import numpy as np

from benchmarks.balance.measure import EVEN, SUBSET, subset_measures
from benchmarks.balance.methods import METHODS as DRAWS
from benchmarks.balance.methods import former_levels
from benchmarks.balance.pools import CELLS, USUAL
from benchmarks.balance.sources import Sources
from curation.soundness import check_tree
from curation.trees.community_tree import CommunityTree
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.tree import ClusterTree
from foundation.command import run_command
from foundation.options import Parser, number_type, path_type
from foundation.settings import nearest_name

CHECKS = {
    "largest": "The largest",
    "single": "single row",
    "used up": "used up",
    "beliefs": "neighbour graphs give",
    "overlap": "Communities share",
    "dimension": "intrinsic",
    "isolated": "isolated",
    "copies": "Near-copies",
    "flatness": "did not see",
    "seed": "Another seed",
}


def grown(method: str, x: np.ndarray, seed: int) -> ClusterTree:
    n = len(x)
    if method == "auto":
        return CommunityTree(seed=seed, progress=False).fit(x)
    if method == "former default":
        return HierarchicalKMeans(former_levels(n), 10, metric="cosine", seed=seed, progress=False).fit(x)
    levels = [n // 8, n // 32, n // 128] if method == "fine, l2" else [n // 25, n // 80, n // 250]
    return HierarchicalKMeans(levels, 10, seed=seed, progress=False).fit(x)


METHODS = ("auto", "former default", "fine, l2", "paper's")
GOOD = 0.25  # of the way from random rows to true labels


def told_of(tree: ClusterTree, x: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, list[str]]:
    """Names and values of the findings of each severity."""
    told: dict[str, list[str]] = {"bad": [], "warn": [], "ok": []}
    for finding in check_tree(tree, x, rows, seed):
        short = next((key for key, text in CHECKS.items() if text in finding.sentence), "other")
        told[finding.severity].append(f"{short} {finding.value:.2f}")
    return told


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--cells", default="clutter,manifold")
    parser.add_argument("--work", type=path_type(), default=Path("runs/balance"))
    parser.add_argument("--seed", type=number_type(int, ge=0, le=2**32 - 1), default=0)
    options = parser.parse_args()
    names = USUAL if options.cells == "all" else options.cells.split(",")
    for name in names:
        if name not in CELLS:
            parser.error(f"--cells: {name!r} is unknown; {nearest_name(name, CELLS)}")
    sources = Sources(options.work / "embeddings")
    verdicts: dict[str, list[str]] = {"worse than random rows": [], "between": [], "good": []}
    print(
        "| cell | tree | KL random | KL subset | KL labels | bad | warnings |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    for name in names:
        if CELLS[name].missing():
            continue
        pool = CELLS[name].pool(sources, options.seed)
        size = len(pool.x) // SUBSET
        chance, best = (
            subset_measures(pool, DRAWS[key].draw(pool, size, options.seed))["kl"] for key in ("random", "labels")
        )
        for method in METHODS:
            tree = grown(method, pool.x, options.seed)
            rows = tree.sample(size, seed=options.seed)
            kl = subset_measures(pool, rows)["kl"]
            told = told_of(tree, pool.x, rows, options.seed)
            cells = f"{name} | {method} | {chance:.2f} | {kl:.2f} | {best:.2f}"
            print(f"| {cells} | {', '.join(told['bad'])} | {', '.join(told['warn'])} |", flush=True)
            added = kl - chance
            way = -added / max(chance - best, 1e-9)
            bad = added > 0.05 if chance < EVEN else way < 0
            kind = "worse than random rows" if bad else "good" if chance < EVEN or way > GOOD else "between"
            verdicts[kind].append("bad" if told["bad"] else "warning" if told["warn"] else "nothing")
    for kind, found in verdicts.items():
        counts = ", ".join(f"{found.count(word)} {word}" for word in ("bad", "warning", "nothing"))
        print(f"\n{kind}: {len(found)} trees; said of them: {counts}")


if __name__ == "__main__":
    run_command("calibrate_checks", main)
