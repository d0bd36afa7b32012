"""The recipes that make momentum and control variates contain weight decay, as the authors' do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quadratic_rounds import CLIENTS, KEY, LOSS, START, STEPS, advance, federation, gradient

import dflax as dx

RATE, DECAY, BETA, ROUNDS = 0.05, 0.3, 0.4, 6


def decayed(weight):
    """The loss with `(weight / 2) |x|^2`."""

    def loss(params, batch, key):
        value, metrics = LOSS(params, batch, key)
        return value + 0.5 * weight * jnp.sum(params**2), metrics

    return loss


def local_models(cohort, x, direction):
    """Steps of SGD with weight decay in the optimiser, as the authors' code takes them."""
    models = {}
    for i in cohort:
        y = x
        for _ in range(STEPS):
            y = y - RATE * (direction(int(i), y) + DECAY * y)
        models[int(i)] = y
    return models


def fedcm_of_the_authors(cohorts):
    x, momentum = START, np.zeros(3)
    for cohort in cohorts:

        def direction(i, y, momentum=momentum):
            return BETA * gradient(i, y) + (1 - BETA) * momentum

        models = local_models(cohort, x, direction)
        change = np.mean([y - x for y in models.values()], axis=0)
        x, momentum = x + change, -change / (STEPS * RATE)
    return x


def scaffold_of_the_authors(cohorts):
    x, c, own = START, np.zeros(3), np.zeros((CLIENTS, 3))
    for cohort in cohorts:

        def direction(i, y, c=c, own=own):
            return gradient(i, y) - own[i] + c

        models = local_models(cohort, x, direction)
        new = own.copy()
        for i, y in models.items():
            new[i] = own[i] - c - (y - x) / (STEPS * RATE)
        x = x + np.mean([y - x for y in models.values()], axis=0)
        c, own = c + (new - own).sum(0) / CLIENTS, new
    return x


@pytest.mark.parametrize("name", ["fedcm", "scaffold"])
def test_decay_in_the_loss_is_the_decay_of_the_authors(name):
    optimizer = optax.sgd(RATE)
    elsewhere = optax.chain(optax.add_decayed_weights(DECAY), optimizer)
    with jax.enable_x64(True):
        source = federation()
        cohorts = jax.vmap(source.draw, in_axes=(None, 0))(KEY, jnp.arange(ROUNDS)).cohort
        if name == "fedcm":
            expected = fedcm_of_the_authors(np.asarray(cohorts))
            recipe = dx.server.fedcm(decayed(DECAY / BETA), optimizer, beta=BETA)
            other = dx.server.fedcm(LOSS, elsewhere, beta=BETA)
        else:
            expected = scaffold_of_the_authors(np.asarray(cohorts))
            recipe = dx.server.scaffold(decayed(DECAY), optimizer, CLIENTS)
            other = dx.server.scaffold(LOSS, elsewhere, CLIENTS)

        @jax.jit
        def ends(source):
            return [advance(a, source, ROUNDS)[0].server.params for a in (recipe, other)]

        found, apart = ends(source)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    # In the optimiser it is another decay.
    assert np.abs(apart - expected).max() > 1e-3
