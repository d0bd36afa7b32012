"""PnP-ADMM on the magnitude: scenes from few measurements, with any prior of their magnitudes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics
from dflax.clients import map_clients, select
from dflax.imaging.data_step import basis_of, by_gradients, first_guess, in_basis
from dflax.imaging.forward import Operator
from dflax.imaging.priors import Prior
from dflax.local.convex.proximal import onto_ball
from dflax.population import Round


class Instrument(NamedTuple):
    """What all scenes share.

    Attributes:
      arrays: of the forward model.
      basis: a `Basis` of A A^H; () where conjugate gradients take its place.
      weights: of the prior.
    """

    arrays: PyTree[Array]
    basis: Any
    weights: PyTree[Array]


class Scenes(NamedTuple):
    """B scenes and how far they are, leaves `[B, ...]`.

    Attributes:
      measurements: y, `[B, F, T, R]`.
      radius: eps, `[B]`.
      x: `[B, X, Y, Z]`, the estimate.
      v1: its copy that the prior sees.
      v2: `[B, F, T, R]`, the copy of A x that the data see.
      d1: scaled dual of v1 = x.
      d2: scaled dual of v2 = A x.
      done: `[B]`; from then on a scene stands still, bit for bit.
      iterations: `[B]`, how many it took.
    """

    measurements: Complex[Array, "B F T R"]
    radius: Float[Array, " B"]
    x: Complex[Array, "B X Y Z"]
    v1: Complex[Array, "B X Y Z"]
    v2: Complex[Array, "B F T R"]
    d1: Complex[Array, "B X Y Z"]
    d2: Complex[Array, "B F T R"]
    done: Bool[Array, " B"]
    iterations: Int[Array, " B"]


def pnp_admm(
    operator: Operator,
    prior: Prior,
    *,
    penalty: float | Float[Array, ""] = 500.0,
    strength: float | Float[Array, ""] = 3.9e-2,
    tolerance: float | Float[Array, ""] = 5e-4,
    growth: float | Float[Array, ""] = 1.0,
    decay: float | Float[Array, ""] = 1.0,
    cg_steps: int | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Plug-and-play ADMM (C-SALSA): min R(x) subject to |y - A x| <= eps, an iteration a round.

        x   = argmin |A x - v2 - d2|^2 + kappa |x - v1 - d1|^2
        v1  = prox_R(x - d1; alpha)
        v2  = the nearest point to A x - d2 with |v2 - y| <= eps
        d1 <- d1 - (x - v1),   d2 <- d2 - (A x - v2)

    from x = A^H y / max |A^H y|, v1 = x, v2 = A x and duals of 0. Scenes are solved side by side. One
    is done when its magnitudes change by less than `tolerance` times their norm, from the second
    iteration on, and stands still then. The x-step is exact, in the eigenbasis of A A^H that `init`
    finds once (M = F T R: an M x M matrix), and takes one product with A and one with A^H.

    Args:
      operator: see `dense` and `low_memory`.
      prior: see `sparse`, `small_variation`, `learned`, `of_magnitude`.
      penalty: kappa > 0, to be held against the eigenvalues of A^H A; traceable.
      strength: alpha > 0, the prox's weight or the variance that the denoiser is told; traceable.
      tolerance: >= 0; traceable.
      growth: kappa is multiplied by it after each iteration, >= 1; traceable.
      decay: alpha is divided by it after each iteration, >= 1; traceable.
      cg_steps: None for the exact x-step; otherwise so many conjugate gradient steps from the last x
        (the authors': 5), which need neither basis nor M x M matrix, and two products each.
      at_once: scenes at the same time on a device; default all. See `dflax.map_clients`.

    Returns:
      An `Algorithm`. `init(key, measurements, radius)` takes y `[B, F, T, R]` and eps >= 0, one or one
      a scene; 0 asks for A x = y. Scenes are the clients of `dflax.Population(B)`; who is left out of a
      round stands still. Estimates: `magnitudes(state)`, `state.clients.x`. Metrics, means over
      scenes: `misfit`, |y - A x| / |y|; `apart`, |x - v1| / |x|; `change`, of the magnitudes; `done`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Oral and Oktem, Plug-and-Play Regularization on Magnitude with Deep Priors for 3D Near-Field MIMO
      Imaging, arXiv 2312.16024; Afonso, Bioucas-Dias and Figueiredo, An Augmented Lagrangian Approach
      to the Constrained Optimization Formulation of Imaging Inverse Problems, 2011.
    """
    check_parts(operator, prior, penalty, strength)
    validation.real("tolerance", tolerance, low=0.0, scalar=True)
    validation.real("growth", growth, low=1.0, scalar=True)
    validation.real("decay", decay, low=1.0, scalar=True)
    if cg_steps is not None:
        validation.integer("cg_steps", cg_steps, low=1)
    validation.at_once(at_once)

    def init(
        key: Key[Array, ""], params: Complex[Array, "B F T R"], radius: float | Float[Array, " B"]
    ) -> FederatedState:
        validation.typed_key("key", key)
        y, eps = measured_by("params", operator, params, radius)
        arrays = operator.arrays
        basis = basis_of(operator, arrays) if cg_steps is None else ()
        x = jax.vmap(lambda own: first_guess(operator, arrays, own))(y)
        seen = jax.vmap(operator.forward, (None, 0))(arrays, x)
        count = y.shape[0]
        scenes = Scenes(
            y,
            eps,
            x,
            x,
            seen,
            jnp.zeros_like(x),
            jnp.zeros_like(y),
            jnp.zeros(count, bool),
            jnp.zeros(count, jnp.int32),
        )
        return FederatedState(jnp.int32(0), Instrument(arrays, basis, prior.weights), scenes)

    def iterate(scene: Scenes, there: Array, shared: Instrument) -> tuple[Scenes, Metrics]:
        y, eps, before, v1, v2, d1, d2, done, t = scene
        kappa, alpha = penalty * growth**t, strength / decay**t
        center, target = v1 + d1, v2 + d2
        if cg_steps is None:
            x, seen = in_basis(operator, shared.arrays, shared.basis, center, target, kappa)
        else:
            x, seen = by_gradients(operator, shared.arrays, before, center, target, kappa, cg_steps)
        v1 = prior.prox(shared.weights, x - d1, alpha)
        v2 = onto_ball(seen - d2, y, eps)
        d1, d2 = d1 - (x - v1), d2 - (seen - v2)
        change = norm(jnp.abs(x) - jnp.abs(before)) / positive(norm(before))
        enough = (change < tolerance) & (t >= 1)
        after = Scenes(y, eps, x, v1, v2, d1, d2, enough, t + 1)
        metrics = {
            "misfit": norm(y - seen) / positive(norm(y)),
            "apart": norm(x - v1) / positive(norm(x)),
            "change": change,
        }
        return select(there & ~done, after, scene), metrics

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        scenes = state.clients
        count = scenes.radius.shape[0]
        there = present(round, count)
        after, metrics = map_clients(
            iterate, scenes, there, shared=(state.server,), at_once=at_once or count
        )
        measured = {name: value.mean() for name, value in metrics.items()}
        measured["done"] = after.done.mean(dtype=measured["change"].dtype)
        return FederatedState(state.round + 1, state.server, after), measured

    return Algorithm(init, step)


