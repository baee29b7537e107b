"""The report's figures, readable in greyscale: lines differ by dash and marker, not by colour alone."""

import io
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Int

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STYLES: dict[str, dict[str, Any]] = {
    "pool": {"color": "#9a9a9a", "linestyle": "-", "linewidth": 2.5},
    "random": {"color": "#d98e73", "linestyle": "none", "marker": "x", "markersize": 4},
    "subset": {"color": "#1b4965", "linestyle": "none", "marker": "o", "markersize": 4},
}


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "curation"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def concept_counts_figure(counts: dict[str, Int[np.ndarray, "k"]], noun: str) -> str:
    """SVG of rows by concept, concepts sorted by their rows in the pool; log scale."""
    figure, axes = plt.subplots(figsize=(8, 3.6))
    order = np.argsort(-counts["pool"], kind="stable")
    x = np.arange(1, len(order) + 1)
    for name, values in counts.items():
        shown = np.where(values[order] > 0, values[order], 0.5)
        axes.plot(x, shown, label=name, **STYLES[name])
    axes.set(yscale="log", xlabel=f"{noun}, most frequent in the pool first", ylabel="rows (none: at the foot)")
    axes.set_ylim(bottom=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _svg(figure)


def cluster_sizes_figure(sizes: list[Int[np.ndarray, "k"]]) -> str:
    """SVG of histograms of the rows beneath each cluster, one panel for each level."""
    figure, panels = plt.subplots(1, len(sizes), figsize=(3.2 * len(sizes), 2.6), squeeze=False)
    for level, (panel, values) in enumerate(zip(panels[0], sizes, strict=True)):
        top = max(2, values.max())
        panel.hist(values, bins=np.unique(np.geomspace(1, top + 1, 25).astype(int)), color="#1b4965")
        panel.set(xscale="log", title=f"level {level + 1}: {len(values)} clusters", xlabel="rows beneath")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("clusters")
    figure.tight_layout()
    return _svg(figure)
