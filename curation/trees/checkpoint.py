"""The checkpoint of a hierarchical fit: finished levels, the last centroids of the current one, a Lloyd state."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from curation.group import Group
from curation.kmeans.lloyd import LloydState
from curation.trees.tree import same_digest
from foundation.errors import CurationError
from foundation.files import load_json, require_free_space, save_json, write_atomically
from foundation.paths import regular_file
from foundation.settings import short

FORMAT_VERSION = 1


class FitCheckpoint:
    """Arrays and numbers of a running fit in one folder; every file is whole or absent.

    Of several processes the first one writes, and what it reads goes to all of them.

    Args:
        folder: where it lies; None keeps nothing.
        identity: settings and fingerprint of the embeddings. A checkpoint of another fit is refused.
        seconds: at least this long between two saves of a running Lloyd loop.
        group: the processes of the fit.
        restart: throw the checkpoint of another fit away, in place of refusing it.

    Raises:
        CurationError: the folder belongs to another fit.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: dict[str, Any],
        seconds: float = 20.0,
        group: Group | None = None,
        restart: bool = False,
    ):
        self.folder, self.seconds, self.group = folder, seconds, group or Group()
        self.identity = json.loads(json.dumps({"format_version": FORMAT_VERSION, **identity}, default=str))
        self._saved_at = time.monotonic()
        self._unsaved: tuple[LloydState, dict[str, Any]] | None = None
        with self.group.all_or_none():
            if folder is not None and self.group.first:
                self._open(folder, restart)

    def _open(self, folder: Path, restart: bool) -> None:
        """Refuse the checkpoint of another fit. The folder is claimed with the first save, not before."""
        path = folder / "fit.json"
        if not path.exists():
            return
        found = load_json(path, remedy=f"delete {folder} to start the fit anew")
        different = [key for key in sorted({*self.identity, *found}) if not self._same(key, found.get(key))]
        if different and restart:
            shutil.rmtree(folder)
        elif different:
            raise CurationError(
                f"{folder} holds an unfinished fit with {different[0]}={short(found.get(different[0]))}, not "
                f"{short(self.identity.get(different[0]))}; repeat those settings to resume it, or delete the folder "
                "(--overwrite) to start anew"
            )

    def _same(self, key: str, found: Any) -> bool:
        if key == "embeddings_digest":
            return same_digest(found if isinstance(found, str) else None, self.identity.get(key))
        return bool(found == self.identity.get(key))

    def load(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and numbers saved as ``name``, or None.

        Raises:
            CurationError: the file is damaged.
        """
        found = None
        with self.group.all_or_none():
            if self.folder is not None and self.group.first:
                found = self._read(self.folder, name)
        if self.group.size == 1:
            return found
        arrays, numbers = found or ({}, None)
        numbers, kinds = self.group.share([numbers, {key: [a.dtype.str, a.shape[1:]] for key, a in arrays.items()}])
        if numbers is None:
            return None
        whole = {}
        for key, (dtype, shape) in kinds.items():
            mine = arrays[key] if self.group.first else np.empty((0, *shape), dtype)
            whole[key] = self.group.assemble(f"{name}_{key}", mine)
        return whole, numbers

    def _read(self, folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        path = folder / f"{name}.npz"
        if not path.exists():
            return None
        try:
            with np.load(regular_file(path), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            numbers = json.loads(str(arrays.pop("numbers")))
        except Exception as error:  # of numpy and zipfile, whose sums over the bytes notice a change
            raise CurationError(f"{path} is damaged ({error}); delete {folder} to start the fit anew") from error
        return arrays, numbers

    def save(self, name: str, arrays: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
        """Replace what was saved as ``name``; to be called by all processes."""
        if self.folder is None:
            return
        with self.group.all_or_none():
            if self.group.first:
                self._write(self.folder, name, arrays, numbers)

    def _write(self, folder: Path, name: str, arrays: dict[str, np.ndarray], numbers: dict[str, Any]) -> None:
        require_free_space(folder, sum(array.nbytes for array in arrays.values()))
        if not (folder / "fit.json").exists():
            save_json(folder / "fit.json", self.identity)
        content: dict[str, Any] = {**arrays, "numbers": np.array(json.dumps(numbers))}
        write_atomically(folder / f"{name}.npz", lambda stream: np.savez(stream, **content))
        self._saved_at, self._unsaved = time.monotonic(), None

    def drop(self, name: str) -> None:
        if self.folder is not None and self.group.first:
            (self.folder / f"{name}.npz").unlink(missing_ok=True)

    def save_lloyd(self, state: LloydState, numbers: dict[str, Any]) -> None:
        """Save a Lloyd state, if the last save is long enough ago; else keep it for `rescue`."""
        if self.folder is None or not self.group.first:
            return
        self._unsaved = state, numbers
        if time.monotonic() - self._saved_at >= self.seconds:
            self.rescue()

    def rescue(self) -> None:
        """Save the last Lloyd state now: another process is gone, and nobody needs to repeat what was done."""
        if self.folder is None or self._unsaved is None:
            return
        state, where = self._unsaved
        numbers = {**where, "iteration": state.iteration, "history": state.history}
        self._write(self.folder, "lloyd", {"centroids": state.centroids}, numbers)

    def load_lloyd(self, numbers: dict[str, Any]) -> LloydState | None:
        """The Lloyd state that belongs to this step, if one was saved."""
        found = self.load("lloyd")
        if found is None or any(found[1].get(key) != value for key, value in numbers.items()):
            return None
        return LloydState(found[1]["iteration"], found[0]["centroids"], found[1]["history"])

    def pieces(self, level: int, step: int) -> Path | None:
        """Where the parts of one k-means keep what they have found (`curation.kmeans.pieces`)."""
        return None if self.folder is None else self.folder / "pieces" / f"level_{level + 1}_step_{step}"

    def drop_pieces(self) -> None:
        """The step is saved whole."""
        if self.folder is not None and self.group.first:
            shutil.rmtree(self.folder / "pieces", ignore_errors=True)

    def remove(self) -> None:
        """The fit is done and its tree saved: nothing is left to resume."""
        if self.folder is not None and self.group.first:
            shutil.rmtree(self.folder, ignore_errors=True)
