"""What comes before clustering, counted: embedding a pool with some network, and the search for its near-duplicates."""

import math
from dataclasses import replace
from typing import Any

from curation.plan import BYTES, DEVICES_A_MACHINE, Hardware, Plan, Stage
from curation.preparation.near_duplicates import EXACT_ROWS, PART_ITERATIONS, PROBES, part_sizes
from curation.trees.levels import first_level
from foundation.errors import CurationError
from foundation.timm_models import create_timm_model

NETWORK_SHARE = 0.5  # of the speed of a large product that a network's forward pass reaches; assumed
NEIGHBOURS_SHARE = 0.5  # the same of the search for neighbours
PASSES = 1  # a second one only where rows repeat more often than the rule has neighbours
SENTENCE_WEIGHTS, SENTENCE_TOKENS = 10.6e6, 128  # all-MiniLM-L6-v2 without its token table; of a passage


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

    with torch.device("meta"):
        model = create_timm_model(rest.partition("?")[0], image_size, pretrained=False, num_classes=0).eval()
    side = image_size or int(model.pretrained_cfg["input_size"][-1])
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.empty(1, 3, side, side, device="meta"))
    return float(counter.get_total_flops()), f"{side} px"


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
    if dedup:
        part, k = part_sizes(rows, dim)
        width = dim * BYTES[dtype]
        machines = 1.0
        if k:
            # clusters by k-means on the devices, then their rows one by one; the processors of all machines search
            work = 2.0 * rows * k * dim * (PART_ITERATIONS + 1)
            read = rows * width * (PART_ITERATIONS + 1)
            busy = max(work / speed, read / (hardware.read_gb_s * 1e9 * hardware.n_devices))
            stages.append(Stage(f"near-duplicates: {k:,} clusters", work, read, busy))
            machines = min(max(1.0, hardware.n_devices / DEVICES_A_MACHINE), math.ceil(rows / part))
        cells = 4 * math.sqrt(part)
        compared = part if part <= EXACT_ROWS else part * PROBES / cells + cells
        work = 2.0 * rows * compared * dim * PASSES
        seconds = work / (hardware.greedy_tflops * 1e12) / NEIGHBOURS_SHARE / machines
        # the mean of all rows is each process's own pass; then a part is read for its lengths, its index, its search
        read = rows * width * (1 + 3 * PASSES)
        single = rows * hardware.random_read_s / hardware.n_devices if k else 0.0
        reading = rows * width / (hardware.read_gb_s * 1e9) + 3 * PASSES * (
            single or rows * width / (hardware.read_gb_s * 1e9)
        )
        stages.append(Stage("near-duplicates: search", work, read, max(seconds, reading)))
    return stages


def with_pool(plan: Plan, stages: list[Stage]) -> Plan:
    """The plan of a tree, with the stages before it."""
    return replace(plan, stages=[*stages, *plan.stages])


def proposed_levels(rows: float) -> dict[str, Any]:
    """Levels for so many rows: what ``auto`` makes of level 1, and three of the paper's method.

    The paper's first level is two-step where it is large; each further level is ten times smaller.
    """
    first = max(2, int(rows) // 25)
    if first > 100_000:
        coarse = 10 ** round(math.log10(math.sqrt(first)) + 0.5)
        splits = max(2, round(first / coarse))
        paper = [f"{coarse}x{splits}", *(str(max(2, coarse * splits // 10**step)) for step in (1, 2))]
    else:
        paper = [str(max(2, first // 10**step)) for step in (0, 1, 2)]
    auto = first_level(int(rows))
    return {"auto": auto if isinstance(auto, int) else str(auto), "paper": ",".join(dict.fromkeys(paper))}
