"""Functions with their first arguments filled in, equal when they are built twice of the same parts."""

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
    """`function(*given, ...)` as a value: what a compiled program knows an evaluation by.

    Two are equal if function and arguments are the same objects, or equal numbers. (`functools.partial`
    equals nothing but itself, so an evaluation that is built again would be compiled again.)

    Attributes:
      function: of a module, not made anew in every call.
      given: its first arguments: functions, numbers, tuples of numbers, None.
    """

    function: Callable[..., Any]
    given: tuple[Any, ...]

    def __call__(self, *arguments: Any) -> Any:
        """The function of all arguments."""
        return self.function(*self.given, *arguments)

    def __eq__(self, other: object) -> bool:
        """Whether the parts are the same."""
        return isinstance(other, Bound) and self._parts() == other._parts()

    def __hash__(self) -> int:
        """Of the parts."""
        return hash(self._parts())

    def _parts(self) -> tuple[Any, ...]:
        # The objects live as long as this does, so that their numbers stand for them.
        kinds = (int, tuple, type(None))
        return id(self.function), *(
            part if isinstance(part, kinds) else id(part) for part in self.given
        )
