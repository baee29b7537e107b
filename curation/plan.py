"""What a run will cost before it starts: operations, bytes, memory and time, counted from the settings.

One Lloyd iteration over n points and k centroids in d dimensions is a matrix product of 2 n k d operations and one
pass over the n x d input (read, conversion, verification, update). Operations are counted as if every iteration
searched all centroids; times take the share that is searched on long-tailed data (`searched_share`), and are the larger
of products + passes and of reads.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch

from curation.kmeans.assignment import has_bfloat16_units
from curation.kmeans.grouped_seeding import seeding_work
from curation.kmeans.lloyd import fit_centroids
from curation.kmeans.seeding import GROUPED_WORK, SUBSAMPLE, TRIAL_BUDGET
from curation.kmeans.settings import KMeansSettings
from curation.plan_memory import graph_bytes, tree_bytes
from curation.store.embeddings import open_embeddings
from curation.trees.community_tree import AUTO, level_of
from curation.trees.hierarchy import HierarchicalKMeans
from curation.trees.levels import FANOUT, MAX_POINTS, first_level
from curation.trees.neighbours import MAX_DIMENSIONS, nearest
from foundation.errors import CurationError
from foundation.numbers import figure

BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclass(frozen=True)
class Hardware:
    """A machine as the plan sees it.

    Attributes:
        tflops: sustained bfloat16 (or float32) matrix products of one device, 1e12 operations a second.
        greedy_tflops: the same for the skinny products of greedy seeding, on the processors of one machine.
        read_gb_s: sequential read of the embeddings by one process, 1e9 bytes a second.
        pass_g_s: values (of n x d) that an iteration handles besides the product, 1e9 a second.
        n_devices: how many processes share the rows, one on each.
        source: where the figures come from.
        skips: late iterations search only what moved (on the CPU).
        random_read_s: seconds until a single row comes from storage, for the reads of two-step levels.
        link_gb_s: what a process sends and receives at once, 1e9 bytes a second.
        search_tflops: products of the exact search for neighbours (faiss), with the choice of the nearest, on the
            processors that one process has; beside a GPU about 8 cores, and as much for other large products.
    """

    name: str
    tflops: float
    greedy_tflops: float
    read_gb_s: float
    n_devices: int = 1
    source: str = ""
    pass_g_s: float = 100.0
    skips: bool = False
    random_read_s: float = 0.0
    link_gb_s: float = 10.0
    search_tflops: float = 0.5

    @property
    def processor_tflops(self) -> float:
        """Large products on the processors of all processes."""
        return (self.tflops if self.skips else self.search_tflops) * self.n_devices


# half of the dense bfloat16 peak that the vendor's data sheets give; assumed, not measured
ASSUMED = (
    "assumed, half of the {} TFLOP/s peak; for each process 2 GB/s of storage, 0.1 ms a single row, 10 GB/s of network"
)
SENT_BYTES = 8 + 8 + 4  # of each value of the centroids: float64 sum and its rounding error out, float32 mean back
# Lloyd's search falls off: 4 iterations look at every centroid, the next at a share s = 0.63, each later one at 0.93 of
# the one before; n late ones together at s (1 + 0.93 + ...) = s (1 - 0.93^n) / (1 - 0.93) = 9 (1 - 0.93^n)
FULL_ITERATIONS, KEPT, LATE_SEARCHES = 4, 0.93, 9
GRAPH_SEARCHES = 14  # exact searches of all pairs for the communities: covers in rounds, then one for each graph
DEVICES_A_MACHINE = 8
SECONDS_PER_POINT = 6e-4  # of communities and the rest

PROFILES = {
    "h100": Hardware("h100", 495.0, 0.5, 2.0, source=ASSUMED.format(989), random_read_s=1e-4),
    "a100": Hardware("a100", 156.0, 0.5, 2.0, source=ASSUMED.format(312), random_read_s=1e-4),
}


@dataclass(frozen=True)
class Stage:
    """One line of the plan: operations, bytes read, seconds; whether processors do it while GPUs wait."""

    name: str
    operations: float
    bytes_read: float
    seconds: float
    on_processors: bool = False


@dataclass(frozen=True)
class Plan:
    """Stages with their sums; memory of the largest process and of its GPU, and storage, in bytes."""

    hardware: Hardware
    stages: list[Stage]
    memory: float
    storage: float
    gpu_memory: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def processor_seconds(self) -> float:
        """Of stages for which GPUs are not needed; 0 where there are none."""
        return 0.0 if self.hardware.skips else sum(stage.seconds for stage in self.stages if stage.on_processors)

    @property
    def device_hours(self) -> float:
        return (self.seconds - self.processor_seconds) * self.hardware.n_devices / 3600

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON."""
        sums = {"seconds": self.seconds, "device_hours": self.device_hours}
        return {**asdict(self), **sums, "processor_hours": self.processor_seconds / 3600}

    def table(self) -> str:
        """The plan as text."""
        hardware, stages = self.hardware, self.stages
        total = Stage("total", sum(s.operations for s in stages), sum(s.bytes_read for s in stages), self.seconds)
        cells = [("stage", "operations", "read", "time", "on")]
        for stage in [*stages, total]:
            on = "" if stage is total else "cpu" if stage.on_processors else hardware.name
            figures = f"{stage.operations:.2e}", _size(stage.bytes_read), _time(stage.seconds)
            cells.append((stage.name, *figures, on))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join([name.ljust(widths[0]), *map(str.rjust, figures, widths[1:4]), on]).rstrip()
            for name, *figures, on in cells
        ]
        hours = "less than 0.01" if self.device_hours < 0.01 else figure(self.device_hours)
        waiting = f", and {_time(self.processor_seconds)} on processors alone" if self.processor_seconds else ""
        of_gpu = f", of its GPU {_size(self.gpu_memory)}" if self.gpu_memory else ""
        lines += [
            "",
            f"{hardware.n_devices} x {hardware.name}: {hours} device hours{waiting}",
            f"rates: {hardware.source}",
            f"memory of the largest process {_size(self.memory)}{of_gpu}; embeddings and tree on disk "
            f"{_size(self.storage)}",
        ]
        return "\n".join(lines)


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{figure(n_bytes)} EB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return "< 1 ms" if seconds < 0.001 else f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{figure(seconds / 3600)} h"


