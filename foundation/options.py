"""Numbers on the command line: each option says what it may be, and is checked before anything is written.

For typer ``Annotated[int, number("Rows of the subset.", ge=1)]``, for argparse ``type=number_type(int, ge=1)``.
"""

import argparse
import os
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from foundation.errors import CurationError
from foundation.files import require_own
from foundation.locks import locked_file
from foundation.numbers import read_number
from foundation.paths import new_place, require_apart, require_outside, require_room
from foundation.settings import LARGEST_SEED, NAMES, Range, require_number, short, wrong_number

POOLS = ("pool", "source")  # parameters that are text and may name a folder


class App(typer.Typer):
    """A typer app whose commands never put a result in the place of what it is made from, and read numbers one way.

    A command that writes one file holds its place from its beginning to its end.
    """

    def command(self, name: str | None = None, **options: Any) -> Any:
        decorate = super().command

        def add(function: Callable[..., Any]) -> Any:
            kind_of_command = _Apart
            for hint in typing.get_type_hints(function, include_extras=True).values():
                kind, *rules = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
                for rule in rules:
                    if getattr(rule, "one_file", False):
                        kind_of_command = _OneFile
                    if getattr(rule, "outside", False):
                        kind_of_command = _Outside
                    if hasattr(rule, "number_range"):
                        rule.parser, rule.metavar = _reader(float if float in (kind, *typing.get_args(kind)) else int)
            return decorate(name, **{"cls": kind_of_command, **options})(function)

        return add


class _Apart(TyperCommand):
    def invoke(self, ctx: Any) -> Any:
        if isinstance(output := ctx.params.get("output"), Path):
            given: list[str] = []
            for name, value in ctx.params.items():
                several = value if isinstance(value, list | tuple) else [value]
                if name != "output":
                    given += [str(item) for item in several if isinstance(item, str | Path)]
            given += [item.partition("=")[2] for item in given if "=" in item]  # settings: train=images
            require_apart(output, given, bool(ctx.params.get("overwrite")))
        return super().invoke(ctx)


class _Outside(_Apart):
    def invoke(self, ctx: Any) -> Any:
        for name, value in ctx.params.items():
            for item in value if isinstance(value, list | tuple) else [value]:
                if name != "output" and (isinstance(item, Path) or (name in POOLS and item)):
                    require_outside(ctx.params["output"], item)
        return super().invoke(ctx)


class _OneFile(_Apart):
    def invoke(self, ctx: Any) -> Any:
        with locked_file(ctx.params["output"]):
            return super().invoke(ctx)


