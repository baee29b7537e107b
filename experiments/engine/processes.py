"""Processes that run one experiment together: the first runs the stages, the others join in the distributed ones.

torchrun or ``srun`` starts the same command for each process; `curation.group.joined` connects them.
"""

from contextlib import suppress
from typing import Any

from curation.group import Group, LostProcess, place
from experiments.engine.stages import LATE, Stage, in_order, run_stage
from foundation.errors import CurationError


def announce(group: Group) -> Any:
    """The ``begin`` of `run_stage` for the first process: the others begin this stage too."""

    def begin(stage: Stage) -> None:
        if stage.distributed:
            group.share(stage.key)

    return begin


def dismiss(group: Group) -> None:
    """The first process has no more work for the others; those that are gone need not hear it.

    After an error it is not called: the others learn of it when this process ends.
    """
    with suppress(LostProcess):
        group.share("")


def follow(stages: list[Stage], group: Group, **options: Any) -> int:
    """What the other processes do: work on every stage that the first one announces, until it dismisses them.

    Args:
        stages: of the experiment.
        options: of `run_stage`.

    Returns:
        How many stages were joined.

    Raises:
        CurationError: a stage is not known here, since a setting or an input file differs from the first process's.
    """
    known = {stage.key: stage for stage in in_order(stages)}
    joined = 0
    while key := group.share(""):
        if key not in known:
            raise CurationError(
                f"process {group.rank} does not know the stage that process 0 begins; all processes need the same "
                "command and see the same files"
            )
        run_stage(known[key], leader=False, patience=LATE, **options)
        joined += 1
    return joined


def placed() -> dict[str, Any]:
    """Settings ``speed`` of a trainer in this group of processes; empty for one alone.

    Raises:
        CurationError: machines with different numbers of processes.
    """
    group = Group.current()
    if group.size == 1:
        return {}
    where = place()
    local = where.local_size if where else group.size
    if group.size % local:
        raise CurationError(
            f"{group.size} processes cannot be dealt to machines of {local}; start as many on every machine"
        )
    return {"devices": local, "nodes": group.size // local}
