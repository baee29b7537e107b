"""Tracking: a dashboard that asks for what nobody logged is empty; a key in a log is a leak; W&B away is no excuse."""

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from PIL import Image

from curation import CurationError
from experiments.engine import tracking
from experiments.engine.experiment import open_domain, parse
from experiments.engine.provenance import commit
from experiments.engine.settings import compose
from experiments.engine.stages import run_stage
from experiments.engine.tracking import TrackingSettings, has_key, run_mode
from experiments.launch import run_experiment
from experiments.pages.dashboard import build_workspace, dashboard_metrics, draw

wandb = pytest.importorskip("wandb")
KEY = "0123456789abcdef0123456789abcdef01234567"
TINY = [
    "science.studies=null",
    "science.curation.levels=[60,20]",
    "science.curation.sample_sizes=[0,0]",
    "science.curation.size=200",
    "science.curation.n_resamples=1",
    "science.curation.max_iterations=3",
    "science.train.recipe.steps=20",
    "science.train.recipe.log_every=10",
    "speed.threads=1",
]


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def records_of(file: Path) -> Iterator[bytes]:
    """Records of a .wandb file: a LevelDB log (blocks of 32 KiB; each piece has checksum, length and kind)."""
    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        _checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # full, last
            yield whole
            whole = b""


