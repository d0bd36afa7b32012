"""What every algorithm with a server does when nobody reports, when messages are lost, and with NaN."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tasks import assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import aggregation, channel, server

KEY = jax.random.key(0)
N, D = 6, 3
SGD = optax.sgd(0.1)


@functools.cache
def task():
    return quadratics(N, D)


@functools.cache
def gradients():
    return jnp.asarray(1.0 - task().centers)


@functools.cache
def objectives():
    """The same clients as `Quadratic`s: G = 1, h = c."""
    basis = jnp.broadcast_to(jnp.eye(D), (N, D, D))
    return dx.local.Quadratic(basis, jnp.ones((N, D)), jnp.asarray(task().centers))


def in_parts(params, batch, key):
    return half_square(params["shared"] + params["own"], batch, key)


def attack(params, batch, key):
    return batch._replace(inputs=batch.inputs + 0.1)


# Scores (inputs + prompts) * body * tail, one factor for each class.
IN_PARTS = dx.models.Split(
    head=lambda weights, prompts, inputs: inputs + prompts,
    body=lambda weights, seen: seen * weights,
    tail=lambda weights, seen: seen * weights,
    divide=lambda params, key: (
        dx.models.Frozen((), params),
        dx.models.Trained(jnp.zeros(D), params),
    ),
)


def nearest(assignment, own, nearby, data, index):
    """The minimiser of half the squared distance from the client's example, near the center."""
    example = data.fetch(assignment.minibatches[0]).inputs[0]
    found = (example + nearby.penalty * nearby.center) / (1 + nearby.penalty)
    return dx.local.Minimised(found.astype(own.params.dtype), metrics={"loss": example.sum()})


def spread(model, batch, threshold, number):
    """Sum and number of a batch."""
    return {"sum": batch.mask @ batch.inputs, "count": batch.mask.sum() * jnp.ones(D)}


def middle(model, statistics, number):
    return statistics["sum"] / statistics["count"], {"examples": statistics["count"][0]}


# What each needs beside a channel and an aggregator. Those in NEEDS_GRADIENTS and NEEDS_OBJECTIVES get
# them at `init`.
ARGUMENTS = {
    "bvr_l_sgd": (half_square, SGD, 2),
    "consensus": (nearest, 1.0, N),
    "consensus_admm": (1.0,),
    "client_momentum": (lambda number, expected: dx.local.gradient(half_square), N),
    "dp_brem": (half_square, N),
    "dp_brem_plus": (half_square, N, dx.privacy.secure_aggregation(KEY, N, bound=9.0)),
    "dp_rsa": (half_square, N),
    "dual_free_admm": (half_square, SGD, 1.0, N),
    "expectation_maximisation": (
        lambda model: {"sum": 0 * model, "count": 0 * model},
        spread,
        middle,
    ),
    "fal": (half_square, SGD, attack),
    "fedadagrad": (half_square, SGD, 0.1),
    "fedadam": (half_square, SGD, 0.1),
    "fedadmm": (half_square, SGD, N),
    "fedamd": (half_square, SGD, server.anchors.constant(0.5)),
    "fedavg": (half_square, SGD),
    "fedcm": (half_square, SGD),
    "feddyn": (half_square, SGD, N),
    "fedgamma": (half_square, SGD, N),
    "fednova": (half_square, SGD),
    "fedpage": (half_square, 0.1, 0.5),
    "fedprox": (half_square, SGD),
    "fedsam": (half_square, SGD),
    "fedsmoo": (half_square, SGD, N),
    "fedspeed": (half_square, SGD, N),
    "kcfu": (lambda params, inputs: params * inputs, SGD, N),
    "fedyogi": (half_square, SGD, 0.1),
    "fedavg_m_vr": (half_square, SGD),
    "mimelite": (half_square, SGD),
    "mofedsam": (half_square, SGD),
    "partial_averaging": (in_parts, SGD),
    "rerce_fed": (1.0,),
    "rerce_fed_continual": (1.0,),
    "scaffold": (half_square, SGD, N),
    "sfprompt": (IN_PARTS, dx.losses.classification, SGD),
    "scaffold_m": (half_square, SGD, N),
    "scaffold_m_vr": (half_square, SGD, N),
}
# Numbers without a default.
NUMBERS = {
    "client_momentum": {"rate": 0.1},
    "dp_rsa": {"rate": 0.1, "record_clip": 9.0, "noise": 0.1},
}
NUMBERS["dp_brem"] = NUMBERS["dp_brem_plus"] = NUMBERS["dp_rsa"] | {"radius": 1.0}
# They make the rule themselves.
OWN_RULE = {"dp_brem", "dp_brem_plus"}
ONE_STEP = set(NUMBERS)
NEEDS_GRADIENTS = {"fedamd", "fedavg_m_vr", "scaffold_m_vr"}
NEEDS_OBJECTIVES = {"consensus_admm", "rerce_fed", "rerce_fed_continual"}
TWO_LINKS = NEEDS_OBJECTIVES | {"dual_free_admm"}
# Said of the round or of what is remembered, whoever reports.
STATED = {"full", "staleness"}
COUNTS = {"clients_reporting", "messages_lost", "walk_clients_reporting", "walk_messages_lost"}
COUNTS |= {"examples_kept", "examples_local", "examples_scored"}
COUNTS |= {"messages_clipped", "messages_dropped", "messages_sampled", "numbers_clipped"}
COUNTS |= {"bytes_sent", "bytes_received", "proofs_refused", "rounds_dropped"}
COUNTS |= {"gradients", "numbers_up", "numbers_down", "anchors", "miners"}


