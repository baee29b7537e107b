"""A folder that is written belongs to one process at a time, and is free again when that process is gone.

The lock is one of POSIX record locks on ``.lock`` in the folder: the kernel drops it when its process dies, children do
not inherit it, and NFS carries it from host to host. The file holds who has it, for the line that others read.
"""

import errno
import json
import os
import re
import socket
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from foundation.errors import CurationError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
TEMPORARY = re.compile(r"\.(.+)\.(\d{1,9})-([0-9a-f]{8})\.tmp", re.DOTALL)  # of a file, by a process of a host
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: dict[tuple[int, int], int] = {}  # (device, inode) of a lock of this process: how many times
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)


@contextmanager
def locked_folder(folder: str | Path) -> Iterator[Path]:
    """Hold a folder, made where it is not there; what was made and stayed empty is removed again.

    A process may lock a folder again that it holds. Of a group of processes the first one locks.

    Raises:
        CurationError: another process holds it (one line says who), or it cannot be made or written.
    """
    folder = Path(folder)
    with _locked(folder, folder / NAME, folder) as fresh:
        if fresh:
            clear_temporaries(folder)
        yield folder


@contextmanager
def locked_file(path: str | Path) -> Iterator[None]:
    """Hold the place of one file: what is asked of it stays true until it is written. See `locked_folder`.

    The lock is a hidden neighbour. The folder is made where it is not there.

    Raises:
        CurationError: as `locked_folder`.
    """
    path = Path(path)
    with _locked(path, path.with_name(f".{path.name}{NAME}"), path.parent):
        yield


@contextmanager
def _locked(place: Path, path: Path, folder: Path) -> Iterator[bool]:
    """Hold a place by the lock ``path`` in ``folder``; whether this process did not hold it already."""
    made = _make(folder)
    descriptor = None
    try:
        try:
            descriptor = _acquire(place, path)
        except OSError as error:
            raise CurationError(f"{path} cannot be written: {error.strerror or error}; choose another -o") from error
        yield descriptor >= 0
    finally:
        if descriptor is not None:
            _release(descriptor, path)
        for empty in made:  # the deepest first
            with suppress(OSError):
                empty.rmdir()


def temporary_name(name: str) -> str:
    """Of the file beside ``name`` that this process writes in its place."""
    return f".{name}.{os.getpid()}-{HOST}.tmp"


def clear_temporaries(folder: Path, name: str = "") -> None:
    """Remove what processes of this host that were killed left of the files that they wrote.

    Args:
        name: of one file; "": of any.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.fullmatch(entry.name)
            if found and name in ("", found[1]) and found[3] == HOST and not _alive(int(found[2])):
                os.unlink(entry)


def _alive(process: int) -> bool:
    if fcntl is None:  # Windows, where this question would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def is_locked(folder: str | Path) -> bool:
    """Whether this process holds the folder."""
    return _is_held(Path(folder) / NAME)


def _is_held(path: Path) -> bool:
    try:
        state = os.stat(path)
    except OSError:
        return False
    return (state.st_dev, state.st_ino) in _held


def _make(folder: Path) -> list[Path]:
    """Make a folder; those that were not there before, the deepest first."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        for part in missing:
            with suppress(OSError):
                part.rmdir()
        why = "a file is in its way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror
        raise CurationError(f"{folder} cannot be made as a folder: {why}; choose another -o") from error
    return missing


def _acquire(place: Path, path: Path) -> int:
    while True:
        # asked before the file is opened: closing any descriptor of it drops a lock that this process holds
        if _is_held(path):
            state = os.stat(path)
            _held[state.st_dev, state.st_ino] += 1
            return -1
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                said = os.read(descriptor, 4096)
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise CurationError(f"{place} is in use by {_who(said)}; wait for it or stop it") from None
                raise
            print(f"warning: {place} lies on a disk without locks; start no second process on it", file=sys.stderr)
        mine = os.fstat(descriptor)
        try:
            there = os.stat(path)
        except FileNotFoundError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            os.close(descriptor)  # the one before removed the file while this one opened it
            continue
        _held[mine.st_dev, mine.st_ino] = 1
        about = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        about["command"] = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])[:300]
        with suppress(OSError):  # a full disk: the lock holds without its story
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(about).encode())
        return descriptor


def _release(descriptor: int, path: Path) -> None:
    if descriptor < 0:
        with suppress(OSError):
            state = os.stat(path)
            _held[state.st_dev, state.st_ino] -= 1
        return
    mine = os.fstat(descriptor)
    _held.pop((mine.st_dev, mine.st_ino), None)
    with suppress(OSError):
        there = os.stat(path)
        if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
            path.unlink()  # before the lock goes, so that nobody waits on a file that is gone
    os.close(descriptor)


def _who(said: bytes) -> str:
    try:
        about = json.loads(said)
        since = f", since {about['since']}"
        return f"process {about['pid']} on {about['host']} ({about['command']}{since})"
    except (ValueError, KeyError, TypeError):
        return "another process"
