"""The demo: 6,900 pictures of Open Clip Art, uneven and labelled, which come with the project, curated to a subset."""

from collections.abc import Callable
from pathlib import Path

from curation.pipeline import PipelineResult, run_pipeline
from foundation.errors import CurationError

NAME = "openclipart.parquet"
_HERE = Path(__file__).parent
EMBEDDER, SIDE = "efficientnet_lite0", 96
COMMAND = "curate run {pool} -o {folder} --size {size} --embedder efficientnet_lite0 --image-size 96 --labels label"


def demo_pool() -> Path:
    """The pictures: in the wheel, or in the folder ``data`` of a clone.

    Raises:
        CurationError: they are in neither.
    """
    found = next((path for path in (_HERE / "data" / NAME, _HERE.parent / "data" / NAME) if path.exists()), None)
    if found is None:
        raise CurationError(f"{NAME} did not come with this installation; install the wheel, or work in a clone")
    return found


def run_demo(
    folder: Path,
    size: int = 1000,
    say: Callable[[str], None] = print,
    command: str = "curate demo",
    overwrite: bool = False,
) -> PipelineResult:
    """Curate the demo's pictures into ``folder``; needs no network.

    Args:
        size: rows of the subset.
        command: that was typed, for the report.
        overwrite: see `run_pipeline`.

    Raises:
        CurationError: the pictures or the network's weights (extra ``demo``) are not there.
    """
    pool = demo_pool()
    by_hand = COMMAND.format(pool=pool, folder=folder, size=size)
    return run_pipeline(
        pool,
        folder,
        size,
        EMBEDDER,
        image_size=SIDE,
        labels="label",
        title=f"Open Clip Art: {size:,} balanced pictures out of 6,900",
        commands=[command, f"# the same by hand:  {by_hand}"],
        say=say,
        overwrite=overwrite,
    )
