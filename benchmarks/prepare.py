"""Generated pools of growing size through prepare, curate and one step of training: time and peak memory.

python -m benchmarks.prepare text images satellite --rows 20000 60000 200000 600000 2000000 -o docs/results/prepare.md

Every stage runs in a process of its own; memory is the sum over its process tree. A stage that is cut off (--seconds, a
kill) goes on in the next call, and its times are added up. What is measured already is not measured again.
"""

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine.experiment import build
from experiments.engine.provenance import commits_of, provenance
from experiments.engine.settings import compose
from experiments.engine.stages import in_order, run_stage, state_of
from experiments.run_folder import begin_stage
from foundation.command import run_command
from foundation.files import load_json, save_json, write_atomically
from foundation.options import Parser, number_type, page_type
from foundation.tables import markdown_table

TITLE = "# Pools of growing size"
STAGES = ("make", "prepare", "curate", "train")
LIMIT = 3e9  # bytes that no stage may exceed
GOAL = 2_000_000  # rows
ROWS_PER_FILE = 50_000
MEASURED_FOR_FIT = 4  # sizes
EXPONENTS = np.arange(0.5, 2.5, 0.01)
CURATE = ["science.curation.levels=[200,40,10]", "science.curation.n_resamples=1", "science.curation.max_iterations=5"]
SHARED = ["seeds=[0]", "tracking.wandb=off", "speed.threads=1", "science.studies=null", *CURATE]
VISION = (
    "science.train.recipe={steps: 1, batch_size: 8, collapse: 0.0, probe: {every: 0}, backbone: {name: "
    "vit_tiny_patch16_224, args: {patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}}, loss: {dino_head: "
    "{n_prototypes: 16, hidden: 16, bottleneck: 8}}, crops: {global_size: 16, local_size: 8, n_local: 2}}"
)
EMBEDDER = 'image_size: 16, dim: 96, embedder: "timm:test_resnet?pretrained=false"'
SIDE, CELL = 16, 4  # pixels of a picture, and of its cells of one colour


