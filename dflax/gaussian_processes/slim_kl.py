"""SLIM-KL: agents agree on sparse weights of a multiple kernel by quantised consensus ADMM."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.channel.channel import Channel, chain
from dflax.channel.lattice import lattice, on_lattice
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.gaussian_processes.agents import check_kernel, check_observations, observed_by
from dflax.gaussian_processes.kernel import MultipleKernel
from dflax.gaussian_processes.likelihood import Evidence, Observations, evidence, objective
from dflax.gaussian_processes.solvers import Solver, mm
from dflax.local.consensus import Minimise, Minimised, Nearby, Splitting
from dflax.population import Assignment
from dflax.server.admm.consensus import consensus
from dflax.server.admm.residuals import Stop, residual_balancing
from dflax.server.admm.rounds import Adapt


def slim_kl(
    kernel: MultipleKernel,
    clients: int,
    penalty: float = 1e-2,
    *,
    resolution: float = 0.0,
    solver: Solver | None = None,
    adapt: Adapt | None = residual_balancing(),  # noqa: B008
    stop: Stop | None = None,
    channel: Channel | None = None,
    **options: Any,
) -> Algorithm:
    """SLIM-KL: min over theta >= 0 of sum_j l_j(theta) by consensus ADMM whose links are quantised.

    A round, with Q the unbiased rounding to multiples of `resolution`:

        zeta_j   = Q(argmin over t >= 0 of l_j(t) + lambda_j' t + (rho / 2) |t - theta|^2, or near it)
        theta    = Q(mean of zeta_j + lambda_j / rho)
        lambda_j = lambda_j + rho (zeta_j - theta)
        rho      = adapt(rho, residuals)

    The server mirrors the duals, which are made of what was sent, so that they never travel. l_j are
    the agents' negative log likelihoods (see `evidence`), not convex: other numbers of agents may end
    in other stationary points. Rounding keeps the residuals above about `resolution`
    sqrt(A N) / 2; choose tolerances to stop at accordingly.

    Args:
      kernel: see `gsmp`.
      clients: N, the number of agents.
      penalty: rho > 0, the first; traceable. The objective's curvature grows with the number of
        observations and falls with the noise.
      resolution: of both links, >= 0; 0 sends numbers as they are; traceable. See
        `dflax.channel.lattice`.
      solver: of the local problem, warm-started at zeta_j: `mm(steps)`, `dsca(blocks, steps, inner)`, or
        one of your own. Default ten steps of `mm`.
      adapt: of the penalty; None keeps it.
      stop: for example `dflax.server.residuals_within(1e-3, 1e-3)`.
      channel: what else happens to messages from agents to server, once they are rounded.
      **options: `aggregator`, `at_once`, as for `dflax.server.consensus`.

    Returns:
      An `Algorithm` with `init(key, theta)`, theta `[A]` >= 0, see `starting_weights`. Its rounds are of
      `observing`. theta is `state.server.params`, which may be negative: clip it at 0 to use it.
      Metrics: those of `dflax.server.consensus`, `local_objective`, the mean l_j(zeta_j) before
      rounding, and the bytes of the uplink, see `dflax.channel.lattice`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Suwandi et al., Sparsity-Aware Distributed Learning for Gaussian Processes with Linear Multiple
      Kernel, arXiv 2309.08201.
    """
    check_kernel(kernel)
    validation.integer("clients", clients, low=1)
    validation.real("resolution", resolution, low=0.0, scalar=True)
    rounding = lattice(resolution)

    def start(theta: Float[Array, " A"]) -> tuple[Float[Array, "N A"], tuple[()]]:
        fix = "Start at starting_weights()."
        validation.array("params", theta, kind="real", shape=(kernel.components,), low=0.0, fix=fix)
        return replicate(theta, clients), ()

    def combine(mean: Array, weight: Array, key: Key[Array, ""]) -> Array:
        return on_lattice(mean, resolution, key)

    return consensus(
        local_weights(kernel, solver),
        penalty,
        clients,
        start=start,
        combine=combine,
        mirrored=True,
        adapt=adapt,
        stop=stop,
        channel=rounding if channel is None else chain(rounding, channel),
        **options,
    )


def local_weights(kernel: MultipleKernel, solver: Solver | None = None) -> Minimise:
    """An agent's part in any consensus on the weights, with a server or on a graph.

    SLIM-KL without a server is `dflax.decentralized.consensus(local_weights(kernel), penalty, mixer)`.

    Args:
      kernel: see `gsmp`.
      solver: see `slim_kl`.

    Returns:
      The `minimise` of `dflax.server.consensus` and `dflax.decentralized.consensus`, in rounds of
      `observing`.

    Raises:
      TypeError: naming the argument.
    """
    check_kernel(kernel)
    if solver is not None:
        validation.function("solver", solver, "Take mm() or dsca().", takes=4)
    solve = mm() if solver is None else solver

    def minimise(
        assignment: Assignment, own: Splitting, nearby: Nearby, data: Dataset, index: Array
    ) -> Minimised:
        observed = observed_by(assignment, data)

        def at(theta: Array) -> Evidence:
            return evidence(kernel, observed, theta.astype(observed.targets.dtype))

        zeta = solve(at, own.params, nearby.center, nearby.penalty).astype(own.params.dtype)
        value = objective(kernel, observed, zeta.astype(observed.targets.dtype))
        return Minimised(zeta, metrics={"local_objective": value})

    return minimise


def joint_objective(
    kernel: MultipleKernel, observed: Observations, *, active: float = 1e-4
) -> jax.tree_util.Partial:
    """Measures weights at all agents: `dflax.evaluation.server_model(joint_objective(...))`.

    Args:
      kernel: see `gsmp`.
      observed: leaves `[N, ...]`, of `observe`.
      active: weights above it are counted; traceable.

    Returns:
      `theta [A] -> {"objective": sum_j l_j(theta), "active": how many weights}`; theta is clipped at 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    check_kernel(kernel)
    check_observations(observed)
    validation.real("active", active, low=0.0, scalar=True)

    def measure(observed: Observations, active: Array, theta: Array) -> dict[str, Array]:
        kept = jnp.maximum(theta, 0).astype(observed.targets.dtype)
        values = jax.lax.map(lambda own: objective(kernel, own, kept), observed)
        return {"objective": jnp.sum(values), "active": jnp.sum(kept > active)}

    return jax.tree_util.Partial(measure, observed, jnp.asarray(active))
