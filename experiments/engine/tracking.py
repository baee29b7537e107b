"""Weights & Biases as its users know it: one run for each stage; offline where there is no key; never in the way.

Project, group = experiment, job type = stage, tags = arm, seed and scale (and in the config, since tags cannot be
grouped on; the commit is there too); metrics over steps, pictures, artifacts with lineage pool -> tree -> subset ->
checkpoint -> metrics.
Every number also lies in the run folder: W&B is never needed to get one.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from experiments.engine.provenance import commit
from experiments.engine.stages import Stage
from foundation.files import load_json
from foundation.settings import Choices, check

MODES = ("auto", "online", "offline", "off")
ARTIFACTS = {  # stage -> artifact type -> what lies in its folder
    "prepare": {"pool": "."},
    "curate": {"tree": "tree", "subset": "subset"},
    "train": {"checkpoint": "."},
    "evaluate": {"metrics": "metrics.json"},
}
PICTURES = (".png", ".jpg")
PATIENCE = 20.0  # seconds until a server is one that does not answer


@dataclass(frozen=True)
class TrackingSettings:
    """Section ``tracking``.

    Attributes:
        wandb: auto (online with a key, else offline), online, offline, or off.
        project: W&B project.
        entity: W&B user or team; "" is the key's own.
    """

    wandb: Annotated[str, Choices(*MODES)] = "auto"
    project: str = "curated-ssl"
    entity: str = ""

    def __post_init__(self) -> None:
        check(self, "tracking")


def has_key() -> bool:
    """Whether W&B would find a key: in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.exists() and "wandb" in netrc.read_text(errors="replace")


def run_mode(settings: TrackingSettings) -> str:
    """online, offline, or off; the environment variable WANDB_MODE decides where the setting is auto."""
    if settings.wandb != "auto":
        return settings.wandb
    said = os.environ.get("WANDB_MODE", "")
    if said:
        return {"disabled": "off", "dryrun": "offline", "run": "online"}.get(said, said)
    return "online" if has_key() else "offline"


class Tracker:
    """One W&B run. Whatever goes wrong with W&B is a warning: the stage goes on."""

    def __init__(self, run: Any, folder: Path, stage: Stage | None, online: bool, inputs: Sequence[str] = ()):
        self.run, self.folder, self.stage, self.online, self.inputs = run, folder, stage, online, inputs

    def _safely(self, what: str, work: Any) -> None:
        if self.run is None:
            return
        try:
            work()
        except Exception as error:
            warnings.warn(f"W&B: {what} was not logged ({error}); the run goes on without it", stacklevel=3)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step; ``samples`` among them is the dashboard's axis."""
        self._safely("a step", lambda: self.run.log({**metrics, "step": step}, step=step))

    def log_outputs(self) -> None:
        """What the stage left in its folder: metrics, balance, pictures, artifacts."""
        import wandb

        stage = self.stage
        assert stage is not None
        values: dict[str, Any] = {}
        if (self.folder / "metrics.json").exists() and stage.name == "evaluate":
            values |= {f"eval/{k}": v for k, v in load_json(self.folder / "metrics.json")["metrics"].items()}
        if (self.folder / "balance.json").exists():
            measures = load_json(self.folder / "balance.json").get("measures", {})
            values |= {f"balance/{name}": value for name, value in measures.items()}
        if values:
            self.run.log(values)
            self.run.summary.update(values)
        pictures = [path for path in sorted(self.folder.glob("*")) if path.suffix in PICTURES]
        if pictures:
            self.run.log({f"pictures/{path.stem}": wandb.Image(str(path)) for path in pictures})
        if self.online:
            # lineage: W&B draws it from the artifacts that a run uses; offline they stand in the config alone
            for name in self.inputs:
                self._safely("lineage", partial(self.run.use_artifact, name))
        for kind, place in ARTIFACTS.get(stage.name, {}).items():
            path = self.folder / place
            if path.exists():
                artifact = wandb.Artifact(_artifact_name(stage, kind).split(":")[0], kind, metadata={"key": stage.key})
                # by address: nothing is uploaded or read again; the folder's name holds the hash of its inputs
                artifact.add_reference(path.resolve().as_uri(), name=kind, checksum=False)
                self.run.log_artifact(artifact, aliases=[stage.key[:8]])

    def finish(self, failed: bool = False) -> None:
        if self.run is None:
            return
        if not failed and self.stage is not None:
            self._safely("the outputs", self.log_outputs)
        self._safely("the end", lambda: self.run.finish(exit_code=1 if failed else 0))
        self.run = None


