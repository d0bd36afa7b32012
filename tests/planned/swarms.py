"""Robots, for the gallery: a tick of a swarm, a step of agents that cover a density."""

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import robots
from dflax.robots.blocklists import matchings

KEY = jax.random.key(0)
# A swarm on eight devices, and agents with their samples.
ROBOTS, AGENTS, SAMPLES, STEPS = 512, 64, 1024, 32


def swarm(count):
    observers = np.arange(count) < count // 2
    application = robots.known_value(observers, value=10.0, lie=-50.0)
    return application, robots.byzantine(np.arange(count) % 16 == 15), robots.motion(0.1)


def d2oc(count):
    point = robots.double_integrator()
    return robots.d2oc(point, robots.linear_quadratic(point, 5, input_cost=1e-5), count, STEPS)


METHODS = {
    "d2oc": (AGENTS, d2oc),
    "dbp": (ROBOTS, lambda count: robots.dbp(*swarm(count), window=16)),
    "spectral_coverage": (AGENTS, lambda count: robots.spectral_coverage(count, STEPS, 0.1)),
    "w_msr": (ROBOTS, lambda count: robots.w_msr(*swarm(count), tolerated=1)),
}


def case(name):
    """Algorithm, source and shapes of the state."""
    count, make = METHODS[name]
    algorithm, points = make(count), jnp.zeros((count, 2))
    given = () if name in ("dbp", "w_msr") else (jnp.zeros((SAMPLES, 2)),)
    state = jax.eval_shape(algorithm.init, KEY, points, *given)
    return algorithm, dx.Population(count), state


def matching(mesh):
    """Bytes that a device needs for its robots' matchings, each of which is of all accusations."""
    place = jax.NamedSharding(mesh, jax.P())

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    own = ROBOTS // 8
    with jax.set_mesh(mesh):
        program = jax.jit(matchings).lower(
            array(jnp.int32, own, ROBOTS),
            array(jnp.int16, own, ROBOTS),
            array(jnp.int16, ROBOTS, ROBOTS),
            array(bool, own),
        )
        memory = program.compile().memory_analysis()
    return memory.temp_size_in_bytes + 2 * ROBOTS**2
