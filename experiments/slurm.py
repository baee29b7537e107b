"""Stages as SLURM jobs through submitit: each waits for those before it (afterok), the comparison for all of them."""

import shlex
from dataclasses import dataclass, replace
from typing import Any

from curation.group import joined
from experiments.engine.experiment import Experiment, LaunchSettings, Settings, build
from experiments.engine.processes import announce, dismiss, follow
from experiments.engine.stages import LATE, Stage, in_order, run_stage, state_of
from experiments.run_folder import begin_stage, finish_experiment
from foundation.errors import CurationError

ALWAYS = {"kill-on-invalid-dep": "yes", "requeue": True}  # also after a lost node
RESOURCES = {"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 2, "gpus_per_node": 0, "mem_gb": 4, "minutes": 0}


class StageJob:
    """One stage in a job; when preempted or timed out, the same call is queued again and goes on."""

    def __call__(self, config: dict[str, Any], key: str) -> str:
        experiment = build(config)
        stage = next((item for item in in_order(experiment.stages) if item.key == key), None)
        if stage is None:
            raise CurationError("an input of this stage changed since it was submitted; submit the experiment again")
        device = device_of(experiment.settings, stage.name)  # decides nothing but the time
        speed = replace(experiment.settings.speed, device=device)
        experiment = replace(experiment, settings=replace(experiment.settings, speed=speed))
        config = {**config, "speed": {**config["speed"], "device": device}}
        with joined(device) as (group, _device):
            options = {"root": experiment.root, **begin_stage(experiment, config)}
            if not group.first:
                follow([stage], group, **options)
                return str(stage.folder(experiment.root))
            folder = run_stage(stage, begin=announce(group), patience=LATE, **options)
            dismiss(group)
            return str(folder)

    def checkpoint(self, config: dict[str, Any], key: str) -> Any:
        """What submitit queues when the job is preempted or runs out of time."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, config, key)


def compare_job(config: dict[str, Any], command: str) -> str:
    """The comparison, after the last evaluation."""
    report, verdict = finish_experiment(build(config), config, command)
    print(verdict, f"report: {report}", sep="\n", flush=True)  # into the log of the job
    return str(report)


def resources_of(launch: LaunchSettings, stage: str) -> dict[str, Any]:
    """Nodes, tasks, processors, GPUs, memory and minutes of a stage's job.

    Raises:
        CurationError: an unknown resource.
    """
    own = {name: value for name, value in launch.stages.get(stage, {}).items() if value is not None}
    wanted = {**RESOURCES, **launch.resources, **own}
    unknown = sorted(set(wanted) - set(RESOURCES))
    if unknown:
        raise CurationError(f"launch.resources has no {unknown[0]!r}; known are {', '.join(RESOURCES)}")
    wanted["minutes"] = wanted["minutes"] or launch.minutes
    return wanted


def device_of(settings: Settings, stage: str) -> str:
    """Where a stage computes: a job without a GPU on the processor, whatever ``speed.device`` says."""
    on_slurm = settings.launch.where == "slurm"
    return "cpu" if on_slurm and not resources_of(settings.launch, stage)["gpus_per_node"] else settings.speed.device


def require_used(experiment: Experiment) -> None:
    """Refuse jobs that would hold GPUs and compute on the processor.

    Raises:
        CurationError: a stage asks for GPUs, and ``speed.device`` is cpu; or an unknown resource.
    """
    for name in dict.fromkeys([*(stage.name for stage in in_order(experiment.stages)), "compare"]):
        gpus = resources_of(experiment.settings.launch, name)["gpus_per_node"]
        if gpus and experiment.settings.speed.device == "cpu":
            raise CurationError(
                f"jobs of the stage {name} ask for {gpus} GPU(s), which speed.device=cpu would leave idle; set "
                f"speed.device=cuda or launch.stages.{name}.gpus_per_node=0"
            )


@dataclass(frozen=True)
class Planned:
    """A job that is not submitted yet.

    Attributes:
        identity: of its stage, or "compare".
        stage: None: the comparison.
        before: identities of the jobs that it waits for.
    """

    identity: str
    stage: Stage | None
    before: tuple[str, ...]

    @property
    def kind(self) -> str:
        """Name of the stage, which decides what the job asks for."""
        return "compare" if self.stage is None else self.stage.name

    @property
    def name(self) -> str:
        """Of the job, as SLURM shows it."""
        return self.identity.replace(" ", "-")


def planned_jobs(experiment: Experiment) -> list[Planned]:
    """A job for each stage that is not finished, each after those that it waits for; the comparison last."""
    jobs: dict[Stage, Planned] = {}
    for stage in in_order(experiment.stages):
        if not state_of(stage, experiment.root).finished:
            before = tuple(earlier.identity for earlier in stage.upstream if earlier in jobs)
            jobs[stage] = Planned(stage.identity, stage, before)
    last = tuple(stage.identity for stage in experiment.stages if stage in jobs)
    return [*jobs.values(), Planned("compare", None, last)]


def sbatch_options(launch: LaunchSettings, job: Planned) -> str:
    """What a job asks sbatch for, as options; jobs that it waits for by their names, for they have no numbers yet."""
    names = [before.replace(" ", "-") for before in job.before]
    given = _parameters(launch, job, names)
    given |= {"mem": f"{given.pop('mem_gb')}GB", "time": given.pop("timeout_min")}
    given["ntasks_per_node"] = given.pop("tasks_per_node")
    given |= given.pop("slurm_additional_parameters")
    parts = []
    for key, value in given.items():
        if key not in ("name", "slurm_srun_args", "slurm_setup"):  # of the script, and not of sbatch
            option = f"--{key.removeprefix('slurm_').replace('_', '-')}"
            parts.append(option if value is True else f"{option}={shlex.quote(str(value))}")
    return " ".join(sorted(parts))


def _parameters(launch: LaunchSettings, job: Planned, before: list[str]) -> dict[str, Any]:
    """Of a job that begins when those before it, by their numbers, have succeeded."""
    wanted = resources_of(launch, job.kind)
    parameters: dict[str, Any] = {
        "name": job.name,
        "timeout_min": wanted["minutes"],
        "nodes": wanted["nodes"],
        "tasks_per_node": wanted["tasks_per_node"],
        "cpus_per_task": wanted["cpus_per_task"],
        "mem_gb": wanted["mem_gb"],
        "slurm_additional_parameters": ALWAYS,
        "slurm_srun_args": [
            "--kill-on-bad-exit=1",  # of three processes two would wait for each other for hours
            f"--cpus-per-task={wanted['cpus_per_task']}",  # SLURM 22.05 and newer do not take it from sbatch
        ],
    }
    if before:
        parameters["slurm_dependency"] = "afterok:" + ":".join(before)
    if wanted["gpus_per_node"]:
        parameters["gpus_per_node"] = wanted["gpus_per_node"]
    for key in ("partition", "account", "constraint"):
        if getattr(launch, key):
            parameters[f"slurm_{key}"] = getattr(launch, key)
    if launch.setup:
        parameters["slurm_setup"] = list(launch.setup)
    return parameters


def submit(experiment: Experiment, config: dict[str, Any], command: str) -> dict[str, str]:
    """Submit what is not finished.

    Returns:
        Identity of a stage (and "compare") -> job id. Finished stages have none.

    Raises:
        CurationError: GPUs that no stage would use, no sbatch here, or SLURM refuses a job; those already submitted
            are cancelled.
    """
    import shutil

    from submitit import AutoExecutor
    from submitit.core.utils import FailedJobError

    require_used(experiment)
    if shutil.which("sbatch") is None:
        raise CurationError(
            "there is no sbatch here; submit from a login node of the cluster, or use launch.where=local"
        )
    launch, logs = experiment.settings.launch, experiment.root.absolute() / "slurm"
    jobs: dict[str, Any] = {}
    try:
        for job in planned_jobs(experiment):
            # one for each job: an executor keeps the GPUs and the dependency of its last job where the next has none
            executor = AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=launch.requeues)
            executor.update_parameters(**_parameters(launch, job, [jobs[before].job_id for before in job.before]))
            call = (compare_job, config, command) if job.stage is None else (StageJob(), config, job.stage.key)
            jobs[job.identity] = executor.submit(*call)
    except (FailedJobError, OSError) as error:
        for job in jobs.values():
            job.cancel()
        raise CurationError(f"SLURM refused a job ({' '.join(str(error).split())[-300:]}); nothing was left") from error
    return {identity: job.job_id for identity, job in jobs.items()}
