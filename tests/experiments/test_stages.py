"""Stages: a stage taken for finished when it is not, or run again when it need not be, costs GPU days or truth."""

import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch

from curation import CurationError
from experiments.engine.stages import MARKER, Stage, StageRun, in_order, locked, run_stage, run_stages, state_of

WHERE = {"speed": {}, "provenance": {"commit": "c", "device": "d", "versions": {}}, "progress": False}


class Chain:
    """Two stages that count how often they run."""

    def __init__(self, root: Path):
        self.root, self.ran, self.breaks = root, [], False

    def stages(self, size: int = 1, rate: float = 0.1, file: Path | None = None) -> tuple[Stage, Stage]:
        def work(run: StageRun) -> dict[str, float]:
            self.ran.append(run.folder.name.split("-")[0])
            if self.breaks:
                raise OSError("no space left on device")
            (run.folder / "out.txt").write_text(str(run.settings))
            return {"samples": 3.0}

        first = Stage("curate", work, {"size": size}, arm="raw", seed=0, files=(file,) if file else ())
        return first, Stage("train", work, {"rate": rate}, (first,), "raw", 0)

    def run(self, *stages: Stage, **options):
        lines: list[str] = []
        return run_stages(stages, self.root, lines.append, **(WHERE | options)), lines


def test_finished_stages_are_skipped_and_changed_ones_say_what_changed(tmp_path: Path):
    chain = Chain(tmp_path)
    _outcome, lines = chain.run(chain.stages()[1])
    assert chain.ran == ["curate", "train"]
    assert lines == ["[1/2] curate raw seed 0: starts (not run yet)", "[2/2] train raw seed 0: starts (not run yet)"]
    outcome, _ = chain.run(chain.stages()[1])
    assert outcome.finished_before == ["curate raw seed 0", "train raw seed 0"]
    _outcome, lines = chain.run(chain.stages(rate=0.2)[1])
    assert chain.ran == ["curate", "train", "train"]
    assert lines[1] == "[2/2] train raw seed 0: starts (inputs changed: rate 0.1 -> 0.2)"
    _outcome, lines = chain.run(chain.stages(size=2)[1])
    assert lines[0] == "[1/2] curate raw seed 0: starts (inputs changed: size 1 -> 2)"
    assert "curate raw seed 0 changed" in lines[1]
    # going back costs nothing: the old folders are still there
    before = len(chain.ran)
    chain.run(chain.stages()[1])
    assert len(chain.ran) == before


def test_a_changed_input_file_is_an_input(tmp_path: Path):
    chain, pool = Chain(tmp_path / "runs"), tmp_path / "pool.parquet"
    pool.write_bytes(b"one")
    chain.run(*chain.stages(file=pool))
    pool.write_bytes(b"two")
    _outcome, lines = chain.run(*chain.stages(file=pool))
    assert "file pool.parquet.checksum" in lines[0]
    pool.unlink()
    with pytest.raises(CurationError, match="does not exist"):
        chain.run(*chain.stages(file=pool))


EDITS = ['{"key": "', "{}", '{"name": 5, "arm": "", "seed": 0, "key": "KEY", "outputs": {"out.txt": null}}']


@pytest.mark.parametrize("damage", ["missing", "truncated", *EDITS])
def test_a_damaged_stage_is_not_taken_for_finished(tmp_path: Path, damage: str):
    chain = Chain(tmp_path)
    first, _second = chain.stages()
    chain.run(first)
    folder = first.folder(tmp_path)
    if damage == "missing":
        (folder / "out.txt").unlink()
    elif damage == "truncated":
        (folder / "out.txt").write_text("")
    else:
        (folder / MARKER).write_text(damage.replace("KEY", first.key))
    assert not state_of(first, tmp_path).finished
    chain.run(first)
    assert chain.ran == ["curate", "curate"]
    assert state_of(first, tmp_path).finished


