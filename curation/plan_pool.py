"""What comes before clustering, counted: embedding a pool with some network, and the search for its near-duplicates."""

import math
from dataclasses import replace
from typing import Any

from curation.plan import BYTES, Hardware, Plan, Stage
from curation.plan_memory import CELL_ROWS, CELLS
from curation.preparation.near_duplicates import EXACT_ROWS, PART_ITERATIONS, PROBES, part_sizes
from curation.preparation.prepare import open_sources
from curation.trees.levels import first_level
from foundation.errors import CurationError
from foundation.timm_models import create_timm_model

NETWORK_SHARE = 0.5  # of the speed of a large product that a network's forward pass reaches; assumed
CELL_SHARE = 0.05  # of the speed of the exact search that rows of half precision within cells reach; measured
CELL_ROUNDS = 10  # iterations of the k-means that makes the cells
PASSES = 1  # a second one only where rows repeat more often than the rule has neighbours
ROWS_OF_A_CLUSTER, SECOND_LEVEL = 25, 500_000  # of the levels that are proposed; clusters of the paper's second
SENTENCE_WEIGHTS, SENTENCE_TOKENS = 10.6e6, 128  # all-MiniLM-L6-v2 without its token table; of a passage
SENTENCE_DIM = 384


def operations_per_row(embedder: str, image_size: int | None = None) -> tuple[float, str]:
    """Operations (a multiply-add counts twice) that embedding a row takes, and what was counted.

    Args:
        embedder: ``timm:NAME``, whose network is built without weights; ``sentence``, the small model of 128 tokens;
            ``byte_histogram`` or ``char_svd``, which cost nothing beside the rest.

    Raises:
        CurationError: another name.
    """
    kind, _, rest = embedder.partition(":")
    if kind in ("byte_histogram", "char_svd"):
        return 0.0, embedder
    if kind == "sentence":
        return 2.0 * SENTENCE_WEIGHTS * SENTENCE_TOKENS, f"{SENTENCE_TOKENS} tokens"
    if kind != "timm":
        raise CurationError(f"the cost of embedder {embedder!r} is not known; name a timm:MODEL like it, or sentence")
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, side = _network(rest, image_size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops()), f"{side} px"


def _network(name: str, image_size: int | None) -> tuple[Any, int]:
    """A timm network without weights, and the side of its pictures."""
    import torch

    with torch.device("meta"):
        model = create_timm_model(name.partition("?")[0], image_size, pretrained=False, num_classes=0).eval()
    return model, image_size or int(model.pretrained_cfg["input_size"][-1])


def shape_of(
    source: str | None, rows: int | None, dim: int | None, dtype: str | None, embedder: str | None = None
) -> tuple[int, int, str]:
    """Rows, dimensions and dtype of what is planned: as given, else read off embeddings, a pool or the embedder.

    Args:
        source: embeddings, of which nothing but the shape is read, or a pool, whose rows are counted.

    Raises:
        CurationError: one of them is not known, or given as something else.
    """
    known: dict[str, Any] = {}
    kind, _, network = (embedder or "").partition(":")
    if kind == "timm":
        known["dim"] = int(_network(network, None)[0].num_features)
    elif kind == "sentence":
        known["dim"] = SENTENCE_DIM
    if source is not None:
        pool, embeddings = open_sources(source, None, None)
        if embeddings is None:
            known["rows"] = len(pool)
        elif embedder is not None:
            raise CurationError(f"{source} holds embeddings; leave --embedder {embedder} out, nothing is embedded")
        else:
            known = {"rows": embeddings.n_rows, "dim": embeddings.dim, "dtype": embeddings.dtype}
    found = {"rows": rows, "dim": dim, "dtype": dtype}
    for name, value in known.items():
        if found[name] not in (None, value):
            of = source if name != "dim" or embedder is None else embedder
            raise CurationError(f"--{name} is {found[name]}, but that of {of} is {value}; leave --{name} out")
        found[name] = value
    if found["rows"] is None:
        raise CurationError("how many rows? name the pool or its embeddings (curate plan images/), or give --rows 1e6")
    if found["dim"] is None:
        raise CurationError(
            "how many dimensions has an embedding? give --dim 384, or the --embedder: timm:NAME, sentence"
        )
    return int(found["rows"]), int(found["dim"]), str(found["dtype"] or "float16")


