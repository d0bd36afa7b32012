"""Federated adversarial learning: clients train on inputs that they attack themselves."""

import enum

import optax
from jaxtyping import Array, Int

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.local.adversarial_training.adversarial import adversarial
from dflax.local.adversarial_training.attack import Attack
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.solver import Optimizer
from dflax.population import Assignment
from dflax.server.framework.averaging import descent, local_change
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


class Attacked(enum.Enum):
    """Which model a client attacks.

    Attributes:
      CURRENT: its own, anew at every local step.
      RECEIVED: the one it got from the server, in all steps of the round.
    """

    CURRENT = "current"
    RECEIVED = "received"


def fal(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    attack: Attack,
    *,
    server_rate: Rate = 1.0,
    attacked: Attacked = Attacked.CURRENT,
    share: float | Array = 1.0,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    clients: int | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Federated adversarial learning (FAL): FedAvg of clients that train adversarially.

    Minimises L_A(x) = mean over clients and examples of max_|delta|<=r loss(x; inputs + delta). A
    round, for a cohort S with weights w_i, every client from y = x:

        K times:  inputs~ = attack(y, minibatch)                 P gradients with respect to inputs
                  y = y - rate grad mean loss(y; inputs~)        one step of `optimizer`
        x = x + server_rate sum_i w_i (y_i - x) / sum_i w_i

    With radius 0, or no steps of attack, it is FedAvg, bit for bit. It is `fedavg` of
    `dflax.local.adversarial(loss, attack)` with a metric for the length of the server's step, and
    with the choice of the model that is attacked; adversarial oracles such as
    `dflax.local.trades` serve every other algorithm as well.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser, fresh in every round; or a function of the round's
        number that returns one.
      attack: `(params, batch, key) -> batch`, for example
        `dflax.local.projected_gradient(loss, 0.5, 5)`.
      server_rate: eta_global >= 0; traceable; or a function of the round's number that returns one. 0
        keeps the model as it is.
      attacked: whether the attack follows the local model or stays with the round's start.
      share: of each minibatch that is attacked, in [0, 1], see `dflax.local.adversarial`; traceable.
      aggregator: default the weighted mean.
      channel: between clients and server; default perfect. One with memory needs `clients`.
      clients: n, the number of clients of the federation; only read when the channel has memory.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`. Metrics: the loss's
      own at the attacked inputs, `perturbation` (mean over steps of the largest Euclidean distance
      from an example to its attacked version), `change` (|mean change of the model|) and
      `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Li, Song and Yang, Federated Adversarial Learning: A Framework with Convergence Analysis,
      arXiv 2208.03635.
    """
    check_rate("server_rate", server_rate, low=0.0)
    validation.function(
        "attack", attack, "For example dflax.local.projected_gradient(loss, 0.5, 5)."
    )
    validation.instance("attacked", attacked, Attacked, "For example Attacked.CURRENT.")
    oracle = gradient(loss)
    current = adversarial(oracle, attack, share=share)
    follow = local_change(current, optimizer)
    start, update = descent(lambda number: optax.sgd(rate_at(server_rate, number)))

    def work(
        assignment: Assignment, own: tuple[()], server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        if attacked is Attacked.CURRENT:
            return follow(assignment, own, server, data, index)
        seen = adversarial(oracle, attack, share=share, at=server.params)
        return local_change(seen, optimizer)(assignment, own, server, data, index)

    def measured(server: Server, received: Received) -> tuple[Params, optax.OptState, Metrics]:
        params, memory, metrics = update(server, received)
        return params, memory, metrics | {"change": optax.tree.norm(received.message)}

    return with_server(
        start,
        work,
        measured,
        aggregator=aggregator,
        channel=channel,
        clients=clients,
        at_once=at_once,
    )
