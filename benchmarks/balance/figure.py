"""The picture of the benchmark: where every method lands between random rows and true labels, cell by cell."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.balance.measure import Table
from benchmarks.balance.methods import METHODS
from benchmarks.balance.pools import CELLS
from experiments.pages.figures import COLOURS, plt
from foundation.files import write_atomically

# the last lies on top
SHOWN: dict[str, dict[str, Any]] = {
    "paper": {"color": COLOURS[0], "marker": "s"},
    "paper_unit": {"color": COLOURS[1], "marker": "D"},
    "former": {"color": COLOURS[6], "marker": "^"},
    "halving": {"color": COLOURS[3], "marker": "v"},
    "one_graph": {"color": COLOURS[4], "marker": "P"},
    "communities_prepared": {"color": COLOURS[5], "marker": "X"},
    "communities": {"color": COLOURS[2], "marker": "o"},
    "advised": {"color": "black", "marker": "*", "zorder": 5, "alpha": 1.0},
}
LEAST = -1.0  # left edge: what lies beyond is drawn there, hollow


def balance_figure(table: Table, path: Path) -> None:
    """Write a PNG: a line for each cell that is not even, the worst of the default at the foot; bar: range of seeds."""
    shown = [method for method in SHOWN if table.ways(method)]
    main = table.ways("communities") or (table.ways(shown[-1]) if shown else {})
    cells = sorted(table.uneven, key=lambda cell: main[cell].mean if cell in main else 0.0)
    figure, axes = plt.subplots(figsize=(9, 0.29 * len(cells) + 1.6))
    for method in shown:
        style: dict[str, Any] = {"linestyle": "none", "markersize": 5, "alpha": 0.8, "zorder": 3, **SHOWN[method]}
        if method == "communities":
            style |= {"alpha": 1.0, "markersize": 8, "zorder": 4}
        ways = table.ways(method)
        places = [(ways[cell], line) for line, cell in enumerate(cells) if cell in ways]
        inside = [(entry.mean, line) for entry, line in places if entry.mean >= LEAST]
        beyond = [(LEAST, line) for entry, line in places if entry.mean < LEAST]
        axes.plot(*np.array(inside).reshape(-1, 2).T, label=METHODS[method].title, **style)
        axes.plot(*np.array(beyond).reshape(-1, 2).T, clip_on=False, markerfacecolor="white", **style)
        for entry, line in places if method == "communities" else ():
            ends = np.maximum([min(entry.way), max(entry.way)], LEAST)
            axes.plot(ends, [line, line], color=style["color"], linewidth=1.5)
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
    axes.set_xlabel("share of the way, mean over seeds; hollow at the left edge: beyond it")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(
        frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.5 / figure.get_figheight())
    )
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    write_atomically(path, lambda file: file.write(stream.getvalue()))
