"""What every energy meter is: a name and two functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

Mark = Any


class MeterError(RuntimeError):
    """A meter that is not here: no such hardware, no right to read it, no package that reads it."""


class Energy(NamedTuple):
    """What a meter read.

    Attributes:
      joules: since the mark; NaN where its counter was reset in between.
      seconds: since the mark.
      meter: the meter's name; a number of joules is worth little without it.
    """

    joules: float
    seconds: float
    meter: str

    @property
    def watts(self) -> float:
        """Mean power; NaN where no time has passed."""
        return self.joules / self.seconds if self.seconds > 0 else float("nan")


class Meter(NamedTuple):
    """An energy meter of this machine, for the host: it reads clocks and files, outside of `jax.jit`.

    Attributes:
      name: of the meter and of what it covers.
      begin: `() -> mark`.
      since: `mark -> Energy` between the mark and now. May be asked again and again, as a counter is.
    """

    name: str
    begin: Callable[[], Mark]
    since: Callable[[Mark], Energy]
