"""k-means on a GPU: the nearest centroid beside its peers, the kernel by block shape, and a whole fit from disk."""

import shutil
import statistics
import subprocess
import sys
import time
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from benchmarks.gpu.machine import free_memory
from benchmarks.gpu.parts import PEERS, Context, Row, Skipped
from benchmarks.gpu.timing import matmul_tflops, seconds_of, synchronize
from curation.kmeans.assignment import CentroidSearch
from curation.kmeans.lloyd import fit_centroids
from curation.kmeans.settings import KMeansSettings
from curation.store.embeddings import open_embeddings
from foundation.files import whole_file

DIM, CENTROIDS, ROWS = 1024, 10_000, 1 << 20
CONCEPTS, SPREAD = 20_000, 0.8  # of the mixture: directions, and length of the noise beside theirs


class Mixture:
    """Unit rows (float32) around directions of Zipf sizes, made on the device; every draw gives other rows."""

    def __init__(self, n_concepts: int, dim: int, device: str):
        self.source = torch.Generator(device).manual_seed(0)
        self.directions = torch.nn.functional.normalize(
            torch.randn(n_concepts, dim, generator=self.source, device=device)
        )
        self.shares = 1 / torch.arange(1, n_concepts + 1, device=device, dtype=torch.float32)

    def draw(self, n: int) -> Float[Tensor, "n d"]:
        """The next n rows."""
        labels = torch.multinomial(self.shares, n, replacement=True, generator=self.source)
        dim, device = self.directions.shape[1], self.directions.device
        rows = torch.randn(n, dim, generator=self.source, device=device)
        rows *= SPREAD * dim**-0.5
        rows += self.directions[labels]
        return torch.nn.functional.normalize(rows)


def some_centroids(x: Float[Tensor, "n d"], k: int) -> Float[Tensor, "k d"]:
    """Rows, moved by one Lloyd iteration on a part of the data: what a search meets in the middle of a fit."""
    centroids = x[torch.linspace(0, len(x) - 1, k, device=x.device).long()].clone()
    some = x[: min(len(x), 16 * k)]
    labels = torch.cat([(part @ centroids.T - centroids.square().sum(1) / 2).argmax(1) for part in some.split(16384)])
    sums = torch.zeros_like(centroids).index_add_(0, labels, some)
    counts = torch.bincount(labels, minlength=k)[:, None]
    return torch.where(counts > 0, sums / counts.clamp(min=1), centroids)


