"""A pool's tokens on disk: one flat memory-mapped array, and where each document starts.

The pool is tokenised once; every subset, arm and seed then reads the same file (see `text_lm.packing`).

A folder holds ``tokens.bin`` (little-endian uint16 or uint32: bos, text, eos of every document, one after another),
``starts.npy`` (int64, documents + 1), ``rows.npy`` (int64 pool row of each document), ``bytes.npy`` (int64 UTF-8 bytes
of each document), ``tokenizer/`` and ``tokens.json``, which is written last and makes the folder whole.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from curation.pools.pool import check_text, pool_fingerprint
from curation.trees.subset import Subset
from foundation.errors import CurationError
from foundation.files import (
    check_files,
    checksum,
    load_array,
    load_json,
    require_free_space,
    save_array,
    save_json,
    whole_folder,
)
from foundation.locks import locked_folder
from foundation.settings import Choices, Count, Range
from text_lm.tokenizer import Tokenizer

FORMAT_VERSION = 1
ARRAYS = ("starts", "rows", "bytes")
AGAIN = "tokenise the pool again, into another folder"


@dataclass
class TokensFile:
    """What ``tokens.json`` must hold; folders of before have no ``checksums`` of the arrays."""

    format_version: Annotated[int, Range(ge=FORMAT_VERSION, le=FORMAT_VERSION)]
    tokenizer: str
    tokenizer_fingerprint: str
    pool_fingerprint: str
    pool_rows: Count
    dtype: Annotated[str, Choices("uint16", "uint32")]
    n_tokens: Count
    n_documents: Count
    checksum: str
    checksums: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenStore:
    """Tokenised documents. Make one with `tokenise_pool`, open one with `TokenStore.open`.

    Attributes:
        tokens: (t,) uint16 or uint32, memory-mapped: bos, text, eos of every document in pool order.
        starts: (d + 1,) int64; document i is ``tokens[starts[i]:starts[i + 1]]``.
        rows: (d,) int64 pool row of each document, ascending: rows without text are left out.
        n_bytes: (d,) int64 UTF-8 bytes of each document.
        info: tokenizer fingerprint, vocabulary size, bos, eos, pool fingerprint, skipped rows, ...
    """

    tokens: Int[np.ndarray, "t"]
    starts: Int[np.ndarray, "d+1"]
    rows: Int[np.ndarray, "d"]
    n_bytes: Int[np.ndarray, "d"]
    info: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path, tokenizer: Tokenizer | None = None) -> "TokenStore":
        """Open a folder of tokens without reading it.

        Args:
            folder: what `tokenise_pool` wrote.
            tokenizer: refuse tokens that another tokeniser made.

        Raises:
            CurationError: not a whole folder of tokens, or of another tokeniser.
        """
        folder = Path(folder)
        info = load_json(folder / "tokens.json", TokensFile, AGAIN)
        if tokenizer is not None and info["tokenizer_fingerprint"] != tokenizer.fingerprint:
            raise CurationError(
                f"{folder} was tokenised by {info['tokenizer']!r} ({info['tokenizer_fingerprint'][:8]}), not by "
                f"{tokenizer.name!r} ({tokenizer.fingerprint[:8]}); tokenise the pool again"
            )
        path = folder / "tokens.bin"
        dtype = np.dtype(info["dtype"]).newbyteorder("<")
        if not path.exists() or path.stat().st_size != info["n_tokens"] * dtype.itemsize:
            raise CurationError(f"{path} does not have the {info['n_tokens']:,} tokens of tokens.json; tokenise again")
        tokens = np.memmap(path, dtype, mode="r")
        starts, rows, n_bytes = (load_array(folder / f"{name}.npy") for name in ARRAYS)
        sums = {"tokens.bin": info["checksum"], **info.get("checksums", {})}
        check_files([(folder / name, sums.get(name)) for name in ("tokens.bin", *(f"{n}.npy" for n in ARRAYS))], AGAIN)
        store = cls(tokens, starts, rows, n_bytes, info)
        store._check_documents(folder)
        return store

    def _check_documents(self, folder: Path) -> None:
        """Folders of before their arrays had checksums: documents must follow each other, and rows lie in the pool."""
        starts, rows, n = self.starts, self.rows, self.info["n_documents"]
        whole = all(part.dtype == np.int64 and part.ndim == 1 for part in (starts, rows, self.n_bytes))
        whole = whole and len(starts) == n + 1 and len(rows) == len(self.n_bytes) == n
        whole = whole and starts[0] == 0 and starts[-1] == len(self.tokens) and bool((np.diff(starts) > 0).all())
        if not whole or rows[0] < 0 or rows[-1] >= self.info["pool_rows"] or not (np.diff(rows) > 0).all():
            raise CurationError(f"{folder} is not whole: starts.npy, rows.npy and tokens.json do not fit; {AGAIN}")

    def __len__(self) -> int:
        return len(self.rows)

    def document(self, index: int) -> Int[np.ndarray, "t"]:
        """Tokens of document ``index`` with bos and eos, as int64."""
        return np.asarray(self.tokens[self.starts[index] : self.starts[index + 1]], np.int64)

    def documents_of(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Document index of pool rows, in their order and with their repetitions.

        Rows that had no text are not among the result.

        Raises:
            CurationError: a row lies outside the pool.
        """
        rows = np.asarray(rows, np.int64)
        pool_rows = int(self.info["pool_rows"])
        if len(rows) and (rows.min() < 0 or rows.max() >= pool_rows):
            wrong = int(rows[(rows < 0) | (rows >= pool_rows)][0])
            raise CurationError(f"the subset takes row {wrong} but the tokenised pool has {pool_rows} rows")
        place = np.searchsorted(self.rows, rows)
        found = (place < len(self.rows)) & (self.rows[np.minimum(place, len(self.rows) - 1)] == rows)
        return place[found].astype(np.int64)


