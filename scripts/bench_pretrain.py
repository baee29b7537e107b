"""Images per second, MFU and the wait for data of pretraining, on this machine, on images that it makes.

python scripts/bench_pretrain.py [rows=2000] [side=500] [recipe=configs/pretrain/vits16_one_gpu.yaml] [profile=12]
    [busy=2: beside so many endless loops] [every setting of the recipe]
"""

import json
import platform
import statistics
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait

# isort: split
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.busy import busy_processes
from benchmarks.gpu.pictures import noise_pool
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.settings import Count, CountOrZero, Pixels, check, fill, read_settings
from pretrain.flops import flops_per_image
from pretrain.settings import load_settings
from pretrain.train import pretrain
from training.devices import in_fast_precision


@dataclass(frozen=True)
class Options:
    """What is no setting of the recipe."""

    rows: Count = 2000
    side: Pixels = 500
    recipe: str = "configs/pretrain/tiny_cpu.yaml"
    profile: CountOrZero = 0
    busy: CountOrZero = 0

    def __post_init__(self) -> None:
        check(self, "bench_pretrain")


def main() -> None:
    mine = [item for item in sys.argv[1:] if item.partition("=")[0] in {field.name for field in fields(Options)}]
    options = fill(Options, read_settings(None, mine))
    overrides = [item for item in sys.argv[1:] if item not in mine]
    quiet = ["probe.every=0", "speed.log_every=5", "speed.checkpoint_every=1000000", "collapse=0"]
    settings = in_fast_precision(load_settings(options.recipe or None, ["steps=30", *quiet, *overrides]))
    cost = flops_per_image(settings)["total"]
    with tempfile.TemporaryDirectory() as folder:
        pool = noise_pool(options.rows, options.side)
        profiling = profile(activities=[ProfilerActivity.CPU]) if options.profile else nullcontext()
        with profiling as profiler, busy_processes(options.busy):
            pretrain(settings, pool, Path(folder) / "run", progress=False)
        lines = [json.loads(line) for line in (Path(folder) / "run/metrics.jsonl").read_text().splitlines()]
    if len(lines) < 2:
        raise CurationError(
            f"{settings.steps} steps are logged {len(lines)} time(s), the first to warm up; raise steps"
        )
    lines = lines[1:]  # the first stretch compiles and warms up
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    rates = [line["images_per_second"] for line in lines]
    wait, mfu = (statistics.median(line[name] or 0.0 for line in lines) for name in ("data_wait", "mfu"))
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {settings.backbone.name}")
    print(f"batch {settings.batch_size}, {settings.precision}, compile={settings.speed.compile}")
    print(f"{statistics.median(rates):10,.1f} images/s ({min(rates):,.1f} to {max(rates):,.1f})")
    print(f"{cost / 1e9:10,.2f} GFLOP per image, {statistics.median(rates) * cost / 1e12:.3f} TFLOP/s")
    print(f"{mfu:10.1%} MFU (0: the peak of this device is not known)")
    print(f"{wait:10.1%} of the time waiting for data")
    if profiler is not None:  # the profiler itself slows the run
        events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        total = sum(event.self_cpu_time_total for event in events)
        for event in events[: options.profile]:
            share = event.self_cpu_time_total / total
            print(f"{share:10.1%} {event.key} ({event.count} calls, {event.self_cpu_time_total / 1e6:.2f} s)")


if __name__ == "__main__":
    run_command("bench_pretrain", main)
