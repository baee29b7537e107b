"""Several processes fit the tree that one fits, byte for byte, also when they are killed; and they stop together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from warm import Process, Server

from curation import ClusterTree, CurationError, HierarchicalKMeans
from curation.group import Group, place, two_sum
from curation.kmeans import assignment, grouped_seeding, pieces, seeding, two_step
from curation.kmeans.pieces import Pieces, run_jobs, stretch
from curation.kmeans.update import ClusterSums

# small blocks, so that a small input has some for every process
FIT = """
import json, sys
from foundation.errors import CurationError
from curation.group import joined
from curation.trees.hierarchy import HierarchicalKMeans
from curation.kmeans import assignment, kmeans
from curation.kmeans import grouped_seeding, pieces, seeding
assignment.rows_per_read.__defaults__ = (1 << 13,)
source, out, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if "of_a_group" in settings:
    seeding.GROUPED_WORK, grouped_seeding.OF_A_GROUP, pieces.SECONDS = 0, settings.pop("of_a_group"), 0
try:
    with joined() as (group, device):
        if group.first:
            print("started", flush=True)
        fit = HierarchicalKMeans(**settings, work_dir=out + "/work", checkpoint_seconds=0, progress=False)
        tree = fit.fit(source, out + "/tree", group)
        print(tree.checksum, flush=True)
except CurationError as error:
    raise SystemExit(f"process {group.rank}: {error}")
"""
SETTINGS = {
    "plain": {"levels": [60, 12], "n_resamples": [1, 2], "max_iterations": 6},
    "two-step": {"levels": ["12x6", 10], "n_resamples": [1, 1], "max_iterations": 5, "metric": "cosine"},
    "groups": {"levels": [90, 14], "n_resamples": [1, 1], "max_iterations": 4, "of_a_group": 9},
    "kmeans||": {"levels": [80, 9], "seeding": "kmeans||", "max_iterations": 5, "bad_rows": "drop"},
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


Start = Callable[..., list[Process]]


@pytest.fixture
def start(warm: Server) -> Start:
    """n processes of the fit, as torchrun would start them."""

    def started(n: int, *arguments: str, code: str = FIT) -> list[Process]:
        place = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        place |= {"MASTER_PORT": str(free_port())}
        places = [{**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n)]
        return [warm.start("-c", code, *arguments, env=env, start_new_session=True) for env in places]

    return started


DEDUP = """
import sys
from curation.preparation import near_duplicates
from curation.cli import main
near_duplicates.EXACT_ROWS, near_duplicates.INDEX_BYTES = 300, 1100 * 24 * 2
main(["dedup", sys.argv[1], "-o", sys.argv[2]])
"""


def test_several_processes_drop_the_rows_that_one_drops(tmp_path: Path, start: Start):
    """Near-duplicates of a pool that fits no index: clusters are dealt out, and the first process writes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 24))
    np.save(tmp_path / "x.npy", np.concatenate([x, x[:400] + 1e-3 * rng.normal(size=(400, 24))]).astype(np.float32))
    for n in (1, 2):
        found = finish(start(n, str(tmp_path / "x.npy"), str(tmp_path / f"kept{n}"), code=DEDUP))
        assert [code for code, _, _ in found] == [0] * n, found
        assert "rows kept" in "".join(found[0][1:])
        assert not any("rows kept" in "".join(said) for _, *said in found[1:])
    one, two = (np.load(tmp_path / f"kept{n}/row_ids.npy") for n in (1, 2))
    assert 2990 <= len(one) <= 3060
    np.testing.assert_array_equal(one, two)
    assert not list(tmp_path.glob("kept2/unfinished*"))


def finish(processes: list[Process]) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each."""
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


def wide_range(n: int = 3000, dim: int = 24, bad: bool = False) -> np.ndarray:
    """Rows whose sums round differently in every order, in clusters and with some exact duplicates."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, dim))[rng.integers(40, size=n)] * 3 + rng.normal(size=(n, dim))
    x *= 10.0 ** rng.uniform(-4, 4, size=dim)
    x[100:120] = x[99]
    if bad:
        x[[5, 700, 2999], 3] = np.nan
    return x.astype(np.float32)