def test_what_stands_behind_a_failure_is_skipped_and_named(tmp_path: Path):
    chain = Chain(tmp_path)
    chain.breaks = True
    bystander = Stage("curate", lambda _run: None, {}, arm="other", seed=0)
    outcome, lines = chain.run(chain.stages()[1], bystander)
    assert outcome.failed == {"curate raw seed 0": "OSError: no space left on device"}
    assert outcome.skipped == {"train raw seed 0": "curate raw seed 0 failed or was skipped"}
    assert outcome.done == ["curate other seed 0"]
    assert any("failed, OSError: no space left" in line for line in lines)
    assert "failed before: OSError: no space left" in state_of(chain.stages()[0], tmp_path).why
    chain.breaks = False
    outcome, _ = chain.run(chain.stages()[1])
    assert outcome.done == ["curate raw seed 0", "train raw seed 0"]
    assert not list(tmp_path.rglob("failed.json"))


def test_an_interrupted_stage_goes_on_and_counts_its_attempts(tmp_path: Path):
    attempts = []

    def work(run: StageRun) -> None:
        attempts.append(run.folder.joinpath("half.txt").exists())
        run.folder.joinpath("half.txt").write_text("x")
        if len(attempts) == 1:
            raise KeyboardInterrupt

    stage = Stage("train", work, arm="raw", seed=1)
    with pytest.raises(KeyboardInterrupt):
        run_stages([stage], tmp_path, lambda _line: None, **WHERE)
    assert state_of(stage, tmp_path).why == "interrupted before; goes on"
    run_stages([stage], tmp_path, lambda _line: None, **WHERE)
    assert attempts == [False, True]
    assert '"attempts": 2' in (stage.folder(tmp_path) / MARKER).read_text()


def test_no_stage_runs_before_its_upstream(tmp_path: Path):
    chain = Chain(tmp_path)
    first, second = chain.stages()
    assert in_order([second, first]) == [first, second]
    with pytest.raises(CurationError, match="needs curate raw seed 0, which is not finished"):
        run_stage(second, tmp_path, **WHERE)


def test_the_name_of_an_arm_decides_nothing():
    one, other = (Stage("curate", lambda _run: None, {"size": 1}, arm=arm, seed=0) for arm in ("a", "b"))
    assert one.key == other.key
    assert one.key != Stage("curate", lambda _run: None, {"size": 1}, arm="a", seed=1).key


def test_a_second_process_refuses_and_a_dead_one_holds_nothing(tmp_path: Path):
    program = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from experiments.engine.stages import locked
        with locked(Path({str(tmp_path)!r}), "an experiment"):
            print("held", flush=True)
            time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(CurationError, match="another process is running an experiment"),
            locked(tmp_path, "an experiment"),
        ):
            pass
        holder.kill()
    with locked(tmp_path, "an experiment"):
        pass


@pytest.mark.parametrize("late", ["stage.json", "out.txt"])
def test_files_of_another_machine_that_are_seen_late_are_waited_for(tmp_path: Path, late: str):
    """A job begins as soon as the one before it has ended; its machine may see that one's files later, in any order."""
    chain = Chain(tmp_path)
    first, second = chain.stages()
    chain.run(first)
    path = first.folder(tmp_path) / late
    path.rename(tmp_path / "hidden")
    with pytest.raises(CurationError, match="needs curate raw seed 0, which is not finished"):
        run_stage(second, tmp_path, patience=0.1, **WHERE)
    appears = threading.Timer(0.3, lambda: (tmp_path / "hidden").rename(path))
    appears.start()
    run_stage(second, tmp_path, patience=30, **WHERE)
    appears.join()
    assert chain.ran == ["curate", "train"]


def test_a_gpu_that_is_too_small_fails_the_stage_with_the_settings_to_lower(tmp_path: Path):
    def work(_run: StageRun) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total of 79 GiB")

    stage = Stage("train", work, arm="raw", seed=1)
    outcome = run_stages([stage], tmp_path, lambda _line: None, **WHERE)
    assert "Tried to allocate 2.00 GiB" in outcome.failed["train raw seed 1"]
    assert "speed.micro_batch_size" in outcome.failed["train raw seed 1"]
    assert "speed.micro_batch_size" in state_of(stage, tmp_path).why