class _Setup:
    """The rows and centroids of a comparison, and the product that its figures are shares of."""

    def __init__(self, context: Context):
        self.device = context.device
        k, dim = context.size(CENTROIDS, 100), context.size(DIM, 32)
        n = context.size(ROWS, 2048)
        if not context.tiny:  # rows in float32 and bfloat16, and blocks of scores beside them
            n = int(min(n, free_memory(context.device) * 0.4 / (6 * dim)) // 16384 * 16384)
        self.x = Mixture(context.size(CONCEPTS, 200), dim, self.device).draw(n)
        self.centroids = some_centroids(self.x, k)
        self.peak = matmul_tflops(self.device, context.size(8192, 256))
        self.shape = f"{n:,} x {dim}, k {k:,}"

    def row(self, what: str, times: list[float], labels: Int[Tensor, "n"] | None, truth: Int[Tensor, "n"]) -> Row:
        """Figures of one search; ``labels`` None: they are not to be compared."""
        work = 2.0 * len(self.x) * len(self.centroids) * self.x.shape[1]
        rate = work / statistics.median(times) / 1e12
        found: Row = {"what": what, "shape": self.shape, "seconds": statistics.median(times), "tflops": rate}
        found |= {"matmul_tflops": self.peak, "share_of_matmul": rate / self.peak}
        if labels is not None:
            found["agreement"] = float((labels.long().cpu() == truth.long().cpu()).double().mean())
        return found

    def truth(self) -> Int[Tensor, "n"]:
        """Nearest centroids by our exact search."""
        return CentroidSearch(self.centroids).nearest(self.x)[0]


def nearest(context: Context) -> list[Row]:
    """Our search, its parts, and plain torch (bfloat16 product, then argmax, block by block)."""
    setup = _Setup(context)
    x, search = setup.x, CentroidSearch(setup.centroids)
    truth = search.nearest(x)[0]
    rows = [setup.row("ours, exact", seconds_of(lambda: search.nearest(x), setup.device), truth, truth)]
    context.save(rows)
    if setup.device == "cuda" and search._use_kernel():
        from curation.kmeans.fused import best_two

        low, slack = search._lower(x, rounded=False)
        best, second, index = best_two(low, search.low, search.half_norms)
        times = seconds_of(lambda: best_two(low, search.low, search.half_norms), setup.device)
        rows.append(setup.row("ours, the kernel alone", times, index, truth))
        again = float((second >= best - slack).double().mean())
        context.notes.append(f"{again:.2%} of the rows are within the rounding bound of a second centroid")
        times = seconds_of(lambda: search._lower(x, rounded=False), setup.device)
        rows.append({"what": "ours, rounding and bounds", "shape": setup.shape, "seconds": statistics.median(times)})
        context.save(rows)
        del low, slack, best, second, index
    transposed, half = setup.centroids.to(torch.bfloat16).T, setup.centroids.square().sum(1) / 2

    def plain() -> Tensor:
        blocks = x.split(16384)
        return torch.cat([((part.to(torch.bfloat16) @ transposed).float() - half).argmax(1) for part in blocks])

    rows.append(setup.row("plain torch, bfloat16, not exact", seconds_of(plain, setup.device), plain(), truth))
    return rows


def _peer(context: Context, module: str, package: str, options: tuple[str, ...] = ()) -> Any:
    """Import a peer; fetched into a folder of its own, since some of them bring another CUDA than torch's.

    Raises:
        Skipped: it is not to be had.
    """
    folder = context.work / PEERS / package
    if context.install and not (folder / ".whole").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        try:
            done = subprocess.run(
                [*command, *options, "--target", str(folder), package], capture_output=True, text=True, timeout=240
            )
        except subprocess.TimeoutExpired as error:
            raise Skipped(f"{package} could not be installed within 240 s") from error
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Skipped(f"{package} could not be installed ({reason[:160]})")
        (folder / ".whole").touch()
    if (folder / ".whole").exists():
        sys.path.insert(0, str(folder))
        invalidate_caches()
    if find_spec(module) is None:
        raise Skipped(f"{package} is not installed")
    try:
        return import_module(module)
    except Exception as error:  # a shared library of another CUDA, a missing driver: any kind
        raise Skipped(f"{package} cannot be imported ({type(error).__name__}: {str(error)[:160]})") from error


def nearest_faiss(context: Context) -> list[Row]:
    """The flat index of faiss on the same rows, in float32 and with float16 storage; on the CPU in float32."""
    gpu = context.device == "cuda"
    faiss = _peer(context, "faiss", "faiss-gpu-cu12") if gpu else _peer(context, "faiss", "faiss-cpu")
    if gpu and not hasattr(faiss, "StandardGpuResources"):
        raise Skipped("the faiss that is installed has no GPU part")
    setup = _Setup(context)
    truth, rows = setup.truth(), []
    centroids = np.ascontiguousarray(setup.centroids.cpu().numpy())
    queries: Any = setup.x
    if gpu:
        try:
            import_module("faiss.contrib.torch_utils")
        except ImportError:
            context.notes.append("faiss cannot take tensors here: its seconds include copies from the host")
            queries = setup.x.cpu().numpy()
    else:
        queries = setup.x.numpy()
    for half in (False, True) if gpu else (False,):
        if gpu:
            resources, config = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
            config.useFloat16 = half
            index = faiss.GpuIndexFlatL2(resources, setup.x.shape[1], config)
        else:
            index = faiss.IndexFlatL2(setup.x.shape[1])
        index.add(torch.from_numpy(centroids) if gpu and isinstance(queries, Tensor) else centroids)
        found = index.search(queries, 1)[1][:, 0]
        labels = found if isinstance(found, Tensor) else torch.from_numpy(found)
        times = seconds_of(lambda index=index: index.search(queries, 1), setup.device, 3)  # type: ignore[misc]
        storage = "float16" if half else "float32"
        rows.append(setup.row(f"faiss {faiss.__version__}, {storage}", times, labels, truth))
        context.save(rows)
    return rows


def nearest_flash(context: Context) -> list[Row]:
    """The assignment kernel of flash-kmeans on the same rows in bfloat16 and float16; it does not verify."""
    if context.device != "cuda":
        raise Skipped("flash-kmeans needs CUDA")
    _peer(context, "flash_kmeans", "flash-kmeans", ("--no-deps",))
    assign = import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    setup = _Setup(context)
    truth, rows = setup.truth(), []
    for dtype in (torch.bfloat16, torch.float16):
        x, centroids = setup.x.to(dtype)[None], setup.centroids.to(dtype)[None]
        squared = x.float().square().sum(-1)
        labels = assign(x, centroids, squared)[0]
        times = seconds_of(lambda x=x, c=centroids, s=squared: assign(x, c, s), setup.device)  # type: ignore[misc]
        name = str(dtype).removeprefix("torch.")
        rows.append(setup.row(f"flash-kmeans, {name}, not exact, rows given in {name}", times, labels, truth))
        context.save(rows)
    return rows


def block_shapes(context: Context) -> list[Row]:
    """Our kernel with other block shapes, warps and stages: what `curation.kmeans.fused` should be set to here."""
    if context.device != "cuda":
        raise Skipped("the kernel runs on CUDA alone")
    from curation.kmeans import fused

    setup = _Setup(context)
    search = CentroidSearch(setup.centroids)
    truth = setup.truth()
    low, _slack = search._lower(setup.x, rounded=False)
    rows: list[Row] = []
    for shape in fused.SHAPES:
        name = f"{shape.rows} x {shape.centroids} x {shape.dim}, {shape.warps} warps, {shape.stages} stages"

        def work(shape: Any = shape) -> Any:
            return fused.best_two(low, search.low, search.half_norms, shape)

        try:
            times, labels = seconds_of(work, setup.device), work()[2]
        except Exception as error:  # out of shared memory or registers: any kind
            context.notes.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
            continue
        rows.append(setup.row(name, times, labels, truth))
        context.save(rows)
    if rows:
        best = max(rows, key=lambda row: row["tflops"])
        context.notes.append(f"fastest: {best['what']}; set so: {fused.shape_for(setup.x.device)}")
    return rows


def whole_fit(context: Context) -> list[Row]:
    """A fit of 10 M x 1024 float16 from disk, or of as many rows as disk and time allow."""
    dim, k, iterations = context.size(DIM, 32), context.size(CENTROIDS, 50), context.size(20, 3)
    n = context.size(10_000_000, 4096)
    context.work.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(context.work).free * 0.8
    seconds_a_row = 2.0 * k * dim * (iterations + 1) / 100e12  # at a tenth of an H100's peak
    if context.device == "cpu":
        seconds_a_row *= 1000
    path = context.work / "fit.npy"
    if not path.exists():  # a file that is there has its size
        n = int(min(n, room / (2 * dim), 0.5 * context.seconds / seconds_a_row))
        write_rows(path, n, dim, context)
    n = len(np.load(path, mmap_mode="r"))
    source = open_embeddings(path)
    rows: list[Row] = []
    laps: list[float] = []

    def lap(_state: Any) -> None:
        synchronize(context.device)
        laps.append(time.perf_counter())

    started = time.perf_counter()
    _centroids, history = fit_centroids(
        source,
        k,
        np.random.default_rng(0),
        KMeansSettings(max_iterations=iterations, device=context.device),
        on_iteration=lap,
    )
    seconds = time.perf_counter() - started
    work = 2.0 * n * k * dim
    later = np.diff(laps)
    rows.append(
        {
            "what": f"seeding and {len(history)} iterations",
            "shape": f"{n:,} x {dim} float16 on disk, k {k:,}",
            "seconds": seconds,
            "tflops": work * len(history) / seconds / 1e12,
        }
    )
    first = laps[0] - started
    rows.append({"what": "of these: seeding and the first iteration", "seconds": first})
    if len(later):
        lap_seconds = float(np.median(later))
        rate = work / lap_seconds / 1e12
        peak = matmul_tflops(context.device, context.size(8192, 256))
        rows.append(
            {"what": "a later iteration", "seconds": lap_seconds, "tflops": rate}
            | {
                "matmul_tflops": peak,
                "share_of_matmul": rate / peak,
                "gb_per_second": 2.0 * n * dim / lap_seconds / 1e9,
            }
        )
    context.notes.append(
        f"mean squared distance {history[0] / n:.5f} before the first update, {history[-1] / n:.5f} at the end"
    )
    path.unlink(missing_ok=True)
    return rows


def write_rows(path: Path, n: int, dim: int, context: Context) -> None:
    """(n, dim) float16 rows of the mixture, made on the device block by block."""
    made = Mixture(context.size(CONCEPTS, 200), dim, context.device)
    with whole_file(path) as temporary:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=(n, dim))
        for start in range(0, n, 1 << 17):
            block = made.draw(min(1 << 17, n - start))
            out[start : start + len(block)] = block.half().cpu().numpy()
        out.flush()
        del out