@pytest.mark.parametrize(("name", "n"), [("plain", 3), ("two-step", 2), ("groups", 3), ("kmeans||", 2)])
def test_several_processes_fit_the_tree_of_one(
    tmp_path: Path, name: str, n: int, monkeypatch: pytest.MonkeyPatch, start: Start
):
    x = wide_range(bad=name == "kmeans||")
    shards = tmp_path / "shards"
    shards.mkdir()
    for i, part in enumerate(np.array_split(x, 3)):
        np.save(shards / f"{i}.npy", part)
    monkeypatch.setattr(assignment.rows_per_read, "__defaults__", (1 << 13,))
    settings = dict(SETTINGS[name])
    if "of_a_group" in settings:
        monkeypatch.setattr(seeding, "GROUPED_WORK", 0)
        monkeypatch.setattr(grouped_seeding, "OF_A_GROUP", settings.pop("of_a_group"))
    alone = HierarchicalKMeans(**settings, progress=False).fit(shards)  # type: ignore[arg-type]
    out = tmp_path / "out"
    found = finish(start(n, str(shards), str(out), json.dumps(SETTINGS[name])))
    assert [code for code, _, _ in found] == [0] * n, found
    assert len({out.split()[-1] for _, out, _ in found}) == 1  # every process has the tree
    assert not (out / "work").exists()
    together = ClusterTree.load(out / "tree")
    assert together.checksum == alone.checksum
    assert [level.record for level in together.levels] == [level.record for level in alone.levels]
    assert alone.n_rows == len(x) - 3 * (name == "kmeans||")


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_lost_process_stops_all_and_the_rerun_ends_with_the_same_tree(tmp_path: Path, kills: int, start: Start):
    np.save(tmp_path / "x.npy", wide_range(20_000))
    settings = {"levels": [400, 60, 10], "n_resamples": [0, 2, 2], "max_iterations": 12}
    arguments = str(tmp_path / "x.npy"), str(tmp_path / "killed"), json.dumps(settings)
    rng = np.random.default_rng(1)
    lost = 0
    for _ in range(kills):
        processes = start(2, *arguments)
        assert processes[0].stdout.readline() == "started\n"
        time.sleep(rng.uniform(0.1, 1.5))
        victim = processes[int(rng.integers(2))]
        if victim.poll() is None:
            os.killpg(victim.pid, signal.SIGKILL)
        for code, _, err in finish(processes):
            if code not in (0, -signal.SIGKILL):
                assert "lost the others" in err or "cannot reach" in err, err
                assert "Traceback" not in err
                lost += 1
    assert lost
    found = finish(start(2, *arguments))
    assert [code for code, _, _ in found] == [0, 0], found
    whole = HierarchicalKMeans(**settings, progress=False).fit(tmp_path / "x.npy")
    assert ClusterTree.load(tmp_path / "killed" / "tree").checksum == whole.checksum


def test_a_slow_process_is_waited_for(tmp_path: Path, start: Start):
    """One that starts late and then hangs for a while, as on a loaded node."""
    np.save(tmp_path / "x.npy", wide_range())
    settings = {"levels": [60, 12], "n_resamples": [1, 1], "max_iterations": 6}
    processes = start(2, str(tmp_path / "x.npy"), str(tmp_path / "slow"), json.dumps(settings))
    os.killpg(processes[1].pid, signal.SIGSTOP)
    time.sleep(1)
    os.killpg(processes[1].pid, signal.SIGCONT)
    assert processes[0].stdout.readline() == "started\n"
    os.killpg(processes[1].pid, signal.SIGSTOP)
    time.sleep(1)
    assert processes[0].poll() is None
    os.killpg(processes[1].pid, signal.SIGCONT)
    assert [code for code, _, _ in finish(processes)] == [0, 0]
    alone = HierarchicalKMeans(**settings, progress=False).fit(tmp_path / "x.npy")
    assert ClusterTree.load(tmp_path / "slow/tree").checksum == alone.checksum


