"""Metrics by name: how several dictionaries become one in which nothing is hidden."""

from collections.abc import Mapping
from typing import Any

from dflax import validation


def disjoint(**parts: Mapping[str, Any]) -> dict[str, Any]:
    """The union of several metrics; a name that two of them have is refused.

    Args:
      **parts: metrics by the name of what measured them, which the message tells.

    Returns:
      One dictionary, in the order of the parts.

    Raises:
      TypeError: a part that is no dict.
      ValueError: two parts have a metric of the same name.
    """
    owner: dict[str, str] = {}
    joined: dict[str, Any] = {}
    for part, metrics in parts.items():
        validation.instance(part, metrics, Mapping, "Metrics are a dict of numbers or arrays.")
        for name, value in metrics.items():
            if name in owner:
                raise ValueError(
                    f"metrics must have names of their own, got {name!r} from both {owner[name]} "
                    f"and {part}. Rename one of them."
                )
            owner[name] = part
            joined[name] = value
    return joined
