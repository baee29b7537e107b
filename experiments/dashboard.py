"""The W&B dashboard that compares curated with raw, made by code: axes, panels and grouping in one place."""

from typing import Any

from experiments.arms import BASE_ARM, METHOD_ARM
from experiments.experiment import Domain, Settings
from experiments.tracking import has_key
from foundation.errors import CurationError

BALANCE = ("effective", "kl", "gini", "rare_covered")


def dashboard_metrics(domain: Domain) -> dict[str, list[str]]:
    """Section of the dashboard -> metrics that it asks for; each is logged by `experiments.tracking`."""
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
