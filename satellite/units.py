"""Metres, whatever a file holds."""

import warnings

from foundation.errors import CurationError
from satellite.errors import HeightWarning

METRES = {"m": 1.0, "cm": 0.01, "dm": 0.1, "ft": 0.3048, "us-ft": 1200 / 3937}
TALLEST = 116.0  # metres: Hyperion, a coast redwood (Sequoia sempervirens)
NO_DEPTH = -50.0  # metres: no ground or crown lies so far below the ground; likewise
NO_HEIGHT = 20_000.0  # metres: beyond it, it is a number for "no data" that the file does not declare


def metres_per(unit: str) -> float:
    """Factor to metres.

    Raises:
        CurationError: an unknown unit.
    """
    if unit not in METRES:
        raise CurationError(f"unit {unit!r} is unknown; use {', '.join(METRES)}")
    return METRES[unit]


def warn_if_implausible(tallest: float, unit: str, name: str) -> None:
    """Warn when the greatest height (metres) is above the tallest tree known."""
    if tallest <= TALLEST:
        return
    likely = next((u for u in ("ft", "dm", "cm") if tallest / METRES[unit] * METRES[u] <= TALLEST), None)
    hint = f"are they in {likely}? give --units {likely}" if likely and likely != unit else "look for noise points"
    warnings.warn(
        f"{name}: the greatest height is {tallest:.0f} m, above the tallest tree known ({TALLEST:.0f} m); {hint}",
        HeightWarning,
        stacklevel=2,
    )


def refuse_no_height(tallest: float, lowest: float, unit: str, name: str) -> None:
    """Refuse a raster with a height (metres) above or below all that grows on Earth.

    Raises:
        CurationError: it has one.
    """
    wrong = tallest if tallest > NO_HEIGHT else lowest if lowest < NO_DEPTH else None
    if wrong is not None:
        raise CurationError(
            f"{name} holds a height of {wrong:g} m; if that number stands for no data, say so in the file: "
            f"gdal_edit.py -a_nodata {wrong / METRES[unit]:g}"
        )
