"""The page of the check: figures by step, beside the goals, with where and how each was measured."""

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.parts import STEPS, Part
from experiments.engine.provenance import commits_of
from foundation.tables import markdown_table

# key of a row -> heading and format
COLUMNS: dict[str, tuple[str, str]] = {
    "what": ("", ""),
    "verdict": ("", ""),
    "shape": ("shape", ""),
    "batch": ("batch", ",d"),
    "seeds": ("seeds", "d"),
    "seconds": ("seconds", ".4g"),
    "images_per_second": ("images/s", ",.1f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "tflops": ("TFLOP/s", ".3g"),
    "matmul_tflops": ("of a plain product", ".3g"),
    "share_of_matmul": ("share of that", ".1%"),
    "gb_per_second": ("rows read, GB/s", ".3g"),
    "agreement": ("same as exact", ".3%"),
    "mfu": ("MFU", ".1%"),
    "data_wait": ("waiting for data", ".1%"),
    "memory_gb": ("memory, GB", ".1f"),
    "mean": ("mean", ".4f"),
    "difference": ("difference to raw", "+.4f"),
    "low": ("from", "+.4f"),
    "high": ("to", "+.4f"),
    "why": ("why", ""),
}
GOALS = {
    "kmeans": "Goal on an H100 or H200: 65 % of what a plain bfloat16 product reaches there; 40 % is a must.",
    "pretrain": "Goal on an H100 or H200: ViT-L/16 at 45 % MFU (of the data sheet's dense bfloat16 peak), waiting for "
    "data below 5 %. Published: DINOv2's code 93 images/s on an A100 (45 %), DINOv3's ViT-L/16 112 to 159 on an H100.",
    "lm": "Goal on an H100 or H200: 45 % MFU, waiting for data below 5 %.",
}
MEANS = {
    "tests": "Each test compares a CUDA path with the CPU's result; `tests/gpu/`.",
    "kmeans": "Rows and centroids lie on the device, float32; a search gives labels (ours and faiss also distances). "
    "Operations: 2 n k d. Ours is exact: products are bfloat16, close candidates are measured again.",
    "embed": "Random weights; pictures are JPEGs of smooth noise.",
    "pretrain": "One device, all crops, losses and heads of the recipe, pictures decoded from JPEGs of 500 x 375; "
    "medians over stretches of 10 steps after the first. MFU counts nominal operations, recomputation left out.",
    "lm": "Context 1024, float32 weights, bfloat16 products; MFU by the convention of PaLM.",
    "images": "`experiment=web_images scale=gpu`. Seeds come one after another: few of them say little.",
}


def cell(row: dict[str, Any], key: str) -> str:
    """A value as people read it; "-" where there is none."""
    value = row.get(key)
    if value is None or value == "":
        return "-"
    return format(value, COLUMNS[key][1])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The columns that any of the rows has, in the order of `COLUMNS`."""
    keys = [key for key in COLUMNS if any(row.get(key) not in (None, "") for row in rows)]
    return markdown_table([COLUMNS[key][0] for key in keys], [[cell(row, key) for key in keys] for row in rows])


def write_page(results: dict[str, dict[str, Any]], parts: Sequence[Part], machine: dict[str, Any], command: str) -> str:
    """Markdown of all results so far; what has not run is said so."""
    lines = ["# On a GPU", "", f"`{command}`", "", *_machine(machine), ""]
    tiny = [name for name, result in results.items() if result.get("tiny")]
    if tiny:
        lines += ["**Tiny sizes: this shows that the code runs, and no speed.**", ""]
    for step, title in STEPS.items():
        mine = [part for part in parts if part.step == step]
        lines += [f"## {title}", "", MEANS[step], ""]
        if step in GOALS:
            lines += [GOALS[step], ""]
        for part in mine:
            result = results.get(part.name)
            if result is None:
                lines += [f"{part.title}: not run yet.", ""]
                continue
            where = f"commit {commits_of([result])}, {result['seconds']:.0f} s"
            if len(mine) > 1:
                lines += [f"### {part.title}", ""]
            if result["rows"]:
                lines += [table(result["rows"])]
            if result["status"] != "done":
                lines += [f"**{result['status']}**: {result['why']}", ""]
            lines += [f"- {note}" for note in result["notes"]]
            lines += [f"- {where}", ""]
    return "\n".join(lines)


def _machine(machine: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = f"{machine['device']}, {machine['cores']} cores"
    if "driver" in machine:
        head += f", {len(machine['gpus'])} GPU(s) of {machine['memory_gb']:.0f} GB, driver {machine['driver']}, "
        head += f"CUDA {machine['cuda']}, data sheet {machine['data_sheet_tflops']:.0f} TFLOP/s"
    return [f"{head}.", f"Versions: {versions}."]
