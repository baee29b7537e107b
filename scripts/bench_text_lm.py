"""Tokens per second and MFU of our trainer beside a plain transformers loop, in turns on this machine.

python scripts/bench_text_lm.py [rounds=3] [steps=20] [every setting of text_lm.settings as key=value]
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait

# isort: split
import torch
from datasets import Dataset

from foundation.command import run_command
from foundation.settings import Count, Range, check, fill, read_settings
from text_lm.model import build_model, flops_per_token
from text_lm.packing import TokenStream
from text_lm.settings import TrainSettings, load_settings
from text_lm.tokenizer import open_tokenizer
from text_lm.tokens import TokenStore, tokenise_pool
from text_lm.train import train
from training.peaks import peak_flops


def plain_loop(settings: TrainSettings, store: TokenStore, device: torch.device) -> list[float]:
    """Tokens per second of each stretch of steps: the loop of the transformers documentation, data already there."""
    model = build_model(settings.model, open_tokenizer("bytes"), 0).to(device)
    if settings.speed.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=device.type == "cuda")
    stream = TokenStream(store, np.arange(len(store)), 0)
    micro = settings.micro_batch_size or settings.batch_size
    windows = stream.windows(np.arange(settings.batch_size), settings.model.context)
    batches = torch.from_numpy(windows.inputs).to(device).split(micro)
    mixed, rates = settings.precision == "bf16-mixed", []
    for _ in range(settings.steps // settings.speed.log_every):
        started = time.perf_counter()
        for _ in range(settings.speed.log_every):
            for inputs in batches:
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    loss = model(input_ids=inputs, labels=inputs, use_cache=False).loss / len(batches)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        float(loss)  # waits for the device
        rates.append(settings.speed.log_every * settings.tokens_per_step / (time.perf_counter() - started))
    return rates[1:]


@dataclass(frozen=True)
class Options:
    """What is no setting of the recipe."""

    rounds: Count = 3
    steps: Annotated[int, Range(ge=4)] = 20  # a quarter is logged at a time, and the first warms up

    def __post_init__(self) -> None:
        check(self, "bench_text_lm")


def main() -> None:
    mine = [item for item in sys.argv[1:] if item.partition("=")[0] in {field.name for field in fields(Options)}]
    options = fill(Options, read_settings(None, mine))
    given = [item for item in sys.argv[1:] if item not in mine]
    base = load_settings(None, given)
    every = max(options.steps // 4, 1)
    changes = [f"tokens={options.steps * base.tokens_per_step}", f"speed.log_every={every}"]
    device = torch.device("cuda" if torch.cuda.is_available() and base.speed.accelerator != "cpu" else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    peak = base.speed.peak_flops or peak_flops(name)
    cost = flops_per_token(base.model, 259, base.model.context)
    rates: dict[str, list[float]] = {"plain transformers": [], "ours, documents apart": [], "ours, crossing": []}
    with tempfile.TemporaryDirectory() as folder:
        texts = [f"line {i}: " + "some words to read " * 40 for i in range(base.tokens_per_step // 300 + 50)]
        pool = Dataset.from_dict({"text": texts})
        store = tokenise_pool(pool, open_tokenizer("bytes"), Path(folder) / "tokens", progress=False)
        for turn in range(options.rounds):
            rates["plain transformers"] += plain_loop(load_settings(None, given + changes), store, device)
            for arm, cross in (("ours, documents apart", False), ("ours, crossing", True)):
                settings = load_settings(None, [*given, *changes, f"cross_documents={cross}"])
                run = Path(folder) / f"{cross}{turn}"
                train(settings, Path(folder) / "tokens", run, progress=False)
                lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                rates[arm] += [line["tokens_per_second"] for line in lines[1:]]
    print(f"{name}, torch {torch.__version__}, {base.model}, batch {base.batch_size}, {base.precision}")
    for arm, found in rates.items():
        median = statistics.median(found)
        share = f", MFU {median * cost / peak:.1%}" if peak else ""
        print(f"{arm:24} {median:12,.0f} tokens/s ({min(found):,.0f} to {max(found):,.0f}){share}")


if __name__ == "__main__":
    run_command("bench_text_lm", main)
