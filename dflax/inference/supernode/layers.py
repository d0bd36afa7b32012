"""A layer of decoding from its parts: rooflines, exchanges, two microbatches at a time.

It has more unknowns than there are published points: `decode.cloudmatrix_costs` is the model to
simulate with, this one says which way things go and why.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dflax import validation
from dflax.inference.supernode.experts import Exchanges, exchange_time
from dflax.inference.supernode.numbers import Real, numbers

CORES = 24


class Stage(NamedTuple):
    """A part of a layer, operation by operation. From `stage`.

    Attributes:
      compute: `[..., ops]` s on all cores.
      memory: `[..., ops]` s of reads, which overlap with the operation's arithmetic.
      fixed: `[...]` s of exchanges and latencies.
    """

    compute: Float[Array, "... ops"]
    memory: Float[Array, "... ops"]
    fixed: Real


def stage(compute: Real, memory: Real, fixed: Real) -> Stage:
    """A part of a layer.

    Args:
      compute: `[..., ops]` s of arithmetic of each operation on all cores, >= 0; traceable.
      memory: `[..., ops]` s of reads of each operation, >= 0; traceable.
      fixed: `[...]` s that neither is, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    return Stage(
        jnp.atleast_1d(numbers("compute", compute, low=0.0)),
        jnp.atleast_1d(numbers("memory", memory, low=0.0)),
        numbers("fixed", fixed, low=0.0),
    )


def stage_time(stage: Stage, share: Real = 1.0) -> Float[Array, "..."]:
    """Seconds on a share of the cores: sum over operations of max(compute / share, memory), + fixed.

    Args:
      stage: see `Stage`.
      share: of the cores, in (0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("stage", stage, Stage)
    validation.real("share", share, low=0.0, high=1.0, low_open=True, scalar=True)
    return jnp.sum(jnp.maximum(stage.compute / share, stage.memory), axis=-1) + stage.fixed


def pipelined(
    attention: Stage, experts: Stage, *, share: Real = 16.0 / CORES, other: Real = 8.0 / CORES
) -> Float[Array, "..."]:
    """Seconds of a layer for two microbatches, one in attention while the other is with the experts.

        2 max(attention(half) / share, experts(half) / other)

    Both stages are those of HALF a batch. Against one after the other it gains at most a factor 2,
    where nothing is shared; where both are arithmetic alone and the shares sum to 1 it gains nothing.

    Args:
      attention: of a microbatch.
      experts: of a microbatch.
      share: of the cores for attention, in (0, 1]; traceable.
      other: of the cores for the experts, in (0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.instance("attention", attention, Stage)
    validation.instance("experts", experts, Stage)
    validation.real("share", share, low=0.0, high=1.0, low_open=True, scalar=True)
    validation.real("other", other, low=0.0, high=1.0, low_open=True, scalar=True)
    return 2.0 * jnp.maximum(stage_time(attention, share), stage_time(experts, other))


class Die(NamedTuple):
    """What half an NPU reaches.

    Attributes:
      products: INT8 operations a second of matrix products.
      attention: BF16 FLOP/s of attention.
      bandwidth: B/s of its memory.
    """

    products: Real = 752e12 * 0.8
    attention: Real = 376e12 * 0.654
    bandwidth: Real = 1.6e12 * 0.841


class Sizes(NamedTuple):
    """A layer with latent attention and experts; the defaults are DeepSeek-R1's in INT8.

    Attributes:
      width: of the residual stream.
      projections: parameters of attention's projections, of a byte each.
      attended: operations of one query with one position of the context, over all heads.
      cache: B of one position.
      expert: parameters of one expert, of a byte each.
      active: experts that a token is sent to, besides the shared one.
    """

    width: Real = 7168.0
    projections: Real = 187.1e6
    attended: Real = 2.0 * 128.0 * (576.0 + 512.0)
    cache: Real = 1152.0
    expert: Real = 3.0 * 7168.0 * 2048.0
    active: Real = 8.0


def attention_stage(
    sequences: Real,
    context: Real,
    *,
    queries: Real = 2.0,
    sizes: Sizes | None = None,
    die: Die | None = None,
) -> Stage:
    """Attention of a die in one layer: the projections, and the queries with their contexts.

    Args:
      sequences: of a die, > 0; traceable.
      context: their mean length, >= 0; traceable.
      queries: tokens of a sequence in one iteration, > 0: 2 with a guess; traceable.
      sizes: see `Sizes`; default DeepSeek-R1's.
      die: see `Die`; default a CloudMatrix384's.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    sequences = numbers("sequences", sequences, low=0.0, low_open=True)
    context = numbers("context", context, low=0.0)
    queries = numbers("queries", queries, low=0.0, low_open=True)
    sizes, die = _known(sizes, die)
    tokens, positions = sequences * queries, sequences * context
    compute = (
        2.0 * sizes.projections * tokens / die.products,
        sizes.attended * positions * queries / die.attention,
    )
    memory = (sizes.projections / die.bandwidth, sizes.cache * positions / die.bandwidth)
    return _stage(compute, memory, 0.0)


def experts_stage(
    tokens: Real,
    exchanges: Exchanges,
    *,
    ranks: Real = 320.0,
    imbalance: Real = 1.0,
    sizes: Sizes | None = None,
    die: Die | None = None,
) -> Stage:
    """The experts of a die in one layer: dispatch, one expert's products, combine.

    A die holds one expert, routed or shared, and gets tokens (active + 1) imbalance rows.

    Args:
      tokens: of a die in one iteration, > 0; traceable.
      exchanges: dispatch and combine.
      ranks: dies, >= 1; traceable.
      imbalance: lambda, >= 1; traceable.
      sizes: see `Sizes`; default DeepSeek-R1's.
      die: see `Die`; default a CloudMatrix384's.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    tokens = numbers("tokens", tokens, low=0.0, low_open=True)
    validation.instance("exchanges", exchanges, Exchanges)
    ranks = numbers("ranks", ranks, low=1.0)
    imbalance = numbers("imbalance", imbalance, low=1.0)
    sizes, die = _known(sizes, die)
    rows = tokens * (sizes.active + 1.0) * imbalance
    both = [exchange_time(each, ranks, tokens, active=sizes.active) for each in exchanges]
    compute = (2.0 * sizes.expert * rows / die.products,)
    return _stage(compute, (sizes.expert / die.bandwidth,), sum(both))


def _known(sizes: Sizes | None, die: Die | None) -> tuple[Sizes, Die]:
    sizes = Sizes() if sizes is None else sizes
    die = Die() if die is None else die
    validation.instance("sizes", sizes, Sizes)
    validation.instance("die", die, Die)
    return sizes, die


def _stage(compute: tuple, memory: tuple, fixed: Real) -> Stage:
    wide = jnp.broadcast_arrays(*map(jnp.asarray, compute), *map(jnp.asarray, memory))
    ops = len(compute)
    return Stage(jnp.stack(wide[:ops], -1), jnp.stack(wide[ops:], -1), fixed)
