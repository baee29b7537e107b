"""Documents from whatever text lies on disk, one at a time: JSONL, parquet, text files, `datasets`, Hub names.

What cannot be read is named by file and line. Nothing is held in memory but one document (a parquet batch).
"""

import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import CurationError
from foundation.jsonl import once

JSONL = (".jsonl", ".ndjson", ".json")
TEXT_FIELDS = ("text", "raw_content", "content")  # ours and most; CCNet and RedPajama; code
MISSING = " has no field "
SOURCE_FIELDS = ("source", "url", "id")
PACKED = (".gz", ".zst")
SAVED = ("state.json", "dataset_dict.json")  # of `datasets.Dataset.save_to_disk`
PART_BYTES = 64 << 20


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        text: what it says.
        source: what tells it apart (its ``source``, ``url`` or ``id``, else file and line): passages of one document
            share it, so that test documents can be held out whole.
        domain: its kind, where known: a field, or the folder of a text file.
        place: file and line or row, for messages.
    """

    text: str
    source: str
    domain: str
    place: str


def read_documents(
    source: Any,
    text_field: str | None = None,
    domain_field: str | None = None,
    source_field: str | None = None,
    bad: str = "raise",
    max_line_bytes: int = 1 << 28,
    skipped: list[str] | None = None,
    files: Sequence[Path] | None = None,
) -> Iterator[Document]:
    """Read documents, in an order that all machines share.

    Args:
        source: a JSONL file (``.jsonl``, ``.ndjson`` or line-wise ``.json``, plain, ``.gz`` or ``.zst``: the layouts of
            C4 and CCNet), parquet, a text file (one document a file; ``.gz``, ``.zst`` too), a folder of such files
            at any depth, a `datasets.Dataset`, a folder of ``save_to_disk``, a Hub name, or a list of these.
        text_field: field of the text; None takes the first of text, raw_content, content that a record has.
        domain_field: field of the domain; None takes ``domain`` where a record has it.
        source_field: field that tells documents apart; None takes the first of source, url, id.
        bad: "raise" at the first document that cannot be read, or "skip" it.
        max_line_bytes: longest JSONL line or text file.
        skipped: gets one message for each document left out by "skip".
        files: of the source, where only these are wanted (see `document_parts`).

    Raises:
        CurationError: nothing is there, or a document cannot be read; file and line are named.
    """
    if bad not in ("raise", "skip"):
        raise CurationError(f"bad={bad!r} is unknown; use raise or skip")
    fields = _Fields(text_field, domain_field, source_field)
    items = _items(source, fields, max_line_bytes)
    for item in items if files is None else _of_files(Path(source), files, fields, max_line_bytes):
        if isinstance(item, Document):
            yield item
        elif bad == "raise":
            named = MISSING in item
            remedy = (
                "name the fields that it has with --text-field, --domain-field, --source-field" if named else "mend it"
            )
            raise CurationError(f"{item}; {remedy}, or leave such documents out with --bad skip")
        elif skipped is not None:
            skipped.append(item)


@dataclass(frozen=True)
class _Fields:
    text: str | None
    domain: str | None
    source: str | None

    def document(self, record: dict[str, Any], place: str, known: Iterable[str] = ()) -> Document | str:
        """The record's document, or what is wrong with it; ``known``: all fields, where the record has but some."""
        names = [self.text] if self.text else TEXT_FIELDS
        name = next((name for name in names if name in record), None)
        if name is None:
            return _lacks(record, names, place, known)
        text = record[name]
        if not isinstance(text, str):
            return f"{place} has {type(text).__name__}, not text, in field {name!r}"
        if "\x00" in text or not _encodes(text):
            return f"{place} holds a zero byte or a lone surrogate: it is not text"
        domain = record.get(self.domain or "domain")
        if self.domain and domain is None:
            return _lacks(record, [self.domain], place, known)
        wanted = [self.source] if self.source else SOURCE_FIELDS
        source = next((record[name] for name in wanted if record.get(name) is not None), None)
        if self.source and source is None:
            return _lacks(record, [self.source], place, known)
        return Document(text, place if source is None else str(source), "" if domain is None else str(domain), place)


def _lacks(record: dict[str, Any], fields: Sequence[str], place: str, known: Iterable[str]) -> str:
    wanted = " or ".join(map(repr, fields))
    if any(field in record for field in fields):
        return f"{place} has null in field {wanted}"
    return f"{place}{MISSING}{wanted}; it has {', '.join(known or record) or 'none'}"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _items(source: Any, fields: _Fields, max_bytes: int) -> Iterator[Document | str]:
    if isinstance(source, (list, tuple)):
        for part in source:
            yield from _items(part, fields, max_bytes)
        return
    if hasattr(source, "column_names"):
        yield from _rows(source, fields, "row")
        return
    path = Path(source)
    files = _text_files(path)
    if files is None:
        from curation.pools.pool import open_pool

        yield from _rows(open_pool(source, column=fields.text), fields, f"{source} row")
        return
    yield from _of_files(path, files, fields, max_bytes)


