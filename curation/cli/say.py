"""What `curate` says: lines for people on the standard error, JSON on the standard output."""

import shlex
import sys
from pathlib import Path
from typing import Any

import typer


def say(text: str) -> None:
    """A line for people, on the standard error."""
    typer.echo(text, err=True)


def warn(findings: list[Any]) -> None:
    """One line for each thing that speaks against a tree or subset, or that is to be known of it."""
    for finding in findings:
        if finding.severity != "ok" or finding.remedy:
            word = {"bad": "BAD", "warn": "warning", "ok": "note"}[finding.severity]
            say(f"{word}: {finding.sentence} {finding.remedy}".rstrip())


def print_json(content: dict[str, Any]) -> None:
    """The result of a command for scripts, on the standard output; paths become text."""
    from json import dumps

    typer.echo(dumps(content, indent=2, default=str))


def typed() -> str:
    """This call as a shell reads it: what reports and cards say they were made by."""
    return shlex.join(["curate", *sys.argv[1:]])


def embeddings_of(tree: Any, folder: Path, given: Path | None) -> Any:
    """Rows of a tree (`ClusterTree`) for its check: of ``given``, else found beside ``folder``; None, and a note: none.

    Raises:
        CurationError: ``given`` are not the embeddings that the tree was fitted on.
    """
    from curation.soundness import find_embeddings, rows_of_tree

    found = find_embeddings(tree, folder) if given is None else rows_of_tree(tree, given)
    if found is None:
        say(f"note: the rows of {folder} were not checked, for want of its embeddings; --embeddings FILE names them")
    return found
