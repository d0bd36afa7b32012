"""What agents predict, each from its own observations, and their predictions fused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.clients import map_clients
from dflax.data.dataset import AnyArray
from dflax.gaussian_processes.agents import Agents, check_agents, noise_of_each
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.triangular import triangular_inverse


class Prediction(NamedTuple):
    """Normal laws of the targets at some points, noise included.

    Attributes:
      mean: `[..., m]`.
      variance: `[..., m]`, > 0.
    """

    mean: Float[Array, "*N m"]
    variance: Float[Array, "*N m"]


def predict(
    kernel: MultipleKernel,
    theta: Float[AnyArray, "*N A"],
    agents: Agents,
    noise: float | Float[AnyArray, " N"],
    points: Float[AnyArray, "m P"],
    *,
    at_once: int | None = None,
) -> Prediction:
    """Each agent's prediction at the same points.

        mean = K_* C^-1 y,   variance = k(x, x) + s2 - diag(K_* C^-1 K_*')

    Args:
      kernel: see `gsmp`.
      theta: `[A]` the weights that all share, or `[N, A]` each agent's own, >= 0.
      agents: see `agents`; for the global prediction, all observations as one agent's.
      noise: variance s2 > 0, one for all or one each.
      points: `[m, P]`, or `[m]` in one dimension.
      at_once: see `dflax.map_clients`.

    Returns:
      A `Prediction` with leaves `[N, m]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_agents(kernel, agents)
    count = len(agents.targets)
    fix = "Clip them at 0 where ADMM has not ended: jnp.maximum(theta, 0)."
    given = jnp.asarray(validation.array("theta", theta, kind="real", low=0.0, fix=fix))
    if given.shape not in ((kernel.components,), (count, kernel.components)):
        raise ValueError(
            f"theta must have shape [{kernel.components}] or [{count}, {kernel.components}], got "
            f"{given.shape}."
        )
    variances = noise_of_each(agents, noise)
    where = jnp.asarray(validation.array("points", points, kind="real"))
    where = where[:, None] if where.ndim == 1 else where
    if where.ndim != 2 or where.shape[1] != kernel.dimensions or not len(where):
        raise ValueError(
            f"points must have shape [m, {kernel.dimensions}], m >= 1, got {where.shape}."
        )
    validation.at_once(at_once)
    kind = agents.targets.dtype
    own = jnp.broadcast_to(given.astype(kind), (count, kernel.components))

    def one(agent: Agents, theta: Array, noise: Array, points: Array) -> Prediction:
        apart = agent.mask[:, None] * agent.mask
        eye = jnp.eye(len(agent.targets), dtype=kind)
        covariance = kernel.cross(theta, agent.inputs, agent.inputs) * apart
        factor = jnp.linalg.cholesky(covariance + noise * eye)
        across = kernel.cross(theta, points, agent.inputs) * agent.mask
        solution = jax.scipy.linalg.cho_solve((factor, True), agent.targets)
        halves = jnp.matmul(triangular_inverse(factor), across.T, precision="highest")
        variance = jnp.sum(theta) + noise - jnp.sum(jnp.square(halves), axis=0)
        return Prediction(jnp.matmul(across, solution, precision="highest"), variance)

    return map_clients(one, agents, own, variances, shared=(where.astype(kind),), at_once=at_once)


def fused(prediction: Prediction) -> Prediction:
    """Agents' predictions joined by precision: a product of experts.

        variance = 1 / sum_j 1 / variance_j,   mean = variance sum_j mean_j / variance_j

    Args:
      prediction: leaves `[N, m]`.

    Returns:
      Leaves `[m]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("prediction", prediction, Prediction, "Make it with predict().")
    validation.array("prediction.mean", prediction.mean, kind="real", shape=("N", "m"))
    validation.array(
        "prediction.variance", prediction.variance, kind="real", shape=prediction.mean.shape
    )
    precision = 1 / prediction.variance
    variance = 1 / jnp.sum(precision, axis=0)
    return Prediction(variance * jnp.sum(precision * prediction.mean, axis=0), variance)