@cache
def calibrate(seconds: float = 3.0) -> Hardware:
    """This machine, measured for a few seconds: the product that the engine would use, and a memory read.

    A process measures once.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    low = torch.bfloat16 if has_bfloat16_units(device) else torch.float32
    rows, centroids = torch.randn(2048, 512, device=device).to(low), torch.randn(1024, 512, device=device).to(low)
    thin = torch.randn(1 << 16, 256)

    def rate(work: Any, amount: float) -> float:
        work()
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds / 4:
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            done += 1
        return done * amount / (time.perf_counter() - started)

    product = rate(lambda: rows @ centroids.T, 2.0 * 2048 * 1024 * 512)
    greedy = rate(lambda: thin @ thin[:8].T, 2.0 * len(thin) * 8 * 256)
    points = thin[:4096, :MAX_DIMENSIONS].numpy().copy()
    search = rate(lambda: nearest(points, 15), 2.0 * len(points) ** 2 * MAX_DIMENSIONS)
    read = rate(lambda: thin.sum(), thin.nbytes)
    few, many = (_iteration_seconds(k, 1 << 15, 256, device) for k in (128, 1152))
    slope = (many - few) / 1024  # of one centroid: the product with its verification
    passes = (1 << 15) * 256 / max(few - 128 * slope, 1e-4)
    product = min(product, 2.0 * (1 << 15) * 256 / max(slope, 1e-9))
    note = f"measured now with {str(low).removeprefix('torch.')}; storage is taken to be as fast as memory"
    skips = device.type == "cpu"
    return Hardware(
        str(device.type),
        product / 1e12,
        greedy / 1e12,
        read / 1e9,
        source=note,
        pass_g_s=passes / 1e9,
        skips=skips,
        search_tflops=search / 1e12,
    )


def _iteration_seconds(k: int, n: int, dim: int, device: torch.device) -> float:
    """Of one Lloyd iteration that searches all centroids: the fastest of three."""
    rng = np.random.default_rng(0)
    x = open_embeddings(rng.normal(size=(n, dim)).astype(np.float32))
    start = rng.normal(size=(k, dim)).astype(np.float32)
    times: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        fit_centroids(x, k, rng, KMeansSettings(max_iterations=1, device=device), initial=start)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def searched_share(iterations: int) -> float:
    """Share of rows x centroids that so many Lloyd iterations search, on the long-tailed data of the benchmark.

    About four full iterations, then a share that falls by 7 % each time: 0.51 for 20 (measured 0.44), 0.25 for 50.
    """
    late = max(0, iterations - FULL_ITERATIONS)
    return min(1.0, (min(iterations, FULL_ITERATIONS) + LATE_SEARCHES * (1 - KEPT**late)) / iterations)


def plan(
    rows: float,
    dim: int,
    levels: Sequence[int | str | Sequence[int]],
    hardware: Hardware,
    *,
    n_resamples: int | Sequence[int] = 0,
    sample_sizes: int | Sequence[int] | None = None,
    max_iterations: int = 50,
    dtype: str = "float16",
    fit_rows: int = 0,
) -> Plan:
    """Cost of `curation.HierarchicalKMeans` with these settings; Lloyd is taken to use all its iterations.

    Raises:
        CurationError: a setting makes no sense.
    """
    if rows < 1 or dim < 1:
        raise CurationError(f"rows={rows:g} and dim={dim} must be at least 1")
    if dtype not in BYTES:
        raise CurationError(f"dtype {dtype!r} is unknown; use one of {', '.join(BYTES)}")
    plans = HierarchicalKMeans(
        levels,
        n_resamples=n_resamples,
        sample_sizes=sample_sizes,
        max_iterations=max_iterations,
        fit_rows=fit_rows,
    ).plans
    if plans[0].n_clusters > rows:
        raise CurationError(f"level 1 wants {plans[0].n_clusters} clusters of {rows:g} rows; lower the levels")
    stages: list[Stage] = []
    devices = hardware.n_devices

    def add(
        name: str,
        operations: float,
        n_bytes: float,
        *,
        skinny: float = 0.0,
        skinny_machines: float = 1.0,
        on_processors: bool = False,
        values: float = 0.0,
        share: float = 1.0,
        single_rows: float = 0.0,
        sent: float = 0.0,
    ) -> None:
        product = share * operations / (hardware.tflops * 1e12 * devices)
        product += skinny / (hardware.greedy_tflops * 1e12 * skinny_machines)
        product += values / (hardware.pass_g_s * 1e9 * devices)
        read = n_bytes / (hardware.read_gb_s * 1e9 * devices) + single_rows * hardware.random_read_s / devices
        send = sent / (hardware.link_gb_s * 1e9) if devices > 1 else 0.0
        stages.append(Stage(name, operations + skinny, n_bytes, max(product, read) + send, on_processors))

    def add_kmeans(name: str, n: float, k: float, width: int) -> None:
        sample, machines = min(n, SUBSAMPLE * k), 1.0
        if sample * k * dim > GROUPED_WORK:
            machines = max(1.0, devices / DEVICES_A_MACHINE)  # their processors share the groups
            skinny = 2.0 * seeding_work(sample, int(k), dim)
        else:
            skinny = 2.0 * sample * k * dim * max(1.0, min(2 + math.log(k), TRIAL_BUDGET / (sample * k * dim)))
        how: dict[str, Any] = {"skinny": skinny, "skinny_machines": machines, "on_processors": True}
        add(f"{name}: seeding", 0.0, sample * dim * width, **how)
        add(
            f"{name}: {max_iterations} iterations",
            2.0 * n * k * dim * max_iterations,
            n * dim * width * max_iterations,
            values=n * dim * max_iterations,
            share=searched_share(max_iterations) if hardware.skips else 1.0,
            sent=k * dim * SENT_BYTES * max_iterations,
        )

    points, width = float(rows), BYTES[dtype]
    for number, level in enumerate(plans):
        name, k = f"level {number + 1}", level.k

        def add_run(title: str, n: float, k: float = k, level: Any = level, width: int = width) -> None:
            add_kmeans(title, n, k, width)
            if level.n_splits > 1:
                add(
                    f"{title}: splitting in {level.n_splits}",
                    2.0 * n * level.n_splits * dim * (max_iterations + 1),
                    n * dim * width,
                    single_rows=n,
                )

        def assign(title: str, n: float, k: float = k, level: Any = level, width: int = width) -> None:
            wide = k + (level.n_splits if level.n_splits > 1 else 0)
            single = n if level.n_splits > 1 else 0.0
            add(title, 2.0 * n * wide * dim, n * dim * width * (2 if single else 1), values=n * dim, single_rows=single)

        add_run(name, min(points, fit_rows) if fit_rows and not number else points)
        assign(f"{name}: assignment", points)
        if level.n_resamples:
            members = level.sample_size or max(1, math.ceil(points / level.n_clusters / 2))
            sampled = min(points, level.n_clusters * float(members))
            for _ in range(level.n_resamples):
                add_run(f"{name}: resampled set of {sampled:.3g}", sampled)
                assign(f"{name}: assignment of all points", points)
        points, width = float(level.n_clusters), 4
    first = plans[0].n_clusters
    memory, of_gpu = tree_bytes(rows, dim, plans, BYTES[dtype], devices, not hardware.skips, fit_rows)
    storage = rows * dim * BYTES[dtype] + rows * 12 + sum(p.n_clusters * dim * 4 for p in plans) + first * 12
    return Plan(hardware, _merged(stages), memory, storage, of_gpu)


def plan_tree(
    rows: float,
    dim: int,
    levels: str | Sequence[int | str | Sequence[int]],
    hardware: Hardware,
    *,
    n_resamples: int | Sequence[int] | None = None,
    sample_sizes: int | Sequence[int] | None = None,
    max_iterations: int | None = None,
    dtype: str = "float16",
    fit_rows: int = 0,
) -> Plan:
    """Cost of the tree that `curation.pipeline.tree_fit` makes of these settings: "auto" levels, or the paper's."""
    if levels != AUTO:
        resamples = 10 if n_resamples is None else n_resamples
        return plan(
            rows,
            dim,
            levels,
            hardware,
            n_resamples=resamples,
            sample_sizes=sample_sizes,
            max_iterations=max_iterations or 50,
            dtype=dtype,
            fit_rows=fit_rows,
        )
    if n_resamples is not None or sample_sizes is not None:
        raise CurationError("resamples and sample sizes belong to the paper's levels, such as 10000,1000,100")
    if rows < 1 or dim < 1:
        raise CurationError(f"rows={rows:g} and dim={dim} must be at least 1")
    first = plan(
        rows,
        dim,
        [level_of(first_level(int(rows)))],
        hardware,
        max_iterations=max_iterations or 20,
        dtype=dtype,
        fit_rows=fit_rows,
    )
    k = first_level(int(rows))
    if k < FANOUT:  # no levels above so few clusters
        return first
    points, width = min(rows, MAX_POINTS), min(dim, MAX_DIMENSIONS)
    searches = 2.0 * points**2 * width * GRAPH_SEARCHES
    # on the processors of the first process, whatever the others have
    graphs = Stage(
        f"upper levels: graphs of {points:,.0f} rows",
        searches,
        points * dim * BYTES[dtype] * 2,
        searches / (hardware.search_tflops * 1e12) + points * SECONDS_PER_POINT,
        on_processors=True,
    )
    memory = max(first.memory, graph_bytes(rows, dim, k, points, hardware.n_devices))
    return replace(first, stages=[*first.stages, graphs], memory=memory)


def _merged(stages: list[Stage]) -> list[Stage]:
    """Equal stages (the resampling steps) as one line, with their number."""
    merged: dict[str, list[Stage]] = {}
    for stage in stages:
        merged.setdefault(stage.name, []).append(stage)
    return [
        Stage(
            f"{len(same)} x {name}" if len(same) > 1 else name,
            sum(stage.operations for stage in same),
            sum(stage.bytes_read for stage in same),
            sum(stage.seconds for stage in same),
            same[0].on_processors,
        )
        for name, same in merged.items()
    ]
