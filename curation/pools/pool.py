"""A pool is a `datasets.Dataset` whose row id is its index: opened lazily from whatever lies on disk or on the Hub."""

import glob
import gzip
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from curation.pools.tiles import ADDRESS, TileCut, are_rasters, open_rasters, parse_cut, raster_content
from curation.pools.webdataset import open_shards
from foundation.errors import CurationError, first_cause
from foundation.files import digest_json, write_atomically
from foundation.hub import hub_within_reach
from foundation.images import IMAGE_SUFFIXES, encoded_bytes
from foundation.jsonl import bad_line
from foundation.paths import meant, regular_file, require_room

SUFFIXES = {  # the order decides where a folder holds several kinds: side files (captions, metadata) come last
    "parquet": (".parquet", ".pq"),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "images": IMAGE_SUFFIXES,
    "json": tuple(name + end for name in (".jsonl", ".ndjson") for end in ("", ".gz", ".zst")),
    "text": tuple(".txt" + end for end in ("", ".gz", ".zst")),
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
PATTERN = re.compile(r"[*?\[{]")
BRACES = re.compile(r"\{(?:(\d{1,12})\.\.(\d{1,12})|([^{}]*,[^{}]*))\}")
CHECKED_BYTES = 1 << 30  # of text that is looked through for other encodings when it is opened
MOST_NUMBERS = 1_000_000  # of names that braces stand for
SPLIT_FILE = re.compile(r"(.+?)-\d{5}-of-\d{5}")
OWN_POOL = "give the pool that was embedded, with the same --column"


def open_pool(source: Any, split: str = "train", column: str | None = None) -> Any:
    """Open a pool without decoding anything.

    Args:
        source: a folder of images (any depth; with sub-folders the folder path becomes the label), parquet files,
            WebDataset ``.tar`` shards, JSONL or text files (one row a line; ``.gz`` and ``.zst`` too), GeoTIFF rasters
            (cut into tiles; ``scenes/#tile=512&bands=4,3,2``, see `curation.pools.tiles.TileCut`), a folder made by
            ``Dataset.save_to_disk``, one such file, a pattern of such files (``*.tar``, ``wds-{0000..0002}.tar``), a
            Hub name ``owner/name``, or a `datasets.Dataset`.
        split: which split, where the source has several.
        column: the column of images (bytes, or paths relative to the source) or of text, when it is not called
            ``image`` or ``text``; it is renamed so.

    Returns:
        A `datasets.Dataset`; images are in the column ``image``, classes, when known, in ``label``. Parquet, JSONL,
        text and tar shards are copied once to the cache of Hugging Face datasets (``HF_HOME`` says where).

    Raises:
        CurationError: nothing is there, it is empty, or it cannot be read.
    """
    from datasets import Dataset

    if isinstance(source, Dataset):
        return _name_columns(source, column, Path("."))
    if not str(source).strip():
        raise CurationError("the name of the pool is empty; give a folder, a file, or a Hub name such as owner/name")
    source, cut = _split_cut(str(source))
    path = Path(source)
    if not path.exists() and PATTERN.search(source):
        files = matching_files(source)
        folder = Path(os.path.commonpath([file.parent.absolute() for file in files]))
        pool = _open_files(folder, None, files, cut)
        if not len(pool):
            raise CurationError(f"{source} has no rows; a pool needs at least one")
        return _name_columns(pool, column, folder)
    if not os.path.lexists(path):
        # a path that has a home (./a, /a/b, a.jpg, a/b/c) is a mistyped path, not a Hub name
        if not HUB_NAME.fullmatch(str(source)) or str(source).startswith(".") or _kind(path.name):
            raise CurationError(
                f"{source} does not exist{meant(path)}; give a folder, a file, or a Hub name such as owner/name"
            )
        with hub_within_reach() as there:
            why = "the Hub gave no such dataset" if there else "the Hub cannot be reached"
            pool = _load(str(source), {}, split, f"{source} is no local path{meant(path)}, and {why}")
        return _name_columns(pool, column, Path("."))
    if not path.is_dir():
        regular_file(path, "give a folder, a file, or a Hub name such as owner/name")
    if path.is_dir() and any((path / name).exists() for name in ("state.json", "dataset_dict.json")):
        pool = _open_saved(path, split)
    else:
        pool = _open_files(path, split, _walk(path), cut)
    if not len(pool):
        raise CurationError(f"{source} has no rows; a pool needs at least one")
    return _name_columns(pool, column, path if path.is_dir() else path.parent)


def _kind(name: str) -> str | None:
    return next((kind for kind, ends in SUFFIXES.items() if name.lower().endswith(ends)), None)


def _walk(root: Path) -> list[Path]:
    """Every file beneath ``root``, in an order that all machines share; hidden files left out, links followed."""
    if root.is_file():
        return [root]

    def refuse(error: OSError) -> None:
        raise CurationError(f"cannot read {error.filename}: {error.strerror}")

    top = os.path.join(root, "")
    found: list[str] = []  # relative to the root: a Path for each comparison would take most of the time
    seen = {os.path.realpath(root)}
    with tqdm(desc=f"list {root}", unit=" files", delay=3, leave=False) as bar:
        for folder, folders, names in os.walk(top, followlinks=True, onerror=refuse):
            folders.sort()
            for name in list(folders):
                real = os.path.realpath(os.path.join(folder, name))
                if name.startswith(".") or real in seen:  # a link to a folder above would never end
                    folders.remove(name)
                seen.add(real)
            beneath = os.path.join(folder[len(top) :], "").replace(os.sep, "/")
            found += [beneath + name for name in names if not name.startswith(".")]
            bar.update(len(names))
    return [Path(top + name) for name in sorted(found)]


def _split_cut(source: str) -> tuple[str, TileCut | None]:
    """``scenes/#tile=512`` as the path and how its rasters are cut; None: nothing is said of it."""
    path, mark, text = source.rpartition("#")
    if not mark or "=" not in text or os.path.exists(source):
        return source, None
    return path, parse_cut(text)


def _braced(pattern: str) -> Iterator[str]:
    """``a-{0..2}.tar`` and ``{a,b}.tar`` as the patterns that they stand for, as a shell writes them out."""
    found = BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    low, high, choices = found[1], found[2], found[3]
    if choices is not None:
        parts: Iterable[str] = choices.split(",")
    else:
        digits = max(len(low), len(high)) if low.startswith("0") or high.startswith("0") else 0
        parts = (f"{i:0{digits}}" for i in range(int(low), int(high) + 1))
    for part in parts:
        yield from _braced(pattern[: found.start()] + part + pattern[found.end() :])


def matching_files(pattern: str) -> list[Path]:
    """Files, and all files of folders, that a pattern of ``*``, ``?``, ``[...]``, ``**`` and braces names, in order.

    Raises:
        CurationError: one of the patterns that the braces stand for matches nothing.
    """
    found: dict[Path, None] = {}
    for number, part in enumerate(_braced(pattern)):
        if number >= MOST_NUMBERS:
            raise CurationError(f"{pattern} stands for more than {MOST_NUMBERS:,} names; use * for so many files")
        matches = sorted(glob.glob(part, recursive=True))
        if not matches:
            raise CurationError(f"no file is called {part}" + (f" (of {pattern})" if part != pattern else ""))
        for match in matches:
            found |= dict.fromkeys(_walk(Path(match)))
    if not found:
        raise CurationError(f"no file is called {pattern}")
    return list(found)


def _open_files(path: Path, split: str | None, files: list[Path], cut: TileCut | None) -> Any:
    """The pool of these files beneath ``path``; None: whatever split their names say."""
    counts = Counter(_kind(file.name) for file in files)
    kinds = [kind for kind in SUFFIXES if counts[kind]]
    if not kinds:
        known = " ".join(end for ends in SUFFIXES.values() for end in ends)
        what = f"none of its {len(files)} files is one that" if files else "it is empty;"
        if any(file.suffix == ".npy" for file in files):
            what = f"embeddings are for `curate cluster`, or `curate run POOL --embeddings {path}`; {what}"
        raise CurationError(f"{path} holds no pool: {what} can be opened ({known})")
    clash = [kind for kind in kinds if kind in ("parquet", "webdataset", "images")]
    if len(clash) > 1:
        raise CurationError(f"{path} holds both {clash[0]} and {clash[1]} files; give the folder of one of them")
    kind = kinds[0]
    files = [file for file in files if _kind(file.name) == kind]
    tiffs = kind == "images" and all(file.suffix.lower() in (".tif", ".tiff") for file in files)
    if tiffs and (cut is not None or are_rasters(files, TileCut().tile)):
        return open_rasters(files, path if path.is_dir() else path.parent, cut or TileCut())
    if cut is not None:
        raise CurationError(f"{path} holds other files than GeoTIFF, which # cannot cut; leave out what follows the #")
    if kind == "images":
        return _open_images(path, files)
    files = files if split is None else _of_split(path, files, split)
    for file in files:
        regular_file(file, "leave it out of the pool")
    if kind == "webdataset":
        return open_shards(files)
    names = [str(_expanded(file)) for file in files]
    problem = f"{path} cannot be read as {kind}"
    try:
        pool = _load(kind, {"data_files": {"train": names}}, "train", problem)
        if kind != "parquet" and pool.data.nbytes < CHECKED_BYTES:
            _check_values(pool, problem)
        # pyarrow refuses a key that is there twice, but a lone row that it refused is read by another, who does not
        if kind == "json" and len(pool) == 1 and (line := bad_line(files, _lines)):
            raise CurationError(line)
        return pool
    except CurationError as error:
        if kind == "json" and (line := bad_line(files, _lines)):
            raise CurationError(line) from error
        raise


def _check_values(pool: Any, problem: str) -> None:
    """Refuse text that is not UTF-8 and values that leave their file: readers do not look, and would fail later."""
    import pyarrow as pa

    try:
        pool.data.table.validate(full=True)
    except pa.ArrowException as error:
        raise CurationError(f"{problem}: {' '.join(str(error).split())[:200]}; make it again, in UTF-8") from error


def _lines(file: Path) -> Any:
    if file.suffix.lower() == ".gz":
        return gzip.open(file, "rb")
    return open(_expanded(file), "rb")


def _of_split(path: Path, files: list[Path], split: str) -> list[Path]:
    """Keep one split of files named like ``test-00000-of-00004.parquet``; other names are one split."""
    splits = {file: match[1] for file in files if (match := SPLIT_FILE.match(file.name))}
    if not splits:
        return files
    chosen = [file for file in files if splits.get(file) == split]
    if not chosen:
        raise CurationError(f"{path} has no split {split!r}; it has {', '.join(sorted(set(splits.values())))}")
    return chosen


def _load(name: str, options: dict[str, Any], split: str, problem: str) -> Any:
    """`datasets.load_dataset` with its chain of errors brought down to one line."""
    from datasets import config, load_dataset

    try:
        return load_dataset(name, split=split, **options)
    except Exception as error:
        try:
            require_room(Path(config.HF_DATASETS_CACHE))
        except CurationError:  # the pool is not to blame
            problem = f"the cache of Hugging Face datasets, {config.HF_DATASETS_CACHE}, cannot be made; set HF_HOME"
        raise CurationError(f"{problem}: {first_cause(error)}") from error


def _open_saved(path: Path, split: str) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        pool = load_from_disk(str(path))
    except Exception as error:
        raise CurationError(f"{path} cannot be opened as a saved dataset: {first_cause(error)}") from error
    if isinstance(pool, DatasetDict):
        if split not in pool:
            raise CurationError(f"{path} has no split {split!r}; it has {', '.join(sorted(pool))}")
        pool = pool[split]
    # of the files: nbytes believes the very offsets that are to be checked
    if sum(os.path.getsize(file["filename"]) for file in pool.cache_files) < CHECKED_BYTES:
        _check_values(pool, f"{path} cannot be opened as a saved dataset")
    return pool


def _open_images(root: Path, files: list[Path]) -> Any:
    from datasets import ClassLabel, Dataset, Image

    root = root if root.is_dir() else root.parent
    cut = len(os.path.join(root.absolute(), ""))
    places = [os.path.join(os.getcwd(), file) for file in files]
    columns: dict[str, Any] = {"image": places}
    folders = [place[cut:].rpartition("/")[0] or "." for place in places]
    names = sorted(set(folders))
    if names != ["."]:
        number = {name: i for i, name in enumerate(names)}
        columns["label"] = [number[folder] for folder in folders]
    try:
        pool = Dataset.from_dict(columns).cast_column("image", Image())
    except UnicodeEncodeError as error:
        raise CurationError(f"{root} holds a file name that is not UTF-8 ({error.object!r}); rename it") from error
    return pool.cast_column("label", ClassLabel(names=names)) if "label" in columns else pool


def _expanded(path: Path) -> Path:
    """A ``.zst`` file expanded in the cache of Hugging Face datasets (which reads ``.gz`` itself); others as is."""
    if path.suffix.lower() != ".zst":
        return path
    import pyarrow as pa
    from datasets.config import HF_DATASETS_CACHE

    identity = [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]
    target = Path(HF_DATASETS_CACHE) / "expanded" / f"{digest_json(identity)}-{path.stem}"

    def expand(stream: Any) -> None:
        with pa.input_stream(str(path), compression="zstd") as packed:
            while block := packed.read(1 << 22):
                stream.write(block)

    if not target.exists():
        try:
            write_atomically(target, expand)
        except CurationError as error:
            raise CurationError(f"{path} cannot be expanded to {target}: {first_cause(error)}") from error
    return target


def _name_columns(pool: Any, column: str | None, folder: Path) -> Any:
    """Give the image column its name and type, and paths relative to the source their folder."""
    from datasets import Image, Value

    if column is not None and column not in pool.column_names:
        raise CurationError(f"the pool has no column {column!r}; it has {', '.join(pool.column_names)}")
    images = [name for name, feature in pool.features.items() if isinstance(feature, Image)]
    if column is None:
        column = "image" if "image" in pool.column_names else images[0] if len(images) == 1 else None
    if column is None:
        return pool
    feature = pool.features[column]
    text = isinstance(feature, Value) and feature.dtype in ("string", "large_string")
    first = str(pool[0][column] or "") if text and len(pool) else ""
    if text and column != "image" and not first.lower().endswith(IMAGE_SUFFIXES):
        name = "text"
    else:
        name = "image"
        if text and not os.path.isabs(first) and "://" not in first:
            base = str(folder.absolute())
            pool = pool.map(_beneath, batched=True, input_columns=column, fn_kwargs={"base": base, "column": column})
        if not isinstance(feature, Image):
            try:
                pool = pool.cast_column(column, Image())
            except Exception as error:
                raise CurationError(f"column {column!r} holds {feature}, not images or their paths") from error
    if name != column:
        pool = pool.remove_columns(name) if name in pool.column_names else pool
        pool = pool.rename_column(column, name)
    return pool


def check_text(pool: Any, column: str) -> None:
    """Refuse a column that does not hold text.

    Raises:
        CurationError: it is not there, or holds something else.
    """
    if column not in pool.column_names:
        raise CurationError(f"the pool has no column {column!r}; it has {', '.join(pool.column_names)}")
    if getattr(pool.features[column], "dtype", None) not in ("string", "large_string", "null"):
        raise CurationError(
            f"the column {column!r} holds {pool.features[column]}, not text; name another with --column"
        )


def _beneath(paths: list[str | None], base: str, column: str) -> dict[str, list[str | None]]:
    return {column: [None if path is None else os.path.join(base, path) for path in paths]}


def save_pool(dataset: Any, stream: BinaryIO, made_by: str, rows: int = 1000) -> None:
    """Write a pool as parquet that `open_pool` and the Hub read, with the mark of the command that makes it.

    Args:
        made_by: see `foundation.files.require_own`.
        rows: of a row group.
    """
    import pyarrow.parquet as pq
    from datasets.table import embed_table_storage

    schema = dataset.features.arrow_schema
    schema = schema.with_metadata({**(schema.metadata or {}), b"made_by": made_by.encode()})
    with pq.ParquetWriter(stream, schema) as writer:
        for table in dataset.with_format("arrow").iter(rows):
            writer.write_table(embed_table_storage(table.cast(dataset.features.arrow_schema)).cast(schema))


def pool_fingerprint(dataset: Any) -> str:
    """BLAKE2b-128 of a pool's contents, the same in every process and on every machine.

    Covers the number of rows, the names of the columns and up to 1,024 evenly spaced rows, of images the encoded
    bytes (not where they lie). A change in a row outside the sample goes unseen.
    """
    names = sorted(dataset.column_names)
    ids = np.unique(np.linspace(0, max(len(dataset) - 1, 0), min(len(dataset), 1024)).astype(np.int64))
    digest = hashlib.blake2b(json.dumps([len(dataset), names]).encode(), digest_size=16)
    stored = dataset.with_format("arrow")  # what is stored: nothing is decoded
    for row in stored[ids.tolist()].to_pylist() if len(ids) else []:
        for name in names:
            digest.update(_content(row[name]))
    return digest.hexdigest()


def require_own_pool(pool: Any, n_rows: int, row_ids: np.ndarray | None, made_of: str | None, what: str) -> None:
    """Refuse a pool that embeddings, or a tree of them, did not come from: labels and pictures would be of other rows.

    Args:
        pool: `datasets.Dataset`.
        n_rows, row_ids: of what came from it; None: all rows of the pool.
        made_of: `pool_fingerprint` of its own pool, where that is known.
        what: the name of what came from it, for the message.

    Raises:
        CurationError: the pool ends before these rows, goes on behind all rows, or has another fingerprint.
    """
    last, n = n_rows - 1 if row_ids is None else int(row_ids[-1]), len(pool)
    if n <= last:
        raise CurationError(f"the pool has {n:,} rows but row {last:,} is in {what}; {OWN_POOL}")
    if row_ids is None and n > n_rows:
        raise CurationError(f"the pool has {n:,} rows but {what} came from one of {n_rows:,}; {OWN_POOL}")
    if made_of not in (None, pool_fingerprint(pool)):
        raise CurationError(f"{what} came from another pool, or from another column of it; {OWN_POOL}")


def _content(value: Any) -> bytes:
    if isinstance(value, dict) and set(value) == {"bytes", "path"}:
        content = encoded_bytes(value)
        if (value["path"] or "").startswith(ADDRESS):
            content += raster_content(value["path"]).encode()
        value = hashlib.blake2b(content, digest_size=16).hexdigest()
    return json.dumps(value, sort_keys=True, default=repr).encode() + b"\0"