def in_files(folder: Path, rows: int, write: Callable[[int, int, Path], None], ending: str) -> None:
    """Call ``write(first row, rows, path)`` for every file that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        path = folder / f"{number:04}{ending}"
        if not path.exists():
            write(start, min(ROWS_PER_FILE, rows - start), path)


def write_texts(start: int, rows: int, path: Path) -> None:
    """Passages of 30 words from 20 domains, four of a document; a tenth are near-copies, 2 % copies."""
    rng = np.random.default_rng([start, 1])
    words = np.array([f"{chr(97 + i % 26)}{i:x}" for i in range(6000)])
    domains = rng.integers(20, size=rows)
    chosen = (rng.integers(400, size=(rows, 30)) ** 2 // 400 + domains[:, None] * 280).astype(np.int64)
    copied, near = rng.random(rows) < 0.02, rng.random(rows) < 0.1
    for i in np.flatnonzero(copied | near):
        other = int(rng.integers(max(int(i), 1)))
        domains[i], chosen[i] = domains[other], chosen[other]
        if near[i]:
            chosen[i, 29] = rng.integers(6000)

    def lines(stream: Any) -> None:
        for i in range(rows):
            place = f"{path.stem}/{domains[i]}/{i // 80}"
            row = {"text": " ".join(words[chosen[i]]) + ".", "domain": f"d{domains[i]:02}", "source": place}
            stream.write((json.dumps(row) + "\n").encode())

    write_atomically(path, lines)


def write_pictures(start: int, rows: int, path: Path) -> None:
    """Pictures of 16 x 16 pixels of ten classes, each a colour with noise."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rng = np.random.default_rng([start, 2])
    labels = rng.integers(10, size=rows)
    colours = np.random.default_rng(0).integers(40, 216, (10, 3))
    cells = colours[labels][:, None, None] + rng.normal(0, 24, (rows, SIDE // CELL, SIDE // CELL, 3))
    pixels = np.clip(cells, 0, 255).astype(np.uint8).repeat(CELL, 1).repeat(CELL, 2)
    lines = np.pad(pixels.reshape(rows, SIDE, SIDE * 3), ((0, 0), (0, 0), (1, 0)))  # each begins with its filter: none
    stored = [{"bytes": png_of(picture.tobytes()), "path": None} for picture in lines]
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    write_atomically(path, Dataset.from_dict({"image": stored, "label": labels.tolist()}, features=features).to_parquet)


def png_of(lines: bytes) -> bytes:
    """A PNG of `SIDE` x `SIDE` pixels of 8 bits, written directly: an encoder's set-up would take most of the time."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(lines, 1)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_scene(folder: Path, tiles: int, tile: int = 16) -> None:
    """A raster of colours and one of heights with so many tiles on the train side, written row of tiles by row."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    from foundation.files import whole_file

    folder.mkdir(parents=True, exist_ok=True)
    side = int(np.ceil(np.sqrt(tiles * 1.5))) * tile
    shared = {"driver": "GTiff", "width": side, "height": side, "crs": "EPSG:32610", "tiled": True}
    shared |= {"blockxsize": 256, "blockysize": 256, "transform": from_origin(500_000, 5_000_000, 0.5, 0.5)}
    for name, count, dtype in (("image.tif", 3, "uint8"), ("heights.tif", 1, "float32")):
        if (folder / name).exists():
            continue
        with whole_file(folder / name) as place, rasterio.open(place, "w", count=count, dtype=dtype, **shared) as out:
            for top in range(0, side, 256):
                rng = np.random.default_rng([top, count])
                rows = min(256, side - top)
                coarse = rng.random((count, -(-rows // 8), -(-side // 8))).repeat(8, 1).repeat(8, 2)[:, :rows, :side]
                values = coarse * 200 + rng.random((count, rows, side)) * 40 if count == 3 else coarse * 30
                out.write(values.astype(dtype), window=Window(0, top, side, rows))


def make(kind: str, rows: int, folder: Path) -> None:
    """The source that a pool of about so many rows is drawn from."""
    if kind == "text":
        in_files(folder, rows, write_texts, ".jsonl")
    elif kind == "images":
        in_files(folder, round(0.8 * rows) + 400, write_pictures, ".parquet")
    else:
        write_scene(folder, rows)


def config_of(kind: str, rows: int, source: Path, root: Path) -> dict[str, Any]:
    """The experiment of a pool; of text, four fifths of the passages that were generated are drawn."""
    own = {
        "text": [
            "experiment=text",
            f"science.pool={{source: {source}, rows: {round(0.8 * rows)}, test_share: 0.02, test_bytes: 4000, "
            "embedder: byte_histogram, dim: 256, tokenizer: bytes}",
            "science.curation.size=2000",
            "science.train.unique_tokens=100000",
            "science.train.passage_tokens=150",
            "science.train.recipe.model={width: 16, layers: 1, heads: 2, context: 64}",
            "science.train.recipe.tokens=1024",
            "science.train.recipe.batch_size=16",
        ],
        "images": [
            "experiment=web_images",
            f"science.pool={{source: {source}, top_level: false, test_rows: 5, bank_rows: 5, least: 2, largest: 0, "
            f"bursts: 0.1, junk: 0.1, rows: {rows}, side: 16, {EMBEDDER}}}",
            "science.curation.size=2000",
            VISION,
        ],
        "satellite": [
            "experiment=satellite",
            f"science.pool={{image: {source}/image.tif, heights: {source}/heights.tif, tile: 16, stride: 16, rows: "
            f"{rows}, labelled: 50, block: 200.0, n_folds: 10, margin: 8.0, {EMBEDDER}}}",
            "science.curation.size=2000",
            "science.train.recipe.steps=1",
            "science.train.recipe.batch_size=8",
            "science.train.views={tile: 16, resolution: 0.5, global_metres: [6.0, 8.0], local_metres: [3.0, 4.0], "
            "global_size: 32, local_size: 16, n_local: 0}",
        ],
    }[kind]
    return compose([*own, *SHARED, "arms=[hierarchical_resampled]", f"output.runs={root}", f"output.report={root}/r"])


def child(kind: str, rows: int, stage: str, work: Path) -> None:
    """One stage, in this process."""
    if stage == "make":
        make(kind, rows, work / "source")
        return
    config = config_of(kind, rows, work / "source", work / "runs")
    experiment = build(config)
    wanted = next(item for item in in_order(experiment.stages) if item.name == stage)
    if not state_of(wanted, experiment.root).finished:
        run_stage(wanted, experiment.root, **begin_stage(experiment, config, False))


def resident(pid: int) -> tuple[int, int]:
    """Bytes in memory of a process and all below it: with the pages of mapped files, and without."""
    total = own = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "VmRSS":
                total += int(value.split()[0]) * 1024
            if name in ("RssAnon", "RssShmem"):
                own += int(value.split()[0]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            below = [resident(int(part)) for part in (task / "children").read_text().split()]
            total, own = total + sum(part[0] for part in below), own + sum(part[1] for part in below)
    except (OSError, ValueError):  # it has ended meanwhile
        pass
    return total, own


def measure(kind: str, rows: int, stage: str, work: Path, deadline: float) -> dict[str, Any]:
    """Run a stage until it is done or time is up."""
    command = [sys.executable, "-m", "benchmarks.prepare", "--child", kind, str(rows), stage, str(work)]
    environment = {**os.environ, "HF_HOME": str(work / "hub"), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment)
    peak = own = 0
    while True:
        pid, status, used = os.wait4(running.pid, os.WNOHANG)
        if pid:
            break
        now = resident(running.pid)
        peak, own = max(peak, now[0]), max(own, now[1])
        if time.monotonic() > deadline:
            os.kill(running.pid, signal.SIGKILL)
        time.sleep(0.1)
    running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode > 0:
        raise RuntimeError(f"{kind}, {rows:,} rows: {stage} failed")
    done = running.returncode == 0
    return {"seconds": used.ru_utime + used.ru_stime, "peak": peak, "own": own, "calls": 1, "done": done}


def add(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """Two calls of one stage as one."""
    if before is None:
        return now
    both = {name: before[name] + now[name] for name in ("seconds", "calls")}
    both |= {name: max(before[name], now[name]) for name in ("peak", "own")}
    return {**both, "done": now["done"]}


def finished(stages: dict[str, Any]) -> list[str]:
    """Stages of a pool that are done, but for the making of its source."""
    return [stage for stage in STAGES[1:] if stages.get(stage, {}).get("done")]


def sizes_of(figures: dict[str, Any], kind: str) -> dict[int, dict[str, Any]]:
    """Rows of a pool -> its stages, ascending; those whose `prepare` is done."""
    own = {int(name.split("-")[1]): stages for name, stages in figures.items() if name.split("-")[0] == kind}
    return {rows: own[rows] for rows in sorted(own) if "prepare" in finished(own[rows])}


def growth(rows: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float] | None:
    """start, factor, exponent of start + factor x rows ^ exponent, least squares of relative errors; None: too few."""
    if len(rows) < MEASURED_FOR_FIT:
        return None
    from scipy.optimize import nnls

    n, y = np.asarray(rows, float) / GOAL, np.asarray(seconds, float)
    tried = [
        (*nnls(np.stack([1 / y, n**exponent / y], 1), np.ones(len(y))), exponent) for exponent in EXPONENTS.tolist()
    ]
    (start, factor), _error, exponent = min(tried, key=lambda found: found[1])
    return float(start), float(factor), exponent


def page(figures: dict[str, Any]) -> str:
    """What was measured, as a page."""
    kinds = sorted({name.split("-")[0] for name in figures})
    lines = [TITLE, ""]
    for kind in kinds:
        asked = " ".join(str(rows) for rows in sizes_of(figures, kind))
        lines += [f"`python -m benchmarks.prepare {kind} --rows {asked}`", ""]
    devices = sorted(
        {about["device"] for kind in kinds for item in sizes_of(figures, kind).values() for about in item["made"]}
    )
    lines += [f"{'; '.join(devices)}.", ""]
    lines += [
        "Generated pools through the stages of their experiments: passages of 30 words (a tenth near-copies), pictures "
        "and tiles of 16 x 16 pixels. Seconds of the processor, by one process. Text embeds by byte histograms, "
        "pictures by a tiny network that was never trained (`test_resnet`, 16 pixels): embedding at real sizes is "
        "[another cost](../scale.md). `curate` fits 200, 40 and 10 clusters, one resampling, 5 iterations, and draws "
        "2,000 rows (its first call in a checkout also compiles kernels, 7 to 20 s);"
        " `train` is one step on them. Rows are those of the source; the pool of text has four fifths of "
        "them, and of tiles half as many again are cut.",
        "",
        f"Peak memory is the greatest of all stages, summed over the process tree: what processes hold of their own, "
        f"which must stay below {LIMIT / 1e9:.0f} GB, and all that is resident. That counts the pages of mapped files "
        "too, embeddings among them, which the system takes back where memory is short. Libraries are about 0.4 and "
        "0.8 GB of it. `curate` holds the resampled set, here half of the rows, in memory (up to 4 GiB, "
        "[user guide](../user-guide.md#memory)); GDAL keeps up to 256 MiB of blocks of rasters.",
        "",
    ]
    header = ["", "rows", *(f"{stage}, s" for stage in STAGES[1:]), "prepare, microseconds a row"]
    header += ["own memory, GB", "resident, GB", "commit"]
    cells = []
    for kind in kinds:
        for rows, stages in sizes_of(figures, kind).items():
            done = finished(stages)
            calls = stages["prepare"]["calls"]
            memory = [max(stages[stage][name] for stage in done) for name in ("own", "peak")]
            cells.append(
                [
                    kind,
                    f"{rows:,}",
                    f"{stages['prepare']['seconds']:.0f}" + (f" (in {calls} calls)" if calls > 1 else ""),
                    *(f"{stages[stage]['seconds']:.0f}" if stage in done else "-" for stage in STAGES[2:]),
                    f"{1e6 * stages['prepare']['seconds'] / rows:.0f}",
                    f"{memory[0] / 1e9:.2f}" + (" **too much**" if memory[0] > LIMIT else ""),
                    f"{memory[1] / 1e9:.2f}",
                    commits_of(stages["made"]),
                ]
            )
    lines += [markdown_table(header, cells).rstrip("\n"), ""]
    grown = [row for kind in kinds for stage in STAGES[1:3] if (row := _growth_row(figures, kind, stage))]
    if grown:
        lines += [
            "**Growth**: start + factor x rows ^ exponent, fitted to the seconds above by least squares of relative "
            "errors; an exponent of 1 is linear.",
            "",
            markdown_table(["", "stage", "exponent", "start, s", f"at {GOAL:,} rows, s"], grown).rstrip("\n"),
            "",
        ]
    for kind in kinds:
        mine = sizes_of(figures, kind)
        *_, before, largest = (0, 0, *mine)
        if largest < GOAL:
            lines += [f"**{kind}: more than {largest:,} rows have not been run**; the goal is {GOAL:,}.", ""]
        if before and largest < GOAL:
            times = [mine[rows]["prepare"]["seconds"] for rows in (before, largest)]
            there = times[1] + (times[1] - times[0]) / (largest - before) * (GOAL - largest)
            lines[-2] += f" A line through the last two sizes gives {there:,.0f} s of `prepare` there: arithmetic."
    if any(len(sizes_of(figures, kind)) > 1 for kind in kinds):
        lines.append("![time and memory by rows](images/prepare.png)")
    return "\n".join(lines).rstrip("\n") + "\n"


def _growth_row(figures: dict[str, Any], kind: str, stage: str) -> list[str] | None:
    mine = {rows: stages for rows, stages in sizes_of(figures, kind).items() if stage in finished(stages)}
    fit = growth(list(mine), [stages[stage]["seconds"] for stages in mine.values()])
    if fit is None:
        return None
    start, factor, exponent = fit
    there = f"{mine[GOAL][stage]['seconds']:.0f} measured, " if GOAL in mine else ""
    return [kind, stage, f"{exponent:.2f}", f"{start:.0f}", f"{there}{start + factor:.0f} by the fit"]


def plot(figures: dict[str, Any], path: Path) -> None:
    """Seconds of prepare and curate, and peak memory, over rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    *times, memory = figure.subplots(1, 3)
    for colour, kind in zip(("C0", "C1", "C2"), sorted({name.split("-")[0] for name in figures}), strict=False):
        mine = sizes_of(figures, kind)
        for axes, stage in zip(times, STAGES[1:3], strict=True):
            there = {rows: stages[stage]["seconds"] for rows, stages in mine.items() if stage in finished(stages)}
            axes.loglog(list(there), list(there.values()), "o", color=colour)
            fit = growth(list(there), list(there.values()))
            label = kind
            if fit is not None:
                start, factor, exponent = fit
                label = f"{kind}: rows ^ {exponent:.2f}"
                for line, ends in (("-", (min(there), max(there))), (":", (max(there), GOAL))):
                    x = np.geomspace(*ends, 50)
                    axes.loglog(x, start + factor * (x / GOAL) ** exponent, line, color=colour)
            axes.plot([], [], "o-", color=colour, label=label)
        for name, line, what in (("own", "o-", "own"), ("peak", "o--", "with mapped files")):
            peaks = [max(stages[stage][name] for stage in finished(stages)) / 1e9 for stages in mine.values()]
            memory.semilogx(list(mine), peaks, line, color=colour, label=f"{kind}, {what}")
    memory.axhline(LIMIT / 1e9, color="grey", linestyle=":")
    for axes, stage in zip(times, STAGES[1:3], strict=True):
        axes.set(xlabel="rows", ylabel="processor seconds", title=f"{stage} (dotted: arithmetic)")
        axes.legend(fontsize=8)
    memory.set(xlabel="rows", ylabel="GB", title="peak memory", ylim=(0, None))
    memory.legend(fontsize=7)
    write_atomically(path, lambda stream: figure.savefig(stream, format="png", dpi=120))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("kinds", nargs="*", default=["text", "images", "satellite"])
    parser.add_argument("--rows", type=number_type(int, ge=1000), nargs="+", default=[250_000, 500_000])
    parser.add_argument("-o", "--output", type=page_type(TITLE, '"made"'), default=Path("docs/results/prepare.md"))
    parser.add_argument("--work", type=Path, default=Path("runs/prepare"), help="pools and stages; may be deleted")
    parser.add_argument("--seconds", type=number_type(float, gt=0), default=1e9, help="stop and go on another time")
    parser.add_argument("--last", choices=STAGES[1:], default="train", help="the last stage that is measured")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, rows, stage, work = options.child
        child(kind, int(rows), stage, Path(work))
        return
    kept = options.output.with_suffix(".json")
    figures = load_json(kept) if kept.exists() else {}
    about, deadline = provenance("cpu", 1), time.monotonic() + options.seconds
    for kind in options.kinds:
        for rows in options.rows:
            mine = figures.setdefault(f"{kind}-{rows}", {})
            work = (options.work / f"{kind}-{rows}").absolute()
            for stage in STAGES[: STAGES.index(options.last) + 1]:
                if mine.get(stage, {}).get("done"):
                    continue
                mine[stage] = add(mine.get(stage), measure(kind, rows, stage, work, deadline))
                made = mine.setdefault("made", [])  # what it was measured with, of several calls perhaps several
                made += [about] if about not in made else []
                save_json(kept, figures)
                print(kind, rows, stage, mine[stage], flush=True)
                if not mine[stage]["done"]:
                    return
    if any(len(sizes_of(figures, kind)) > 1 for kind in {name.split("-")[0] for name in figures}):
        plot(figures, options.output.parent / "images/prepare.png")
    write_atomically(options.output, lambda stream: stream.write(page(figures).encode()))
    print(f"wrote {options.output}")


if __name__ == "__main__":
    run_command("benchmarks.prepare", main)
