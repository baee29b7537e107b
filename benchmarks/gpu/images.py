"""The image experiment's GPU form: a generated pool of 70,000 pictures, or one that is given, seed after seed."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.machine import describe
from benchmarks.gpu.parts import Context, Row, Unfinished
from benchmarks.gpu.pictures import write_concepts
from benchmarks.gpu.suite import ROOT
from foundation.files import load_json

CONCEPTS, OF_EACH, SIDE = 100, 2100, 64  # of the generated source: the most frequent class has 2,000 in the pool
SHOWN = ("linear", "knn", "linear_worst", "linear_tail")


def experiment(context: Context, seed: int) -> list[Row]:
    """Arms raw, communities and oracle over the seeds 0 to ``seed``: means, and differences to random rows.

    Raises:
        Unfinished: time was up; the stages go on from their checkpoints.
    """
    source = context.data or context.work / "pictures.parquet"
    if context.data is None and not source.exists():
        cores = int(describe(context.device)["cores"])
        concepts, of_each = context.size(CONCEPTS, 5), context.size(OF_EACH, 40)
        write_concepts(source, concepts, of_each, context.size(SIDE, 16), 0, 1 if context.tiny else cores)
    root = context.work / "images"
    seeds = ",".join(str(i) for i in range(seed + 1))
    overrides = [
        "experiment=web_images",
        "scale=gpu",
        f"seeds=[{seeds}]",
        f"science.pool.source={Path(source).absolute()}",
        f"output.runs={root}",
        f"speed.device={context.device}",
        "tracking.wandb=off",
        *(TINY if context.tiny else ()),
    ]
    command = [sys.executable, str(ROOT / "scripts/run_experiment.py"), *overrides]
    with open(context.work / "images.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ)
        try:
            code = process.wait(timeout=max(context.seconds - 40, 10))
        except subprocess.TimeoutExpired as error:
            process.terminate()  # the trainer writes its checkpoint and ends
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
            raise Unfinished("the stages go on from their checkpoints") from error
    if code:
        lines = (context.work / "images.log").read_text(errors="replace").strip().splitlines()
        raise RuntimeError(f"the experiment ended with {code}: {lines[-1][:200] if lines else ''}")
    rows: list[Row] = []
    for item in load_json(root / "metrics.json")["summary"]:
        if item["metric"] not in SHOWN:
            continue
        row: Row = {"what": f"{item['metric']}, {item['arm']}", "seeds": item["seeds"], "mean": item["mean"]}
        if item["verdict"]:
            row |= {name: item[name] for name in ("difference", "low", "high", "verdict")}
        rows.append(row)
    context.notes.append("the whole comparison: images/report.html in the folder of --work")
    return rows


_POOL, _RECIPE = "science.pool", "science.train.recipe"
TINY = (
    f"{_POOL}.test_rows=5",
    f"{_POOL}.bank_rows=5",
    f"{_POOL}.largest=20",
    f"{_POOL}.imbalance=2",
    f"{_POOL}.classes=5",
    f"{_POOL}.side=16",
    f"{_POOL}.image_size=16",
    f"{_POOL}.dim=24",
    f"{_POOL}.ssl.steps=2",
    f"{_POOL}.ssl.batch_size=8",
    f"++{_POOL}.ssl.collapse=0",
    "science.curation.size=30",
    f"{_RECIPE}.steps=4",
    f"{_RECIPE}.batch_size=8",
    f"++{_RECIPE}.collapse=0",
    f"{_RECIPE}.precision=32-true",
    f"{_RECIPE}.backbone.name=vit_tiny_patch16_224",
    f"{_RECIPE}.backbone.args={{patch_size: 8, embed_dim: 24, depth: 2, num_heads: 2}}",
    f"{_RECIPE}.crops={{global_size: 16, local_size: 8, n_local: 0}}",
    f"{_RECIPE}.loss={{dino_head: {{n_prototypes: 16, hidden: 16, bottleneck: 8}}}}",
    f"{_RECIPE}.speed={{compile: false, n_workers: 0}}",
    "science.evaluate.steps=10",
    "science.evaluate.k=3",
)
