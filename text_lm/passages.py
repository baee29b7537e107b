"""Cut documents into passages at sentence ends, filter them, and write them as a pool that `curation` opens."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from foundation.errors import CurationError
from foundation.files import beside, require_replaceable, save_json, write_atomically
from foundation.settings import Range, require_number
from text_lm.documents import Document
from text_lm.filters import FilterCount, TextFilter

# a stop with its closing quotes or brackets and the white space behind it, or an empty line, or a CJK stop
SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]]{0,3}\s+|\n\s*\n|[。！？]")  # noqa: RUF001
MADE_BY = "made by text_lm cut"
ROWS_PER_GROUP = 4096


@dataclass(frozen=True)
class PassageCounts:
    """What `write_passages` did: documents in, passages cut, and what each filter let through, in order."""

    documents: int
    passages_cut: int
    passages: int
    characters: int
    filters: list[FilterCount]
    unreadable: list[str]


def cut_passages(text: str, target: int = 1000, shortest: int = 200) -> list[str]:
    """Cut a text into passages of about ``target`` characters, at ends of sentences.

    Sentences are taken while the passage stays within ``target``; one that is longer by itself is cut at white space,
    or in the middle of a word if there is none. A last passage shorter than ``shortest`` joins the one before it, if
    the white space between them leaves room.
    No character but white space at the cuts is lost.

    Args:
        target: characters of a passage at most (a joined last one may have ``target + shortest``).
        shortest: characters of a last passage that stands alone.
    """
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    if not ends or ends[-1] < len(text):
        ends.append(len(text))
    spans: list[tuple[int, int]] = []
    start = before = 0
    for end in ends:
        if end - start > target and before > start:  # without this sentence it was long enough
            spans.append((start, before))
            start = before
        while end - start > target:
            cut = _last_space(text, start, start + target)
            spans.append((start, cut))
            start = cut
        before = end
    if start < len(text):
        spans.append((start, len(text)))
    if len(spans) > 1 and len(text[slice(*spans[-1])].strip()) < shortest:
        joined = spans[-2][0], spans[-1][1]
        if len(text[slice(*joined)].strip()) <= target + shortest:
            spans[-2:] = [joined]
    return [passage for span in spans if (passage := text[slice(*span)].strip())]


def _last_space(text: str, start: int, limit: int) -> int:
    """Behind the last white space of text[start:limit], if it lies in the second half; else the limit."""
    for place in range(limit, start + (limit - start) // 2, -1):
        if text[place - 1].isspace():
            return place
    return limit


def write_passages(
    documents: Iterable[Document],
    path: str | Path,
    target: int = 1000,
    shortest: int = 200,
    filters: Sequence[TextFilter] = (),
    unreadable: list[str] | None = None,
    progress: bool = True,
    least: int = 0,
) -> PassageCounts:
    """Write ``path`` (parquet: text, source, domain, place) and beside it ``<name>.counts.json``.

    Args:
        documents: see `text_lm.documents.read_documents`.
        target, shortest: see `cut_passages`; ``target=0`` keeps documents whole.
        filters: applied to passages, in order; each sees only what those before it let through.
        unreadable: the list that `read_documents` fills with the documents it left out.
        least: passages that must come out.

    Raises:
        CurationError: a bad setting, or fewer passages than ``least``: nothing is written then.
    """
    for name, value in (("target", target), ("shortest", shortest)):
        require_number(value, Range(ge=0), name)
    path = Path(path)
    totals = {"documents": 0, "cut": 0, "kept": 0, "characters": 0}
    counts = [FilterCount(item.name) for item in filters]

    def passages() -> Iterator[dict[str, str]]:
        for document in tqdm(documents, unit=" documents", desc="cut", disable=not progress):
            totals["documents"] += 1
            whole = [document.text.strip()] if document.text.strip() else []
            pieces = cut_passages(document.text, target, shortest) if target else whole
            totals["cut"] += len(pieces)
            for piece in pieces:
                if all(count.apply(item, piece) for item, count in zip(filters, counts, strict=True)):
                    totals["kept"] += 1
                    totals["characters"] += len(piece)
                    yield {
                        "text": piece,
                        "source": document.source,
                        "domain": document.domain,
                        "place": document.place,
                    }

    def write(stream: Any) -> None:
        _write_parquet(stream, passages())
        if totals["kept"] < least:
            raise CurationError(
                f"{totals['documents']:,} documents give {totals['cut']:,} passages, of which the filters keep "
                f"{totals['kept']:,}; there must be at least {least:,}"
            )

    write_atomically(path, write)
    result = PassageCounts(
        totals["documents"], totals["cut"], totals["kept"], totals["characters"], counts, unreadable or []
    )
    about = {"about": MADE_BY, **vars(result), "filters": [vars(count) for count in counts]}
    save_json(counts_of(path), about)
    return result


def counts_of(path: Path) -> Path:
    """Where the counts of a file of passages lie: beside it.

    Raises:
        CurationError: the path is that of a folder, or has no name.
    """
    require_replaceable(path)
    return beside(path, f"{path.stem}.counts.json")


def _write_parquet(stream: Any, rows: Iterator[dict[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [(name, pa.string()) for name in ("text", "source", "domain", "place")]
    schema = pa.schema(columns, metadata={"made_by": MADE_BY})
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        group: list[dict[str, str]] = []
        for row in rows:
            group.append(row)
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))