@pytest.mark.parametrize("what", ["seeding", "splitting"])
def test_a_fit_that_is_killed_while_it_seeds_or_splits_repeats_little(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
):
    np.save(tmp_path / "x.npy", wide_range())
    monkeypatch.setattr(seeding, "GROUPED_WORK", 0)
    monkeypatch.setattr(grouped_seeding, "OF_A_GROUP", 10)
    monkeypatch.setattr(pieces, "SECONDS", 0.0)
    settings = {"levels": ["100x4", 12], "max_iterations": 4, "progress": False}
    module, name = (grouped_seeding, "greedy_choices") if what == "seeding" else (two_step, "assign_filled")
    plain, calls = getattr(module, name), 0

    def counted(*arguments: object, **options: object) -> object:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
    stop = 0
    whole = HierarchicalKMeans(**settings).fit(tmp_path / "x.npy")  # type: ignore[arg-type]
    in_all, calls, stop = calls, 0, 7
    fit = HierarchicalKMeans(**settings, work_dir=tmp_path / "work")  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        fit.fit(tmp_path / "x.npy")
    calls, stop = 0, 0
    again = HierarchicalKMeans(**settings, work_dir=tmp_path / "work").fit(tmp_path / "x.npy")  # type: ignore[arg-type]
    assert again.checksum == whole.checksum
    assert calls <= in_all - 5
    assert not (tmp_path / "work" / "pieces").exists()


def test_jobs_are_dealt_out_once_and_taken_up_by_any_number_of_processes(tmp_path: Path):
    for sizes in (np.array([0, 0, 5, 1, 1, 9, 0]), np.ones(3, np.int64), np.array([4]), np.zeros(4, np.int64)):
        for size in (1, 2, 5):
            spans = [stretch(sizes, Group(rank, size)) for rank in range(size)]
            assert [spans[0][0], spans[-1][1]] == [0, len(sizes)]
            assert all(stop == begin for (_, stop), (begin, _) in pairwise(spans))
    for first in (0, 4):
        kept = Pieces(tmp_path / "jobs", seconds=0)
        for job in range(first, first + 3):
            kept.keep(job, (np.arange(job), np.full(job, 0.5)))
    asked: list[int] = []

    def work(job: int) -> tuple[np.ndarray, ...]:
        asked.append(job)
        return np.arange(job), np.full(job, 0.5)

    lengths, (numbers, halves) = run_jobs(np.ones(8, np.int64), work, tmp_path / "jobs", Group(), n_threads=2)
    assert asked == [3, 7]
    assert lengths.tolist() == list(range(8))
    assert numbers.tolist() == [i for job in range(8) for i in range(job)]
    assert len(halves) == 28
    path = next((tmp_path / "jobs").glob("*.npz"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CurationError, match=r"is damaged .*; delete it, and its jobs are done again"):
        Pieces(tmp_path / "jobs").load(0, 8)


def test_processes_that_see_other_data_are_refused(tmp_path: Path, warm: Server):
    processes = []
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": str(free_port()), "MASTER_ADDR": "127.0.0.1"}
    for rank in range(2):
        np.save(tmp_path / f"{rank}.npy", wide_range(200) + rank)
        arguments = [str(tmp_path / f"{rank}.npy"), str(tmp_path / "out"), json.dumps({"levels": [5]})]
        env = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(warm.start("-c", FIT, *arguments, env=env))
    for code, _, err in finish(processes):
        assert code == 1
        assert "process 1 has another fingerprint of the embeddings" in err
    assert not (tmp_path / "out" / "tree").exists()


def test_blocks_stay_whole_and_every_row_has_one_process():
    for n_rows, multiple, size in ((0, 4, 3), (1, 4, 3), (1000, 7, 4), (64, 8, 8), (50, 100, 2)):
        spans = [Group(rank, size).span(n_rows, multiple) for rank in range(size)]
        assert spans[0][0] == 0
        assert spans[-1][1] == n_rows
        for (_, stop), (begin, _) in pairwise(spans):
            assert stop == begin
            assert stop % multiple == 0 or stop == n_rows


def test_sums_of_blocks_lose_nothing_to_their_order():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(4096, 8)) * 10.0 ** rng.uniform(-12, 12, size=(4096, 1))).astype(np.float32)
    labels = rng.integers(5, size=4096).astype(np.int32)
    found = []
    for order in (np.arange(64), np.arange(64)[::-1], rng.permutation(64)):
        sums = ClusterSums(5, 8, torch.device("cpu"))
        for block in order:
            rows = slice(block * 64, block * 64 + 64)
            sums.add(torch.from_numpy(x[rows]), torch.from_numpy(labels[rows]))
        found.append(sums.means()[0].numpy())
    exact = np.stack([x[labels == c].astype(np.longdouble).mean(axis=0) for c in range(5)])
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_allclose(found[0], exact.astype(np.float64), rtol=1e-7)
    a, b = torch.tensor([1e16, -3.0], dtype=torch.float64), torch.tensor([1.0, 1e-20], dtype=torch.float64)
    total, lost = two_sum(a, b)
    assert [int(total[0]) + int(lost[0]), float(lost[1])] == [10**16 + 1, 1e-20]