def given_options(context: typer.Context) -> list[str]:
    """Names of the parameters that the user gave, whatever their defaults are."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def refuse_unused(context: typer.Context, chosen: str | Collection[str], of_some: Mapping[str, Sequence[str]]) -> None:
    """Refuse an option that the user gave and that what was chosen does not take.

    Args:
        chosen: one or several.
        of_some: name of a parameter to what takes it; all take the others.

    Raises:
        CurationError: names those that take it.
    """
    several = [chosen] if isinstance(chosen, str) else list(chosen)
    for name in given_options(context):
        if name in of_some and not set(several) & set(of_some[name]):
            what, takers = (", ".join(words) for words in (several, of_some[name]))
            raise CurationError(f"{what} does not take --{name.replace('_', '-')}, which is of {takers}; leave it out")


def _reader(kind: type) -> tuple[Callable[[Any], Any], str]:
    """The parser of a number for typer, and what its help says."""

    def read(text: Any) -> Any:
        try:
            return read_number(text, kind)
        except ValueError as error:
            raise typer.BadParameter(f"{error}; it must be {NAMES[kind]}") from error

    return read, f"<{kind.__name__}>"


def number(help: str, *names: str, **rule: Any) -> Any:
    """A typer option for a number of some range.

    Args:
        names: of the option, where its parameter's name is not enough.
        rule: bounds of `foundation.settings.Range` (ge, gt, le, lt); the rest goes to ``typer.Option``.
    """
    bounds = {key: rule.pop(key) for key in ("ge", "gt", "le", "lt") if key in rule}
    allowed = Range(**bounds)

    def check(param: typer.CallbackParam, value: Any) -> Any:
        require_number(value, allowed, param.opts[0])
        return value

    option = typer.Option(*names, help=help, callback=check, **rule)
    option.number_range = allowed  # a test asks every number for it
    return option


def seed_option(help: str = "Of all random choices: the same seed gives the same result.") -> Any:
    """The option ``--seed``: 0 to 2**32 - 1, what every generator of random numbers takes."""
    return number(help, ge=0, le=LARGEST_SEED)


def whole_numbers(text: str, name: str, allowed: Range) -> list[int]:
    """Numbers of ``0,10,10``.

    Raises:
        CurationError: no such list, or a number out of its range.
    """
    try:
        found = [read_number(part, int) for part in text.split(",")]
    except ValueError as error:
        raise CurationError(f"{name} {short(text)} is not a number or a list such as 0,10,10") from error
    for value in found:
        require_number(value, allowed, name)
    return found


def number_type(kind: type, **bounds: Any) -> Callable[[str], Any]:
    """The ``type=`` of an argparse option: a number of some range."""
    allowed = Range(**bounds)

    def read(text: str) -> Any:
        try:
            value = read_number(text, kind)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{short(text)} is no number") from None
        wrong = wrong_number(value, allowed)
        if wrong:
            raise argparse.ArgumentTypeError(f"{short(value)} must be {wrong}")
        return value

    return read


class Parser(argparse.ArgumentParser):
    """The argparse of scripts: a mistake is one line, and ``output`` never lies where something is read."""

    def __init__(self, about: str | None):
        super().__init__(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise CurationError(f"{message}; see --help")

    def parse_args(self, *arguments: Any, **options: Any) -> Any:  # type: ignore[override]  # of all its forms
        given = super().parse_args(*arguments, **options)
        if isinstance(output := getattr(given, "output", None), Path):
            values = [value for name, value in vars(given).items() if name != "output"]
            several = [item for value in values for item in (value if isinstance(value, list) else [value])]
            require_apart(output, [item for item in several if isinstance(item, str | Path)])
        return given


def path_type(made_by: str = "", ending: str = "", beside: str = "") -> Callable[[str], Path]:
    """The ``type=`` of an argparse option for a result: it can be written, and takes the place of nobody's file.

    Args:
        made_by: mark of the script's own files (`foundation.files.require_own`); "": of a folder.
        ending: that the file must have.
        beside: mark of the ``.json`` of figures that is written beside it; "": there is none.
    """

    def read(text: str) -> Path:
        try:
            path = new_place(text)
            if ending and path.suffix != ending:
                raise CurationError(f"{path} must end in {ending}")
            require_room(path)
            if made_by:
                require_own(path, made_by, None)
            elif os.path.lexists(path) and not path.is_dir():
                raise CurationError(f"{path} is no folder; choose another place")
            if beside:
                require_own(path.with_suffix(".json"), beside, None)
        except CurationError as error:  # argparse would say of any ValueError that the value is invalid
            raise argparse.ArgumentTypeError(str(error)) from error
        return path

    return read


def page_type(title: str, figures: str = '"command"') -> Callable[[str], Path]:
    """`path_type` of a markdown page that begins with ``title``, its figures in a ``.json`` beside it."""
    return path_type(title, ".md", figures)


def overwrite_option(help: str = "Replace what lies at -o, even what another program made.") -> Any:
    """The option ``--overwrite`` of commands that write one file (`foundation.files.require_own`)."""
    return typer.Option("--overwrite", help=help)


def output_option(help: str = "Where the result goes.", endings: tuple[str, ...] = (), outside: bool = False) -> Any:
    """The option ``--output``, a `foundation.paths.new_place` that can be written.

    Args:
        endings: of a file, one of which it must have: another would say a format that is not written.
        outside: it must not lie within a folder that the command reads, which would then hold it.
    """

    def read(text: str | Path) -> Path:
        try:
            path = new_place(text)
            if endings and path.suffix.lower() not in endings:
                raise CurationError(f"{path} must end in {' or '.join(endings)}")
            require_room(path)
        except CurationError as error:
            raise typer.BadParameter(str(error)) from error
        return path

    option = typer.Option("--output", "-o", help=help, parser=read, metavar="<path>")
    option.one_file, option.outside = bool(endings), outside
    return option
