"""Quadratic objectives of clients in their eigenbases, where a proximal point is two thin products."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.clients import map_clients
from dflax.data.dataset import Dataset
from dflax.data.partition import Partition, from_indices
from dflax.federation import Federation
from dflax.population import Assignment, Round


class Quadratic(NamedTuple):
    """f(x) = (1/2) x^T G x - h^T x with G = basis^T diag(curvature) basis and h = basis^T slope.

    Stacked over clients every leaf leads with n. Rows of the basis beyond a client's rank are zero.

    Attributes:
      basis: `[r, d]`, orthonormal rows (or zero).
      curvature: `[r]`, eigenvalues of G, >= 0.
      slope: `[r]`, h in the basis.
    """

    basis: Float[Array, "r d"]
    curvature: Float[Array, " r"]
    slope: Float[Array, " r"]

    def proximal_point(
        self, center: Float[Array, " d"], penalty: float | Array
    ) -> Float[Array, " d"]:
        """The minimiser (G + rho I)^-1 (h + rho center) of f(x) + (rho / 2) |x - center|^2.

        Computed as `center + basis^T ((slope - curvature basis center) / (curvature + rho))`: no
        inverse, so that curvatures of 10^6 beside zeros do no harm in float32.
        """
        inner = _times(self.basis, center)
        step = (self.slope - self.curvature * inner) / (self.curvature + penalty)
        return center + _times(step, self.basis)

    def toward(
        self, x: Float[Array, " d"], target: Float[Array, " d"], penalty: float | Array
    ) -> Float[Array, " d"]:
        """Moves by P (target - x), P = rho (G + rho I)^-1: fully where f is flat, hardly where steep."""
        away = target - x
        held = self.curvature / (self.curvature + penalty) * _times(self.basis, away)
        return x + (away - _times(held, self.basis))


def quadratic_objectives(
    data: Dataset, partition: Partition, *, scale: float = 1.0, dtype: type = np.float32
) -> Quadratic:
    """The objectives of clients who regress linearly, f_i(x) = (scale / 2) |A_i x - b_i|^2.

    A_i are the inputs of client i's examples, b_i their labels. Weighted least squares are of this
    form once rows and labels are multiplied by the inverse square root of the noise's covariance.
    Decomposed here once, by a thin singular value decomposition in float64.

    Args:
      data: inputs `[N, d]`, labels `[N]`.
      partition: the rows of each client.
      scale: > 0; 2 for a square without the half.
      dtype: of the result; float64 needs `jax.enable_x64`.

    Returns:
      A `Quadratic` with leaves `[n, r, d]` and `[n, r]`, r the largest of min(n_i, d).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("data", data, Dataset, "Of a Split pass its .train.")
    validation.instance("partition", partition, Partition)
    validation.real("scale", scale, low=0.0, low_open=True, scalar=True)
    validation.dtype("dtype", dtype)
    inputs, labels = np.asarray(data.inputs, np.float64), np.asarray(data.labels, np.float64)
    if inputs.ndim != 2 or labels.ndim != 1:
        raise ValueError(
            f"data must have inputs [N, d] and labels [N], got {inputs.shape} and {labels.shape}."
        )
    factors = [
        np.linalg.svd(np.sqrt(scale) * inputs[rows], full_matrices=False)
        for rows in partition.as_lists()
    ]
    rank = max(len(values) for _, values, _ in factors)
    basis = np.zeros((len(factors), rank, inputs.shape[1]))
    curvature, slope = np.zeros(basis.shape[:2]), np.zeros(basis.shape[:2])
    for client, (rows, (left, values, right)) in enumerate(
        zip(partition.as_lists(), factors, strict=True)
    ):
        own = len(values)
        basis[client, :own] = right
        curvature[client, :own] = values**2
        slope[client, :own] = values * (left.T @ (np.sqrt(scale) * labels[rows]))
    return Quadratic(*(jnp.asarray(leaf, dtype) for leaf in (basis, curvature, slope)))


def quadratic_federation(objectives: Quadratic, **options: Any) -> Federation:
    """A federation whose example i is the objective of client i, for methods that solve it exactly.

    The objectives are data of the source. No state and no checkpoint holds them.

    Args:
      objectives: leaves `[n, ...]`.
      **options: of `dflax.Federation`, such as `participation` and `weights`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    _require_objectives(objectives)
    clients = validation.leading_axis("objectives", objectives)
    data = Dataset(objectives, jnp.arange(clients, dtype=jnp.int32), name="objectives")
    partition = from_indices([np.array([client]) for client in range(clients)])
    given: dict[str, Any] = {"local_steps": 1, "weights": jnp.ones(clients)}
    return Federation(data, partition, batch_size=1, **(given | options))


def objectives_of(round: Round) -> Quadratic:
    """All clients' objectives, leaves `[n, ...]`, of a round of `quadratic_federation`.

    Raises:
      TypeError: a round whose examples are no objectives.
    """
    _require_examples(round.data)
    return round.data.inputs


def objective_of(assignment: Assignment, data: Dataset) -> Quadratic:
    """One client's objective, in a round of `quadratic_federation`.

    Raises:
      TypeError: a round whose examples are no objectives.
    """
    _require_examples(data)
    own = data.fetch(assignment.minibatches[0, :1]).inputs
    return jax.tree.map(lambda leaf: leaf[0], own)


def proximal_points(
    objectives: Quadratic, center: Float[Array, " d"], penalty: float | Array
) -> Float[Array, "n d"]:
    """Every client's proximal point of one center: where consensus ADMM with duals of 0 starts.

    Args:
      objectives: leaves `[n, ...]`.
      center: `[d]`.
      penalty: rho > 0.

    Raises:
      TypeError, ValueError: no `Quadratic`, or a center of another dimension.
    """
    _require_objectives(objectives)
    validation.model("params", center)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    if jnp.shape(center) != objectives.basis.shape[-1:]:
        raise ValueError(
            f"params must be one array of the objectives' shape {objectives.basis.shape[-1:]}, got "
            f"{jax.tree.map(jnp.shape, center)}. Quadratic objectives know flat models only."
        )

    def one(objective: Quadratic, center: Array) -> Array:
        return objective.proximal_point(center, penalty)

    return map_clients(one, objectives, shared=(center,))


def _require_examples(data: Any) -> None:
    if not isinstance(data, Dataset) or not isinstance(data.inputs, Quadratic):
        raise TypeError(
            "the round's examples must be the clients' objectives, which this method solves exactly. "
            "Make its source with dflax.local.quadratic_federation(objectives)."
        )


def _require_objectives(objectives: Quadratic) -> None:
    fix = "Make them with dflax.local.quadratic_objectives."
    validation.instance("objectives", objectives, Quadratic, fix)
    validation.leading_axis("objectives", objectives)


def _times(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")
