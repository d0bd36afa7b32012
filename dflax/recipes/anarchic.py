"""Anarchic federated learning: clients decide when they take part and how much they do."""

import optax
from jaxtyping import Array

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.asynchronous import Timetable, Waves, asynchronous_server
from dflax.local import Loss, Oracle


def afa(
    loss: Loss | Oracle,
    worker_rate: float | Array,
    server_rate: float | Array,
    timetable: Timetable | Waves,
    *,
    memory: bool = False,
) -> Algorithm:
    """AFA-CD, and with a memory AFA-CS: a server that steps along mean gradients, however they come.

        G_i = (x^v - y_K) / (eta_L K)                   the mean of the gradients of K local steps
        AFA-CD    x = x - eta / m sum_i G_i                             over the m that arrived
        AFA-CS    x = x - eta / n sum_i G_i           over the latest of all n, 0 of who never came

    Who comes when, and how old its model is, is the timetable: `asynchronous.arrivals` or `clocks`,
    with the same `memory`. AFA-CS with models of age 0 is MIFA. Without a memory, clients that come
    more often than others have the minimum nearer to theirs.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      worker_rate: eta_L > 0, traceable.
      server_rate: eta > 0, traceable.
      timetable: static.
      memory: whether the server steps along the latest of all clients.

    Returns:
      An `Algorithm`, see `dflax.asynchronous.asynchronous_server`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yang et al., Anarchic Federated Learning, arXiv 2108.09875; Gu et al., arXiv 2106.04159 (MIFA).
    """
    for name, rate in (("worker_rate", worker_rate), ("server_rate", server_rate)):
        validation.real(name, rate, low=0.0, low_open=True, scalar=True)
    validation.flag("memory", memory)
    step = optax.sgd(server_rate / worker_rate)
    return asynchronous_server(
        loss,
        optax.sgd(worker_rate),
        timetable,
        server_optimizer=step,
        per_step=True,
        latest=memory,
    )
