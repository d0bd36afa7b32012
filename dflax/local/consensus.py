"""What consensus ADMM asks of a client: a minimisation near a point, whoever combines what comes out."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, PyTree

from dflax import returned
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Dataset
from dflax.population import Assignment


class Splitting(NamedTuple):
    """What each client remembers, leaves `[n, ...]`.

    Attributes:
      params: x_i.
      dual: lambda_i, unscaled, so that rho may change: a gradient in the units of E x_i.
      penalty: `[]` rho as the client knows it, where it adapts; () where it is fixed.
      memory: the method's own: slacks, constraint duals, a warm start; () for none.
    """

    params: Params
    dual: PyTree[Array]
    penalty: Float[Array, ""] | tuple[()] = ()
    memory: Any = ()


class Nearby(NamedTuple):
    """What a client's minimisation is around.

    Attributes:
      center: z - lambda_i / rho.
      penalty: `[]` rho.
      shared: z as the client has it.
    """

    center: PyTree[Array]
    penalty: Float[Array, ""]
    shared: PyTree[Array]


class Minimised(NamedTuple):
    """What comes out of it.

    Attributes:
      params: x_i.
      memory: as `Splitting.memory`.
      metrics: what was measured.
    """

    params: Params
    memory: Any = ()
    metrics: Metrics = {}  # noqa: RUF012


Minimise = Callable[[Assignment, Splitting, Nearby, Dataset, Int[Array, ""]], Minimised]


def identity(params: Params) -> Params:
    """All of a client's variable is shared."""
    return params


def minimised(
    minimise: Minimise,
    assignment: Assignment,
    own: Splitting,
    nearby: Nearby,
    data: Dataset,
    index: Int[Array, ""],
) -> tuple[Splitting, Metrics]:
    """What a client remembers after its minimisation, its dual as before, and what was measured.

    Raises:
      TypeError, ValueError: naming what `minimise` returned that does not fit.
    """
    found = minimise(assignment, own, nearby, data, index)
    if not isinstance(found, Minimised):
        raise TypeError(f"minimise must return a Minimised, got {type(found).__name__}.")
    returned.alike("the params of Minimised", found.params, own.params, "those it got")
    returned.alike("the memory of Minimised", found.memory, own.memory, "the one it got")
    return own._replace(params=found.params, memory=found.memory), found.metrics
