"""What took how long: each step of a long command says that it begins, and one line at the end sums up."""

import time
from collections.abc import Callable


class Clock:
    """Seconds of named steps.

    Attributes:
        seconds: name of a finished step -> seconds, in the order of the steps; one that ran twice counts twice.
    """

    def __init__(self, say: Callable[[str], None] = lambda _line: None):
        self.say, self.seconds = say, dict[str, float]()
        self.started = self.began = time.perf_counter()
        self.name = ""

    def begin(self, name: str, about: str = "") -> None:
        """The step before this ends, and this begins; ``about`` is told. An empty name begins none."""
        now = time.perf_counter()
        if self.name:
            self.seconds[self.name] = self.seconds.get(self.name, 0.0) + now - self.began
        self.name, self.began = name, now
        if about:
            self.say(f"{name}: {about}")

    @property
    def total(self) -> float:
        return time.perf_counter() - self.started

    def line(self) -> str:
        """Such as "embed 1 min 2 s, cluster 9.4 s; 1 min 12 s in all", steps below half a second left out."""
        self.begin("")
        shown = [f"{name} {spoken(seconds)}" for name, seconds in self.seconds.items() if seconds >= 0.5]
        return "; ".join([", ".join(shown)] * bool(shown) + [f"{spoken(self.total)} in all"])


def spoken(seconds: float) -> str:
    """A time as people say it: "0.4 s", "12 s", "3 min 5 s", "2 h 7 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
