"""What `curate` says: lines for people on the standard error, JSON on the standard output."""

import shlex
import sys
from pathlib import Path
from typing import Any

import typer


def say(text: str) -> None:
    typer.echo(text, err=True)


def warn(findings: list[Any]) -> None:
    """One line for each thing that speaks against a tree or subset, or that is to be known of it."""
    for finding in findings:
        if finding.severity != "ok" or finding.remedy:
            word = {"bad": "BAD", "warn": "warning", "ok": "note"}[finding.severity]
            say(f"{word}: {finding.sentence} {finding.remedy}".rstrip())


def print_json(content: dict[str, Any]) -> None:
    from json import dumps

    typer.echo(dumps(content, indent=2, default=str))


def typed() -> str:
    return shlex.join(["curate", *sys.argv[1:]])


def embeddings_of(tree: Any, folder: Path, given: Path | None) -> Any:
    from curation.soundness import find_embeddings, rows_of_tree

    found = find_embeddings(tree, folder) if given is None else rows_of_tree(tree, given)
    if found is None:
        say(f"note: the rows of {folder} were not checked, for want of its embeddings; --embeddings FILE names them")
    return found
