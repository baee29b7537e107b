"""The parts of the check in the order in which they run: each fits into ten minutes and stands alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from foundation.settings import nearest_name

Row = dict[str, Any]
PEERS = "peers"
TEST_FILES = ("kmeans", "embedding", "training", "processes")  # tests/gpu/test_*.py


@dataclass
class Context:
    """What a part is given.

    Attributes:
        device: "cuda" or "cpu".
        tiny: sizes at which a laptop needs seconds.
        work: folder for what is large; it is kept between calls.
        seconds: that this part may take; it is ended after that.
        install: packages of peers may be fetched from the package index.
        data: folder of labelled pictures for the experiment, or None for generated ones.
        save: keeps the rows found so far: what a killed part has not saved is lost.
    """

    device: str
    tiny: bool
    work: Path
    seconds: float
    install: bool
    data: Path | None
    save: Callable[[Sequence[Row]], None]
    notes: list[str] = field(default_factory=list)

    def size(self, full: int, tiny: int) -> int:
        """The one number or the other."""
        return tiny if self.tiny else full


class Skipped(Exception):
    """A part that cannot run here; its message says why, in one line."""


class Unfinished(Exception):
    """A part that saved its state and goes on when it is called again."""


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: STEP or STEP-WHAT.
        step: one of `STEPS`.
        title: as the page calls it.
        action: "MODULE:FUNCTION" of this folder, imported where it runs; it gives rows of figures, see
            `benchmarks.gpu.page.COLUMNS` for their keys.
        options: keyword arguments of the action, as JSON; they belong to the identity of a result.
        least: seconds under which it is not begun.
    """

    name: str
    step: str
    title: str
    action: str
    options: dict[str, Any] = field(default_factory=dict)
    least: float = 60.0

    def run(self, context: Context) -> list[Row]:
        """Measure."""
        module, _, function = self.action.partition(":")
        found: list[Row] = getattr(import_module(f"benchmarks.gpu.{module}"), function)(context, **self.options)
        return found


STEPS = {
    "tests": "Tests: every CUDA path against the CPU",
    "kmeans": "k-means",
    "embed": "Embedding with ViT-L",
    "pretrain": "Pretraining",
    "lm": "Language model of 124 M",
    "images": "The image experiment",
}


def chosen_steps(text: str) -> list[str]:
    """Steps named in "a,b", in the order of the check; all of them for "".

    Raises:
        CurationError: an unknown step.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in STEPS:
            raise CurationError(f"step {name!r} is unknown; {nearest_name(name, list(STEPS))}")
    return [step for step in STEPS if step in names or not names]
