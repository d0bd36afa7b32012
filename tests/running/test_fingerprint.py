import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import dflax as dx
from dflax.running.checkpoints import fingerprint

VECTOR = jnp.arange(4.0)


def hashed(function, *arguments):
    return fingerprint.computation(function, *(arguments or (VECTOR,)))[0]


def scaled(factor):
    return lambda x: x * factor


def looped(factor):
    return lambda x: jax.lax.scan(lambda carry, _: (carry * factor, None), x, length=3)[0]


def branched(factor):
    return lambda x: jax.lax.cond(x[0] > 0, scaled(factor), jnp.sin, x)


def inner(factor):
    return lambda x: jax.jit(scaled(factor))(x)


@jax.custom_jvp
def clipped(x, limit):
    return jnp.minimum(x, limit)


@clipped.defjvp
def clipped_tangent(primals, tangents):
    return clipped(*primals), tangents[0]


def ruled(factor):
    return lambda x: clipped(x, factor)


@pytest.mark.parametrize("make", [scaled, looped, branched, inner, ruled])
@pytest.mark.parametrize("kind", [float, jnp.float32, np.float32, lambda v: jnp.full(4, v)])
def test_hyper_parameters_count_wherever_they_are(make, kind):
    assert hashed(make(kind(0.1))) == hashed(make(kind(0.1)))
    assert hashed(make(kind(0.1))) != hashed(make(kind(0.2)))
    assert hashed(make(kind(0.1))) != hashed(make(kind(np.nextafter(np.float32(0.1), 1))))


def test_operations_shapes_and_wiring_count_names_do_not():
    assert hashed(jnp.sin) != hashed(jnp.cos)
    assert hashed(jnp.sin) != hashed(jnp.sin, jnp.arange(5.0))
    assert hashed(lambda a, b: a - b, VECTOR, VECTOR) != hashed(lambda a, b: b - a, VECTOR, VECTOR)
    assert hashed(lambda a, b: (a, b), VECTOR, VECTOR) != hashed(
        lambda a, b: (b, a), VECTOR, VECTOR
    )
    assert hashed(lambda x: x.reshape(2, 2)) != hashed(lambda x: x.reshape(4, 1))

    def first(x):
        return x + 1

    def second(y):
        return y + 1

    assert hashed(jax.jit(first)) == hashed(jax.jit(second))


def test_the_shapes_of_the_result_come_along():
    _, result = fingerprint.computation(lambda x: {"a": x.sum(), "b": x > 1}, VECTOR)
    assert fingerprint.layout(result) == {"['a']": "float32[]", "['b']": "bool[4]"}


def test_the_same_in_another_process():
    program = (
        "import jax, jax.numpy as jnp; from dflax.running.checkpoints import fingerprint\n"
        "print(fingerprint.computation(lambda x: jax.nn.softmax(jax.nn.relu(x)) * 0.1, jnp.ones(3))[0])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    here = fingerprint.computation(lambda x: jax.nn.softmax(jax.nn.relu(x)) * 0.1, jnp.ones(3))[0]
    assert found.stdout.decode().split() == [here]


def test_static_parts_and_node_types_count():
    class Pair(tuple):
        pass

    assert fingerprint.structure((1, 2)) != fingerprint.structure([1, 2])
    assert fingerprint.structure({"a": 1}) != fingerprint.structure({"b": 1})
    assert fingerprint.structure((1, None)) != fingerprint.structure((1,))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=5, max_size=5), st.integers(0, 4))
def test_any_single_value_changes_the_contents(values, place):
    values = np.array(values, np.uint32)
    other = values.copy()
    other[place] ^= np.uint32(1 << 7)
    assert fingerprint.contents(values) == fingerprint.contents(values.copy())
    assert fingerprint.contents(values) != fingerprint.contents(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda v: jnp.arange(6.0).at[2].set(v),
        lambda v: jnp.arange(6.0, dtype=jnp.bfloat16).at[2].set(v),
        lambda v: jnp.zeros((2, 3), bool).at[1, 1].set(v > 4),
        lambda v: jnp.zeros((2, 3), jnp.int4).at[1, 1].set(v),
        lambda v: jnp.zeros(3, jnp.int8).at[1].set(v),
        lambda v: jnp.zeros(3, jnp.complex64).at[1].set(1j * v),
        lambda v: jax.random.key(v),
        lambda v: np.float64(v),
        lambda v: v,
        lambda v: {"a": [jnp.zeros(0), jnp.int32(v)]},
    ],
)
def test_values_of_every_type_count(make):
    assert fingerprint.contents(make(4)) == fingerprint.contents(make(4))
    assert fingerprint.contents(make(4)) != fingerprint.contents(make(5))


def test_order_counts_and_devices_do_not():
    values = jax.random.normal(jax.random.key(0), (16, 5))
    assert fingerprint.contents(values) != fingerprint.contents(values[::-1])
    assert fingerprint.contents(values) != fingerprint.contents(values.at[3].set(values[4]))
    sharding = NamedSharding(dx.client_mesh(), PartitionSpec("clients"))
    assert fingerprint.contents(values) == fingerprint.contents(jax.device_put(values, sharding))
