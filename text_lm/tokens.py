"""A pool's tokens on disk: one flat memory-mapped array, and where each document starts.

The pool is tokenised once; every subset, arm and seed then reads the same file (see `text_lm.packing`).

A folder holds ``tokens.bin`` (little-endian uint16 or uint32: bos, text, eos of every document, one after another),
``starts.npy`` (int64, documents + 1), ``rows.npy`` (int64 pool row of each document), ``bytes.npy`` (int64 UTF-8 bytes
of each document), ``tokenizer/`` and ``tokens.json``, which is written last and makes the folder whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from curation.pool import pool_fingerprint
from curation.subset import Subset
from foundation.errors import CurationError
from foundation.files import checksum, load_array, load_json, require_free_space, save_array, save_json
from text_lm.tokenizer import Tokenizer

FORMAT_VERSION = 1


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
        info = load_json(folder / "tokens.json")
        if info.get("format_version") != FORMAT_VERSION:
            raise CurationError(f"{folder}/tokens.json has format {info.get('format_version')}, not {FORMAT_VERSION}")
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
        starts, rows, n_bytes = (load_array(folder / f"{name}.npy") for name in ("starts", "rows", "bytes"))
        return cls(tokens, starts, rows, n_bytes, info)

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
    if text_column not in pool.column_names:
        raise CurationError(f"the pool has no column {text_column!r}; it has {', '.join(pool.column_names)}")
    identity = {
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "pool_fingerprint": pool_fingerprint(pool),
        "pool_rows": len(pool),
        "text_column": text_column,
    }
    if (folder / "tokens.json").exists():
        found = load_json(folder / "tokens.json")
        different = [key for key, value in identity.items() if found.get(key) != value]
        if different:
            raise CurationError(
                f"{folder} holds tokens of another {different[0].replace('_', ' ')}; use another folder"
            )
        return TokenStore.open(folder, tokenizer)

    folder.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2") if tokenizer.vocab_size <= 1 << 16 else np.dtype("<u4")
    starts, rows, n_bytes, empty = [0], [], [], []
    # not atomic, but without tokens.json the folder does not count as whole
    with (
        open(folder / "tokens.bin", "wb") as stream,
        tqdm(total=len(pool), unit=" documents", desc="tokenise", disable=not progress) as bar,
    ):
        for first, texts in _batches(pool, text_column, batch_size):
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
        raise CurationError(f"none of the {len(pool)} rows has text in column {text_column!r}")
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
    }
    save_json(folder / "tokens.json", info)
    return TokenStore.open(folder, tokenizer)


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