def tokenise_pool(
    pool: Any,
    tokenizer: Tokenizer,
    folder: str | Path,
    text_column: str = "text",
    batch_size: int = 1024,
    progress: bool = True,
) -> TokenStore:
    """Tokenise every row of a pool; a finished folder of the same pool and tokeniser is opened instead.

    Empty rows (no text but white space, or missing) are left out and listed in ``tokens.json``.

    Raises:
        CurationError: no such column, a row that is not text, no text at all, or the folder holds something else.
    """
    folder = Path(folder)
    check_text(pool, text_column)
    identity = {
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "pool_fingerprint": pool_fingerprint(pool),
        "pool_rows": len(pool),
        "text_column": text_column,
    }
    with locked_folder(folder):
        return _tokenise(pool, tokenizer, folder, identity, batch_size, progress)


def _tokenise(
    pool: Any, tokenizer: Tokenizer, folder: Path, identity: dict[str, Any], batch_size: int, progress: bool
) -> TokenStore:
    if (folder / "tokens.json").exists():
        found = load_json(folder / "tokens.json", TokensFile, AGAIN)
        different = [key for key, value in identity.items() if found.get(key) != value]
        if different:
            raise CurationError(
                f"{folder} holds tokens of another {different[0].replace('_', ' ')}; use another folder"
            )
        return TokenStore.open(folder, tokenizer)

    column = identity["text_column"]
    dtype = np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")
    starts, rows, n_bytes, empty = [0], [], [], []
    # not atomic, but without tokens.json the folder does not count as whole
    with (
        open(folder / "tokens.bin", "wb") as stream,
        tqdm(total=len(pool), unit=" documents", desc="tokenise", disable=not progress) as bar,
    ):
        for first, texts in _batches(pool, column, batch_size):
            kept = [place for place, text in enumerate(texts) if text.strip()]
            empty += [first + place for place, text in enumerate(texts) if not text.strip()]
            encoded = tokenizer.encode([texts[place] for place in kept])
            require_free_space(folder, sum(len(ids) + 2 for ids in encoded) * dtype.itemsize)
            for place, ids in zip(kept, encoded, strict=True):
                stream.write(np.concatenate([[tokenizer.bos], ids, [tokenizer.eos]]).astype(dtype).tobytes())
                starts.append(starts[-1] + len(ids) + 2)
                rows.append(first + place)
                n_bytes.append(len(texts[place].encode()))
            bar.update(len(texts))
            bar.set_postfix(tokens=starts[-1], refresh=False)
    if not rows:
        raise CurationError(f"none of the {len(pool)} rows has text in column {column!r}")
    for name, values in (("starts", starts), ("rows", rows), ("bytes", n_bytes)):
        save_array(folder / f"{name}.npy", np.asarray(values, np.int64))
    tokenizer.save(folder / "tokenizer")
    info = {
        **identity,
        "format_version": FORMAT_VERSION,
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "bos": tokenizer.bos,
        "eos": tokenizer.eos,
        "pad": tokenizer.pad,
        "dtype": dtype.newbyteorder("=").name,
        "n_tokens": starts[-1],
        "n_documents": len(rows),
        "n_bytes": sum(n_bytes),
        "empty_rows": empty,
        "checksum": checksum(folder / "tokens.bin"),
        "checksums": {f"{name}.npy": checksum(folder / f"{name}.npy") for name in ARRAYS},
    }
    save_json(folder / "tokens.json", info, seal=True)
    return TokenStore.open(folder, tokenizer)