def document_parts(source: str | Path, part_bytes: int = PART_BYTES) -> list[list[Path] | None]:
    """The files of a source in lists of about ``part_bytes``: `read_documents` of each in turn gives all documents.

    A file is never cut; [None] is a source that can only be read as a whole (a saved dataset, a Hub name).

    Raises:
        CurationError: a folder without text.
    """
    files = _text_files(Path(source))
    if files is None:
        return [None]
    parts: list[list[Path] | None] = []
    room = 0
    for file in files:
        size = file.stat().st_size
        last = parts[-1] if parts else None
        if last is None or size > room:
            last, room = [], part_bytes
            parts.append(last)
        last.append(file)
        room -= size
    return parts


def _text_files(path: Path) -> list[Path] | None:
    """Files of text of a file or folder, in order; None where it is neither."""
    if not path.exists() or (path.is_dir() and any((path / name).exists() for name in SAVED)):
        return None
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    files = [file for file in files if not file.name.startswith(".") and _kind(file)]
    if not files:
        raise CurationError(f"{path} holds no text; it needs .jsonl, .json, .parquet or .txt files (.gz and .zst too)")
    return files


def _of_files(path: Path, files: Sequence[Path], fields: _Fields, max_bytes: int) -> Iterator[Document | str]:
    for file in files:
        kind = _kind(file)
        if kind == "parquet":
            yield from _parquet(file, fields)
        elif kind == "text":
            folder = file.parent.relative_to(path).as_posix() if path.is_dir() else "."
            yield _text_file(file, "" if folder == "." else folder, max_bytes)
        else:
            yield from _json_lines(file, fields, max_bytes)


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    for end in PACKED:
        name = name.removesuffix(end)
    if name.endswith(JSONL):
        return "jsonl"
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    return "text" if name.endswith(".txt") else None


def _rows(dataset: Any, fields: _Fields, place: str) -> Iterator[Document | str]:
    for row, record in enumerate(dataset):
        yield fields.document(record, f"{place} {row}")


def _parquet(file: Path, fields: _Fields) -> Iterator[Document | str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file, page_checksum_verification=True)
        known = table.schema_arrow.names
        asked = [fields.text, fields.domain, fields.source, "domain", *TEXT_FIELDS, *SOURCE_FIELDS]
        columns = [name for name in known if name in asked]
        row = 0
        for batch in table.iter_batches(batch_size=256, columns=columns or known[:1]):
            for record in batch.to_pylist():
                yield fields.document(record, f"{file} row {row}", known)
                row += 1
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise CurationError(f"{file} cannot be read as parquet ({error}); get it again") from error


def _open(file: Path) -> BinaryIO:
    if file.suffix.lower() == ".gz":
        return gzip.open(file)  # type: ignore[return-value]
    if file.suffix.lower() == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"), 1 << 20)
    return open(file, "rb")


def _json_lines(file: Path, fields: _Fields, max_bytes: int) -> Iterator[Document | str]:
    number = 0
    try:
        with _open(file) as stream:
            while line := stream.readline(max_bytes + 1):
                number += 1
                place = f"{file} line {number}"
                if len(line) > max_bytes:
                    size = len(line)
                    while line and not line.endswith(b"\n"):  # go on to the next line without holding this one
                        line = stream.readline(1 << 20)
                        size += len(line)
                    yield f"{place} has {size:,} bytes, more than max_line_bytes={max_bytes:,}"
                    continue
                if line.strip():
                    yield _json_line(line, place, fields)
    except (OSError, EOFError, ValueError) as error:
        raise CurationError(f"{file} breaks off after line {number} ({error}); get it again") from error


def _json_line(line: bytes, place: str, fields: _Fields) -> Document | str:
    try:
        record = json.loads(line, object_pairs_hook=once)
    except UnicodeDecodeError as error:
        return f"{place} is not valid UTF-8 (byte {error.start})"
    except (ValueError, RecursionError) as error:
        return f"{place} is not JSON ({error})"
    if not isinstance(record, dict):
        return f"{place} holds {type(record).__name__}, not an object with fields"
    return fields.document(record, place)


def _text_file(file: Path, domain: str, max_bytes: int) -> Document | str:
    try:
        with _open(file) as stream:
            content = stream.read(max_bytes + 1)
    except (OSError, EOFError) as error:
        raise CurationError(f"{file} cannot be read ({error}); get it again") from error
    if len(content) > max_bytes:
        return f"{file} has more than max_line_bytes={max_bytes:,} bytes"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return f"{file} line {line} is not valid UTF-8 (byte {error.start} of the file)"
    if "\x00" in text:
        return f"{file} holds zero bytes: it is not text"
    return Document(text, str(file), domain, str(file))


def count_domains(domains: Iterable[str]) -> dict[str, int]:
    """Rows of each domain, the largest first."""
    counts: dict[str, int] = {}
    for domain in domains:
        counts[domain] = counts.get(domain, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
