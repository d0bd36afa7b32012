"""DP-RSA: clients with models of their own, of whose distance to the server's only signs count."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.clients import replicate
from dflax.data.dataset import Dataset
from dflax.local.oracle import Loss, Oracle
from dflax.privacy.noise import gaussian
from dflax.server.dp_brem import records_of
from dflax.server.framework.client_momentum import Task, expecting
from dflax.server.framework.protocol import Arrived, Received, Report, Server
from dflax.server.framework.rates import Rate, check_rate, rate_at
from dflax.server.framework.with_server import with_server


def dp_rsa(
    loss: Loss | Oracle,
    clients: int,
    *,
    rate: Rate,
    record_clip: Rate,
    noise: float | Float[Array, ""],
    penalty: float | Float[Array, ""] = 0.01,
    decay: float | Float[Array, ""] = 0.004,
    examples_at_once: int | None = 8,
    **options: Any,
) -> Algorithm:
    """DP-RSA: the server's model moves by the signs of its noisy differences from the clients' models.

        client i sends  d_i = x - x_i + N(0, (eta sigma R)^2 I)
        x_i <- x_i - eta (g_i + lambda sign(x_i - x))
        x   <- x - eta lambda (gamma x + sum_i sign(d_i))

    g_i is client i's mean gradient of clipped records at its own model, see `server.dp_brem`; everybody
    starts at x. Each coordinate moves by eta lambda n at most, whatever is sent.

    Its privacy is not that of the other methods with this sigma. x_i is never made private, and every
    d_i holds all of its steps: after t rounds a record moves d_i by up to t eta R / b_i, t times what
    one round's noise is meant for. (The paper charges each round for its own gradient alone.)

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      clients: n.
      rate: eta > 0, traceable; or a function of the round's number.
      record_clip: R > 0, likewise.
      noise: sigma >= 0, traceable.
      penalty: lambda > 0, traceable.
      decay: gamma >= 0, traceable.
      examples_at_once: see `privacy.clipped_per_example`.
      **options: `channel`, where hostile clients lie in place of d_i, and `at_once`, as for
        `server.with_server`.

    Returns:
      An `Algorithm`; the clients' models are `state.clients.memory`.

    Raises:
      TypeError, ValueError: naming the argument; and, while a round is traced, more than one local step.

    References:
      Zhu and Ling, Bridging Differential Privacy and Byzantine-Robustness via Model Aggregation,
      IJCAI 2022, arXiv 2205.00107; Li et al., RSA, arXiv 1811.03761.
    """
    seen = records_of(loss, record_clip, examples_at_once)
    validation.integer("clients", clients, low=1)
    check_rate("rate", rate, low=0.0, low_open=True)
    validation.real("noise", noise, low=0.0, scalar=True)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    validation.real("decay", decay, low=0.0, scalar=True)

    def start(key: Key[Array, ""], params: Params) -> tuple[tuple[()], Params]:
        return (), replicate(params, clients)

    def work(
        task: Task, own: Params, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        fetch_key, own_key, noise_key = jax.random.split(task.assignment.key, 3)
        batch = data.fetch(task.assignment.minibatches[0], fetch_key)
        gradient, metrics = seen(index, task.expected)(own, batch, own_key)
        step = rate_at(rate, index)
        away = jax.tree.map(jnp.subtract, server.params, own)
        blur = gaussian(noise_key, own, step * noise * rate_at(record_clip, index))
        moved = jax.tree.map(
            lambda x, g, d: (x - step * (g - penalty * jnp.sign(d))).astype(x.dtype),
            own,
            gradient,
            away,
        )
        return Report(jax.tree.map(jnp.add, away, blur), moved, metrics)

    def read(memory: Params, arrived: Arrived) -> Params:
        return jax.tree.map(jnp.sign, arrived.message)

    def update(server: Server, received: Received) -> tuple[Params, tuple[()], Metrics]:
        step = rate_at(rate, received.number) * penalty
        params = jax.tree.map(
            lambda x, s: (x - step * (decay * x + received.reporting * s)).astype(x.dtype),
            server.params,
            received.message,
        )
        return params, (), {}

    return with_server(
        start, work, update, read=read, clients=clients, equal=True, assign=expecting, **options
    )
