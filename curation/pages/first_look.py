"""The first page of a run, seconds after its start: random rows of the pool, as uneven as they come."""

import html
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curation.pages.examples import Examples, data_uri, jpeg
from curation.pages.report import PAGE
from foundation.files import write_atomically

SHOWN, COLUMNS, SIZE = 120, 12, 72  # pictures; of a line; pixels
TEXTS, LABELS = 40, 12
STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#222}
h1{font-size:1.4rem}img{max-width:100%}li{margin:.2rem 0}td{padding:0 1rem 0 0}"""


def write_first_look(pool: Any, path: Path, labels: str | None = None, seed: int = 0) -> None:
    """Write the page: up to 120 pictures or 40 texts of random rows and, where labels are named, their commonest.

    Args:
        pool: a `datasets.Dataset`.
        labels: its column of classes.
    """
    examples = Examples(pool)
    shown = min(SHOWN if examples.kind == "image" else TEXTS, len(pool))
    rows = np.random.default_rng(seed).choice(len(pool), shown, replace=False)
    title = f"{shown:,} of {len(pool):,} rows, drawn at random: the pool before curation"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<meta name=generator content='{PAGE}'>",
        f"<title>The pool</title><style>{STYLE}</style><h1>{title}</h1>",
    ]
    if examples.kind == "image":
        picture = data_uri(jpeg(examples.sheet(rows, COLUMNS, SIZE)))
        parts.append(f'<img alt="{shown} pictures" src="{picture}">')
    elif examples.kind == "text":
        parts.append("<ul>" + "".join(f"<li>{html.escape(examples.snippet(int(row)))}" for row in rows) + "</ul>")
    if labels is not None:
        known = getattr(pool.features[labels], "names", None)
        counted = pc.value_counts(pool.select_columns(labels).with_format("arrow")[:][labels]).to_pylist()
        lines = ""
        for item in sorted(counted, key=lambda item: -item["counts"])[:LABELS]:
            value, number = item["values"], item["counts"]
            name = known[value] if known and isinstance(value, int) and value >= 0 else value
            lines += f"<tr><td>{html.escape(str(name))}<td>{number:,}"
        which = "Its labels" if len(counted) <= LABELS else f"The commonest of its {len(counted):,} labels"
        parts.append(f"<p>{which}, rows of each:</p><table>{lines}</table>")
    page = "\n".join([*parts, "</html>", ""])
    write_atomically(path, lambda stream: stream.write(page.encode()))