def _artifact_name(stage: Stage, kind: str) -> str:
    parts = [kind, stage.arm, "" if stage.seed is None else f"seed{stage.seed}"]
    return "-".join(part for part in parts if part) + f":{stage.key[:8]}"


def start_run(settings: TrackingSettings, root: Path, online: bool, **about: Any) -> Any:
    """`wandb.init` without chatter; None and a warning where it fails even offline."""
    import wandb

    root.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(silent=True, console="off", init_timeout=PATIENCE, disable_git=True, disable_code=True)
    for mode in ["online", "offline"] if online else ["offline"]:
        try:
            return wandb.init(
                project=settings.project,
                entity=settings.entity or None,
                mode=mode,  # type: ignore[arg-type]
                dir=str(root),
                settings=quiet,
                resume="allow" if mode == "online" else None,
                **about,
            )
        except Exception as error:
            what = "goes on offline; send it later with `wandb sync`" if mode == "online" else "goes on without W&B"
            warnings.warn(f"W&B: {' '.join(str(error).split())[:200]}; the run {what}", stacklevel=2)
            wandb.teardown()
    return None


def open_tracker(
    settings: TrackingSettings, root: Path, experiment: str, scale: str, stage: Stage, folder: Path
) -> Tracker | None:
    """The tracker of a stage; None where tracking is off or W&B is not installed."""
    mode = run_mode(settings)
    if mode == "off" or not wandb_installed():
        return None
    tags = [tag for tag in (stage.arm, "" if stage.seed is None else f"seed{stage.seed}", scale) if tag]
    inputs = [
        _artifact_name(earlier, kind)
        for earlier in stage.upstream
        for kind, place in ARTIFACTS.get(earlier.name, {}).items()
        if (earlier.folder(root) / place).exists()
    ]
    config = {
        "experiment": experiment,
        "scale": scale,
        "stage": stage.name,
        "arm": stage.arm,
        "seed": stage.seed,
        "key": stage.key,
        "settings": stage.settings,
        "inputs": inputs,
        "commit": commit()[0],
    }
    run = start_run(
        settings,
        root,
        mode == "online",
        id=stage.key[:16],
        name=stage.identity,
        group=experiment,
        job_type=stage.name,
        tags=tags,
        config=config,
    )
    return Tracker(run, folder, stage, run is not None and not run.offline, inputs)


def track_comparison(
    settings: TrackingSettings, root: Path, experiment: str, scale: str, rows: Sequence[Mapping[str, Any]], report: Path
) -> None:
    """One run of job type compare: the table of arms x metrics, and the report as HTML."""
    mode = run_mode(settings)
    if mode == "off" or not wandb_installed() or not rows:
        return
    import wandb

    about = {"experiment": experiment, "scale": scale, "stage": "compare", "commit": commit()[0]}
    run = start_run(
        settings,
        root,
        mode == "online",
        name="compare",
        group=experiment,
        job_type="compare",
        tags=[scale],
        config=about,
    )
    tracker = Tracker(run, report.parent, None, mode == "online")
    columns: list[str | int] = list(rows[0])

    def send() -> None:
        run.log(
            {"comparison": wandb.Table(columns=columns, data=[[row[str(name)] for name in columns] for row in rows])}
        )
        run.log({"report": wandb.Html(report.read_text())})
        run.summary.update({f"{row['arm']}/{row['metric']}": row["mean"] for row in rows})

    tracker._safely("the comparison", send)
    tracker.finish()


def wandb_installed() -> bool:
    """Whether the extra `train` is there."""
    from importlib.util import find_spec

    return find_spec("wandb") is not None
