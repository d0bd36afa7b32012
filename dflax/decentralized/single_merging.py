"""Sparse gossip and one merge: decentralized training that averages exactly once, at the end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import counter, topology, validation
from dflax.aggregation.aggregator import Aggregator, Combining, mean
from dflax.algorithm import Algorithm, FederatedState, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.decentralized.gossip_averaging import Order, gossip_averaging
from dflax.gossip.choose import mixer
from dflax.gossip.mixer import Mixer, require_mixer
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer
from dflax.models.apply import Model
from dflax.models.statistics import recalibrate
from dflax.participation import Count


def single_merging(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    clients: int,
    r: float | Float[Array, ""] | topology.intensity.Intensity = 0.2,
    *,
    base: topology.Graph | None = None,
    disconnected: bool = False,
    symmetric: bool = False,
    mixing: Callable[[Mixer], Mixer] | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Local SGD with rare random gossip; `merge` makes one model of all at the end.

    A round, each client with an optimiser state of its own that is never mixed:

        y_k = K steps of `optimizer` on f_k from x_k
        x_k = mean of y_k and of floor(r) + Bernoulli(r - floor(r)) random others

    and once, after the last round, `merge(state)`: (1 / n) sum_k x_k. A little communication keeps
    the models mergeable: their mean is about as good as that of averaging in every round, while each
    of them alone is much worse. Spent late, a given budget buys far more than spent early.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser; or a function of the round's number.
      clients: n >= 2.
      r: others heard per client and round on average, in [0, n - 1]: a number (traceable), or a
        function of the round such as those of `topology.intensity`. r = n - 1 averages exactly.
      base: hear only neighbours in this graph; default anyone.
      disconnected: whether a base is accepted in which some client cannot reach another.
      symmetric: meet in random pairs instead, with probability min(r, 1): the mean of the models is
        then kept in every round, not only in expectation. Without `base`.
      mixing: the gossip made from the random one, for clients that start from draws of their own
        `lambda plain: gossip.variance_corrected(plain, 0.0)`: a mixed tensor then gets the mean
        variance of what was mixed. The mean of the models is not kept, in expectation either.
      channel: see `dfedavg`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm`, as `dfedavg` with optimisers that are kept. `evaluation.mean_model` measures at
      any round what merging then would give, without feeding it back. Running statistics are mixed
      along between rounds; `merge` and `evaluation.recalibrated` estimate them afresh.

    Raises:
      TypeError, ValueError: naming the argument.

    Warns:
      dflax.models.AveragedStatistics: from `init`, models with "batch_stats"; to be silenced by its
        category where the merged model is all that is used.

    References:
      Zhu et al., A Single Merging Suffices: Recovering Server-based Learning Performance in
      Decentralized Learning, arXiv 2507.06542.
    """
    validation.integer("clients", clients, low=2)
    validation.flag("symmetric", symmetric)
    if not callable(r):
        fix = "Of n clients each can hear n - 1 others."
        validation.real("r", r, low=0.0, high=clients - 1, scalar=True, fix=fix)
    if symmetric and base is not None:
        raise ValueError(
            f"base must be None with symmetric=True, which pairs any two clients, got {base.name}. "
            "Leave one of them out."
        )
    if symmetric:
        # Beyond one meeting a round there is no pairing that gives more.
        probability = r if callable(r) else jnp.minimum(r, 1.0)
        schedule = topology.random_matching(clients, probability)
    else:
        schedule = topology.random_neighbours(clients, r, base=base, disconnected=disconnected)
    meeting = mixer(schedule)
    if mixing is not None:
        validation.function("mixing", mixing, "For example gossip.variance_corrected.", takes=1)
        meeting = mixing(meeting)
        require_mixer(meeting, "what mixing returns")
    return gossip_averaging(
        loss,
        optimizer,
        meeting,
        order=Order.ADAPT_THEN_COMBINE,
        keep_optimizer=True,
        channel=channel,
        at_once=at_once,
    )


def merge(
    state: FederatedState | Params,
    *,
    aggregator: Aggregator | None = None,
    model: Model | None = None,
    data: Dataset | None = None,
    batches: int = 32,
    batch_size: int = 128,
    key: Key[Array, ""] | None = None,
) -> Params:
    """The mean of all clients' models, with BatchNorm statistics estimated afresh for it.

        x = (1 / n) sum_k x_k                                or what `aggregator` makes of the x_k

    Args:
      state: of a decentralized algorithm, or its models with leaves `[n, ...]`.
      aggregator: default the mean. `aggregation.variance_corrected()` for models from draws of their
        own.
      model: the model; needed, with `data`, where the models have "batch_stats": averaged
        statistics describe none of the models, so they are never used.
      data: training examples to estimate the statistics on.
      batches: minibatches to estimate them with, >= 1.
      batch_size: examples in each, >= 1.
      key: draws the examples, None takes the first ones; and the aggregator's.

    Returns:
      One model.

    Raises:
      ValueError: statistics without model and data, these without statistics, or one of them.

    References:
      Zhu et al., arXiv 2507.06542.
    """
    models: Any = state.clients.params if isinstance(state, FederatedState) else state
    count = validation.leading_axis("state", models, least=1)
    validation.model("state", models)
    validation.integer("batches", batches, low=1)
    validation.integer("batch_size", batch_size, low=1)
    if key is not None:
        validation.typed_key("key", key)
    rule = mean() if aggregator is None else aggregator
    validation.instance("aggregator", rule, Aggregator, "For example dflax.aggregation.mean().")
    one = jax.tree.map(lambda leaf: leaf[0], models)
    weights = jnp.ones(count)
    rule_key = jax.random.key(0) if key is None else jax.random.fold_in(key, counter.OF_STARTS)
    combining = Combining(
        rule_key, senders=jnp.arange(count, dtype=jnp.int32), clients=Count(count)
    )
    merged: Any = rule.apply(models, weights, rule.init(one), combining)[0]
    if model is not None and data is not None:
        return recalibrate(model, merged, data, batches=batches, batch_size=batch_size, key=key)
    if isinstance(merged, dict) and "batch_stats" in merged:
        raise ValueError(
            'model and data must be given for models with "batch_stats": the mean of running '
            "statistics fits no model. Pass the model and training examples to estimate them."
        )
    if model is not None or data is not None:
        raise ValueError("model and data must be given together, got one of them.")
    return merged
