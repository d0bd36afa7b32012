"""The one place that knows how JAX writes down a traced program."""

from typing import Any


def scan_operands(equation: Any) -> tuple[int, int]:
    """How many operands of a scan every step reads whole, and how many are carried from step to step.

    Read from shapes, as the parameters that say so change from one JAX to the next: a scanned operand
    has one axis more than what a step sees of it, and so has a stacked result.
    """
    body = equation.params["jaxpr"]
    body = getattr(body, "jaxpr", body)

    def of_equal_rank(outside: Any, inside: Any) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(o.aval.shape) == len(i.aval.shape) for o, i in pairs)

    carried = of_equal_rank(equation.outvars, body.outvars)
    return of_equal_rank(equation.invars, body.invars) - carried, carried