def join_tokens(parts: Sequence[Path], folder: str | Path, fingerprint: str) -> TokenStore:
    """One folder of tokens from those of the stretches of a pool, in their order; the parts are left as they are.

    Args:
        parts: folders of `tokenise_pool`, all by one tokeniser.
        fingerprint: of the whole pool.

    Raises:
        CurationError: a part is not whole or of another tokeniser, or the disk is full.
    """
    folder = Path(folder)
    stores = [TokenStore.open(part) for part in parts]
    tokenizers = {store.info["tokenizer_fingerprint"] for store in stores}
    if len(tokenizers) != 1:
        raise CurationError(f"{folder}: its parts are of {len(tokenizers)} tokenisers; {AGAIN}")
    require_free_space(folder.parent, sum(store.tokens.nbytes for store in stores))
    pool_starts = np.cumsum([0, *(store.info["pool_rows"] for store in stores)])
    token_starts = np.cumsum([0, *(len(store.tokens) for store in stores)])
    with whole_folder(folder) as place:
        with open(place / "tokens.bin", "wb") as stream:
            for part in parts:
                with open(part / "tokens.bin", "rb") as mine:
                    shutil.copyfileobj(mine, stream, 1 << 22)
        shifted = [store.starts[:-1] + first for store, first in zip(stores, token_starts[:-1], strict=True)]
        rows = [store.rows + first for store, first in zip(stores, pool_starts[:-1], strict=True)]
        whole = {"starts": [*shifted, token_starts[-1:]], "rows": rows, "bytes": [store.n_bytes for store in stores]}
        for name, values in whole.items():
            save_array(place / f"{name}.npy", np.concatenate(values).astype(np.int64))
        shutil.copytree(parts[0] / "tokenizer", place / "tokenizer")
        empty = [
            row + int(first)
            for store, first in zip(stores, pool_starts[:-1], strict=True)
            for row in store.info["empty_rows"]
        ]
        info = {
            **stores[0].info,
            "pool_fingerprint": fingerprint,
            "pool_rows": int(pool_starts[-1]),
            "n_tokens": int(token_starts[-1]),
            "n_documents": sum(len(store) for store in stores),
            "n_bytes": sum(store.info["n_bytes"] for store in stores),
            "empty_rows": empty,
            "checksum": checksum(place / "tokens.bin"),
            "checksums": {f"{name}.npy": checksum(place / f"{name}.npy") for name in ARRAYS},
        }
        save_json(place / "tokens.json", info, seal=True)
    return TokenStore.open(folder)


def _batches(pool: Any, column: str, batch_size: int) -> Iterator[tuple[int, list[str]]]:
    for first in range(0, len(pool), batch_size):
        texts = pool[first : first + batch_size][column]
        for place, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise CurationError(f"row {first + place} of the pool holds {type(text).__name__}, not text")
            if text is not None and any("\ud800" <= character <= "\udfff" for character in _odd(text)):
                raise CurationError(f"row {first + place} of the pool is not valid Unicode (a lone surrogate); mend it")
        yield first, [text or "" for text in texts]


def _odd(text: str) -> str:
    """The text where it cannot be encoded, else nothing: the check costs one fast call a row."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text
    return ""


def subset_rows(folder: str | Path, store: TokenStore) -> Int[np.ndarray, "n"]:
    """Pool rows of a saved `curation.Subset`, repeated as often as they are taken.

    Raises:
        CurationError: the subset was drawn from another pool than the tokens.
    """
    subset = Subset.load(folder)
    drawn_from = subset.metadata.get("pool_fingerprint")
    if drawn_from not in (None, store.info["pool_fingerprint"]):
        raise CurationError(f"{folder} was drawn from another pool than the tokens; tokenise the pool of the subset")
    return subset.rows()