def factories():
    """The package's functions that return an algorithm; `with_server` is what they are made with."""
    public = {name: f for name, f in vars(server).items() if inspect.isfunction(f)}
    made = {
        name for name, f in public.items() if inspect.signature(f).return_annotation is dx.Algorithm
    }
    twice = {name for name in made if public[name].__name__ != name}
    return made - twice - {"with_server"}


def test_the_table_knows_every_algorithm():
    assert factories() == set(ARGUMENTS)


def build(name, rate):
    options = {"uplink" if name in TWO_LINKS else "channel": channel.lossy(rate)}
    if name == "partial_averaging":
        options |= {"local": server.layers("own"), "clients": N}
    method = getattr(server, name)
    options |= NUMBERS.get(name, {})
    if name not in OWN_RULE:
        options["aggregator"] = aggregation.mean()
    return method(*ARGUMENTS[name], **options)


def begin(name):
    params = jnp.ones(D)
    if name == "partial_averaging":
        params = {"shared": jnp.ones(D), "own": jnp.zeros(D)}
    given = (gradients(),) if name in NEEDS_GRADIENTS else ()
    given = (objectives(),) if name in NEEDS_OBJECTIVES else given
    return build(name, 0.0).init(KEY, params, *given)


def pooled(source):
    """The same examples with classes, and labels for all."""
    data = dataclasses.replace(source.data, labels=jnp.arange(N) % D, classes=D)
    return source.replace(data=data, partition=dx.data.pools(source.partition, 1))


@functools.cache
def drawn(name=""):
    source = task().federation(local_steps=1 if name in ONE_STEP else 2)
    if name == "kcfu":
        source = pooled(source)
    if name in NEEDS_OBJECTIVES:
        source = dx.local.quadratic_federation(objectives(), local_steps=2)
    return source.draw(KEY, 1)


@functools.cache
def rounds(name):
    """A round as one program, whatever is lost and whoever reports; the first states of a run."""
    step = jax.jit(lambda rate, state, round: build(name, rate).step(state, round))
    first = begin(name)
    state, metrics = step(0.0, first, drawn(name)._replace(number=jnp.int32(0)))
    assert metrics["clients_reporting"] == N
    assert metrics["messages_lost"] == 0
    return step, (first, state)


def still(name, before, after):
    """Nothing has changed but the round's number; clients that always work go on with what they have."""
    assert after.round == before.round + 1
    if name == "rerce_fed_continual":
        before, after = (s._replace(clients=s.clients.memory.sent) for s in (before, after))
    assert_trees_equal((after.server, after.clients), (before.server, before.clients))


def of_no_client(metrics, counts):
    """Means over clients are NaN, counts as they should be."""
    assert metrics["clients_reporting"] == 0
    for metric in sorted(set(metrics) - STATED):
        if metric in COUNTS:
            assert metric not in counts or metrics[metric] == counts[metric], metric
        else:
            assert np.isnan(metrics[metric]), metric


@pytest.mark.some(2)
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_round_in_which_nobody_reports_leaves_everything(name):
    step, states = rounds(name)
    idle = drawn(name).assignments._replace(local_steps=jnp.zeros(N, jnp.int32))
    nobody = drawn(name)._replace(weights=jnp.zeros(N), assignments=idle)
    for state in states:
        after, metrics = step(0.0, state, nobody)
        still(name, state, after)
        of_no_client(metrics, dict.fromkeys(COUNTS, 0.0))


@pytest.mark.some(1)
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_round_whose_messages_are_all_lost_is_one_in_which_nobody_reports(name):
    step, states = rounds(name)
    for state in states:
        after, metrics = step(1.0, state, drawn(name))
        still(name, state, after)
        of_no_client(metrics, {"messages_lost": N})


@pytest.mark.some(12)
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_client_of_weight_zero_may_hold_nan(name):
    step, (_, state) = rounds(name)
    round = drawn(name)._replace(weights=jnp.ones(N).at[0].set(0.0))
    right, expected = step(0.0, state, round)
    inputs = jax.tree.map(lambda leaf: leaf.at[0].set(jnp.nan), round.data.inputs)
    after, metrics = step(
        0.0, state, round._replace(data=dataclasses.replace(round.data, inputs=inputs))
    )
    assert_trees_equal((after.server, metrics), (right.server, expected))
    others = jax.tree.map(lambda leaf: leaf[1:], (after.clients, right.clients))
    assert_trees_equal(*others)
    assert metrics["clients_reporting"] == N - 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.server))