def read_offline(root: Path) -> list[dict[str, Any]]:
    """Config, tags, history keys and summary of every offline run, read back from its file."""
    from wandb.proto import wandb_internal_pb2

    runs = []
    for file in sorted(root.glob("wandb/offline-run-*/*.wandb")):
        run: dict[str, Any] = {"history": set(), "artifacts": [], "config": {}}
        for data in records_of(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run |= {"group": record.run.run_group, "job": record.run.job_type, "tags": list(record.run.tags)}
                run |= {"project": record.run.project, "id": record.run.run_id}
                run["config"] = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                run["history"] |= {item.key or "/".join(item.nested_key) for item in record.history.item}
            elif kind == "artifact":
                run["artifacts"].append((record.artifact.type, record.artifact.name))
            elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
                artifact = record.request.log_artifact.artifact
                run["artifacts"].append((artifact.type, artifact.name))
        runs.append(run)
    return runs


class StandIn(BaseHTTPRequestHandler):
    """As much of a W&B server as `wandb sync` needs; what it is sent is kept in ``configs`` and ``history``."""

    protocol_version = "HTTP/1.1"
    configs: ClassVar[list[dict[str, Any]]] = []
    history: ClassVar[set[str]] = set()

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body) if self.headers.get("Content-Type", "").startswith("application/json") else {}
        query, given = asked.get("query", ""), asked.get("variables", {})
        found: dict[str, Any] = {}
        if "upsertBucket" in query:
            self.configs.append(json.loads(given.get("config") or "{}"))
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": given["name"], "displayName": "", "historyLineCount": 0, "project": project}
            found = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif "CreateArtifact" in query:
            found = {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": {}}}}
        elif "CreateRunFiles" in query:
            place = f"http://{self.headers['Host']}/file"
            files = [{"name": name, "uploadUrl": place} for name in given["files"]]
            found = {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        for line in asked.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
            self.history.update(json.loads(line))
        text = json.dumps({"data": found}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an experiment that found no key."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(folder / "netrc"))
        config = compose([*TINY, f"output.runs={folder / 'run'}", "seeds=[0]"])
        assert run_experiment(config, "command", lambda _line: None, False) == 0
    return folder / "run"


@pytest.mark.slow  # on a busy machine its client gives up on the server
def test_wandb_sync_sends_all_that_the_dashboard_asks_for(offline: Path, tmp_path: Path):
    """W&B's own command reads the offline folders, which no server of ours has seen."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up
    Thread(target=server.serve_forever, daemon=True).start()
    place = {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_address[1]}", "WANDB_API_KEY": KEY}
    folders = []
    for folder in sorted((offline / "wandb").glob("offline-run-*")):
        folders.append(str(shutil.copytree(folder, tmp_path / folder.name)))
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *folders],
        cwd=tmp_path,
        env={**os.environ, **place, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    server.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    asked = {name for names in dashboard_metrics(open_domain("simulated")).values() for name in names}
    assert asked <= StandIn.history, f"nothing of {asked - StandIn.history} arrived"
    assert {"samples", "comparison", "report"} <= StandIn.history
    commits = {config["commit"]["value"] for config in StandIn.configs if "commit" in config}
    assert commits == {commit()[0]}
    assert {config["arm"]["value"] for config in StandIn.configs if "arm" in config} >= {
        "raw",
        "hierarchical_resampled",
    }


@pytest.mark.slow  # W&B's own process sometimes writes a run without its config
def test_offline_runs_hold_what_the_dashboard_asks_for(offline: Path, tmp_path: Path):
    runs = read_offline(offline)
    assert sorted(run["job"] for run in runs) == sorted(["compare", "prepare", *["curate", "train", "evaluate"] * 2])
    logged = set().union(*(run["history"] for run in runs))
    asked = {name for names in dashboard_metrics(open_domain("simulated")).values() for name in names}
    assert asked <= logged, f"nobody logs {asked - logged}"
    assert "samples" in logged
    assert {"comparison", "report"} <= {name.split("/")[0] for name in logged}
    for run in runs:
        assert (run["project"], run["group"]) == ("curated-ssl", "simulated")
        assert "demo" in run["tags"]
        assert run["config"]["commit"] == commit()[0]  # with the settings beside it, a run can be made again
    train = next(run for run in runs if run["job"] == "train" and "raw" in run["tags"])
    assert set(train["tags"]) == {"raw", "seed0", "demo"}
    assert (train["config"]["arm"], train["config"]["seed"], train["config"]["scale"]) == ("raw", 0, "demo")
    assert {"pictures/gallery_level_1", "pictures/gallery_level_2"} <= {"/".join(n.split("/")[:2]) for n in logged}
    # lineage: what each run used is what an earlier one made
    made = {name for run in runs for _type, name in run["artifacts"]}
    kinds = {kind for run in runs for kind, _name in run["artifacts"]}
    assert {"pool", "tree", "subset", "checkpoint", "metrics"} <= kinds
    used = {name.split(":")[0] for run in runs for name in run["config"].get("inputs", [])}
    assert used <= made
    picture = tmp_path / "dashboard.png"
    draw(offline, picture)
    with Image.open(picture) as image:
        image.load()
        assert min(image.size) > 300
    # the simulated pool is a few rows; nothing is copied into W&B's folder
    assert sum(path.stat().st_size for path in (offline / "wandb").rglob("*")) < 20e6


def test_a_picture_of_nothing_is_refused(tmp_path: Path):
    with pytest.raises(CurationError, match="does not exist"):
        draw(tmp_path, tmp_path / "picture.png")
    config = {"name": "simulated", "scale": {"name": "demo"}, "science": {}}
    manifest = {"name": "simulated", "command": "x", "config": config, "stages": []}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(CurationError, match="no finished evaluation"):
        draw(tmp_path, tmp_path / "picture.png")
    assert not (tmp_path / "picture.png").exists()


def test_the_dashboard_groups_by_arm_and_names_the_metrics():
    pytest.importorskip("wandb_workspaces")
    domain, config = open_domain("simulated"), compose([])
    workspace = build_workspace(parse(config), domain)
    text = json.dumps(workspace._to_model().model_dump(mode="json", by_alias=True), default=str)
    for names in dashboard_metrics(domain).values():
        for name in names:
            assert name in text
    assert workspace.runset_settings.groupby[0].name == "arm"
    assert "raw" in workspace.name


def test_without_a_key_runs_are_offline(no_key, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert not has_key()
    assert run_mode(TrackingSettings()) == "offline"
    assert run_mode(TrackingSettings(wandb="off")) == "off"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert run_mode(TrackingSettings()) == "off"
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x")
    assert run_mode(TrackingSettings()) == "online"
    with pytest.raises(CurationError, match="it must be one of auto, online"):
        TrackingSettings(wandb="sometimes")


def test_an_unreachable_server_is_a_warning_and_no_key_is_written(tmp_path: Path, no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    from experiments.engine.experiment import build
    from experiments.engine.stages import in_order
    from experiments.run_folder import begin_stage

    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    config = compose([*TINY, f"output.runs={tmp_path / 'run'}", "seeds=[0]"])
    experiment = build(config)
    stage = in_order(experiment.stages)[0]
    with pytest.warns(UserWarning, match="goes on offline"):
        folder = run_stage(stage, experiment.root, **begin_stage(experiment, config, False))
    assert (folder / "stage.json").exists()
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), f"{path} holds the key"
