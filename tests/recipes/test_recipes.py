"""Recipes against their pseudo-code in float64 NumPy, on quadratics with exact gradients."""

import ast
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import CLIENTS, KEY, LOSS, START, STEPS, A, B, federation

import dflax as dx
from dflax import recipes

RATE, ROUNDS = 0.05, 6
FUNCTIONS = [getattr(recipes, name) for name in recipes.__all__ if name.islower()]
OPTIMUM = np.linalg.solve(A.sum(0), np.einsum("ijk,ik->j", A, B))
RING = (
    np.eye(CLIENTS) / 2 + np.roll(np.eye(CLIENTS), 1, 0) / 4 + np.roll(np.eye(CLIENTS), -1, 0) / 4
)


def gradient(i, x):
    return A[i] @ (x - B[i])


def gradients(x):
    return np.stack([gradient(i, own) for i, own in enumerate(x)])


def descend(x, i, steps=STEPS, more=lambda x: 0.0):
    for _ in range(steps):
        x = x - RATE * (gradient(i, x) + more(x))
    return x


def rolled(make, rounds=ROUNDS, steps=STEPS, **changes):
    """State and metrics after the rounds, in float64, everyone taking part."""
    with jax.enable_x64(True):
        source = federation(steps, CLIENTS).replace(**changes)
        algorithm = make()
        state = algorithm.init(KEY, jnp.asarray(START))
        run = jax.jit(functools.partial(dx.rollout, algorithm, rounds=rounds))
        return jax.device_get(run(state, source, KEY))


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recipe", FUNCTIONS, ids=lambda recipe: recipe.__name__)
def test_a_recipe_is_at_most_15_lines_of_public_names(recipe):
    """Without its docstring and the checks of its arguments; names with an underscore are private."""
    source = inspect.getsource(inspect.getmodule(recipe))
    tree = ast.parse(source)
    (function,) = (n for n in tree.body if getattr(n, "name", "") == recipe.__name__)
    body = [
        n for n in function.body[1:] if not ast.unparse(n).startswith(("validation.", "require_"))
    ]
    lines = {n.lineno for top in body for n in ast.walk(top) if hasattr(n, "lineno")}
    assert 1 <= len(lines) <= 15
    imported = [a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names]
    assert not [name for name in imported if name.startswith("_")]


def test_scaffnew_is_its_pseudo_code():
    probability = 0.3
    state, metrics = rolled(lambda: recipes.scaffnew(LOSS, RATE, CLIENTS, probability), 20, steps=1)
    x, h = np.tile(START, (CLIENTS, 1)), np.zeros((CLIENTS, 3))
    averaged = metrics["models_sent"] > 0
    assert 0 < averaged.sum() < 20
    for averages in averaged:
        y = x - RATE * (gradients(x) - h)
        # As the paper writes it: the prox is of what has the control taken off.
        x = np.tile((y - RATE / probability * h).mean(0), (CLIENTS, 1)) if averages else y
        h = h + probability / RATE * (x - y)
    close(state.clients.params, x)
    close(state.clients.memory, h)


def test_scaffnew_reaches_the_minimum():
    state, _ = rolled(lambda: recipes.scaffnew(LOSS, 0.2, CLIENTS, 0.4), 600, steps=1)
    np.testing.assert_allclose(state.clients.params, np.tile(OPTIMUM, (CLIENTS, 1)), atol=1e-9)


def test_fedexp_is_its_pseudo_code():
    state, metrics = rolled(lambda: recipes.fedexp(LOSS, optax.sgd(RATE), 1e-4))
    x = START
    for rate in metrics["server_rate"]:
        changes = np.stack([descend(x, i) - x for i in range(CLIENTS)])
        mean = changes.mean(0)
        extrapolated = np.mean(np.sum(changes**2, 1)) / (2 * (mean @ mean + 1e-4))
        close(rate, max(1.0, extrapolated))
        x = x + rate * mean
    close(state.server.params, x)
    assert metrics["server_rate"].max() > 1.5


def test_ditto_is_its_pseudo_code_and_leaves_the_common_model_alone():
    state, _ = rolled(lambda: recipes.ditto(LOSS, optax.sgd(RATE), CLIENTS, 0.4))
    x, v = START, np.tile(START, (CLIENTS, 1))
    for _ in range(ROUNDS):
        v = np.stack(
            [descend(own, i, more=lambda y, x=x: 0.4 * (y - x)) for i, own in enumerate(v)]
        )
        x = np.mean([descend(x, i) for i in range(CLIENTS)], axis=0)
    close(state.clients.params, v)
    close(state.server.params, x)
    plain, _ = rolled(lambda: dx.server.fedavg(LOSS, optax.sgd(RATE)))
    close(state.server.params, plain.server.params)


def test_diloco_keeps_the_inner_state_and_steps_by_nesterov():
    inner = optax.sgd(RATE, 0.5)
    state, _ = rolled(lambda: recipes.diloco(LOSS, CLIENTS, inner))
    x, momenta, outer = START, np.zeros((CLIENTS, 3)), np.zeros(3)
    for _ in range(ROUNDS):
        ends = np.tile(x, (CLIENTS, 1))
        for _ in range(STEPS):
            momenta = gradients(ends) + 0.5 * momenta
            ends = ends - RATE * momenta
        slope = x - ends.mean(0)
        outer = slope + 0.9 * outer
        x = x - 0.7 * (slope + 0.9 * outer)
    close(state.server.params, x)
    close(state.clients.memory[0].trace, momenta)