def pool_stages(
    rows: float,
    dim: int,
    hardware: Hardware,
    embedder: str | None = None,
    image_size: int | None = None,
    dedup: bool = True,
    dtype: str = "float16",
) -> list[Stage]:
    """Stages before the tree. Decoding is not counted: it runs beside the network, in other processes."""
    stages, speed = [], hardware.tflops * 1e12 * hardware.n_devices
    if embedder is not None:
        each, about = operations_per_row(embedder, image_size)
        work = rows * each
        stages.append(Stage(f"embed: {embedder.partition(':')[2] or embedder}, {about}"[:43], work, 0.0, 0.0))
        stages[-1] = replace(stages[-1], seconds=work / speed / NETWORK_SHARE)
    return stages + near_duplicate_stages(rows, dim, hardware, dtype) if dedup else stages


def near_duplicate_stages(rows: float, dim: int, hardware: Hardware, dtype: str) -> list[Stage]:
    """All on processors, whatever GPUs there are: clusters where the index would be too large, then the search."""
    stages = []
    part, k = part_sizes(rows, dim)
    width = dim * BYTES[dtype]
    processes = 1
    if k:
        # clusters by k-means, then their rows one by one; all processes share both
        work = 2.0 * rows * k * dim * (PART_ITERATIONS + 1)
        read = rows * width * (PART_ITERATIONS + 1)
        busy = max(work / (hardware.processor_tflops * 1e12), read / (hardware.read_gb_s * 1e9 * hardware.n_devices))
        stages.append(Stage(f"near-duplicates: {k:,} clusters", work, read, busy, on_processors=True))
        processes = min(hardware.n_devices, math.ceil(rows / part))
    exact, in_cells = 2.0 * rows * part * dim * PASSES, 0.0
    if part > EXACT_ROWS:
        # cells are made of some rows, each row is put into one, and looked for among those of the nearest cells
        cells = CELLS * math.sqrt(part)
        exact = 2.0 * rows * cells * dim * (1 + PASSES + CELL_ROUNDS * min(1.0, CELL_ROWS * cells / part))
        in_cells = 2.0 * rows * part * PROBES / cells * dim * PASSES
    seconds = (exact + in_cells / CELL_SHARE) / (hardware.search_tflops * 1e12) / processes
    # the mean of all rows is each process's own pass; then a part is read for its lengths, its index, its search
    read = rows * width * (1 + 3 * PASSES)
    single = rows * hardware.random_read_s / hardware.n_devices if k else 0.0
    reading = rows * width / (hardware.read_gb_s * 1e9) + 3 * PASSES * (
        single or rows * width / (hardware.read_gb_s * 1e9)
    )
    search = Stage("near-duplicates: search", exact + in_cells, read, max(seconds, reading), on_processors=True)
    return [*stages, search]


def with_pool(plan: Plan, stages: list[Stage], memory: float = 0.0) -> Plan:
    """The plan of a tree, with the stages before it, which hold so many bytes and free them."""
    return replace(plan, stages=[*stages, *plan.stages], memory=max(plan.memory, memory))


def proposed_levels(rows: float) -> dict[str, Any]:
    """Levels for so many rows: clusters that ``auto`` makes at level 1, and three levels of the paper's method.

    The paper's first level has 25 rows in a cluster and is two-step where it is large; each further one is ten times
    smaller, the second at most as large as the paper's. "paper" is "" where there are too few rows for two clusters.
    """
    first = int(rows) // ROWS_OF_A_CLUSTER
    if first > 100_000:
        coarse = 10 ** round(math.log10(math.sqrt(first)) + 0.5)
        splits = max(2, round(first / coarse))
        second = min(coarse * splits // 10, SECOND_LEVEL)
        paper = [f"{coarse}x{splits}", str(second), str(second // 10)]
    else:
        paper = [str(max(2, first // 10**step)) for step in (0, 1, 2)] if first > 1 else []
    return {"auto": first_level(int(rows)), "paper": ",".join(dict.fromkeys(paper))}


def proposal(rows: float) -> str:
    """`proposed_levels` for people."""
    found = proposed_levels(rows)
    if not found["paper"]:
        return f"levels: fewer than {2 * ROWS_OF_A_CLUSTER} rows are too few to group; take them as they are"
    return (
        f"levels for {rows:,.0f} rows: --levels auto (level 1 of {found['auto']:,} clusters), or the paper's method "
        f"with --levels {found['paper']}"
    )
