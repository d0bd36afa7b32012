"""Federated averaging, with any optax optimiser on the clients and on the server."""

from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm
from dflax.channel.channel import Channel
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer
from dflax.server.framework.averaging import averaging


def fedavg(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    server_optimizer: Optimizer | None = None,
    *,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    clients: int | None = None,
    keep_optimizer: bool = False,
    keep_model: bool = False,
    at_once: int | None = None,
) -> Algorithm:
    """Federated averaging (FedAvg) and, through the server's optimiser, its adaptive relatives.

    A round, for a cohort S of m clients with weights w_i and a fresh local optimiser each:

        y_i = K steps of `optimizer` on f_i from x                            i in S, in parallel
        d   = aggregator(channel(y_i - x), w_i)                               mean: FedAvg
        x   = server_optimizer(x, -d)                                         SGD(1): x + d

    `optax.sgd(1.0)` on the server is FedAvg; `optax.sgd(s, momentum)` FedAvgM; `optax.adam(s)`,
    `optax.yogi(s)`, `optax.adagrad(s)` are FedAdam, FedYogi and FedAdagrad. A round in which nobody
    reports leaves the server as it was. DiLoCo is
    `fedavg(loss, optax.adamw(r), optax.sgd(0.7, 0.9, nesterov=True), keep_optimizer=True, clients=n)`.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: the clients' optax optimiser; or a function of the round's number that returns one.
      server_optimizer: the server's, applied to the negative aggregated change; default
        `optax.sgd(1.0)`. A function of the round's number as well.
      aggregator: default the weighted mean.
      channel: between clients and server; default perfect. One with memory needs `clients`.
      clients: n, the number of clients of the federation; only read when the channel has memory or
        clients keep something.
      keep_optimizer: whether each client keeps its optimiser's state from round to round, as
        `state.clients.memory`; who does not report keeps it as it was. Else it is fresh in every round.
      keep_model: whether each client keeps its last local model, as `state.clients.params`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; the model is `state.server.params`, the
      server's optimiser `state.server.memory`. Metrics: the loss's own
      (means over local steps, then over reporting clients by weight) and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    Examples:
      >>> import jax, jax.numpy as jnp, optax, dflax as dx
      >>> problem = dx.data.quadratics(jax.random.key(0), clients=4, dimension=3, condition=2.0)
      >>> federation = dx.Federation(problem.data, problem.partition, batch_size=1, local_steps=5)
      >>> algorithm = dx.server.fedavg(dx.data.quadratic_loss, optax.sgd(0.5))
      >>> state = algorithm.init(jax.random.key(0), jnp.zeros(3))
      >>> state, history = dx.run(algorithm, state, federation, rounds=20, key=jax.random.key(1))
      >>> bool(jnp.allclose(state.server.params, problem.optimum, atol=1e-3))
      True

    References:
      McMahan et al., arXiv 1602.05629; Hsu et al., arXiv 1909.06335 (FedAvgM); Reddi et al.,
      Adaptive Federated Optimization, arXiv 2003.00295; Douillard et al., DiLoCo, arXiv 2311.08105.
    """
    return averaging(
        loss,
        optimizer,
        server_optimizer,
        aggregator=aggregator,
        channel=channel,
        clients=clients,
        keep_optimizer=keep_optimizer,
        keep_model=keep_model,
        at_once=at_once,
    )
