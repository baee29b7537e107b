"""The W&B dashboard that compares curated with raw, made by code: axes, panels and grouping in one place."""

from pathlib import Path
from typing import Any

from experiments.engine.arms import BASE_ARM, METHOD_ARM
from experiments.engine.compare import load_runs
from experiments.engine.curves import read_curve
from experiments.engine.experiment import Domain, Settings, open_domain
from experiments.engine.tracking import has_key
from experiments.pages.figures import MADE_BY, dashboard_figure
from foundation.errors import CurationError
from foundation.files import load_json, require_own, write_atomically

BALANCE = ("effective", "kl", "gini", "rare_covered")


def dashboard_metrics(domain: Domain) -> dict[str, list[str]]:
    """Section of the dashboard -> metrics that it asks for; each is logged by `experiments.engine.tracking`."""
    return {
        "Verdict": [f"eval/{domain.headline.name}"],
        "Evaluation": [f"eval/{metric.name}" for metric in domain.metrics],
        "Learning curves": list(domain.curves),
        "Balance of the subsets": [f"balance/{name}" for name in BALANCE],
    }


def build_workspace(settings: Settings, domain: Domain) -> Any:
    """The dashboard as a `wandb_workspaces.workspaces.Workspace`; nothing is sent."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = []
    for title, names in dashboard_metrics(domain).items():
        panels: list[Any] = []
        for name in names:
            if title == "Learning curves":
                panels.append(wr.LinePlot(title=name, x="samples", y=[name], groupby="arm"))
            else:
                panels.append(wr.BarPlot(title=name, metrics=[name], groupby="arm", orientation="h"))
        sections.append(ws.Section(name=title, panels=panels, is_open=True))
    wanted = ws.And(ws.Config("experiment") == settings.name, ws.Config("scale") == settings.scale["name"])
    return ws.Workspace(
        name=f"{settings.name}, {settings.scale['name']}: {METHOD_ARM} against {BASE_ARM}",
        entity=settings.tracking.entity or "",
        project=settings.tracking.project,
        sections=sections,
        runset_settings=ws.RunsetSettings(filters=wanted, groupby=[ws.Config("arm")]),
    )


def draw(root: Path, picture: Path) -> None:
    """The dashboard's panels as a PNG, from the files of a run folder that are logged to W&B: without a server.

    Raises:
        CurationError: it is no run folder, none of its evaluations is finished, or another picture is there.
    """
    require_own(picture, MADE_BY, None)
    manifest, records = load_runs([root])
    values: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, list[list[dict[str, float]]]] = {}
    for record in records:
        found: dict[str, float] = {}
        if record.name == "evaluate":
            logged = load_json(record.folder / "metrics.json")["metrics"]
            found = {f"eval/{name}": value for name, value in logged.items()}
        elif record.name == "curate" and (record.folder / "balance.json").exists():
            measures = load_json(record.folder / "balance.json").get("measures", {})
            found = {f"balance/{name}": value for name, value in measures.items()}
        elif record.name == "train":
            curves.setdefault(record.arm, []).append(read_curve(record.folder / "curve.jsonl"))
        for name, value in found.items():
            values.setdefault(name, {}).setdefault(record.arm, []).append(float(value))
    if not any(name.startswith("eval/") for name in values):
        raise CurationError(f"{root} holds no finished evaluation; run the experiment first")
    logged_steps = {name for seeds in curves.values() for points in seeds for point in points for name in point}
    asked = dashboard_metrics(open_domain(manifest["name"]))
    sections = {
        title: [name for name in names if name in values or name in logged_steps] for title, names in asked.items()
    }
    title = f"{manifest['name']}, {manifest['config']['scale']['name']}: {METHOD_ARM} against {BASE_ARM}"
    image = dashboard_figure(title, sections, values, curves)
    write_atomically(picture, lambda stream: stream.write(image))


def publish(settings: Settings, domain: Domain) -> str:
    """Send the dashboard to W&B; returns its address. Needs the extra `train`.

    Raises:
        CurationError: no key or no entity.
    """
    if not has_key() or not settings.tracking.entity:
        raise CurationError("the dashboard needs a W&B key (`wandb login`) and tracking.entity=<user or team>")
    workspace = build_workspace(settings, domain)
    workspace.save()
    return workspace.url
