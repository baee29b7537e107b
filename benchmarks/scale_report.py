"""The page of whole jobs: time, peak memory, what the plan said before, and how both grow with n and k."""

import os
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.scale import in_own_process, in_processes
from foundation.files import write_atomically

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from experiments.engine.provenance import commits_of
from foundation.tables import markdown_table

GROWTH = {
    "n": [(rows, 1000) for rows in (50_000, 100_000, 200_000, 400_000)],
    "k": [(200_000, k) for k in (250, 500, 1000, 2000)],
}
GROWTH_DIM, GROWTH_ITERATIONS = 256, 20
PROCESSES, PROCESS_SHAPE = (1, 2), (200_000, 2000)


def job_arguments(rows: int, threads: int) -> dict[str, list[str]]:
    """Title -> arguments of `benchmarks.scale`; ``rows`` of the memory map."""
    common = ["--threads", str(threads)]
    memmap = ["memmap", "--rows", str(rows), "--dim", "384", "--levels", "10000", "1000", "100"]
    return {
        "rings: 29,700 points, levels 1000, 300, r_t 15, 2, 10 resamplings": ["rings", *common],
        "1,000,000 rows drawn, balanced, from 10,000,000 in 100,000 clusters": [
            "sampling",
            "--rows",
            "10000000",
            *common,
        ],
        f"{rows:,} x 384 float16 memory map, levels 10000, 1000, 100, upper two resampled 10 times": [
            *memmap,
            *["--resamples", "0", "10", "10", *common],
        ],
    }


def measure(rows: int, threads: int, growth: bool, say: Any = print) -> dict[str, Any]:
    """Run every job once, each in a process of its own."""
    found: dict[str, Any] = {"load": os.getloadavg()[0], "jobs": {}, "growth": {}}
    for title, arguments in job_arguments(rows, threads).items():
        say(title)
        found["jobs"][title] = in_own_process(arguments)
        say(f"  {found['jobs'][title]}")
    for axis, sizes in GROWTH.items() if growth else ():
        for n, k in sizes:
            shape = ["memmap", "--rows", str(n), "--dim", str(GROWTH_DIM), "--levels", str(k), "--resamples", "0"]
            result = in_own_process([*shape, "--iterations", str(GROWTH_ITERATIONS), "--threads", str(threads)])
            found["growth"].setdefault(axis, []).append({"n": n, "k": k, **result})
            say(f"  n={n:,} k={k:,}: {result['seconds']:.1f} s, {result['peak_rss'] / 1e9:.2f} GB")
    n, k = PROCESS_SHAPE
    for processes in PROCESSES if growth else ():
        shape = ["--levels", str(k), "--resamples", "0", "--iterations", str(GROWTH_ITERATIONS)]
        result = in_processes(processes, n, GROWTH_DIM, shape)
        found.setdefault("processes", []).append({"processes": processes, "n": n, "k": k, **result})
        say(f"  {processes} process(es) of one thread: {result['seconds']:.1f} s, {result['peak_rss'] / 1e9:.2f} GB")
    return found


def growth_figure(growth: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time and peak memory against n and against k, log-log; dashed: in proportion."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    for panel, (axis, points) in zip(panels, growth.items(), strict=True):
        x = [point[axis] for point in points]
        seconds = [point["seconds"] for point in points]
        panel.plot(x, seconds, marker="o", color="#1b4965", label="seconds")
        panel.plot(x, [seconds[0] * value / x[0] for value in x], "--", color="#8a8a8a", label="in proportion")
        panel.plot(
            x, [point["peak_rss"] / 1e9 for point in points], marker="s", color="#c8553d", label="peak memory, GB"
        )
        fixed = f"k = {points[0]['k']:,}" if axis == "n" else f"n = {points[0]['n']:,}"
        panel.set(xscale="log", yscale="log", xlabel=f"{axis} ({fixed})")
        panel.set_xticks(x, [f"{value:,}" for value in x])
        panel.set_xticks([], minor=True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=130))
    plt.close(figure)


def _processor(result: dict[str, Any]) -> str:
    return f"{result['processor_seconds']:.1f}" if "processor_seconds" in result else "-"


def scale_markdown(found: dict[str, Any], command: str, source: dict[str, Any]) -> str:
    """The page; the figure is ``images/growth.png`` beside it."""
    lines = ["# Whole jobs", "", f"`{command}`", ""]
    load = f", load {found['load']:.1f} at the start" if "load" in found else ""
    lines += [f"Commit {commits_of([source])}, {source['device']}{load}.", f"Versions: {source['versions']}.", ""]
    lines += [
        "Each job runs once, in a process of its own; peak memory counts the interpreter and torch (about 0.7 GB).",
        "*Seconds of the processor* are the sum over all threads; they show less of what else the machine did.",
        "",
    ]
    cells = []
    for title, result in found["jobs"].items():
        planned = f"{result['planned_seconds']:.1f}" if "planned_seconds" in result else "-"
        seconds = f"{result['seconds']:.1f}" if "seconds" in result else f"{result['random']:.2f}"
        used = _processor(result)
        note = f"KL over the rings {result['kl']:.3f}" if "kl" in result else ""
        if "random" in result:
            again, closest = result["random, again"], result["closest"]
            note = f"closest first {closest:.2f} s; a second sample of the same tree {again:.2f} s"
        cells.append([title, seconds, used, planned, f"{result['peak_rss'] / 1e9:.2f}", note])
    header = ["job", "seconds", "seconds of the processor", "`curate plan` said", "peak memory, GB", ""]
    lines.append(markdown_table(header, cells).rstrip("\n"))
    if found["growth"]:
        lines += [
            "",
            "## Growth",
            "",
            f"One level, {GROWTH_DIM} dimensions, float16, {GROWTH_ITERATIONS} iterations.",
            "",
        ]
        cells = [
            [
                f"{point['n']:,}",
                f"{point['k']:,}",
                f"{point['seconds']:.1f}",
                _processor(point),
                f"{point['planned_seconds']:.1f}",
                f"{point['peak_rss'] / 1e9:.2f}",
            ]
            for points in found["growth"].values()
            for point in points
        ]
        header = ["n", "k", "seconds", "seconds of the processor", "`curate plan` said", "peak memory, GB"]
        lines.append(markdown_table(header, cells).rstrip("\n"))
        lines += ["", "![growth with n and k](images/growth.png)"]
    if found.get("processes"):
        n, k = PROCESS_SHAPE
        same = len({point["tree"] for point in found["processes"]}) == 1
        lines += ["", "## Growth with the number of processes", ""]
        lines += [f"n = {n:,}, k = {k:,}, as above; processes of one thread on the same machine.", ""]
        cells = [
            [
                str(point["processes"]),
                f"{point['seconds']:.1f}",
                f"{point['peak_rss'] / 1e9:.2f}",
                point["tree"][:12],
            ]
            for point in found["processes"]
        ]
        header = ["processes", "seconds", "peak memory of each, GB", "tree"]
        lines.append(markdown_table(header, cells).rstrip("\n"))
        lines += ["", f"The trees are {'the same, byte for byte' if same else 'NOT the same'}."]
    return "\n".join(lines) + "\n"
