"""Bristle: classifiers' last layers, taken over class by class from peers that prove themselves."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.framework.protocol import Client, combine_then_adapt
from dflax.gossip.rules.bristle.class_tests import ClassTests
from dflax.gossip.rules.bristle.rule import bristle as rule
from dflax.gossip.rules.by_rule import Topology, by_rule
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem
from dflax.models.apply import Model
from dflax.population import Assignment


class Memory(NamedTuple):
    """What a client keeps beside its model.

    Attributes:
      familiar: `[n, C]` whether it owns examples of a class.
      optimizer: its optimiser's state, leaves `[n, ...]`.
    """

    familiar: Bool[Array, "n C"]
    optimizer: PyTree[Array]


def bristle(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    topology: Topology,
    model: Model,
    tests: ClassTests,
    *,
    latency: int = 0,
    channel: Channel | None = None,
    at_once: int | None = None,
    **options: Any,
) -> Algorithm:
    """Bristle: mix by the rule of trust, train all columns, keep what was trained of familiar ones.

    A round, W the last layer on frozen features, a column for each class:

        W_i <- gossip.bristle of W_i and of the W_j that i hears, columns centred
        V_i  = K steps of `optimizer` on f_i from W_i
        W_i[:, c] <- V_i[:, c]                               c familiar to i; foreign columns stay

    So what a peer says of a class comes from examples of that class, and foreign columns come from
    others. Only W is sent.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser, whose state it keeps; or a function of the round.
      topology: who hears whom, as in `gossip.by_rule`. Who hears nobody trains alone.
      model: as in `gossip.bristle`.
      tests: each client's clean test set and familiar classes, see `gossip.class_tests`.
      latency: l >= 0: models arrive l rounds later than they could.
      channel: what happens to the models on the way; default nothing.
      at_once: see `dflax.map_clients`.
      **options: `draw`, `better`, `worse`, `bound`, `scale`, as for `gossip.bristle`.

    Returns:
      An `Algorithm` on a `FederatedState`; models, `state.clients.params`, leaves `[n, ..., H, C]`, are
      those after training. `state.clients.mixer.memory.rows` is the `gossip.Trusted` of the round.
      Metrics: the loss's own, `clients_active`, and those of mixer and rule.

    Raises:
      TypeError, ValueError: naming the argument; from `init`, a model with a bias or of other classes.

    References:
      Verbraeken, de Vos and Pouwelse, Bristle: Decentralized Federated Learning in Byzantine,
      Non-i.i.d. Environments, arXiv 2110.11006.
    """
    check_optimizer("optimizer", optimizer)
    mixer = by_rule(topology, rule(model, tests, **options), latency=latency, at_once=at_once)
    validation.leading_axis("tests", tests, mixer.clients)
    solve = solver(loss, optimizer)

    def start(key: Key[Array, ""], models: Params) -> Memory:
        descent = optimizer_at(optimizer, jnp.int32(0))
        return Memory(jnp.asarray(tests.familiar), jax.vmap(descent.init)(models))

    def work(
        assignment: Assignment, own: Client, heard: Params, data: Dataset, index: Array
    ) -> tuple[Client, Metrics]:
        memory: Memory = own.memory
        solution = solve(
            Subproblem(), heard, assignment, data, index=index, optimizer_state=memory.optimizer
        )
        kept = copied_back(solution.params, heard, memory.familiar)
        return Client(kept, memory._replace(optimizer=solution.optimizer)), solution.metrics

    return combine_then_adapt(work, mixer, start=start, channel=channel, at_once=at_once)


def copied_back(trained: Params, before: Params, familiar: Bool[Array, " C"]) -> Params:
    """The trained columns of familiar classes, and those before training of all others."""
    return jax.tree.map(lambda new, old: jnp.where(familiar, new, old), trained, before)
