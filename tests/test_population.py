"""What a round costs does not grow with the population, beyond the state that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import softmax_loss

import dflax as dx
from benchmarks.population import remembering

FEATURES, CLASSES, EXAMPLES = 16, 4, 100
MODEL = 4 * (FEATURES + 1) * CLASSES
POPULATIONS = (1_000, 100_000)


def cost_of_a_round(population):
    """A round of 20 clients that each have a memory; the state is shapes alone."""
    clients = np.arange(population)
    data = dx.data.Dataset(
        jnp.zeros((EXAMPLES, FEATURES)), jnp.zeros(EXAMPLES, jnp.int32), classes=CLASSES
    )
    partition = dx.data.Partition(
        jnp.asarray(clients % EXAMPLES, jnp.int32),
        jnp.asarray(clients, jnp.int32),
        jnp.ones(population, jnp.int32),
        jnp.asarray([5, 7, 11], jnp.uint32),
    )
    federation = dx.Federation(
        data,
        partition,
        batch_size=1,
        local_steps=2,
        participation=dx.participation.uniform(20),
    )
    algorithm = dx.server.fedavg(
        softmax_loss, optax.sgd(0.1), channel=remembering(), clients=population
    )
    params = {
        "w": jax.ShapeDtypeStruct((FEATURES, CLASSES), jnp.float32),
        "b": jax.ShapeDtypeStruct((CLASSES,), jnp.float32),
    }
    state = jax.eval_shape(algorithm.init, jax.random.key(0), params)
    assert sum(leaf.size * 4 for leaf in jax.tree.leaves(state.clients)) == population * MODEL
    return dx.profile.round(algorithm, state, federation)


@pytest.fixture(scope="module")
def costs():
    return [cost_of_a_round(population) for population in POPULATIONS]


def test_memories_are_changed_in_place(costs):
    for population, cost in zip(POPULATIONS, costs, strict=True):
        assert cost.alias_bytes >= population * MODEL
        assert cost.temporary_bytes < 0.3 * population * MODEL


def test_work_and_temporary_memory_are_those_of_the_cohort(costs):
    small, large = costs
    assert small.flops == large.flops > 20 * 2 * 2 * FEATURES * CLASSES
    # The draw itself may keep a few numbers per client in a small population.
    assert large.temporary_bytes <= 2 * small.temporary_bytes
