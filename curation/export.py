"""A subset as trainers take it: parquet or JSONL of its rows, a list of files, WebDataset shards, `datasets`, a folder.

Every result is whole or absent. Rows come in the order of the pool, as often as they are taken.
"""

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from tqdm import tqdm

from curation.pools.pool import pool_fingerprint
from curation.trees.subset import Subset
from foundation.errors import CurationError
from foundation.files import beside, digest_json, load_json, save_json, whole_file, whole_folder
from foundation.images import IMAGE_SUFFIXES, picture_file
from foundation.locks import locked_file
from foundation.paths import inside, regular_file

FORMATS = ("parquet", "jsonl", "files", "webdataset", "datasets", "folder")
OF_SOME = {"rows_per_shard": ("webdataset",), "copy": ("folder",)}  # options
ENDINGS = {".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".json": "jsonl"}  # that say a format
ROWS_PER_BLOCK = 1000
MAGIC = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}


def row_names(pool: Any, rows: Int[np.ndarray, "m"]) -> dict[str, list[str]]:
    """``path`` of the picture files of some pool rows, or ``key`` of WebDataset samples; {} where there are neither."""
    if "key" in pool.column_names:
        return {"key": [str(key) for key in _taken(pool, rows, "key")["key"].to_pylist()]}
    if not len(rows) or "image" not in pool.column_names:
        return {}
    kind = pool.with_format("arrow").select_columns("image")[:1]["image"].type
    if not pa.types.is_struct(kind) or "path" not in [kind.field(i).name for i in range(kind.num_fields)]:
        return {}
    stored = _taken(pool, rows, "image")["image"].combine_chunks()
    stored = pa.chunked_array(stored).combine_chunks() if isinstance(stored, pa.ChunkedArray) else stored
    inside = stored.field("bytes").null_count < len(stored)
    paths = stored.field("path").to_pylist()
    return {} if inside or not all(paths) else {"path": paths}


def export_subset(
    pool: Any,
    subset: Subset,
    output: Path,
    kind: str = "parquet",
    rows_per_shard: int = 10_000,
    copies: bool = False,
    progress: bool = True,
) -> int:
    """Write the rows of a subset.

    Args:
        pool: the `datasets.Dataset` that it was drawn from.
        output: a file for parquet, jsonl and files; a folder for the others.
        kind: of `FORMATS`. "folder" is a folder of pictures, in sub-folders of their labels: hard links to the files
            of the pool where they lie on the same disk, else copies.
        rows_per_shard: samples of a WebDataset shard.
        copies: copy files, and make no hard links.

    Returns:
        Rows written, copies counted; the same again where they lie there already, untouched.

    Raises:
        CurationError: the subset is of another pool, the pool has no files or pictures where the kind needs some, or
            something else is there already.
    """
    if kind not in FORMATS:
        raise CurationError(f"format {kind!r} is unknown; use one of {', '.join(FORMATS)}")
    if (said := ENDINGS.get(output.suffix.lower(), kind)) != kind:
        raise CurationError(f"-o {output} says another format than {kind}; give --format {said}, or another -o")
    if rows_per_shard < 1:
        raise CurationError(f"{rows_per_shard} rows per shard must be at least 1")
    made_for, of = subset.metadata.get("pool_fingerprint"), subset.metadata.get("pool_rows", len(pool))
    if made_for not in (None, pool_fingerprint(pool)) or len(pool) != of or subset.ids.max(initial=-1) >= len(pool):
        raise CurationError(
            "the subset was drawn from another pool; give its own, with the --column that its embeddings were made of"
        )
    rows = subset.rows()
    note = beside(output, f".{output.name}.export.json")
    made_of = {**subset.metadata, "ids": subset.ids.tolist(), "copies": subset.copies.tolist()}
    how = {"webdataset": rows_per_shard, "folder": copies}.get(kind)
    key = digest_json([made_of, pool_fingerprint(pool), kind, how])
    with locked_file(output):
        if os.path.lexists(output):
            with suppress(CurationError):  # of a note that is damaged
                if note.exists() and load_json(note) == {"made_of": key, "state": _state(output)}:
                    return len(rows)
            raise CurationError(f"{output} is there already and not this export; choose another -o, or move it away")
        bar = tqdm(total=len(rows), unit=" rows", desc=f"export {kind}", disable=not progress)
        with bar:
            if kind == "parquet":
                _write_parquet(pool, subset, output, bar)
            elif kind == "jsonl":
                _write_jsonl(pool, rows, output, bar)
            elif kind == "files":
                _write_list(pool, subset, output, bar)
            elif kind == "webdataset":
                _write_shards(pool, rows, output, rows_per_shard, bar)
            elif kind == "datasets":
                with whole_folder(output) as fresh:
                    # its own fingerprint is one of paths and times, which are others on another machine
                    pool.select(rows, new_fingerprint=key).save_to_disk(str(fresh))
                bar.update(len(rows))
            else:
                _write_folder(pool, subset, output, copies, bar)
        save_json(note, {"made_of": key, "state": _state(output)}, seal=True)
    return len(rows)


