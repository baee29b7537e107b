"""The dataset card of a subset: README.md beside ``subset.parquet``, as the Hugging Face Hub reads it."""

from pathlib import Path
from typing import Any

import numpy as np

from curation.trees.subset import WEIGHTS, Subset
from foundation.files import require_own, write_atomically
from foundation.tables import markdown_table

CARD, MARK = "README.md", "curated-ssl"  # every card has that tag
BASELINES = ("oracle", "flat_kmeans", "semdedup", "d4", "retrieval")  # methods that need no tree
SIZES = {  # names of the Hub
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}


def dataset_card(subset: Subset) -> str:
    """What the subset is, how it was drawn, and how its rows are taken from the pool, in Markdown.

    The licence is left open: the ids are of a pool that has its own.
    """
    size = next((name for limit, name in SIZES.items() if len(subset.ids) < limit), "n>1B")
    front = ["license: unknown", "tags:", "- data-curation", f"- {MARK}", "size_categories:", f"- {size}"]
    front += ["configs:", "- config_name: default", "  data_files: subset.parquet"]
    made = {
        "rows": f"{len(subset):,}, of which {len(subset.ids):,} are distinct",
        **{
            key.replace("_", " "): value
            for key, value in subset.metadata.items()
            if not isinstance(value, (dict, list))
        },
    }
    lines = ["---", *front, "---", "", "# A curated subset", ""]
    lines += [f"Rows of a pool of data, drawn with Curated SSL: {_how(subset.metadata)}."]
    lines += ["The file holds ids and clusters, not the data.", ""]
    lines += [markdown_table(("", ""), [(name, str(value)) for name, value in made.items()])]
    lines += [
        "`id` is the row in the pool, `copies` how often it is taken"
        + ("; `level_1` is the finest cluster of the row." if subset.clusters else ".")
        + "".join(f" `{name}` says where it came from." for name in subset.names),
        "",
    ]
    if subset.clusters:
        rows = []
        for name, column in subset.clusters.items():
            counts = np.bincount(column, weights=subset.copies) if len(column) else np.zeros(0)
            counts = counts[counts > 0]
            spread = f"{counts.min():.0f}, {np.median(counts):.0f}, {counts.max():.0f}" if len(counts) else "none"
            rows.append((f"`{name}`", f"{len(counts):,}", spread))
        lines += [markdown_table(("clusters", "with rows here", "rows in a cluster: least, median, most"), rows)]
    lines += [
        "```python",
        "from curation import Subset",
        "",
        'rows = Subset.load("FOLDER").rows()',
        "pool = pool.select(rows)",
    ]
    lines += [
        "```",
        "",
        "The pool must be the one with the fingerprint above; a trainer of Curated SSL refuses another.",
        "",
    ]
    lines += [
        "**Licence.** Not set: the rows are those of a pool with a licence of its own. Name it in the first lines."
    ]
    return "\n".join(lines) + "\n"


def _how(metadata: dict[str, Any]) -> str:
    """How rows were drawn, as the end of a sentence."""
    method, paper = metadata.get("method", "balanced"), "Vo et al. 2024, arXiv:2405.15613"
    if method == "random":
        return "at random"
    if method in BASELINES:
        return f"by the baseline {method}"
    communities = metadata.get("upper_levels") == "communities"
    tree = "k-means clusters and communities of neighbour graphs" if communities else f"hierarchical k-means ({paper})"
    if method == "flat":
        return f"equally from the finest clusters of a tree of {tree}"
    return f"balanced sampling{f' ({paper})' * communities} from a tree of {tree}"


def save_with_card(subset: Subset, folder: Path) -> None:
    """Write a subset and its card; weights of one that was here before do not belong to it.

    Raises:
        CurationError: the folder holds a README of somebody else.
    """
    require_own(folder / CARD, MARK, None)
    (folder / WEIGHTS).unlink(missing_ok=True)
    subset.save(folder)
    write_dataset_card(subset, folder)


def write_dataset_card(subset: Subset, folder: str | Path) -> Path:
    """Write the card into the folder of a saved subset; an older one is replaced. Returns its path."""
    path = Path(folder) / CARD
    text = dataset_card(subset)
    write_atomically(path, lambda stream: stream.write(text.encode()))
    return path
