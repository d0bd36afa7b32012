"""Imaging with receivers that keep what they measured: consensus ADMM whose prox is the prior's."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState
from dflax.clients import map_clients, replicate
from dflax.data.dataset import Dataset
from dflax.data.partition import from_indices
from dflax.federation import Federation
from dflax.imaging.data_step import Basis, basis_of, first_guess, in_basis
from dflax.imaging.forward import Operator
from dflax.imaging.pnp_admm import check_parts, measured_by
from dflax.imaging.priors import Prior
from dflax.local.consensus import Minimised, Nearby, Splitting
from dflax.local.convex.proximal import onto_ball
from dflax.population import Assignment
from dflax.server.admm.consensus import consensus


class Parts(NamedTuple):
    """Scenes as they travel: real and imaginary parts, `[B, X, Y, Z]` each."""

    real: Float[Array, "B X Y Z"]
    imaginary: Float[Array, "B X Y Z"]


class Received(NamedTuple):
    """What R receivers have, leaves `[R, ...]`.

    Attributes:
      arrays: of each receiver's own forward model A_i.
      basis: of A_i A_i^H, M_i = F T.
      measurements: `[R, B, F, T, 1]`.
      radius: `[R, B]`, eps sqrt(1 / R) each: the noise of a receiver.
    """

    arrays: PyTree[Array]
    basis: Basis
    measurements: Complex[Array, "R B F T 1"]
    radius: Float[Array, "R B"]


class Copy(NamedTuple):
    """A receiver's copies of A_i x and their duals, `[R, B, F, T, 1]`."""

    v2: Complex[Array, "R B F T 1"]
    d2: Complex[Array, "R B F T 1"]


def received(
    operator: Operator,
    measurements: Complex[Array, "B F T R"],
    radius: float | Float[Array, " B"],
    *,
    among: int | None = None,
) -> Received:
    """Deals the measurements of B scenes to the receivers that took them.

    Args:
      operator: see `dense` and `low_memory`.
      measurements: y, `[B, F, T, R]`.
      radius: eps of all measurements together, >= 0, one or one a scene; a receiver gets its share
        eps / sqrt(n).
      among: n; default R, a receiver a client. 1: one client has all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("operator", operator, Operator, "For example dense(crossed_diagonals()).")
    y, eps = measured_by("measurements", operator, measurements, radius)
    count = operator.measured[2] if among is None else among
    if among is not None:
        validation.integer("among", among, low=1)
        if among not in (1, operator.measured[2]):
            raise ValueError(f"among must be 1 or {operator.measured[2]} receivers, got {among}.")
    if count == 1:
        arrays = jax.tree.map(lambda leaf: leaf[None], operator.arrays)
        own = y[None]
    else:
        arrays = operator.of_receivers(operator.arrays)
        own = jnp.moveaxis(y[..., None], 3, 0)
    basis = map_clients(lambda arrays: basis_of(operator, arrays), arrays, at_once=1)
    return Received(arrays, basis, own, replicate(eps / np.sqrt(count), count))


def receiving(kept: Received, **options: Any) -> Federation:
    """A federation whose example i is what receiver i has measured.

    Args:
      kept: of `received`.
      **options: of `dflax.Federation`, such as `participation`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("kept", kept, Received, "Make it with received().")
    count = validation.leading_axis("kept", kept)
    data = Dataset(kept, jnp.arange(count, dtype=jnp.int32), name="measurements")
    partition = from_indices([np.array([receiver]) for receiver in range(count)])
    given: dict[str, Any] = {"local_steps": 1, "weights": jnp.ones(count)}
    return Federation(data, partition, batch_size=1, **(given | options))


