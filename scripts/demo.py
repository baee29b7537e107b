"""The demo: curate a real, unbalanced pool of 6,900 pictures, and pretrain on raw and on curated rows of it."""

import time
from pathlib import Path

from foundation.clock import spoken
from foundation.command import run_command
from foundation.files import write_atomically
from foundation.options import Parser, number_type, path_type
from foundation.threads import use_free_cores

ROOT = Path(__file__).parents[1]
# every third picture: less than scale=demo takes, for it shows what is compared, not who is better; what is compared
# with random rows is what made the subset above: preparation and the default tree
ARMS = "arms=[raw,communities_prepared]"
SMALL = ["pool.test_rows=8", "pool.bank_rows=8", "pool.rows=2000", "curation.size=300", "curation.levels=[300,80,20]"]
SMALL += ["train.recipe.steps=60", "train.recipe.probe.every=30"]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--output", type=path_type(), default=ROOT / "runs" / "demo")
    parser.add_argument("--size", type=number_type(int, ge=1), default=1000, help="rows of the subset")
    arguments = parser.parse_args()
    started = time.monotonic()
    use_free_cores()
    # torch counts the cores when it is imported
    from curation import open_pool
    from curation.demo import demo_pool, run_demo
    from experiments.engine.settings import compose
    from experiments.launch import run_experiment

    result = run_demo(arguments.output, arguments.size, command="make demo")
    print(f"\nCurated in {spoken(time.monotonic() - started)}: {result.report}")
    print(
        "\nNow a tiny transformer is pretrained on as many random and as many curated pictures (as above; the paper's"
    )
    print("own levels, of which the page's claim speaks, are the arm hierarchical_resampled):")
    runs = arguments.output / "web_images"
    overrides = [
        "experiment=web_images",
        "scale=demo",
        "seeds=[0]",
        ARMS,
        f"output.runs={runs}",
        f"output.report={runs}",
    ]
    third, whole = arguments.output / "third.parquet", open_pool(demo_pool())
    write_atomically(third, whole.select(range(0, len(whole), 3)).to_parquet)
    overrides += [f"science.{part}" for part in (*SMALL, f"pool.source={third.absolute()}")]
    if failed := run_experiment(compose([*overrides, "tracking.wandb=off"]), "make demo"):
        raise SystemExit(failed)
    print(f"\nDone in {spoken(time.monotonic() - started)}. Open the reports in a browser:")
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
