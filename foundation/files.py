"""Files that are either whole or absent: atomic writes, checksums, and a check of free disk space."""

import errno
import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from foundation.errors import CurationError, PassingError, one_line
from foundation.jsonl import once
from foundation.locks import NAME as LOCK
from foundation.locks import clear_temporaries, is_locked, locked_folder, temporary_name
from foundation.paths import regular_file
from foundation.schema import check_content

SEAL = "seal"  # key of a JSON file: checksum of all others
RESULT, CHECKSUMS = "result.json", "checksums"  # of a finished run; the key of the checksums of its weights
JSON_LIMIT = 1 << 30
NOT_OF_THE_FILE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # errors of the machine
MARK_WITHIN = 1 << 16  # bytes of the beginning and of the end of a file, where its maker's mark lies
VERIFY_VARIABLE = "CURATED_SSL_VERIFY"
SAMPLED = 1 << 16  # bytes of a block of `sampled_checksum`
_verified: dict[tuple[str, int, int, int], str] = {}  # (path, inode, bytes, time of change) -> checksum


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
    require_replaceable(path)
    temporary = path.with_name(temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not is_locked(path.parent):  # else it was done with the lock
            clear_temporaries(path.parent, path.name)
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
    except Exception as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def require_replaceable(path: Path) -> None:
    """Refuse to put a file where a folder, pipe, socket or device is: ``-o /dev/full`` would take the device's place.

    Raises:
        CurationError: what is there is no regular file, or the path has no name.
    """
    beside(path, ".")  # a path without a name is refused
    if os.path.exists(path):
        regular_file(path, "choose another place for the file")


def beside(path: Path, name: str) -> Path:
    """A neighbour of a file or folder.

    Raises:
        CurationError: the path names none: it is the folder that one stands in, the one above it, or the root.
    """
    if path.name in ("", ".."):
        raise CurationError(f"{path} is a folder that is there; name a new file or folder in it")
    return path.parent / name


def require_own(path: Path, made_by: str, overwrite: bool | None = False) -> None:
    """Refuse to put a file in the place of one that another program wrote, as a mistyped ``-o`` would.

    Args:
        made_by: what this command writes into each of its files, near its beginning or its end.
        overwrite: the user wants it all the same; None: the command has no such option.

    Raises:
        CurationError: what is there does not hold the mark and is not empty, or is no regular file.
    """
    require_replaceable(path)
    if overwrite or not os.path.lexists(path):
        return
    with open(regular_file(path, "choose another -o"), "rb") as stream:
        edges = stream.read(MARK_WITHIN)
        stream.seek(max(len(edges), os.fstat(stream.fileno()).st_size - MARK_WITHIN))
        edges += stream.read()
    if edges and made_by.encode() not in edges:
        raise CurationError(
            f"{path} is there already and this command did not make it; choose another -o, or "
            f"{'move it away' if overwrite is None else 'give --overwrite'}"
        )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end it takes the place of ``folder``, whatever lay there.

    Raises:
        CurationError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    temporary = beside(folder, f".{folder.name}.tmp")
    with locked_folder(temporary):  # a second process that writes the same folder is refused
        try:
            clear_folder(temporary)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _to_disk(file)
            (temporary / LOCK).unlink()
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


def save_json(path: Path, content: dict[str, Any], seal: bool = False) -> None:
    """Write ``content`` as indented JSON, atomically.

    Args:
        seal: add the checksum of the content, which `load_json` compares: a changed file is refused.
    """
    if seal:
        content = {**content, SEAL: digest_json(json.loads(json.dumps(content)))}
    write_atomically(path, lambda stream: stream.write((json.dumps(content, indent=2) + "\n").encode()))


def json_file(path: Path, remedy: str = "make it again") -> Path:
    """The path of a JSON file that may be read as a whole, by us or by a library.

    Raises:
        CurationError: it is not there, no regular file, or larger than any that is meant.
    """
    path = regular_file(path, remedy)
    if (size := path.stat().st_size) > JSON_LIMIT:
        raise CurationError(f"{path} has {size / 1e9:.1f} GB, too many for JSON; {remedy}")
    return path


def check_json(folder: str | Path) -> None:
    """Refuse a model's folder whose JSON a library would wait for, or read for ever (`json_file`)."""
    for path in sorted(Path(folder).glob("*.json")):
        json_file(path, "copy it again")


def load_json(path: Path, schema: Any = None, remedy: str = "make it again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        schema: a dataclass that says what it must hold (`foundation.schema`).
        remedy: what a user shall do with a bad one.

    Raises:
        CurationError: the file is missing, truncated, not a JSON object, changed since it was sealed, or not what the
            schema says.
    """
    path = json_file(path, remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise CurationError(f"{path} cannot be read as JSON ({why}); it may be truncated: {remedy}") from error
    if not isinstance(content, dict):
        raise CurationError(f"{path} does not hold a JSON object; {remedy}")
    if schema is not None:
        check_content(schema, content, str(path), remedy)
    seal = content.pop(SEAL, None)
    if seal is not None and seal != digest_json(content):
        raise CurationError(f"{path} was changed after it was written; {remedy}")
    return content


def load_array(path: Path, mmap: bool = True) -> np.ndarray:
    """Open an ``.npy`` file, memory-mapped by default, never unpickling.

    Raises:
        CurationError: the file is missing, no regular one, truncated, holds Python objects, or its header lies.
        OSError, MemoryError: the machine has no more memory or open files.
    """
    path = regular_file(path)
    try:
        # mapped first: a header that promises more than the file holds allocates nothing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's of a header whose sizes overflow
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("it is an .npz archive of several arrays; save the one array with numpy.save")
        if min(array.shape, default=0) < 0 or math.prod(array.shape) != array.size:
            raise ValueError(f"its header says shape {array.shape}")
        more = path.stat().st_size - getattr(array, "offset", path.stat().st_size) - array.nbytes
        if more > 0:
            raise ValueError(f"{more:,} bytes follow its {array.shape} values; is it two arrays in one file?")
        return array if mmap else np.array(array)
    except Exception as error:  # numpy: ValueError, OSError, EOFError, SyntaxError, OverflowError, zipfile's
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_OF_THE_FILE:
            raise  # to make it again would not help
        why = one_line(error)
        raise CurationError(f"{path} is not a whole .npy array ({why}); make it again") from error


def checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hexadecimal, read in blocks of 4 MiB."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(regular_file(path), "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    except OSError as error:
        raise CurationError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def sampled_checksum(path: Path) -> str:
    """BLAKE2b-128 of a file's length and of up to 16 blocks of 64 KiB, evenly spaced: of inputs too large to read."""
    try:
        with open(regular_file(path), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            digest = hashlib.blake2b(str(size).encode(), digest_size=16)
            for start in np.unique(np.linspace(0, max(size - SAMPLED, 0), 16).astype(np.int64)).tolist():
                stream.seek(start)
                digest.update(stream.read(SAMPLED))
    except OSError as error:
        raise CurationError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def verify_checksums(wanted: bool) -> None:
    """Whether `check_files` compares checksums in this process and in those that it starts; it does by default."""
    os.environ[VERIFY_VARIABLE] = "1" if wanted else "0"


def checksums_are_verified() -> bool:
    """Whether `verify_checksums` is on."""
    return os.environ.get(VERIFY_VARIABLE, "1") != "0"


def check_files(expected: Iterable[tuple[Path, str | None]], remedy: str) -> None:
    """Refuse files whose bytes are not those that were written: read once each in a process, several at a time.

    About 1 GB/s a core. ``CURATED_SSL_VERIFY=0`` or `verify_checksums` leaves it out, and so do all but the first
    process of a machine that torchrun or srun has started.

    Args:
        expected: files with their checksums; None: not known.
        remedy: what a user shall do with a bad one.

    Raises:
        CurationError: a file cannot be read or differs.
    """
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    if not checksums_are_verified() or local != "0":
        return
    known = [(Path(path), said) for path, said in expected if said is not None]
    with ThreadPoolExecutor(max(1, min(4, len(known), os.cpu_count() or 1))) as pool:
        for (path, said), found in zip(known, pool.map(lambda item: _checksum_once(item[0]), known), strict=True):
            if found != said:
                raise CurationError(f"{path} is not the file that was written (another checksum); {remedy}")


def check_export(run: Path, name: str = "") -> None:
    """Refuse a file or folder of a finished run that is not what it wrote; without its result nothing is known.

    Args:
        name: within the folder of the run; "": all that it wrote.

    Raises:
        CurationError: a file differs, or the result cannot be read.
    """
    if not (run / RESULT).exists():
        return
    known = load_json(run / RESULT, remedy="train again").get(CHECKSUMS, {})
    check_content(dict[str, str], known, str(run / RESULT), "train again")
    mine = [(run / file, said) for file, said in known.items() if name in ("", file) or file.startswith(f"{name}/")]
    check_files(mine, "train again or copy it again")


def _checksum_once(path: Path) -> str:
    state = os.stat(regular_file(path))
    key = (os.path.realpath(path), state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _verified:
        _verified[key] = checksum(path)
    return _verified[key]


def clear_folder(folder: Path) -> None:
    """Remove what a folder holds, but not its lock."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != LOCK:
            path.unlink(missing_ok=True)


def digest_json(content: Any) -> str:
    """BLAKE2b-128 of a JSON-serialisable value, independent of the order of its keys."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def require_free_space(folder: Path, n_bytes: int) -> None:
    """Refuse to start a write that the disk cannot hold.

    Raises:
        PassingError: fewer than ``n_bytes`` are free where ``folder`` lies.
    """
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < n_bytes:
        raise PassingError(f"{folder} needs {n_bytes:,} bytes but only {free:,} are free there")
