"""Do the checks of a tree, which see no labels, fire where labels say that its subset is bad, and only there?

python scripts/calibrate_checks.py [NAME=ROWS.npy:LABELS.npy ...] [--clipart] [--seed 0]

Toys always; --clipart embeds the pictures that ship with the project (minutes); others as arrays of rows and labels.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.balance.methods import former_levels
from curation.balance import kl_to_uniform
from curation.community_tree import CommunityTree
from curation.embed import embed_pool
from curation.embedders import open_embedder
from curation.embeddings import open_embeddings
from curation.hierarchy import HierarchicalKMeans
from curation.pool import open_pool
from curation.soundness import check_tree
from curation.tree import ClusterTree
from experiments.simulated.data import clutter, manifold
from foundation.options import number_type

CHECKS = {
    "largest": "The largest",
    "single": "single row",
    "used up": "used up",
    "beliefs": "neighbour graphs give",
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


def clipart() -> tuple[np.ndarray, np.ndarray]:
    pool = open_pool("data/openclipart.parquet")
    with tempfile.TemporaryDirectory() as folder:
        embed_pool(pool, open_embedder("efficientnet_lite0", 96), folder)
        x = open_embeddings(folder)
        rows = np.arange(x.n_rows) if x.row_ids is None else x.row_ids
        return x.block(0, x.n_rows).float().numpy(), np.asarray(pool["label"])[rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pools", nargs="*")
    parser.add_argument("--clipart", action="store_true")
    parser.add_argument("--seed", type=number_type(int, ge=0, le=2**32 - 1), default=0)
    options = parser.parse_args()
    pools = {}
    for name, toy in (("clutter", clutter), ("manifold", manifold)):
        made = toy(options.seed, n_rows=6000)
        pools[name] = made.x, made.concept_of
    for given in options.pools:
        name, paths = given.split("=", 1)
        rows, labels = map(Path, paths.split(":", 1))
        pools[name] = np.load(rows).astype(np.float32), np.load(labels)
    if options.clipart:
        pools["clip art"] = clipart()
    rng = np.random.default_rng(options.seed)
    print("| pool | tree | KL random | KL subset | bad | warnings |\n|---|---|---|---|---|---|", flush=True)
    for name, (x, labels) in pools.items():
        known = labels >= 0 if labels.dtype.kind in "iu" else np.ones(len(labels), bool)
        concept = np.full(len(labels), -1)
        concept[known] = np.unique(labels[known], return_inverse=True)[1]

        def kl(rows: np.ndarray, concept: np.ndarray = concept) -> float:
            mine = concept[rows]
            return kl_to_uniform(np.bincount(mine[mine >= 0], minlength=concept.max() + 1))

        size = len(x) // 4
        chance = np.mean([kl(rng.choice(len(x), size, replace=False)) for _ in range(5)])
        for method in ("auto", "former default", "fine, l2", "paper's"):
            tree = grown(method, x, options.seed)
            rows = tree.sample(size, seed=options.seed)
            told: dict[str, list[str]] = {"bad": [], "warn": [], "ok": []}
            for finding in check_tree(tree, x, rows, options.seed):
                short = next((key for key, text in CHECKS.items() if text in finding.sentence), "other")
                told[finding.severity].append(f"{short} {finding.value:.2f}")
            line = f"| {name} | {method} | {chance:.2f} | {kl(rows):.2f} |"
            print(line, ", ".join(told["bad"]), "|", ", ".join(told["warn"]), "|", flush=True)


if __name__ == "__main__":
    main()
