"""Python processes that have their imports behind them: forks of a server that has imported and computed nothing.

Of a process of its own the imports are 3 to 10 s, and most tests that start one are about what it does afterwards. A
fork of the tests themselves would inherit locks and pools of threads. Run by itself, it is the server.
"""

import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMPORTED = (
    "curation.cli",
    "curation.trees.community_tree",
    "curation.embedding.embed",
    "curation.group",
    "pretrain.cli",
)
IMPORTED += ("pretrain.probe", "pretrain.train", "experiments.launch", "experiments.pages.report", "experiments.slurm")
IMPORTED += ("experiments.simulated.domain", "experiments.web_images.domain", "benchmarks.gpu.check")
PIPE_BYTES = 1 << 20  # what a process may say before somebody reads it
POSSIBLE = sys.platform == "linux"


class Process:
    """The part of `subprocess.Popen` with text pipes that tests use.

    Args:
        server: socket of `Server`.
        words: as of ``python``: a script, ``-m`` and a module, or ``-c`` and code, and the arguments.
        env, cwd, start_new_session: as of `subprocess.Popen`.
    """

    def __init__(
        self,
        server: Path,
        words: tuple[object, ...],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        start_new_session: bool = False,
    ):
        self.args, self.returncode = list(map(str, words)), None
        pipes = [os.pipe() for _ in range(2)]
        for _, end in pipes:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._keeper = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._keeper.connect(str(server))
        asked = [self.args, dict(os.environ if env is None else env), str(cwd or Path.cwd()), start_new_session]
        socket.send_fds(self._keeper, [json.dumps(asked).encode()], [end for _, end in pipes])
        for _, end in pipes:
            os.close(end)
        self.stdout, self.stderr = (os.fdopen(end, encoding="utf-8") for end, _ in pipes)
        self.pid = int(self._keeper.recv(100))

    def poll(self) -> int | None:
        """Exit code; None while it runs."""
        if self.returncode is None and select.select([self._keeper], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._keeper.recv(100)))
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        if self.returncode is None and not select.select([self._keeper], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it said, when it has ended. Raises: subprocess.TimeoutExpired."""
        self.wait(timeout)
        with self.stdout, self.stderr:
            return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """Starts processes; where it cannot fork, on other systems than Linux, each imports for itself."""

    def __init__(self, folder: Path):
        self.socket = folder / "warm"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: object, **options: Any) -> Any:
        """A `Process`, or what is like one; the server is started with the first."""
        if not POSSIBLE:
            both: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            return subprocess.Popen([sys.executable, *map(str, words)], **both, **options)
        if self.process is None:
            command = [sys.executable, __file__, str(self.socket)]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == b"ready\n", "the server of processes did not start"
        return Process(self.socket, words, **options)

    def run(self, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """To the end."""
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def close(self) -> None:
        if self.process is not None:
            self.process.communicate()  # it ends as its stdin does


def serve(path: str) -> list[str]:
    """Wait for requests. Returns in the processes that are asked for alone, with the words of each."""
    sys.path[0] = str(Path(__file__).parents[1])  # beside this file lie rooms of tests by the same names
    for name in IMPORTED:
        importlib.import_module(name)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.bind(path)
    server.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for keepers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what a fork need not look through again
    print("ready", flush=True)
    while True:
        if sys.stdin in select.select([server, sys.stdin], [], [])[0]:
            raise SystemExit  # whoever started it is gone
        asker, _ = server.accept()
        if os.fork() == 0:
            server.close()
            return _keep(asker)
        asker.close()


def _keep(asker: socket.socket) -> list[str]:
    """Fork once more, and tell how that ended; returns there."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked, streams, _, _ = socket.recv_fds(asker, 1 << 20, 2)
    words, environment, folder, own_session = json.loads(asked)
    process = os.fork()
    if process:
        for stream in (0, 1, 2, *streams):  # else they would stay open as long as the keeper
            os.close(stream)
        asker.send(str(os.waitpid(process, 0)[1]).encode())
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if own_session:
        os.setsid()
    asker.send(str(os.getpid()).encode())  # now, when its group is there
    asker.close()
    for number, stream in zip((0, 1, 2), (os.open(os.devnull, os.O_RDONLY), *streams), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # which torch has read as it was imported
        sys.modules["torch"].set_num_threads(int(environment["OMP_NUM_THREADS"]))
    return list(words)


def run(words: list[str]) -> None:
    """As ``python WORDS...`` does."""
    if words[0] == "-m":
        sys.path[0], sys.argv = os.getcwd(), words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0], sys.argv = "", ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), main.__dict__)
    else:
        sys.path[0], sys.argv = str(Path(words[0]).parent), words
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    run(serve(sys.argv[1]))
