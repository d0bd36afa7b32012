"""FLTrust: messages weighed by how much they agree with what the server learns by itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dflax import returned, validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_sum
from dflax.aggregation.combination import count_dropped
from dflax.aggregation.rows.row_norms import row_norms, row_products, who_counts
from dflax.algorithm import Metrics, Params


class RootData(NamedTuple):
    """What FLTrust carries, so that no program holds it as a constant.

    Attributes:
      data: what the server's own work reads.
    """

    data: PyTree[Array]


def fltrust(work: Callable[[Params, Any, Combining], Message], data: PyTree[Array]) -> Aggregator:
    """FLTrust: the mean of the messages' directions by their cosine with the server's own message.

        g = work(x, data),    t_i = max(0, <x_i, g> / (|x_i| |g|))
        out = |g| sum_i t_i x_i / |x_i| / sum_i t_i                      norms over all parameters

    The server has a small clean data set of its own and does a client's work on it. No message counts
    for more than the server's own length, and those that point away from it do not count, however many
    they are: any number of clients may be arbitrary. It is as good as the server's data are like the
    clients'. Where nobody agrees with the server the result is 0. Weights only tell who reported. A
    message with a NaN or an infinity counts as one that did not arrive; the metric `messages_dropped`
    counts them, and `trusted` is the sum of the t_i.

    Args:
      work: `(params, data, combining) -> message`: what an honest client would send from `params`, the
        model that this round's clients started from; `combining.key` is its randomness. For fedavg and
        its relatives `dflax.local.change_on(loss, optimizer, local_steps=..., batch_size=...)`.
      data: what it reads, for example a `dflax.data.Dataset`. It becomes the aggregator's state.

    Returns:
      An `Aggregator` whose state is the `RootData`. With g = (1, 0) it makes (0.879, 0.293) of the
      messages (2, 0), (0, 3), (-1, 0), (1, 1).

    Raises:
      TypeError, ValueError: naming the argument; and, when the messages of a round are seen, no model.

    References:
      Cao et al., FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS 2021,
      arXiv 2012.13995.
    """
    fix = "Say (params, data, combining) -> message, as dflax.local.change_on makes it."
    validation.function("work", work, fix, takes=3)
    validation.arrays("data", data, "For example a dflax.data.Dataset.", some=True)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: RootData, combining: Combining
    ) -> tuple[Message, RootData, Metrics]:
        if combining.params is None:
            raise ValueError(
                "combining.params must be the model that clients started from, got None: FLTrust's "
                "server works from it as well."
            )
        present, dropped = who_counts(messages, weights)
        own = work(combining.params, state.data, combining)
        one = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), messages)
        returned.alike("the message of work", own, one, "one of a client", dtypes=False)
        length = row_norms(jax.tree.map(lambda leaf: leaf[None], own))[0]
        norms, along = row_norms(messages, present=present), row_products(messages, own)
        lengths = norms * length
        cosines = jnp.where(lengths > 0, along / jnp.where(lengths > 0, lengths, 1), 0)
        trust = jnp.where(present, jnp.clip(cosines, 0, 1), 0)
        total = trust.sum()
        scale = length / jnp.where(total > 0, total, 1)
        factors = jnp.where(trust > 0, scale * trust / jnp.where(trust > 0, norms, 1), 0)
        combined = counted_sum(messages, factors)
        return combined, state, count_dropped({"trusted": total}, dropped)

    return Aggregator(lambda message: RootData(jax.tree.map(jnp.asarray, data)), apply)