def magnitudes(state: FederatedState) -> Float[Array, "B X Y Z"]:
    """The estimates `|x| / max |x|` of a state of `pnp_admm`."""
    if not isinstance(getattr(state, "clients", None), Scenes):
        raise TypeError(
            f"state must be one of pnp_admm, got {type(state).__name__}. Take what dflax.run returns."
        )
    return normalised(state.clients.x)


def normalised(x: Complex[Array, "*B X Y Z"]) -> Float[Array, "*B X Y Z"]:
    """Magnitudes of greatest value 1; of nothing, zeros.

    Raises:
      TypeError, ValueError: x is no array of scenes.
    """
    x = jnp.asarray(validation.array("x", x, kind="complex"))
    if x.ndim < 3 or not x.size:
        raise ValueError(f"x must be scenes [..., X, Y, Z], got shape {x.shape}.")
    m = jnp.abs(x)
    return m / positive(m.max((-3, -2, -1), keepdims=True))


def norm(x: Array) -> Array:
    """The Euclidean norm of all entries."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.abs(x))))


def positive(x: Array) -> Array:
    """A norm to divide by: 1 in the place of 0."""
    return jnp.where(x > 0, x, 1)


def present(round: Round, scenes: int) -> Bool[Array, " B"]:
    """Which scenes a round works on."""
    if round.clients != scenes:
        raise ValueError(
            f"the round must be of {scenes} scenes, got {round.clients}. Its source is "
            f"dflax.Population({scenes})."
        )
    return jnp.zeros(scenes, bool).at[round.members].set(round.weights > 0)


def check_parts(operator: Any, prior: Any, penalty: Any, strength: Any) -> None:
    """Refuses what no solver can use."""
    validation.instance("operator", operator, Operator, "For example dense(crossed_diagonals()).")
    validation.instance("prior", prior, Prior, "For example sparse() or learned().")
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    validation.real("strength", strength, low=0.0, low_open=True, scalar=True)


def measured_by(
    name: str, operator: Operator, measurements: Any, radius: Any
) -> tuple[Complex[Array, "B F T R"], Float[Array, " B"]]:
    """Measurements and radii of B scenes; refuses none, other shapes, and what is not finite."""
    fix = "They are [B, F, T, R]; give one scene an axis of its own."
    shape = ("B", *operator.measured)
    y = jnp.asarray(validation.array(name, measurements, kind="complex", shape=shape, fix=fix))
    validation.real("radius", radius, low=0.0, fix="For example sqrt(M) sigma of the noise.")
    if np.shape(radius) not in ((), y.shape[:1]):
        raise ValueError(
            f"radius must be one number or one for each of {y.shape[0]} scenes, got shape "
            f"{np.shape(radius)}."
        )
    y = y.astype(jnp.promote_types(y.dtype, jnp.complex64))
    return y, jnp.broadcast_to(jnp.asarray(radius, y.real.dtype), y.shape[:1])
