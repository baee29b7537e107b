"""Paths that others have written: they stay inside their folder, and nothing is opened that is no regular file."""

import difflib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from foundation.errors import CurationError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def meant(path: Path) -> str:
    """In brackets, what lies beside a mistyped path and is called nearly the same; "": nothing is."""
    try:
        names = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.8)
    except (OSError, ValueError):
        return ""
    return f" (did you mean {path.with_name(names[0])}?)" if names else ""


def regular_file(path: str | Path, remedy: str = "give a regular file") -> Path:
    """The path of a file that can be read without waiting for anybody; links are followed.

    Opening a pipe would wait for ever for its other end, and a device may never end.

    Raises:
        CurationError: it is not there, cannot be reached, or is a folder, pipe, socket or device.
    """
    path = Path(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise CurationError(f"{path} does not exist{meant(path)}; {remedy}") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise CurationError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error}); {remedy}") from error
    if not stat.S_ISREG(mode):
        raise CurationError(f"{path} is {KINDS.get(stat.S_IFMT(mode), 'no regular file')}; {remedy}")
    return path


def is_regular(path: str | Path) -> bool:
    """Whether `regular_file` would take it."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):
        return False


def inside(folder: str | Path, name: object, said_by: str) -> Path:
    """The path of a file beneath ``folder`` that another file names.

    Args:
        name: relative, as it stands there.
        said_by: the file that names it, for messages.

    Raises:
        CurationError: no text, absolute, or a path or link that leaves the folder.
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name or "\0" in name or name in (".", ".."):
        raise CurationError(f"{said_by} names {name!r}, which is no file; make it again")
    path = folder / name
    leaves = os.path.isabs(name) or ".." in Path(name).parts
    if not leaves:
        real, root = os.path.realpath(path), os.path.realpath(folder)
        leaves = os.path.commonpath([real, root]) != root
    if leaves:
        raise CurationError(f"{said_by} names {name!r}, which lies outside of {folder}; put the file itself into it")
    return path


def new_place(text: str | Path) -> Path:
    """The path of a result, as it was written.

    Raises:
        CurationError: it is empty or ``/``, as with an unset variable of a shell; begins with ``~``, which a shell
            leaves as it is in ``--output=~/x`` and in settings; is ``-``, where no stream is meant; or ends in ``..``.
    """
    if not str(text).strip():
        raise CurationError("the path is empty")
    if str(text) == "-" or not str(text).strip("/"):
        raise CurationError(f"{text} is no place for a result; name a file or folder")
    if Path(text).name == "..":
        raise CurationError(f"{text} is the folder above another; write it by its own name")
    if str(text).startswith("~"):
        raise CurationError(f"{text} begins with ~, which only a shell knows; write $HOME or the whole path")
    return Path(text)


def require_room(path: Path) -> None:
    """Refuse a place for a file or folder that cannot be made, before hours of work for it.

    Raises:
        CurationError: above it lies something that is no folder, or a folder that cannot be written.
    """
    above = path.absolute().parent
    try:
        there = next(part for part in (above, *above.parents) if os.path.lexists(part))
        writable = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise CurationError(f"{path} cannot be made: {getattr(error, 'strerror', None) or error}") from error
    if not writable:
        what = "cannot be written" if there.is_dir() else "is no folder"
        raise CurationError(f"{path} cannot be made: {there} {what}; choose another -o")


def require_apart(output: Path, inputs: Iterable[str | Path], overwrite: bool = False) -> None:
    """Refuse a result in the place of what it is made from, by whatever name or link; only what exists is an input.

    Args:
        overwrite: what lies at ``output`` may be replaced: no input may lie right within it either, nor may it be a
            file within an input.

    Raises:
        CurationError: such a place.
    """
    for item in inputs:
        if _same(output, item):
            raise CurationError(f"-o {output} is what is read ({item}); choose another -o")
        if overwrite and is_regular(item) and _same(output, Path(item).absolute().parent):
            raise CurationError(
                f"-o {output} holds what is read ({item}), which --overwrite may replace; choose another"
            )
        if overwrite and is_regular(output) and any(_same(part, item) for part in output.absolute().parents):
            raise CurationError(f"-o {output} is a file within what is read ({item}); choose another -o")


def require_outside(output: Path, source: str | Path) -> None:
    """Refuse a result within a folder that is read with all that it holds: the next time it would be read, too.

    Args:
        source: what is read; only a folder that exists has an inside.

    Raises:
        CurationError: such a place.
    """
    if os.path.isdir(source) and any(_same(part, source) for part in output.absolute().parents):
        raise CurationError(
            f"-o {output} lies within what is read ({source}), and would be read with it; choose another"
        )


def _same(one: str | Path, other: str | Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there: no text, number or name of the Hub is a path
        return False
