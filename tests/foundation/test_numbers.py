"""Numbers are read one way, wherever they stand."""

import math
from typing import Annotated

import pytest

from foundation.errors import CurationError
from foundation.numbers import figure, read_number
from foundation.options import App, number, number_type, whole_numbers
from foundation.settings import Count, Range, check, fill, read_settings
from foundation.yaml_files import check_yaml

ODD = ["010", "1:30", "0x10", "0b11", "٣", "⁵", "1_", "1__0", "", "abc", "1,5"]


@pytest.mark.parametrize(("text", "value"), [("12", 12), (" 5\n", 5), ("1_000", 1000), ("1e6", 10**6), ("-0", 0)])
def test_a_whole_number(text: str, value: int):
    found = read_number(text, int)
    assert (found, type(found)) == (value, int)
    assert read_number(text, float) == value


def test_digits_are_not_lost_and_infinity_is_left_to_a_range():
    assert read_number("9" * 30, int) == 10**30 - 1
    assert math.isinf(read_number("-.inf", float))
    assert read_number(3, int) == 3
    with pytest.raises(ValueError, match="no whole number"):
        read_number("1.5", int)


@pytest.mark.parametrize("text", ODD)
def test_what_one_reader_takes_for_another_number_is_refused_by_all(text: str, capsys: pytest.CaptureFixture[str]):
    """`seed=010` was 8 and `seed=1:30` was 90; an option took the digits of any script, another did not."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Settings:
        n: Count = 1

        def __post_init__(self) -> None:
            check(self)

    with pytest.raises(ValueError, match="is no number"):
        read_number(text, int)
    with pytest.raises(Exception, match="is no number"):
        number_type(int, ge=0)(text)
    if "," not in text:
        with pytest.raises(CurationError, match="is not a number"):
            whole_numbers(text, "--list", Range(ge=0))
    for written in (text, f"'{text}'"):
        with pytest.raises(CurationError):
            fill(Settings, read_settings(None, [f"n={written}"]))
    app = App(pretty_exceptions_enable=False)

    @app.command()
    def run(n: Annotated[int | None, number("A number.", ge=1)] = None) -> None:
        print("ran")

    with pytest.raises(SystemExit):
        app([f"--n={text}"])
    assert "ran" not in capsys.readouterr().out


def test_text_that_looks_like_a_number_stays_text_in_quotes():
    check_yaml("name: '010'\nversion: 1.2.3\nday: 2026-01-01\nrate: 1e-3\nlow: -.inf\n", "x")
    with pytest.raises(CurationError, match="in quotes"):
        check_yaml("name: 010\n", "x")


def test_a_small_figure_is_not_zero_for_a_reader():
    assert [figure(x) for x in (0.0001234, 0.5, 12.345, 1234567.8, 0, -0.02)] == [
        "0.000123", "0.500", "12.3", "1,234,568", "0", "-0.0200",
    ]  # fmt: skip
