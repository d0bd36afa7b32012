"""Who compares which answers, and what the comparisons add up to."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray


def sampled_pairs(key: Key[Array, ""], nodes: int, count: int) -> Int[Array, "n k 2"]:
    """K ordered pairs of answers for each judge, uniform with replacement, none with its own answer.

    Args:
      key: of the draw; the answers must be fixed before it is known.
      nodes: N >= 3.
      count: K >= 1 for each judge.

    Returns:
      `[N, K, 2]` int32: judge k compares answer `[k, :, 0]` with answer `[k, :, 1]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    validation.integer("nodes", nodes, low=3)
    validation.integer("count", count, low=1)
    # One number for both: the ordered pairs among the N - 1 others.
    drawn = jax.random.randint(key, (nodes, count), 0, (nodes - 1) * (nodes - 2), jnp.int32)
    judge = jnp.arange(nodes, dtype=jnp.int32)[:, None]
    first, second = drawn // (nodes - 2), drawn % (nodes - 2)
    first = first + (first >= judge)
    second = second + (second >= jnp.minimum(first, judge))
    second = second + (second >= jnp.maximum(first, judge))
    return jnp.stack([first, second], axis=-1)


def all_pairs(nodes: int) -> Int[Array, "n k 2"]:
    """Every pair of other nodes' answers once, the lower number first: K = (N - 1)(N - 2) / 2.

    Args:
      nodes: N >= 3.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("nodes", nodes, low=3)
    others = jnp.asarray(np.stack(np.triu_indices(nodes - 1, 1), axis=-1), jnp.int32)
    # Each judge's own table is made where it is used: no constant of N^3 numbers.
    judge = jnp.arange(nodes, dtype=jnp.int32)[:, None, None]
    return others + (others >= judge)


def weighted_wins(
    pairs: Int[AnyArray, "n k 2"],
    verdicts: Float[AnyArray, "n k"],
    weights: Float[AnyArray, " n"],
    *,
    counted: Bool[AnyArray, "n k"] | None = None,
) -> Float[Array, "n n"]:
    """Wins of each answer over each other, a judge's verdicts counted with its weight.

        W_ij = sum_k w_k sum over k's pairs of  y for (i, j),  1 - y for (j, i)

    Args:
      pairs: `[N, K, 2]` numbers of answers in [0, N).
      verdicts: `[N, K]` y in [0, 1], the preference for the first of the pair.
      weights: `[N]` w >= 0.
      counted: `[N, K]` which of them count; default all.

    Returns:
      `[N, N]` float32 or wider.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    nodes = np.shape(weights)[0] if np.ndim(weights) == 1 else 1
    own = jnp.asarray(validation.array("weights", weights, kind="real", shape=("n",), low=0.0))
    table = validation.array(
        "pairs", pairs, kind="integer", shape=(nodes, "k", 2), low=0, high=nodes - 1
    )
    shape = table.shape[:2]
    given = validation.array("verdicts", verdicts, kind="real", shape=shape, low=0.0, high=1.0)
    dtype = jnp.result_type(own, jnp.asarray(given), jnp.float32)
    y = jnp.asarray(given, dtype)
    each = jnp.broadcast_to(own.astype(dtype)[:, None], shape)
    if counted is not None:
        kept = validation.array("counted", counted, kind="boolean", shape=shape)
        each = jnp.where(jnp.asarray(kept), each, 0.0)
    first, second = jnp.moveaxis(jnp.asarray(table, jnp.int32), -1, 0)
    places = jnp.stack([first * nodes + second, second * nodes + first]).ravel()
    gained = jnp.stack([each * y, each * (1.0 - y)]).ravel()
    return jnp.zeros(nodes * nodes, dtype).at[places].add(gained).reshape(nodes, nodes)
