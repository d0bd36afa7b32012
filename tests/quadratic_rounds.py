"""Quadratics of different curvature, and rounds on them written out in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx

KEY = jax.random.key(0)
CLIENTS, COHORT, STEPS, ROUNDS = 6, 3, 4, 5
TASK = dx.data.quadratics(jax.random.key(5), CLIENTS, 3, 1.0, 1.0, condition=4.0)
A, B = np.asarray(TASK.hessians, np.float64), np.asarray(TASK.client_optima, np.float64)
START = np.array([1.0, -0.5, 2.0])
LOSS = dx.data.quadratic_loss


def federation(steps=STEPS, cohort=COHORT, hessians=A, optima=B):
    """Exact gradients, since every client owns one example; everyone counts the same."""
    n = len(hessians)
    data = dx.data.Dataset(
        {"A": jnp.asarray(hessians), "b": jnp.asarray(optima)}, jnp.arange(n, dtype=jnp.int32)
    )
    rule = dx.participation.everyone() if cohort == n else dx.participation.uniform(cohort)
    return dx.Federation(
        data,
        dx.data.from_indices([np.array([i]) for i in range(n)]),
        batch_size=1,
        local_steps=steps,
        participation=rule,
        weights=jnp.ones(n),
    )


# To be closed over: within a traced function no federation can be made.
SOURCE = federation()


@functools.cache
def cohorts():
    """Who takes part in the rounds of `SOURCE`."""
    drawn = jax.vmap(SOURCE.draw, in_axes=(None, 0))(KEY, jnp.arange(ROUNDS))
    return np.asarray(drawn.cohort)


def advance(algorithm, source, rounds=ROUNDS, start=START, given=()):
    """The state after some rounds, and their metrics."""
    state = algorithm.init(KEY, jnp.asarray(start), *given)
    return dx.rollout(algorithm, state, source, KEY, rounds)


def gradient(client, x):
    return A[client] @ (x - B[client])


def gradients(x):
    """Those of all clients."""
    return np.einsum("nde,ne->nd", A, x - B)


def perturbed_gradient(client, x, rho, weight=1.0):
    g = gradient(client, x)
    return g + weight * (gradient(client, x + rho * g / (np.linalg.norm(g) + 1e-7)) - g)


def local_steps(x, direction, rate, steps=STEPS):
    """The last model, and the mean direction."""
    total = 0.0
    for _ in range(steps):
        went = direction(x)
        x, total = x - rate * went, total + went
    return x, total / steps
