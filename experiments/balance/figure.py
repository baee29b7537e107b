"""The picture of the benchmark: where every method lands between random rows and true labels, cell by cell."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from experiments.balance.measure import Table
from experiments.balance.methods import METHODS
from experiments.balance.pools import CELLS
from experiments.figures import COLOURS, MARKERS, plt
from foundation.files import write_atomically

SHOWN = ("paper", "paper_axes", "former", "halving", "one_graph", "communities")  # the last lies on top
LEAST = -1.0  # left edge; what lies beyond is drawn there as an arrow


def balance_figure(table: Table, path: Path) -> None:
    """Write a PNG: a row for each cell that is not even, the worst of the default at the foot; bars: range of seeds."""
    shown = [method for method in SHOWN if table.ways(method)]
    main = "communities" if "communities" in shown else next(iter(shown), None)
    cells = sorted(table.uneven, key=lambda cell: table.entries[cell][main].mean if main else 0.0)
    figure, axes = plt.subplots(figsize=(9, 0.29 * len(cells) + 1.6))
    for place, method in enumerate(shown):
        style: dict[str, Any] = {"color": COLOURS[place], "marker": MARKERS[place], "alpha": 0.75, "markersize": 5}
        if method == "communities":
            style |= {"color": "#c8553d", "marker": "o", "alpha": 1.0, "markersize": 8}
        ways = table.ways(method)
        axes.plot(
            [max(ways[cell].mean, LEAST) if cell in ways else np.nan for cell in cells],
            range(len(cells)),
            linestyle="none",
            label=METHODS[method].title,
            **style,
        )
        for line, cell in enumerate(cells):
            if cell not in ways:
                continue
            if ways[cell].mean < LEAST:
                axes.annotate(
                    f"{100 * ways[cell].mean:.0f}",
                    (LEAST, line),
                    xytext=(-5, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontsize=6,
                )
            if method == "communities":
                axes.plot([min(ways[cell].way), max(ways[cell].way)], [line, line], color=style["color"], linewidth=2)
    for position, name in ((0, "random rows"), (1, "true labels")):
        axes.axvline(position, color="#2f2f2f", linewidth=1)
        axes.annotate(
            name,
            (position, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
        )
    axes.axvspan(LEAST, 0, color="#c8553d", alpha=0.06, linewidth=0)
    axes.set_yticks(range(len(cells)), [CELLS[cell].title for cell in cells], fontsize=8)
    axes.set_ylim(-0.7, len(cells) - 0.3)
    axes.set_xlim(LEAST - 0.02, 1.05)
    axes.set_xticks(np.arange(LEAST, 1.01, 0.25), [f"{100 * tick:.0f} %" for tick in np.arange(LEAST, 1.01, 0.25)])
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("share of the way; numbers at the left edge lie beyond it")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.5 / figure.get_figheight())
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    write_atomically(path, lambda file: file.write(stream.getvalue()))