def pnp_consensus(
    operator: Operator,
    prior: Prior,
    clients: int,
    *,
    penalty: float = 500.0,
    strength: float | Float[Array, ""] = 3.9e-2,
    least_squares: bool = False,
    **options: Any,
) -> Algorithm:
    """PnP-ADMM whose measurements stay with the receivers: an instance of `dflax.server.consensus`.

        x_i  = argmin |A_i x - v2_i - d2_i|^2 + kappa |x - v1 + lambda_i / kappa|^2
        v2_i = the nearest point to A_i x_i - d2_i with |v2_i - y_i| <= eps_i,   d2_i -= A_i x_i - v2_i
        v1   = prox_R(mean of x_i + lambda_i / kappa; alpha / n)
        lambda_i = lambda_i + kappa (x_i - v1)

    One client with everything is `pnp_admm`, iteration by iteration. With a ball for each receiver
    the set of scenes that explain the data is another than with one ball for all. With least
    squares in the place of balls the minimiser is the same however the measurements are dealt, if R is
    convex.

    Args:
      operator: whose functions the receivers' own models use.
      prior: see `pnp_admm`.
      clients: n, receivers, or 1.
      penalty: kappa > 0; traceable.
      strength: alpha > 0, of one client's prox; traceable.
      least_squares: minimise alpha kappa R + (1 / 2) |A x - y|^2 without balls: v2_i = y_i, d2_i = 0.
      **options: `channel`, `aggregator`, `downlink`, `at_once`, `stop` of `dflax.server.consensus`.

    Returns:
      An `Algorithm`. `init(key, start, kept)` with `start` from `first_scenes` and what `received`
      gave; its rounds are of `receiving(kept)`. v1 is `state.server.params`, a `Parts`; see
      `shared_scenes`. Metrics: those of `dflax.server.consensus`, and `misfit`, the mean
      |y_i - A_i x_i| / |y_i|.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_parts(operator, prior, penalty, strength)
    validation.integer("clients", clients, low=1)
    validation.flag("least_squares", least_squares)

    def start(z: Parts, kept: Received) -> tuple[Parts, Copy]:
        validation.instance("kept", kept, Received, "Make it with received().")
        validation.leading_axis("kept", kept, clients)

        def seen(arrays: PyTree[Array], x: Array) -> Array:
            return jax.vmap(operator.forward, (None, 0))(arrays, x)

        v2 = map_clients(seen, kept.arrays, shared=(whole(z),))
        v2 = kept.measurements if least_squares else v2
        return replicate(z, clients), Copy(v2, jnp.zeros_like(v2))

    def minimise(
        assignment: Assignment, own: Splitting, nearby: Nearby, data: Dataset, index: Array
    ) -> Minimised:
        kept = _received_by(assignment, data)

        def solve(center: Array, v2: Array, d2: Array) -> tuple[Array, Array]:
            return in_basis(operator, kept.arrays, kept.basis, center, v2 + d2, nearby.penalty)

        x, seen = jax.vmap(solve)(whole(nearby.center), *own.memory)
        memory = own.memory
        if not least_squares:
            v2 = jax.vmap(onto_ball)(seen - memory.d2, kept.measurements, kept.radius)
            memory = Copy(v2, memory.d2 - (seen - v2))
        away = jnp.linalg.norm(kept.measurements - seen) / jnp.linalg.norm(kept.measurements)
        return Minimised(Parts(x.real, x.imag), memory, {"misfit": away})

    def combine(mean: Parts, total: Array, key: Array) -> Parts:
        alpha = strength * penalty / total
        v = jax.vmap(prior.prox, (None, 0, None))(prior.weights, whole(mean), alpha)
        return Parts(v.real, v.imag)

    return consensus(minimise, penalty, clients, start=start, combine=combine, **options)


def first_scenes(operator: Operator, measurements: Complex[Array, "B F T R"]) -> Parts:
    """Where `pnp_admm` starts, A^H y / max |A^H y|, as the parts that receivers share.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("operator", operator, Operator, "For example dense(crossed_diagonals()).")
    y, _ = measured_by("measurements", operator, measurements, 0.0)
    x = jax.vmap(lambda own: first_guess(operator, operator.arrays, own))(y)
    return Parts(x.real, x.imag)


def shared_scenes(state: FederatedState) -> Complex[Array, "B X Y Z"]:
    """The scenes v1 of a state of `pnp_consensus`."""
    if not isinstance(getattr(getattr(state, "server", None), "params", None), Parts):
        raise TypeError(f"state must be one of pnp_consensus, got {type(state).__name__}.")
    return whole(state.server.params)


def whole(parts: Parts) -> Complex[Array, "*S"]:
    """Complex numbers from their parts."""
    return jax.lax.complex(parts.real, parts.imaginary)


def _received_by(assignment: Assignment, data: Dataset) -> Received:
    if not isinstance(data, Dataset) or not isinstance(data.inputs, Received):
        raise TypeError(
            "the round's examples must be the receivers' measurements. Make its source with "
            "dflax.imaging.receiving(received(operator, measurements, radius))."
        )
    own = data.fetch(assignment.minibatches[0, :1]).inputs
    return jax.tree.map(lambda leaf: leaf[0], own)