def test_diloco_is_adamw_by_default():
    adamw = optax.adamw(4e-4, weight_decay=0.1)
    ours, _ = rolled(lambda: recipes.diloco(LOSS, CLIENTS), 2)
    named, _ = rolled(lambda: recipes.diloco(LOSS, CLIENTS, adamw), 2)
    close(ours.server.params, named.server.params)
    assert np.abs(ours.server.params - START).max() > 1e-4


def test_exact_diffusion_is_its_pseudo_code():
    state, _ = rolled(lambda: recipes.exact_diffusion(LOSS, optax.sgd(RATE), dx.gossip.mixer(RING)))
    x = last = np.tile(START, (CLIENTS, 1))
    for _ in range(ROUNDS):
        psi = np.stack([descend(own, i) for i, own in enumerate(x)])
        x, last = RING @ (psi + x - last), psi
    close(state.clients.params, x)
    close(state.clients.memory, last)


def test_exact_diffusion_reaches_the_minimum_that_dpsgd_misses():
    mixer = dx.gossip.mixer((RING + np.eye(CLIENTS)) / 2)
    exact, _ = rolled(lambda: recipes.exact_diffusion(LOSS, optax.sgd(0.1), mixer), 1500, steps=1)
    np.testing.assert_allclose(exact.clients.params, np.tile(OPTIMUM, (CLIENTS, 1)), atol=1e-9)
    plain, _ = rolled(lambda: dx.decentralized.dpsgd(LOSS, optax.sgd(0.1), mixer), 1500, steps=1)
    assert np.abs(plain.clients.params - OPTIMUM).max() > 1e-2


def test_k_gt_is_its_pseudo_code():
    state, _ = rolled(
        lambda: recipes.k_gt(LOSS, RATE, dx.gossip.mixer(RING), STEPS, mixing_rate=0.8)
    )
    x, c = np.tile(START, (CLIENTS, 1)), np.zeros((CLIENTS, 3))
    for _ in range(ROUNDS):
        ends = np.stack(
            [descend(own, i, more=lambda y, i=i: c[i]) for i, own in enumerate(x)]  # noqa: B023
        )
        z = (x - ends) / (STEPS * RATE)
        x, c = RING @ (x - STEPS * RATE * 0.8 * z), c - z + RING @ z
    close(state.clients.params, x)
    close(state.clients.memory, c)


def test_k_gt_reaches_the_minimum_whatever_the_number_of_local_steps():
    for steps in (1, STEPS):
        make = functools.partial(recipes.k_gt, LOSS, 0.1, dx.gossip.mixer(RING), steps, 0.5)
        state, _ = rolled(make, 1500, steps=steps)
        np.testing.assert_allclose(state.clients.params, np.tile(OPTIMUM, (CLIENTS, 1)), atol=1e-9)


def test_client_3_alone_sends_the_opposite_whoever_is_sampled():
    cohorts = np.array([[0, 3, 5], [1, 2, 4], [3, 0, 1]])
    state, _ = rolled(
        lambda: dx.server.fedavg(LOSS, optax.sgd(RATE), channel=dx.attacks.sign_flipping(3)),
        len(cohorts),
        participation=dx.participation.from_table(cohorts),
    )
    x = START
    for cohort in cohorts:
        x = x + np.mean([(-1 if i == 3 else 1) * (descend(x, i) - x) for i in cohort], axis=0)
    close(state.server.params, x)


BUFFER, ARRIVALS = 3, 40


def arrivals():
    """Who arrives when, and how many times the server stepped since it was sent its model."""
    clients = np.random.default_rng(0).integers(0, CLIENTS, ARRIVALS)
    sent, staleness = np.zeros(CLIENTS, int), []
    for t, client in enumerate(clients):
        staleness.append(t // BUFFER - sent[client])
        sent[client] = (t + 1) // BUFFER
    return clients, np.array(staleness)


def test_fedbuff_is_its_pseudo_code():
    clients, staleness = arrivals()
    assert staleness.max() > 3
    state, _ = rolled(
        lambda: recipes.fedbuff(LOSS, optax.sgd(RATE), CLIENTS, BUFFER, 0.7),
        ARRIVALS,
        participation=dx.participation.from_table(clients[:, None], staleness=staleness),
    )
    x, buffered, sent = START, [], np.tile(START, (CLIENTS, 1))
    for client, age in zip(clients, staleness, strict=True):
        buffered.append((descend(sent[client], client) - sent[client]) / np.sqrt(1 + age))
        if len(buffered) == BUFFER:
            x, buffered = x + 0.7 * np.mean(buffered, axis=0), []
        sent[client] = x
    close(state.server.params, x)
    close(state.clients.memory, sent)
    assert np.abs(x - START).max() > 0.1


@pytest.mark.parametrize("name", ["scaffnew", "exact_diffusion", "k_gt"])
def test_running_statistics_are_refused(name):
    mixer = dx.gossip.mixer(RING)
    make = {
        "scaffnew": lambda: recipes.scaffnew(LOSS, RATE, CLIENTS, 0.5),
        "exact_diffusion": lambda: recipes.exact_diffusion(LOSS, optax.sgd(RATE), mixer),
        "k_gt": lambda: recipes.k_gt(LOSS, RATE, mixer, STEPS),
    }[name]
    params = {"params": jnp.ones(3), "batch_stats": jnp.ones(3)}
    with pytest.raises(ValueError, match="params must hold no running statistics"):
        make().init(KEY, params)