def _state(output: Path) -> str:
    """Digest of the names and sizes of what lies there: a file that was added, lost or cut is seen."""
    files = [path for path in output.rglob("*") if path.is_file()] if output.is_dir() else [output]
    return digest_json(sorted([str(path.relative_to(output.parent)), path.stat().st_size] for path in files))


def _taken(pool: Any, rows: Int[np.ndarray, "m"], *columns: str) -> pa.Table:
    """Stored values of some rows, nothing decoded."""
    stored = pool.with_format("arrow")
    return (stored.select_columns(list(columns)) if columns else stored)[np.asarray(rows, np.int64).tolist()]


def _blocks(rows: Int[np.ndarray, "m"]) -> Iterator[Int[np.ndarray, "b"]]:
    for start in range(0, len(rows), ROWS_PER_BLOCK):
        yield rows[start : start + ROWS_PER_BLOCK]


def _write_parquet(pool: Any, subset: Subset, output: Path, bar: Any) -> None:
    """Columns of the pool, with those of the subset that have no namesake there; the Hub's features are kept."""
    added = {"id": subset.ids, "copies": subset.copies, **subset.clusters}
    added = {name: np.repeat(values, subset.copies) for name, values in added.items() if name not in pool.column_names}
    rows, writer = subset.rows(), None
    with whole_file(output) as temporary:
        for start, block in zip(range(0, len(rows), ROWS_PER_BLOCK), _blocks(rows), strict=True):
            table = _taken(pool, block)
            features = table.schema.metadata
            for name, values in added.items():
                table = table.append_column(name, pa.array(values[start : start + len(block)]))
            table = table.replace_schema_metadata(_with_columns(features, added))
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            bar.update(len(block))
        if writer is None:
            raise CurationError("the subset is empty; there is nothing to export")
        writer.close()


def _with_columns(metadata: dict[bytes, bytes] | None, added: dict[str, np.ndarray]) -> dict[bytes, bytes] | None:
    """The note of Hugging Face datasets in a schema, which tells pictures and classes apart, with more columns."""
    if not metadata or b"huggingface" not in metadata:
        return metadata
    note = json.loads(metadata[b"huggingface"])
    for name, values in added.items():
        note["info"]["features"][name] = {"dtype": str(values.dtype), "_type": "Value"}
    return {**metadata, b"huggingface": json.dumps(note).encode()}


def _write_jsonl(pool: Any, rows: Int[np.ndarray, "n"], output: Path, bar: Any) -> None:
    """Columns of the pool, with ``id``, the pool row, where it has no column of that name."""
    from datasets import Image

    binary = [name for name, feature in pool.features.items() if isinstance(feature, Image)]
    if binary:
        raise CurationError(f"column {binary[0]!r} holds images, which JSONL cannot; use parquet, webdataset or folder")
    with whole_file(output) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for block in _blocks(rows):
            for number, row in zip(block.tolist(), _taken(pool, block).to_pylist(), strict=True):
                stream.write(_as_json({"id": number, **row}) + "\n")
            bar.update(len(block))


def _as_json(row: dict[str, Any]) -> str:
    """A row on one line.

    Raises:
        CurationError: it holds what JSON has not.
    """

    def other(value: Any) -> str:
        if isinstance(value, bytes):
            raise ValueError("bytes")
        return str(value)  # dates and times

    try:
        return json.dumps(row, ensure_ascii=False, default=other, allow_nan=False)
    except ValueError as error:
        if len(row) > 1:
            for name, value in row.items():  # one of them is at fault
                _as_json({name: value})
        what = "bytes" if str(error) == "bytes" else "NaN or infinity"
        raise CurationError(f"column {next(iter(row))!r} holds {what}, which JSON has not; use parquet") from error


def _write_list(pool: Any, subset: Subset, output: Path, bar: Any) -> None:
    names = row_names(pool, subset.ids)
    if not names:
        raise CurationError("the pool has no files of its own to list; use parquet, webdataset or datasets")
    if bad := next((name for name in next(iter(names.values())) if len(name.splitlines()) > 1), None):
        raise CurationError(f"the name {bad!r} holds a line break, and a list has a name a line; rename the file")
    with whole_file(output) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for name, count in zip(next(iter(names.values())), subset.copies, strict=True):
            stream.write(f"{name}\n" * int(count))
            bar.update(int(count))


