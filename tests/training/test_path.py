"""The one path of training, with a toy of a model: a run that resumes otherwise ruins a month of a GPU, unseen."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foundation.errors import CurationError
from foundation.locks import locked_folder
from training import devices
from training import fit as fit_module
from training.checkpoints import CHECKPOINT, Checkpoints, find_checkpoint
from training.data import Slot
from training.fit import Fitted, fit
from training.log import RunLog, Work
from training.module import StepModule
from training.order import Order
from training.run_folder import claimed
from training.settings import RunSettings, SpeedSettings

SPEED = ("rows_per_second", "mfu", "data_wait")


@dataclass(frozen=True)
class ToySettings(RunSettings):
    """A regression on rows that are drawn from their number."""

    steps: int = 7
    batch_size: int = 4
    rate: float = 0.1
    speed: SpeedSettings = field(default_factory=lambda: SpeedSettings("cpu", checkpoint_every=2, log_every=3))


class ToyBatches:
    """Rows (m,) of a slot, their features and targets."""

    def __init__(self, seed: int):
        self.order = Order(np.arange(10), seed)

    def __call__(self, slot: Slot) -> dict[str, Any]:
        rows = self.order.sample(slot.numbers)
        x = np.stack([np.random.default_rng(row).normal(size=3) for row in rows]).astype(np.float32)
        return {"rows": rows, "x": torch.from_numpy(x), "y": torch.from_numpy(x.sum(1)), "step": slot.step}


class Toy(StepModule):
    """A linear layer; writes down which rows each step saw."""

    settings: ToySettings

    def __init__(self, settings: ToySettings, saw: Path):
        super().__init__(settings)
        self.saw = saw
        torch.manual_seed(settings.seed)
        self.layer = torch.nn.Linear(3, 1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.settings.rate)

    def rates(self, step: int) -> dict[str, float]:
        return {"learning_rate": self.settings.rate}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        with open(self.saw, "a") as stream:
            stream.write(json.dumps([batch["step"], batch["rows"].tolist()]) + "\n")
        loss = (self.layer(batch["x"])[:, 0] - batch["y"]).square().mean()
        self.losses = {"loss": loss.detach()}
        return loss

    def logged(self, step_is_done: bool) -> dict[str, torch.Tensor]:
        return self.losses

    @property
    def largest_norm(self) -> float:
        return 1.0

    def advice(self) -> str:
        return "lower the rate"


def run(folder: Path, settings: ToySettings = ToySettings()) -> Fitted | None:
    """None: it was finished before."""
    with claimed(folder, {"settings": settings.science()}) as done:
        if done is not None:
            return None
        log = RunLog(folder, Work("samples", "rows", settings.batch_size, 6.0), "toy", progress=False)
        module = Toy(settings, folder.with_suffix(".saw"))
        fitted = fit(module, ToyBatches(settings.seed), folder, find_checkpoint(folder), log)
        if fitted.finished:
            fitted.export(lambda state: torch.save(state, folder / "weights.pt"), {"step": fitted.step})
        return fitted


def lines(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED} for line in found]


def saw(folder: Path) -> dict[int, list[int]]:
    """Step -> rows of all its micro-batches, of its last time."""
    found: dict[int, list[list[int]]] = {}
    for step, rows in map(json.loads, folder.with_suffix(".saw").read_text().splitlines()):
        found.setdefault(step, []).append(rows)
    size = len(found[0][0])
    return {step: [*chain(*parts[-4 // size :])] for step, parts in found.items()}


def assert_same_run(folder: Path, whole: Path) -> None:
    assert lines(folder) == lines(whole)
    a, b = (torch.load(path / "weights.pt", weights_only=True) for path in (folder, whole))
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    fitted = run(folder)
    assert fitted is not None
    assert fitted.finished
    return folder


@pytest.fixture
def after_step(monkeypatch: pytest.MonkeyPatch):
    """Do something as a step ends, before its checkpoint."""
    plain = Checkpoints.on_train_batch_end

    def set_action(wanted: int, action: Any) -> None:
        def batch_end(self: Checkpoints, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == wanted:
                action(self)
            plain(self, trainer, *rest)

        monkeypatch.setattr(Checkpoints, "on_train_batch_end", batch_end)

    return set_action


def test_every_step_is_logged_once_and_a_finished_run_is_not_done_again(whole: Path):
    assert [line["step"] for line in lines(whole)] == [3, 6, 7]
    assert [line["samples"] for line in lines(whole)] == [12, 24, 28]
    assert not list(whole.glob("*.ckpt"))
    assert run(whole) is None
    assert len(lines(whole)) == 3


@pytest.mark.parametrize("step", range(1, 7))
def test_sigterm_at_any_step_changes_nothing(step: int, whole: Path, tmp_path: Path, after_step):
    after_step(step, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    handler = signal.getsignal(signal.SIGTERM)
    stopped = run(tmp_path / "run")
    assert stopped is not None
    assert (stopped.finished, stopped.step) == (False, step)
    assert signal.getsignal(signal.SIGTERM) == handler
    after_step(-1, None)
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    assert saw(tmp_path / "run") == saw(whole)


@pytest.mark.parametrize("step", range(1, 8))
def test_a_crash_at_any_step_changes_nothing(step: int, whole: Path, tmp_path: Path, after_step):
    def crash(_: Checkpoints) -> None:
        raise RuntimeError("power cut")

    after_step(step, crash)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "run")
    after_step(-1, None)
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def _killed_in_its_third_checkpoint(folder: Path) -> None:
    plain, written = os.replace, []

    def replace_(source: Any, target: Any) -> None:
        written.append(Path(target).name)
        if written.count(CHECKPOINT) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(source, target)

    os.replace = replace_
    run(folder)


def test_kill_9_while_a_checkpoint_is_written_changes_nothing(whole: Path, tmp_path: Path):
    process = multiprocessing.get_context("fork").Process(
        target=_killed_in_its_third_checkpoint, args=(tmp_path / "run",)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert find_checkpoint(tmp_path / "run").step == 4
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_workers_and_a_cold_loader_see_the_same_rows(whole: Path, tmp_path: Path):
    settings = ToySettings()
    run(tmp_path / "run", replace(settings, speed=replace(settings.speed, n_workers=2)))
    assert saw(tmp_path / "run") == saw(whole)
    assert_same_run(tmp_path / "run", whole)


def test_micro_batches_see_the_same_rows_and_take_the_same_steps(whole: Path, tmp_path: Path):
    fitted = run(tmp_path / "run", ToySettings(micro_batch_size=1))
    assert fitted is not None
    assert fitted.step == 7
    assert saw(tmp_path / "run") == saw(whole)
    for one, other in zip(lines(tmp_path / "run"), lines(whole), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_a_resume_that_splits_its_batches_otherwise_goes_on(whole: Path, tmp_path: Path, after_step):
    """As on other devices: the identity without the micro-batch size, as if the number of processes had changed."""
    after_step(3, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path / "run", ToySettings(micro_batch_size=1))
    after_step(-1, None)
    identity = json.loads((tmp_path / "run/run.json").read_text())
    identity["settings"].pop("micro_batch_size")
    (tmp_path / "run/run.json").write_text(json.dumps(identity))
    run(tmp_path / "run")
    assert [line["step"] for line in lines(tmp_path / "run")] == [3, 6, 7]
    assert saw(tmp_path / "run")[6] == saw(whole)[6]


def test_ctrl_c_is_ctrl_c_and_works_again_afterwards(tmp_path: Path, after_step):
    after_step(3, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert find_checkpoint(tmp_path / "run").step == 2


def test_a_flipped_byte_costs_the_steps_since_the_checkpoint_before(
    whole: Path, tmp_path: Path, after_step, capsys: pytest.CaptureFixture[str]
):
    after_step(5, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path / "run")
    after_step(-1, None)
    path = tmp_path / "run" / CHECKPOINT
    content = path.read_bytes()
    place = content.index(torch.load(path, weights_only=True)["state_dict"]["layer.weight"].numpy().tobytes())
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    run(tmp_path / "run")
    said = capsys.readouterr().err
    assert "last.ckpt is damaged" in said
    assert "going on from earlier.ckpt, step 4" in said
    assert_same_run(tmp_path / "run", whole)


def test_a_full_disk_leaves_the_checkpoint_before(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(CHECKPOINT) and Path(target).exists():
            raise OSError(28, "No space left on device")
        plain(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CurationError, match=r"last\.ckpt cannot be written \(No space left on device\)"):
        run(tmp_path / "run")
    assert find_checkpoint(tmp_path / "run").step == 2
    monkeypatch.setattr(os, "replace", plain)
    run(tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_damaged_checkpoints_alone_are_refused(tmp_path: Path, after_step):
    after_step(2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    run(tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    content = torch.load(path, weights_only=True)
    for edit in (lambda c: c.update(global_step=10**9), lambda c: c.pop("loops"), lambda c: c.update(global_step="x")):
        edited = {**content}
        edit(edited)
        torch.save(edited, path)
        with pytest.raises(CurationError, match=r"last\.ckpt .*; delete it to start again"):
            run(tmp_path / "run")
    content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"] = {
        "ready": 10**9,
        "completed": 10**9,
    }
    torch.save({**content, "global_step": 10**9}, path)
    with pytest.raises(CurationError, match=r"is of step 1000000000, but the run has 7; delete it"):
        run(tmp_path / "run")
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CurationError, match=r"last\.ckpt cannot be read \(BadZipFile\); delete it to start again"):
        run(tmp_path / "run")


def test_a_run_that_kept_nothing_does_not_block_the_next(tmp_path: Path):
    with pytest.raises(CurationError, match=r"the loss is (nan|inf) at step \d; lower the rate"):
        run(tmp_path / "run", ToySettings(rate=1e30, steps=5))
    wrong = ToySettings(speed=SpeedSettings(accelerator="abacus"))
    with pytest.raises(CurationError, match="abacus"):
        run(tmp_path / "other", wrong)
    assert not list((tmp_path / "other").glob("*"))
    for name in ("run", "other"):
        run(tmp_path / name)
    assert [line["step"] for line in lines(tmp_path / "run")] == [3, 6, 7]
    with pytest.raises(CurationError, match=r"holds a run with rate=0\.1, not 0\.5"):
        run(tmp_path / "run", ToySettings(rate=0.5))


def _hold(folder: Path, held: Any) -> None:
    with locked_folder(folder):
        held.set()
        time.sleep(120)


def test_two_trainings_on_one_folder_are_refused_until_the_first_is_gone(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", held))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(CurationError, match=rf"run is in use by process {other.pid} "):
            run(tmp_path / "run")
    finally:
        other.kill()
        other.join()
    fitted = run(tmp_path / "run")
    assert fitted is not None
    assert fitted.finished


def test_an_edited_result_is_refused(whole: Path, tmp_path: Path):
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run/result.json"
    path.write_text(path.read_text().replace('"step": 7', '"step": 8'))
    with pytest.raises(CurationError, match=r"result\.json was changed after it was written"):
        run(tmp_path / "run")


class DeepToy(Toy):
    """With more gradients than one, so that their order can change."""

    def __init__(self, settings: ToySettings, saw: Path):
        super().__init__(settings, saw)
        sizes = [3, 37, 23, 1]
        layers = [torch.nn.Linear(*pair) for pair in pairwise(sizes)]
        self.layer = torch.nn.Sequential(*chain.from_iterable((layer, torch.nn.Tanh()) for layer in layers))[:-1]


def _train_in_a_group(rank: int, n: int, kind: type[Toy], settings: ToySettings, folder: Path, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "GROUP_RANK": "0"}
    torch.set_num_threads(1)
    (folder.parent / f"{rank}.error").unlink(missing_ok=True)
    try:
        with claimed(folder, {"settings": settings.science()}):
            log = RunLog(folder, Work("samples", "rows", 4), "toy", progress=False)
            module = kind(settings, folder.parent / f"{rank}.saw")
            fitted = fit(module, ToyBatches(0), folder, find_checkpoint(folder), log)
            if fitted.finished:
                fitted.export(lambda state: torch.save(state, folder / "weights.pt"), {"step": fitted.step})
    except CurationError as error:
        (folder.parent / f"{rank}.error").write_text(str(error))
        raise SystemExit(2) from None


def run_in_a_group(
    n: int, folder: Path, kind: type[Toy] = Toy, strategy: str = "ddp", steps: int = 7, log_every: int = 1
) -> list[int]:
    """A toy of n processes; their exit codes."""
    settings = ToySettings(micro_batch_size=1, steps=steps)
    settings = replace(settings, speed=replace(settings.speed, devices=n, strategy=strategy, log_every=log_every))
    folder.parent.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    shared = n, kind, settings, folder, port
    workers = [context.Process(target=_train_in_a_group, args=(rank, *shared)) for rank in range(n)]
    for worker in workers:
        worker.start()
    deadline = time.monotonic() + 120
    for worker in workers:
        worker.join(max(deadline - time.monotonic(), 0))
        worker.kill()
    return [worker.exitcode or 0 for worker in workers]


def test_two_processes_see_the_rows_of_one_and_log_each_step_once(tmp_path: Path):
    whole = tmp_path / "one/run"
    settings = ToySettings(micro_batch_size=1)
    run(whole, replace(settings, speed=replace(settings.speed, log_every=1)))
    assert run_in_a_group(2, tmp_path / "run") == [0, 0]
    for one, other in zip(lines(tmp_path / "run"), lines(whole), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    rows: dict[int, list[int]] = {}
    for rank in range(2):
        for line in (tmp_path / f"{rank}.saw").read_text().splitlines():
            step, mine = json.loads(line)
            rows[step] = rows.get(step, []) + mine
    assert {step: sorted(found) for step, found in rows.items()} == {
        step: sorted(found) for step, found in saw(whole).items()
    }


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_four_processes_that_were_stopped_end_with_the_bytes_of_those_that_were_not(
    strategy: str, tmp_path: Path, after_step: Callable[..., None]
):
    """Sums of more than two gradients depend on their order, so a process that starts anew must keep it.

    They stop in the middle of a line of the log, whose sums are each process's own.
    """
    toys = DeepToy, strategy, 12, 3
    assert run_in_a_group(4, tmp_path / "whole/run", *toys) == [0] * 4
    after_step(5, lambda checkpoints: checkpoints._asked.set())
    assert run_in_a_group(4, tmp_path / "stopped/run", *toys) == [0] * 4
    assert not (tmp_path / "stopped/run/weights.pt").exists()
    after_step(-1, lambda checkpoints: None)
    assert run_in_a_group(4, tmp_path / "stopped/run", *toys) == [0] * 4
    assert_same_run(tmp_path / "stopped/run", tmp_path / "whole/run")


@pytest.mark.parametrize(("first", "then"), [((2, "fsdp"), (1, "auto")), ((1, "auto"), (2, "fsdp"))])
def test_a_checkpoint_of_sharded_weights_is_that_of_one_process(
    first: tuple[int, str], then: tuple[int, str], tmp_path: Path, after_step: Callable[..., None]
):
    """Who trains on many GPUs goes on with one, and the other way round."""
    assert run_in_a_group(1, tmp_path / "whole/run", DeepToy, "auto", 12) == [0]
    after_step(5, lambda checkpoints: checkpoints._asked.set())
    assert run_in_a_group(first[0], tmp_path / "stopped/run", DeepToy, first[1], 12) == [0] * first[0]
    after_step(-1, lambda checkpoints: None)
    assert find_checkpoint(tmp_path / "stopped/run").step == 5
    assert run_in_a_group(then[0], tmp_path / "stopped/run", DeepToy, then[1], 12) == [0] * then[0]
    for one, other in zip(lines(tmp_path / "stopped/run"), lines(tmp_path / "whole/run"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
    a, b = (torch.load(tmp_path / name / "run/weights.pt", weights_only=True) for name in ("stopped", "whole"))
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_processes_on_devices_of_different_kinds_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    names = {0: "NVIDIA H100", 1: "NVIDIA V100"}
    monkeypatch.setattr(devices, "device_name", lambda _device: names[int(os.environ["RANK"])])
    assert run_in_a_group(2, tmp_path / "run") == [0, 0]
    said = capfd.readouterr().err
    assert said.count("different devices (1 in 32-true on NVIDIA H100, 1 in 32-true on NVIDIA V100)") == 1
    plain = devices.make_trainer

    def mixed(settings: Any, *rest: Any, **options: Any) -> Any:
        own = "bf16-mixed" if os.environ["RANK"] == "0" else "32-true"  # as "auto" is resolved on such GPUs
        return plain(replace(settings, precision=own), *rest, **options)

    monkeypatch.setattr(fit_module, "make_trainer", mixed)
    assert run_in_a_group(2, tmp_path / "other/run") == [2, 2]
    for rank in range(2):
        said = (tmp_path / f"other/{rank}.error").read_text()
        assert "different precisions (1 in bf16-mixed on NVIDIA H100, 1 in 32-true on NVIDIA V100)" in said
        assert "launch.constraint" in said