def test_the_place_of_a_process_is_read_from_torchrun_and_slurm():
    assert place({}) is None
    assert place({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None  # a batch script
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert place({**torchrun, "MASTER_ADDR": "a", "MASTER_PORT": "7"}) == (3, 4, 1, 2, "a", 7)
    for odd in (torchrun, {**torchrun, "MASTER_ADDR": "a", "RANK": "4"}):  # it waited for the others for minutes
        with pytest.raises(CurationError, match="unset WORLD_SIZE"):
            place(odd)
    step = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_JOB_ID": "40003", "SLURM_STEP_NODELIST": "node1"}
    assert place(step) == (9, 16, 1, 8, "node1", 20_003)


@pytest.mark.slow
def test_srun_on_two_nodes_fits_the_tree_of_one_process(slurm: dict[str, str], tmp_path: Path):
    np.save(tmp_path / "x.npy", wide_range(20_000))
    settings = ["--levels", "200,20", "--resamples", "1", "--iterations", "5", "--device", "cpu"]
    fit = [sys.executable, "-m", "curation", "cluster", str(tmp_path / "x.npy"), *settings]
    srun = ["srun", "--nodes", "2", "--ntasks", "2", "--ntasks-per-node", "1"]
    place = {**slurm, "MASTER_ADDR": "127.0.0.1"}  # the nodes of the test cluster have names that no one resolves
    done = subprocess.run([*srun, *fit, "-o", str(tmp_path / "two")], env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tree ") == 1  # the first process alone reports
    subprocess.run([*fit, "-o", str(tmp_path / "one")], check=True, capture_output=True)
    assert ClusterTree.load(tmp_path / "two").checksum == ClusterTree.load(tmp_path / "one").checksum


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable: hosts with an address each and nothing else in common but the disk."""
    names, address = ("curated-a", "curated-b"), "10.97.0.{}/24"
    commands = [f"ip netns add {name}" for name in names]
    commands += [f"ip link add cable-a netns {names[0]} type veth peer name cable-b netns {names[1]}"]
    for i, name in enumerate(names):
        inside = f"ip netns exec {name} ip"
        commands += [f"{inside} addr add {address.format(i + 1)} dev cable-{'ab'[i]}"]
        commands += [f"{inside} link set cable-{'ab'[i]} up", f"{inside} link set lo up"]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True) if shutil.which("ip") else None
            if done is None or done.returncode:
                pytest.skip("network namespaces cannot be made here (they need iproute2 and root)")
        yield names
    finally:
        for name in names if shutil.which("ip") else ():
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
def test_two_hosts_fit_the_tree_of_one_process(two_hosts: tuple[str, str], tmp_path: Path):
    np.save(tmp_path / "x.npy", wide_range(20_000))
    settings = {"levels": [300, 40], "n_resamples": [0, 2], "max_iterations": 6}
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.97.0.1", "MASTER_PORT": "29511"}
    processes = []
    for rank, host in enumerate(two_hosts):
        fit = [sys.executable, "-c", FIT, str(tmp_path / "x.npy"), str(tmp_path / "two"), json.dumps(settings)]
        # gloo must be told which of a host's addresses the others can reach
        place["GLOO_SOCKET_IFNAME"] = f"cable-{'ab'[rank]}"
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", host, *fit],
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": "0"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    found = finish(processes)
    assert [code for code, _, _ in found] == [0, 0], found
    whole = HierarchicalKMeans(**settings, progress=False).fit(tmp_path / "x.npy")
    assert ClusterTree.load(tmp_path / "two" / "tree").checksum == whole.checksum
