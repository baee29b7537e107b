"""The page that shows what preparation left out: samples of every reason, next to what they repeat."""

import html
from typing import Any

import numpy as np
from jaxtyping import Int

from curation.pages.examples import Examples, data_uri, jpeg

SHOWN, SIZE = 24, 88  # samples of each reason; pixels of a picture
STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}.pairs{display:flex;flex-wrap:wrap;gap:.6rem}
figure{margin:0;border:1px solid #ddd;border-radius:6px;padding:.35rem}figcaption{font-size:.75rem;color:#555}
img{display:inline-block;margin:0 2px}p.text{font-size:.8rem;max-width:30rem;margin:.2rem 0}"""


def samples(reasons: np.ndarray, similarity: np.ndarray, reason: str, n: int = SHOWN) -> Int[np.ndarray, "m"]:
    """Up to n positions of a reason, the least similar first: half show if the rule goes too far, half are random."""
    mine = np.flatnonzero(reasons == reason)
    order = mine[np.argsort(similarity[mine], kind="stable")]
    if len(order) <= n:
        return order
    rest = np.random.default_rng(0).choice(np.arange(n // 2, len(order)), n - n // 2, replace=False)
    return np.concatenate([order[: n // 2], order[np.sort(rest)]])


def dropped_page(
    dropped: Int[np.ndarray, "r"],
    reasons: np.ndarray,
    repeats: Int[np.ndarray, "r"],
    similarity: np.ndarray,
    headline: str,
    report: dict[str, Any],
    pool: Any = None,
) -> str:
    """A self-contained HTML page, some hundred kilobytes; pictures and texts are shown where the pool is given."""
    examples = Examples(pool)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>What preparation left out</title>",
        f"<style>{STYLE}</style><h1>What preparation left out</h1><p>{html.escape(headline)}.</p>",
    ]
    parts += [f"<p><b>{html.escape(note)}</b></p>" for note in report["notes"]]
    if examples.kind is None:
        parts.append("<p>Give the pool (--pool) to see pictures or texts in place of numbers.</p>")
    for reason, number in report["dropped"].items():
        chosen = samples(reasons, similarity, reason)
        shown = f", {len(chosen)} of them shown" if len(chosen) < number else ""
        parts.append(f"<h2>{html.escape(reason)}: {number:,} row{'s' * (number > 1)}{shown}</h2>")
        if repeats[chosen].max(initial=-1) >= 0:
            order = "; the least similar first" if np.isfinite(similarity[chosen]).any() else ""
            parts.append(f"<p>Left what was left out, right what it repeats{order}.</p>")
        parts.append("<div class=pairs>")
        for position in chosen:
            other = int(repeats[position])
            pair = _shown(examples, int(dropped[position])) + (_shown(examples, other) if other >= 0 else "")
            caption = f"row {dropped[position]}" + (f" repeats {other}" if other >= 0 else "")
            if np.isfinite(similarity[position]):
                caption += f", cosine {similarity[position]:.3f}"
            parts.append(f"<figure>{pair}<figcaption>{caption}</figcaption></figure>")
        parts.append("</div>")
    return "\n".join(parts) + "</html>\n"


def _shown(examples: Examples, row: int) -> str:
    """A picture or a text as HTML; "" where the pool has neither."""
    if examples.kind == "image":
        return f'<img alt="row {row}" src="{data_uri(jpeg(examples.picture(row, SIZE)))}">'
    return f"<p class=text>{html.escape(examples.snippet(row))}</p>" if examples.kind == "text" else ""
