"""The demo: curate a real, unbalanced pool of 6,900 pictures, and pretrain on raw and on curated rows of it."""

import argparse
import time
from pathlib import Path

from curation.pipeline import run_pipeline
from experiments.launch import run_experiment
from experiments.settings import compose
from foundation.command import run_command
from foundation.options import number_type

ROOT = Path(__file__).parents[1]
COMMAND = (
    "curate run data/openclipart.parquet -o runs/demo --size 1000 --embedder efficientnet_lite0 "
    "--image-size 96 --labels label"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo")
    parser.add_argument("--size", type=number_type(int, ge=1), default=1000, help="rows of the subset")
    arguments = parser.parse_args()
    started = time.monotonic()
    result = run_pipeline(
        ROOT / "data" / "openclipart.parquet",
        arguments.output,
        arguments.size,
        "efficientnet_lite0",
        image_size=96,
        labels="label",
        title=f"Open Clip Art: {arguments.size:,} balanced pictures out of 6,900",
        commands=["make demo", f"# the same by hand:  {COMMAND}"],
        say=print,
    )
    print(f"\nCurated in {(time.monotonic() - started) / 60:.1f} minutes: {result.report}")
    print("\nNow a tiny transformer is pretrained on as many random and as many curated pictures:")
    runs = arguments.output / "web_images"
    overrides = ["experiment=web_images", "scale=demo", "seeds=[0]", f"output.runs={runs}", f"output.report={runs}"]
    if failed := run_experiment(compose([*overrides, "tracking.wandb=off"]), "make demo"):
        raise SystemExit(failed)
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Open the reports in a browser:")
    print(f"  {result.report}")
    print(f"  {runs}/report.html (one seed: it shows what is compared, not who is better)")
    print("\nTry next:")
    print(f"  .venv/bin/curate sample {arguments.output}/tree -o runs/flat --size 1000 --method flat")
    print(
        f"  .venv/bin/curate compare {arguments.output}/tree {arguments.output}/subset runs/flat -o runs/compare.html "
        "--pool data/openclipart.parquet --labels label"
    )
    print("  .venv/bin/curate run YOUR_IMAGES/ -o runs/mine --size 10000 --embedder timm:vit_small_patch14_dinov2")
    print("  .venv/bin/python -m pretrain train YOUR_IMAGES/ -o runs/vits -r configs/pretrain/vits16_one_gpu.yaml")
    print("  .venv/bin/python scripts/run_experiment.py experiment=web_images scale=demo seeds=[0,1,2,3,4]")
    print("  .venv/bin/curate plan --rows 743e6 --dim 1024 --levels 100000x100,500000,50000,10000 --gpus 8")


if __name__ == "__main__":
    run_command("demo", main)
