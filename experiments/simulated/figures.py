"""Pictures of the report, as PNG below 300 kB; lines differ by dash or marker, not by colour alone."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image

from experiments.engine.results import grouped
from experiments.simulated.ablations import ToySettings, variants
from experiments.simulated.data import THEORY_RANGE, mixture, theory_density
from foundation.errors import CurationError
from foundation.files import write_atomically
from foundation.intervals import student_interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection

MAX_BYTES = 300_000
INK, BLUE, RED, GREY = "#222222", "#1b4965", "#c8553d", "#9a9a9a"


def _save(figure: Any, path: Path) -> None:
    """256 colours are enough for these pictures and make the files three times smaller."""
    drawn, stream = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(stream, format="png", optimize=True)
    if len(stream.getvalue()) > MAX_BYTES:
        raise CurationError(f"{path.name} has {len(stream.getvalue())} bytes, more than {MAX_BYTES}; lower its dpi")
    write_atomically(path, lambda out: out.write(stream.getvalue()))


def relative_density(points: Float[np.ndarray, "n 2"], bandwidth: float, cells: int = 150) -> np.ndarray:
    """(cells, cells) KDE on [-3, 3]^2 (rows are y), divided by the uniform density: 1 is uniform."""
    grid = np.linspace(-3, 3, cells)
    kernels = [np.exp(-0.5 * ((grid[:, None] - points[:, axis]) / bandwidth) ** 2) for axis in (0, 1)]
    density = kernels[1] @ kernels[0].T
    return density / density.mean()


def voronoi_cells(points: Float[np.ndarray, "k 2"], half_width: float = 3.0) -> list[np.ndarray]:
    """Polygon (m, 2) of each point's Voronoi cell in the square [-half_width, half_width]^2.

    The points are mirrored at the four sides, which makes every cell of the originals end at the square.
    """
    from scipy.spatial import Voronoi

    inside = points[(np.abs(points) < half_width).all(axis=1)]
    mirrored = [inside]
    for axis in (0, 1):
        for side in (-1, 1):
            copy = inside.copy()
            copy[:, axis] = 2 * side * half_width - copy[:, axis]
            mirrored.append(copy)
    diagram = Voronoi(np.concatenate(mirrored))
    return [diagram.vertices[diagram.regions[diagram.point_region[i]]] for i in range(len(inside))]


def density_figure(records: Sequence[dict[str, Any]], titles: dict[str, str], bandwidth: float, path: Path) -> None:
    """Density (top) and Voronoi cells (bottom) of the final points of each row, of the first seed."""
    seed = records[0]["seed"]
    chosen = {
        r["row"]: r["result"] for r in records if r["study"] == "table" and r["seed"] == seed and r["row"] in titles
    }
    figure, panels = plt.subplots(2, len(chosen), figsize=(2.5 * len(chosen), 5.4), squeeze=False, layout="constrained")
    image = None
    for column, (row, result) in enumerate(chosen.items()):
        points = mixture(seed).astype(np.float64) if row == "raw" else np.array(result["points"])
        top, bottom = panels[:, column]
        density = relative_density(points, bandwidth)
        image = top.imshow(density, origin="lower", extent=(-3, 3, -3, 3), cmap="viridis", vmin=0, vmax=4)
        top.set_title(
            f"{titles[row].replace(', resampling', chr(10) + 'resampling')}\nKL {result['kl']:.3f}", fontsize=8.5
        )
        if row == "raw":
            bottom.plot(*points.T, ".", markersize=0.8, color=INK)
        else:
            bottom.add_collection(
                PolyCollection(voronoi_cells(points), facecolors="none", edgecolors=INK, linewidths=0.5)
            )
            bottom.plot(*points.T, ".", markersize=1.6, color=RED)
        for panel in (top, bottom):
            panel.set(xlim=(-3, 3), ylim=(-3, 3), xticks=[], yticks=[], aspect="equal")
    panels[0, 0].set_ylabel("density / uniform")
    panels[1, 0].set_ylabel("points, or Voronoi cells")
    assert image is not None
    figure.colorbar(image, ax=panels.ravel().tolist(), shrink=0.6, label="density / uniform (cut at 4)")
    _save(figure, path)


def theory_figure(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Density of the centroids for each power (first seed, steps) and what the theory expects (lines)."""
    found = {r["row"]: r["result"] for r in records if r["study"] == "theory" and r["seed"] == records[0]["seed"]}
    fine = np.linspace(-THEORY_RANGE, THEORY_RANGE, 1200, endpoint=False) + THEORY_RANGE / 1200
    figure, panels = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.0), squeeze=False, sharey=True)
    for panel, (row, result) in zip(panels[0], found.items(), strict=True):
        power = int(row[1:])
        counts = np.array(result["histogram"], np.float64)
        edges = np.linspace(-THEORY_RANGE, THEORY_RANGE, len(counts) + 1)
        expected = theory_density(fine) ** (1 / (1 + power))
        panel.plot(fine, theory_density(fine) * 2 * THEORY_RANGE, ":", color=GREY, linewidth=1.6, label="points")
        panel.stairs(counts / counts.mean(), edges, color=BLUE, linewidth=1.2, label="centroids")
        panel.plot(
            fine, expected / expected.mean(), "--", color=RED, linewidth=1.4, label=f"theory, $p^{{1/{power + 1}}}$"
        )
        panel.axhline(1, color=INK, linewidth=0.6)
        panel.set(title=f"s = {power}: exponent {result['exponent']:.3f}", xlabel="x")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize=8)
    panels[0, 0].set_ylabel("density / uniform")
    figure.tight_layout()
    _save(figure, path)


def ablation_figure(
    records: Sequence[dict[str, Any]], toys: dict[str, ToySettings], n_resamples: int, path: Path
) -> None:
    """KL of every variant with its 95 % interval, one panel a toy; the base is the vertical line."""
    names = list(dict.fromkeys(r["study"] for r in records if r["study"].startswith("ablation_")))
    if not names:
        return
    rows = max(len(variants(toys[name.removeprefix("ablation_")], n_resamples)) for name in names)
    figure, panels = plt.subplots(1, len(names), figsize=(5.2 * len(names), 0.32 * rows + 1.2), squeeze=False)
    for panel, study in zip(panels[0], names, strict=True):
        kinds = variants(toys[study.removeprefix("ablation_")], n_resamples)
        values = grouped(records, study, "kl")
        labels = []
        for place, (row, variant) in enumerate(kinds.items()):
            mean, half = student_interval(values[row])
            style = {"base": ("D", BLUE), "random_rows": ("s", GREY)}.get(row, ("o", RED))
            panel.errorbar(mean, -place, xerr=0 if np.isnan(half) else half, fmt=style[0], color=style[1], capsize=3)
            labels.append(f"{variant.switch}: {variant.title}" if variant.switch else variant.title)
        panel.axvline(student_interval(values["base"])[0], color=BLUE, linewidth=0.8, linestyle="--")
        panel.set_yticks(-np.arange(len(labels)), labels, fontsize=8)
        panel.set(title=study.removeprefix("ablation_"), xlabel="KL to uniform over the concepts, nats")
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    _save(figure, path)
