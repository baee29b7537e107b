"""Embeddings that are being written: whole shards in a folder, which a kill leaves and the next run goes on after."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from curation.store.embeddings import FORMAT_VERSION, read_info, require_own_row_ids
from curation.store.shards import DTYPES
from foundation.errors import CurationError
from foundation.files import check_files, checksum, clear_folder, require_free_space, save_array, save_json
from foundation.paths import inside
from foundation.settings import short


class EmbeddingWriter:
    """Writes shards of embeddings; whole shards survive a kill, and a new writer goes on after them.

    Args:
        folder: where ``shard-00000.npy`` ... and ``embeddings.json`` go.
        dim: width of a row.
        dtype: stored dtype; bfloat16 is stored as uint16 bit patterns.
        rows_per_shard: a shard is held in memory until it is full.
        metadata: goes into ``embeddings.json``; a folder with other metadata is refused,
        overwrite: or emptied.

    Attributes:
        n_written: rows in whole shards on disk: where to go on after a kill.
    """

    def __init__(
        self,
        folder: str | Path,
        dim: int,
        dtype: str = "float16",
        rows_per_shard: int = 65_536,
        metadata: dict[str, Any] | None = None,
        overwrite: bool = False,
    ):
        if dtype not in DTYPES:
            raise CurationError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}")
        self.folder, self.dim, self.dtype, self.rows_per_shard = Path(folder), dim, dtype, rows_per_shard
        self.info: dict[str, Any] = {
            **(metadata or {}),
            "format_version": FORMAT_VERSION,
            "rows": 0,
            "dim": dim,
            "dtype": dtype,
            "rows_per_shard": rows_per_shard,
            "complete": False,
            "shards": [],
        }
        self._held: list[Tensor] = []
        self._held_rows = 0
        require_own_row_ids(self.folder, "embeddings.json")
        if (self.folder / "embeddings.json").exists():
            self._resume(overwrite)

    def _resume(self, overwrite: bool) -> None:
        """Go on after the shards that are there; of another embedder or damaged, they are refused or replaced."""
        try:
            found = read_info(self.folder)
            for key, value in self.info.items():
                if key not in ("rows", "complete", "shards") and found.get(key) != value:
                    raise CurationError(
                        f"{self.folder} holds embeddings of {key}={short(found.get(key))}, not {short(value)}; choose "
                        "another folder, or --overwrite"
                    )
            said = str(self.folder / "embeddings.json")
            shards = [(inside(self.folder, entry["file"], said), entry["checksum"]) for entry in found["shards"]]
            check_files(shards, f"delete {self.folder} and embed again, or --overwrite")
        except CurationError:
            if not overwrite:
                raise
            clear_folder(self.folder)
        else:
            self.info = found

    @property
    def n_written(self) -> int:
        return int(self.info["rows"])

    @property
    def complete(self) -> bool:
        return bool(self.info["complete"])

    def append(self, rows: np.ndarray | Float[Tensor, "m d"]) -> None:
        """Add rows; whole shards go to disk.

        Raises:
            CurationError: the width is wrong, a row is NaN or infinite, or the disk is full.
        """
        tensor = torch.as_tensor(rows)
        if tensor.ndim != 2 or tensor.shape[1] != self.dim:
            raise CurationError(f"rows of shape {tuple(tensor.shape)} do not fit embeddings of {self.dim} dimensions")
        tensor = tensor.detach().to("cpu", DTYPES[self.dtype])
        finite = torch.isfinite(tensor).all(dim=1)
        if not finite.all():
            row = self.n_written + self._held_rows + int((~finite).nonzero()[0])
            raise CurationError(f"embedding row {row} is NaN or beyond the range of {self.dtype}; use --dtype float32")
        self._held.append(tensor)
        self._held_rows += len(tensor)
        while self._held_rows >= self.rows_per_shard:
            self._write_shard(self.rows_per_shard)

    def _write_shard(self, rows: int) -> None:
        held = torch.cat(self._held)
        shard, rest = held[:rows].contiguous(), held[rows:]
        require_free_space(self.folder, shard.nbytes)
        array = shard.view(torch.uint16).numpy() if self.dtype == "bfloat16" else shard.numpy()
        path = self.folder / f"shard-{len(self.info['shards']):05d}.npy"
        save_array(path, array)
        self.info["shards"].append({"file": path.name, "rows": len(shard), "checksum": checksum(path)})
        self.info["rows"] += len(shard)
        save_json(self.folder / "embeddings.json", self.info, seal=True)
        self._held, self._held_rows = ([rest] if len(rest) else []), len(rest)

    def finish(self, **metadata: Any) -> None:
        """Write what is held and mark the folder complete; ``metadata`` joins ``embeddings.json``."""
        if self._held_rows:
            self._write_shard(self._held_rows)
        self.info.update(metadata)
        self.info["complete"] = True
        if (self.folder / "row_ids.npy").exists():
            self.info["row_ids_checksum"] = checksum(self.folder / "row_ids.npy")
        save_json(self.folder / "embeddings.json", self.info, seal=True)

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held, self._held_rows = [], 0