def _picture(stored: dict[str, Any]) -> tuple[bytes, str]:
    """Encoded bytes of a stored picture, as they are, and the suffix of its format."""
    content = stored["bytes"]
    if content is None:
        try:
            content = picture_file(stored["path"]).read_bytes()
        except (OSError, TypeError) as error:
            raise CurationError(f"the picture {stored['path']} cannot be read: {error}") from error
    suffix = Path(stored["path"] or "").suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        known = (end for start, end in MAGIC.items() if content.startswith(start))
        suffix = ".webp" if content[8:12] == b"WEBP" else next(known, ".jpg")
    return content, suffix


def _write_shards(pool: Any, rows: Int[np.ndarray, "n"], output: Path, rows_per_shard: int, bar: Any) -> None:
    """``shard-00000.tar``, ...: of each sample ``KEY.jpg``, ``.cls`` (number of the class), ``.txt``, ``.json``.

    ``classes.json`` beside them lists the names of the classes, in the order of their numbers.
    """
    width = max(9, len(str(int(rows.max(initial=0)))))
    names = getattr(pool.features.get("label"), "names", None)
    with whole_folder(output) as fresh:
        if names:
            (fresh / "classes.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
        for number, start in enumerate(range(0, len(rows), rows_per_shard)):
            with tarfile.open(fresh / f"shard-{number:05d}.tar", "w") as shard:
                mine, seen = rows[start : start + rows_per_shard], dict[int, int]()
                for block in _blocks(mine):
                    for row, sample in zip(block.tolist(), _taken(pool, block).to_pylist(), strict=True):
                        copy = seen[row] = seen.get(row, -1) + 1
                        key = f"{row:0{width}d}" + (f"-{copy}" if copy else "")
                        _add_sample(shard, key, sample)
                        bar.update(1)


def _add_sample(shard: tarfile.TarFile, key: str, sample: dict[str, Any]) -> None:
    parts: dict[str, bytes] = {}
    image = sample.pop("image", None)
    if image is not None:
        content, suffix = _picture(image)
        parts[suffix] = content
    for name, suffix in (("label", ".cls"), ("text", ".txt")):
        if sample.get(name) is not None:
            parts[suffix] = str(sample.pop(name)).encode()
    rest = {name: value for name, value in sample.items() if value is not None}
    if rest or not parts:  # a row of nulls is a sample, too
        parts[".json"] = _as_json(rest).encode()
    for suffix, content in parts.items():
        member = tarfile.TarInfo(key + suffix)
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))


def _write_folder(pool: Any, subset: Subset, output: Path, copies: bool, bar: Any) -> None:
    """One file for each row, ``LABEL/ROW-NAME``; a row that is taken twice has two."""
    if "image" not in pool.column_names:
        raise CurationError("a folder is of pictures, and the pool has none; use parquet, jsonl or datasets")
    names = getattr(pool.features.get("label"), "names", None)
    width = len(str(int(subset.ids.max(initial=0))))
    columns = ["image"] + ["label"] * (names is not None)
    counts = dict(zip(subset.ids.tolist(), subset.copies.tolist(), strict=True))
    with whole_folder(output) as fresh:
        for block in _blocks(subset.ids):
            for row, sample in zip(block.tolist(), _taken(pool, block, *columns).to_pylist(), strict=True):
                label = sample.get("label")
                named = names is not None and label is not None and label >= 0
                folder = inside(fresh, names[label], "the label column") if names and named else fresh
                folder.mkdir(parents=True, exist_ok=True)
                stored = sample["image"]
                for copy in range(counts[row]):
                    mark = f"{row:0{width}d}" + (f"-{copy}" if copy else "")
                    if stored["bytes"] is None and stored["path"]:
                        _link(Path(stored["path"]), folder / f"{mark}-{Path(stored['path']).name}", copies)
                    else:
                        content, suffix = _picture(stored)
                        (folder / f"{mark}{suffix}").write_bytes(content)
                    bar.update(1)


def _link(source: Path, target: Path, copy: bool) -> None:
    """A hard link where the disk allows one, else a copy."""
    regular_file(source)
    try:
        if not copy:
            try:
                os.link(source.resolve(), target)
                return
            except OSError:
                pass  # another disk, or a file system without links
        shutil.copyfile(source, target)
    except OSError as error:
        raise CurationError(f"the picture {source} cannot be read: {error.strerror or error}") from error
