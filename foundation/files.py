"""Files that are either whole or absent: atomic writes, checksums, and a check of free disk space."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from foundation.errors import CurationError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write(stream)`` on a temporary neighbour of ``path``, then rename: a reader sees the old file or the new.

    Raises:
        CurationError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    with whole_file(path) as temporary, open(temporary, "wb") as stream:
        write(stream)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, for libraries that want a name; at the end the file takes the place of ``path``.

    Raises:
        CurationError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    except Exception as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end it takes the place of ``folder``, whatever lay there.

    Raises:
        CurationError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _to_disk(file)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except Exception as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _to_disk(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _cannot_write(path: Path, error: Exception) -> Exception:
    """What to raise for an error of a write; safetensors' own type hides that of the system."""
    if isinstance(error, OSError):
        return CurationError(f"cannot write {path}: {error.strerror or error}")
    if type(error).__name__ == "SafetensorError":
        return CurationError(f"cannot write {path}: {error}")
    return error


def save_array(path: Path, array: np.ndarray) -> None:
    """Write ``array`` as ``.npy``, atomically and without pickle."""
    write_atomically(path, lambda stream: np.save(stream, array, allow_pickle=False))


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_atomically(path, lambda stream: stream.write((json.dumps(content, indent=2) + "\n").encode()))


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CurationError: the file is missing, truncated or not a JSON object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise CurationError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise CurationError(f"{path} cannot be read as JSON ({error}); it may be truncated: make it again") from error
    if not isinstance(content, dict):
        raise CurationError(f"{path} does not hold a JSON object; make it again")
    return content


def load_array(path: Path, mmap: bool = True) -> np.ndarray:
    """Open an ``.npy`` file, memory-mapped by default, never unpickling.

    Raises:
        CurationError: the file is missing, truncated, or holds Python objects.
    """
    try:
        return np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise CurationError(f"{path} does not exist") from error
    except (OSError, ValueError, EOFError) as error:
        raise CurationError(f"{path} is not a whole .npy array ({error}); make it again") from error


def checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hexadecimal, read in blocks of 4 MiB."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise CurationError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def digest_json(content: Any) -> str:
    """BLAKE2b-128 of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def require_free_space(folder: Path, n_bytes: int) -> None:
    """Refuse to start a write that the disk cannot hold.

    Raises:
        CurationError: fewer than ``n_bytes`` are free where ``folder`` lies.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise CurationError(f"{folder} needs {n_bytes / 1e9:.2f} GB but only {free / 1e9:.2f} GB are free there")
