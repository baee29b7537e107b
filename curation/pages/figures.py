"""The report's figures, readable in greyscale: lines differ by dash and marker, not by colour alone."""

import io
import warnings
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float, Int
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

matplotlib.use("Agg")
from matplotlib import pyplot as plt

POOL = {"color": "#9a9a9a", "linestyle": "-", "linewidth": 2.5}
RANDOM = {"color": "#d98e73", "linestyle": "none", "marker": "x", "markersize": 4}
COLOURS = ("#1b4965", "#c2571a", "#2a8c5b", "#7f5bd5", "#8c5a2b", "#cc3d3d")
SUBSETS: list[dict[str, Any]] = [  # the second six are hollow
    {"color": colour, "linestyle": "none", "marker": marker, "markersize": 4} | face
    for markers, face in (("o^sDvP", {}), ("<>pXhd", {"markerfacecolor": "none"}))
    for colour, marker in zip(COLOURS, markers, strict=True)
]
MOST_NAMES = 40  # concepts whose names fit under the axis
MOST_POINTS = 300  # of a line; more concepts are averaged over neighbours in rank


def _log(axis: Any) -> None:
    """Whole numbers at the powers of ten of a logarithmic axis: the text of formulas takes seconds to set."""
    axis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:,.0f}" if value >= 1 else ""))
    axis.set_minor_formatter(NullFormatter())


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    # text stays text: the browser has glyphs that matplotlib's own font lacks
    with matplotlib.rc_context({"svg.hashsalt": "curation", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.tight_layout()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _short(name: str, most: int = 22) -> str:
    """A name that fits under a tick; the end of a path tells more than its beginning. Dollars are no mathematics."""
    return (name if len(name) <= most else "…" + name[1 - most :]).replace("$", r"\$")


def _thinned(values: Float[np.ndarray, "k"]) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Rank and mean of at most `MOST_POINTS` groups of neighbours in rank."""
    k = len(values)
    starts = np.unique(np.linspace(0, k, min(k, MOST_POINTS) + 1).astype(np.int64))
    sizes = np.diff(starts)
    return starts[:-1] + (sizes + 1) / 2, np.add.reduceat(values, starts[:-1]) / sizes


def concept_counts_figure(
    pool: Int[np.ndarray, "k"], drawn: dict[str, Float[np.ndarray, "k"]], noun: str, names: list[str] | None = None
) -> str:
    """SVG of rows by concept (log) and of shares by concept (linear), concepts sorted by their rows in the pool.

    Args:
        pool: rows of each concept.
        drawn: the same of subsets, by name; "random" may be a mean.
        names: of the concepts, under the axis where they are few.
    """
    order = np.argsort(-pool, kind="stable")
    k = len(order)
    named = names is not None and k <= MOST_NAMES
    stacked = named and k > 12
    figure, panels = plt.subplots(*((2, 1) if stacked else (1, 2)), figsize=(9.4, 6.2 if stacked else 3.4))
    markers = iter(SUBSETS)
    lines = [("pool", pool, POOL)]
    lines += [(name, rows, RANDOM if name == "random" else next(markers)) for name, rows in drawn.items()]
    for name, values, style in lines:
        ordered = np.asarray(values, np.float64)[order]
        ranks, rows = _thinned(ordered)
        panels[0].plot(ranks, np.where(rows > 0, np.maximum(rows, 0.5), 0.5), label=_short(name, 40), **style)
        panels[1].plot(ranks, 100 * rows / max(1.0, ordered.sum()), label=_short(name, 40), **style)
    panels[0].set(yscale="log", ylabel="rows (none: at the foot)")
    panels[0].set_ylim(bottom=0.4)
    _log(panels[0].yaxis)
    panels[1].set(ylabel="share of the rows, %")
    panels[1].set_ylim(bottom=0)
    panels[1].legend(frameon=False, fontsize="small" if len(lines) > 6 else None)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        if named and names is not None:
            shown = [_short(names[i]) for i in order]
            panel.set_xticks(np.arange(1, k + 1), shown)
            if k > 6 or max(map(len, shown)) > 8:
                plt.setp(panel.get_xticklabels(), rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
            panel.set_xlim(0.5, k + 0.5)
        else:
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            panel.set_xlabel(f"{noun}, most frequent first")
    if stacked:
        panels[0].set_xticklabels([])
    return _svg(figure)


def cluster_sizes_figure(sizes: list[Int[np.ndarray, "k"]]) -> str:
    """SVG of histograms of the rows beneath each cluster, one panel for each level, four beside each other."""
    columns = min(4, len(sizes))
    lines = -(-len(sizes) // columns)
    figure, panels = plt.subplots(lines, columns, figsize=(2.5 * columns, 2.4 * lines), squeeze=False)
    for level, (panel, values) in enumerate(zip(panels.flat, sizes, strict=False)):
        top = max(2, values.max())
        panel.hist(values, bins=np.unique(np.geomspace(1, top + 1, 25).astype(int)), color="#1b4965")
        panel.set(xscale="log", xlabel="rows beneath")
        _log(panel.xaxis)
        panel.set_title(f"level {level + 1}: {len(values):,} clusters", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels.flat[len(sizes) :]:
        panel.set_visible(False)
    for line in panels:
        line[0].set_ylabel("clusters")
    return _svg(figure)
