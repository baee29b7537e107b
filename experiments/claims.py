"""One line for each claim: effect with interval, seeds, power and verdict, from the numbers of a finished experiment.

python -m experiments.claims    # the tables of docs/results/README.md and README.md, and the figure, from claims.yaml
"""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from experiments.engine.arms import BASE_ARM, ORACLE
from experiments.engine.compare import Row
from experiments.pages.effects import gain_over_balance
from experiments.pages.verdict import ENOUGH, judge_claim, paired, power, read_values
from foundation.command import run_command
from foundation.errors import CurationError
from foundation.files import write_atomically
from foundation.intervals import TOO_FEW
from foundation.tables import markdown_table

FIGURE = "images/gain_over_balance.png"
HEADLINES = ("_macro", "even_r2")  # ends of the measures that the figure is of
PAGE, CLAIMS, START, END = "README.md", "claims.yaml", "<!-- claims -->", "<!-- end of claims -->"


def claim_cells(line: dict[str, Any], folder: Path) -> list[str]:
    """Cells of one line of ``claims.yaml``: claim, our test, effect, seeds, power, verdict.

    Raises:
        CurationError: a key is missing, or the values cannot be read.
    """
    needed = ["claim", "test", "link", "section"]
    needed += ["arm", "metric", "better"] if "values" in line else ["effect", "seeds", "power", "verdict"]
    missing = [key for key in needed if key not in line]
    if missing:
        raise CurationError(f"{folder / CLAIMS}: the claim {line.get('claim')!r} lacks {missing[0]!r}; add it")
    head = [line["claim"], f"[{line['test']}]({line['link']})"]
    if "values" not in line:
        return [*head, str(line["effect"]), str(line["seeds"]), str(line["power"]), f"**{line['verdict']}**"]
    rows, _ = read_values(folder / line["values"])
    found = judge_claim(rows, line["arm"], line["metric"], line["better"], line.get("base", BASE_ARM))
    item = found.effect
    effect = f"{item.difference:+.3f}"
    effect += f" [{item.low:+.3f}, {item.high:+.3f}]" if item.verdict != TOO_FEW else ", no interval"
    strength = "-" if np.isnan(found.power) else f"{found.power:.1f}"
    return [*head, effect, str(item.pairs), strength, f"**{found.verdict}**"]


def all_claims(folder: Path) -> str:
    """A table for each section of ``claims.yaml``, under its heading.

    Raises:
        CurationError: a claim cannot be judged.
    """
    header = ["claim", "our test", "effect, 95 % interval", "seeds", "power", "verdict"]
    sections: dict[str, list[list[str]]] = {}
    for line in read_claims(folder):
        cells = claim_cells(line, folder)
        sections.setdefault(line["section"], []).append(cells)
    return "\n".join(f"### {name}\n\n{markdown_table(header, rows)}" for name, rows in sections.items())


def main_claims(folder: Path, page: Path) -> str:
    """One table of the main claims, for a page at another place.

    Raises:
        CurationError: a claim cannot be judged.
    """
    header = ["data", "what was tested", "baseline", "effect, 95 % interval", "power", "verdict"]
    here = Path(os.path.relpath(folder, page.parent))
    rows = []
    for line in read_claims(folder, "main"):
        _, _, effect, _, strength, verdict = claim_cells(line, folder)
        link = f"[{line['section']}]({os.path.normpath(here / line['link'])})"
        rows.append([link, line["claim"], _baseline(line, folder), effect, strength, verdict])
    return markdown_table(header, rows)


def _baseline(line: dict[str, Any], folder: Path) -> str:
    """Mean of what a claim compares with, random rows if it names nothing else; "-" where the values are not kept."""
    if "values" not in line:
        return "-"
    rows, base = read_values(folder / line["values"])[0], line.get("base", BASE_ARM)
    seeds = paired(rows, line["arm"], line["metric"], base)
    found = [row.value for row in rows if (row.arm, row.metric) == (base, line["metric"]) and row.seed in seeds]
    return f"{np.mean(found):.3f}"


def between_marks(page: Path, made: str) -> str:
    """Text of the page with this between its two marks.

    Raises:
        CurationError: a mark is missing.
    """
    text = page.read_text()
    if START not in text or END not in text:
        raise CurationError(f"{page} lacks the marks {START} and {END}, between which the table goes")
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n{made}{END}{after}"


def read_claims(folder: Path, part: str = "claims") -> list[dict[str, Any]]:
    """Lines of a part of ``claims.yaml``: ``claims``, all of them, or ``main``, those of the front page."""
    import yaml

    found: list[dict[str, Any]] = yaml.safe_load((folder / CLAIMS).read_text())[part]
    return found


def judged_pages(folder: Path) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Values of the claims' files that hold the balance of each arm's subset and true labels, and their headlines.

    Those alone whose true labels gain enough for the experiment to tell.
    """
    pages, metric = {}, {}
    for line in read_claims(folder):
        name = Path(line.get("values", "")).stem
        if not name or name in pages or not line["metric"].endswith(HEADLINES):
            continue
        rows, _ = read_values(folder / line["values"])
        gains = np.asarray(list(paired(rows, ORACLE, line["metric"]).values()))
        if any(row.metric == "kl" for row in rows) and len(gains) and power(gains) >= ENOUGH:
            pages[name], metric[name] = rows, line["metric"]
    return pages, metric


def main(
    folder: Annotated[Path, typer.Argument(help="With README.md and claims.yaml.")] = Path("docs/results"),
    front: Annotated[Path, typer.Option(help="The page with the main claims alone.")] = Path("README.md"),
) -> None:
    """Make the tables of claims and the figure of gain over balance anew."""
    made = {folder / PAGE: all_claims(folder), front: main_claims(folder, front)}
    texts = {page: between_marks(page, table).encode() for page, table in made.items()}
    for page, text in texts.items():
        write_atomically(page, lambda stream, text=text: stream.write(text))  # type: ignore[misc]
    picture = gain_over_balance(*judged_pages(folder))
    write_atomically(folder / FIGURE, lambda stream: stream.write(picture))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(main)
    run_command("claims", partial(app, prog_name="claims", standalone_mode=False))
