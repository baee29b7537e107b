"""Several processes that fit one k-means: each reads a part of the rows, and all end with the same bytes as one alone.

Rows are dealt out in whole blocks, sums within a block do not depend on who takes it, and sums of blocks carry their
rounding error along (`curation.kmeans.update`), so the number of processes does not show in the result.

The processes share a file system: every one can open all embeddings, and arrays with an entry for each row are put
together in a file that all of them map into memory.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from foundation.errors import CurationError, PassingError
from foundation.files import load_array, require_free_space
from foundation.threads import set_threads

Result = TypeVar("Result")
REACH = timedelta(minutes=5)  # processes start at different times
WAIT = timedelta(hours=24)  # the others wait while the first one seeds


@dataclass
class Group:
    """The processes of a run; one alone is a group of one, for which everything here is free.

    Attributes:
        rank: 0 <= rank < size.
        size: number of processes.
        scratch: folder for arrays that all of them map; None keeps them in the memory of each.
    """

    rank: int = 0
    size: int = 1
    scratch: Path | None = None
    _files: int = 0

    @classmethod
    def current(cls) -> "Group":
        """The processes that `joined` (or the caller) has connected through `torch.distributed`; else one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def span(self, n_rows: int, multiple: int) -> tuple[int, int]:
        """The rows of this process: start and stop, at multiples of ``multiple``, so that blocks stay whole."""
        blocks = -(-n_rows // multiple)
        bounds = (blocks * self.rank // self.size, blocks * (self.rank + 1) // self.size)
        return min(bounds[0] * multiple, n_rows), min(bounds[1] * multiple, n_rows)

    def gather(self, mine: np.ndarray) -> np.ndarray:
        """The arrays of all processes, one after the other, in the memory of each."""
        if self.size == 1:
            return mine
        lengths = self._lengths(len(mine))
        # bytes: every dtype travels, and parts of unequal length are padded
        row = mine.dtype.itemsize * int(np.prod(mine.shape[1:], dtype=np.int64))
        padded = torch.zeros(max(lengths) * row, dtype=torch.uint8)
        padded[: mine.nbytes] = torch.from_numpy(np.frombuffer(mine.tobytes(), np.uint8).copy())
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        self._call(dist.all_gather, parts, padded)
        whole = b"".join(part[: n * row].numpy().tobytes() for part, n in zip(parts, lengths, strict=True))
        return np.frombuffer(whole, mine.dtype).reshape(-1, *mine.shape[1:]).copy()

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum of an int64 array over the processes: exact, so the order does not matter."""
        if self.size == 1:
            return values
        summed = torch.from_numpy(np.array(values, np.int64))
        self._call(dist.all_reduce, summed)
        return summed.numpy()

    def assemble(self, name: str, mine: np.ndarray) -> np.ndarray:
        """The arrays of all processes, one after the other, as one array that each maps from a file in ``scratch``.

        Args:
            name: of the file; what was assembled under this name before is given up.
        """
        if self.size == 1 or self.scratch is None:
            return self.gather(mine)
        lengths = self._lengths(len(mine))
        self._files += 1
        path = self.scratch / f"{name}.{self._files}.npy"
        shape = (sum(lengths), *mine.shape[1:])
        with self.all_or_none():
            if self.first:
                self._create(path, shape, mine.dtype)
        with self.all_or_none():
            if mine.size:
                whole = np.lib.format.open_memmap(path, mode="r+")
                begin = sum(lengths[: self.rank])
                whole[begin : begin + len(mine)] = mine
                whole.flush()
        self.barrier()
        found = load_array(path) if shape[0] else np.empty(shape, mine.dtype)
        self.barrier()
        if self.first:
            for old in self.scratch.glob(f"{name}.*.npy"):
                if old != path:
                    old.unlink(missing_ok=True)  # whoever still maps it keeps it until done
        return found

    def _create(self, path: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        require_free_space(path.parent, n_bytes)
        with open(path, "wb") as stream:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(stream, header)
            stream.truncate(stream.tell() + n_bytes)

    def share(self, content: Any) -> Any:
        """What the first process has, as plain JSON, on all of them."""
        if self.size == 1:
            return content
        text = json.dumps(content).encode() if self.first else b""
        return json.loads(self.gather(np.frombuffer(text, np.uint8)).tobytes())

    def share_tensor(self, mine: Tensor) -> Tensor:
        """The tensor of the first process; the others give one of the same shape, dtype and device to write into."""
        if self.size > 1:
            self._call(dist.broadcast, mine, 0)
        return mine

    def reduce_scatter(self, sums: Tensor, rest: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reduce-scatter of sums (k, d) with their rounding error, and of counts (k,), in the order of ranks.

        Every process gets a part of the clusters, so no one ever holds the sums of all processes. NCCL's own adds in
        an order of its own and drops the errors.

        Returns:
            Sums, rest and counts of this process's part.
        """
        if self.size == 1:
            return sums, rest, counts
        part = -(-len(sums) // self.size)
        start, stop = min(part * self.rank, len(sums)), min(part * (self.rank + 1), len(sums))
        whole, error = torch.zeros_like(sums[:part]), torch.zeros_like(rest[:part])
        amount = torch.zeros(part, dtype=counts.dtype, device=counts.device)
        parts = [self._all_to_all(mine, part) for mine in (sums, rest, counts)]
        for theirs, their_error, their_amount in zip(*parts, strict=True):
            whole, lost = two_sum(whole, theirs)
            error += lost + their_error
            amount += their_amount
        n = stop - start
        return whole[:n], error[:n], amount[:n]

    def _all_to_all(self, mine: Tensor, part: int) -> Tensor:
        """(size, part, ...): what every process has of the part that this one is to add up."""
        padded = mine.new_zeros((part * self.size, *mine.shape[1:]))
        padded[: len(mine)] = mine
        received = torch.empty_like(padded)
        self._call(dist.all_to_all_single, received, padded)
        return received.reshape(self.size, part, *mine.shape[1:])

    def all_gather(self, mine: Tensor, n: int) -> Tensor:
        """(n, ...) from the parts that `reduce_scatter` left with each process."""
        if self.size == 1:
            return mine
        part = -(-n // self.size)
        padded = mine.new_zeros((part, *mine.shape[1:]))
        padded[: len(mine)] = mine
        whole = mine.new_empty((part * self.size, *mine.shape[1:]))
        self._call(dist.all_gather, list(whole.split(part)), padded)
        return whole[:n]

    def agree(self, value: str, what: str) -> None:
        """Refuse to go on where the processes do not see the same.

        Raises:
            CurationError: ``value`` differs between processes; ``what`` names it.
        """
        if self.size == 1:
            return
        lines = self.gather(np.frombuffer((json.dumps(value) + "\n").encode(), np.uint8)).tobytes().splitlines()
        values = [json.loads(line) for line in lines]
        for rank, theirs in enumerate(values):
            if theirs != values[0]:
                raise CurationError(
                    f"process {rank} has another {what} ({theirs}) than process 0 ({values[0]}); all processes need "
                    "the same command and see the same files"
                )

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """An error in the block stops every process, each with the message of the first that failed."""
        message = ""
        try:
            yield
        except CurationError as error:
            if self.size == 1:
                raise
            message = str(error)
        except OSError as error:
            if self.size == 1:
                raise
            message = f"{error.filename or 'a file'}: {error.strerror or error}"
        if self.size == 1:
            return
        found = [text for text in self.gather(np.array([message.encode()[:400]], "S400")).tolist() if text]
        if found:
            raise CurationError(found[0].decode(errors="replace"))

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            self._call(dist.all_reduce, torch.zeros(1))

    def _lengths(self, mine: int) -> list[int]:
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = mine
        self._call(dist.all_reduce, lengths)
        return [int(n) for n in lengths]

    def _call(self, collective: Any, *arguments: Any) -> None:
        try:
            collective(*arguments)
        except RuntimeError as error:
            raise LostProcess(
                f"process {self.rank} of {self.size} lost the others ({str(error).splitlines()[0][:200]}); run the "
                "same command again: it goes on from the last checkpoint"
            ) from error


class LostProcess(PassingError):
    """Another process of the group is gone."""


def two_sum(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded sum and its exact error (Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B)."""
    total = a + b
    there = total - a
    return total, (a - (total - there)) + (b - there)


@contextmanager
def joined(device: str = "cpu") -> Iterator[tuple[Group, str]]:
    """Connect the processes that torchrun or ``srun`` has started; nothing to do for one alone.

    Yields:
        The group, and the device of this process: the GPU of its local rank for "cuda".

    Raises:
        CurationError: the others do not answer.
    """
    here = place()
    if here is None or (dist.is_available() and dist.is_initialized()):
        yield Group.current(), device
        return
    rank, size, local_rank, local_size, address, port = here
    n_gpus = torch.cuda.device_count() if device == "cuda" else 0
    if n_gpus:
        device = f"cuda:{local_rank % n_gpus}"
        torch.cuda.set_device(device)
    _share_cores(local_size)
    # NCCL refuses two processes on one GPU
    backend = "cpu:gloo,cuda:nccl" if n_gpus >= local_size else "gloo"
    try:
        store, rank, size = next(dist.rendezvous(f"tcp://{address}:{port}", rank, size, timeout=REACH))
        dist.init_process_group(backend, store=store, timeout=WAIT, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise CurationError(
            f"process {rank} of {size} cannot reach the first one at {address}:{port} "
            f"({str(error).splitlines()[0][:200]}); MASTER_ADDR and MASTER_PORT name another place"
        ) from error
    try:
        yield Group.current(), device
    finally:
        dist.destroy_process_group()


class Place(NamedTuple):
    """Where a process stands among those that torchrun or ``srun`` has started, and where the first one is."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str
    port: int


def place(environment: Any = None) -> Place | None:
    """The place of this process; None for one alone.

    Raises:
        CurationError: the variables of torchrun or srun make no sense.
    """
    try:
        return _started_by(os.environ if environment is None else environment)
    except ValueError as error:
        if isinstance(error, CurationError):
            raise
        raise CurationError(f"the variables of torchrun or srun (WORLD_SIZE, RANK, ...) are odd: {error}") from error


def _started_by(environment: Any) -> Place | None:
    if int(environment.get("WORLD_SIZE", 1)) > 1 and "RANK" in environment:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local = int(environment.get("LOCAL_RANK", 0)), int(environment.get("LOCAL_WORLD_SIZE", 1))
        if "MASTER_ADDR" not in environment or not 0 <= rank < size:
            raise CurationError(
                f"WORLD_SIZE={size}, RANK={rank} and MASTER_ADDR={environment.get('MASTER_ADDR', '')} are not those of "
                "a process that torchrun has started; unset WORLD_SIZE for a process alone"
            )
        return Place(rank, size, *local, environment["MASTER_ADDR"], int(environment.get("MASTER_PORT", 29500)))
    # SLURM_STEP_NUM_TASKS, not SLURM_NTASKS: the batch script itself is not a task
    size = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if size <= 1 or "SLURM_PROCID" not in environment:
        return None
    local_size = int(environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0])
    port = int(environment.get("MASTER_PORT", 20_000 + int(environment.get("SLURM_JOB_ID", 0)) % 20_000))
    hosts = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", ""))
    address = environment.get("MASTER_ADDR") or _first_host(hosts)
    local_rank = int(environment.get("SLURM_LOCALID", 0))
    return Place(int(environment["SLURM_PROCID"]), size, local_rank, local_size, address, port)


def _first_host(hosts: str) -> str:
    if "[" not in hosts:
        return hosts.split(",")[0] or "127.0.0.1"
    try:
        found = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise CurationError(f"the hosts {hosts!r} cannot be resolved by scontrol: {error}") from error
    return found.stdout.split()[0]


def _share_cores(local_size: int) -> None:
    """The processes of a machine share its cores: more threads than cores only wait for each other."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, available // local_size)
    set_threads(threads)
