"""Settings of a run of evaluations; each field carries its help, which is also the help of the command line."""

import os
from dataclasses import dataclass
from typing import Annotated

from foundation.errors import CurationError
from foundation.paths import new_place, require_room
from foundation.settings import Choices, Range, Seed, Share, Workers, check, setting

PRECISIONS = ("float32", "bfloat16")
# bounds beyond which nobody waits for the answer
Resamples = Annotated[int, Range(ge=1, le=100_000)]
Steps = Annotated[int, Range(ge=1, le=10_000_000)]
Batch = Annotated[int, Range(ge=1, le=1_000_000)]
Side = Annotated[int, Range(ge=0, le=16_384)]  # pixels; 0: the model's own
Classes = Annotated[int, Range(ge=1, le=100_000)]


@dataclass
class RunSettings:
    """What every evaluation of a run shares."""

    model: str = setting("", "folder with config.json and model.safetensors; timm:NAME; random:NAME; package.mod:func")
    weights: str = setting("", "safetensors for timm:NAME")
    image_size: Side = setting(0, "pixels; 0 takes the model's own")
    device: str = setting("auto", "cpu, cuda, ...; auto takes a GPU where there is one")
    precision: Annotated[str, Choices(*PRECISIONS)] = setting("float32", "of the model")
    batch_size: Batch = setting(64, "images per forward pass")
    n_workers: Workers = setting(0, "processes that decode images")
    root: str = setting("", "folder of all datasets; empty: the environment variable EVAL_DATA, else data")
    cache: str = setting("", "folder for features, so that they are computed once; empty: not kept on disk")
    feature_dtype: Annotated[str, Choices("float32", "float16")] = setting("float32", "of kept features")
    max_bad: Share = setting(0.01, "share of a dataset's images that may be unreadable")
    resamples: Resamples = setting(1000, "bootstrap draws of every interval")
    seed: Seed = setting(0, "of everything random")
    progress: bool = setting(True, "show progress bars, on a terminal")

    def __post_init__(self) -> None:
        check(self)
        if self.root and not os.path.isdir(self.root):
            raise CurationError(f"root is {self.root!r}, which is no folder; leave it out or name one")
        if self.cache:
            require_room(new_place(self.cache) / "x")
