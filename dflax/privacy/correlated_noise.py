"""Noise that is correlated from round to round, so that it cancels in the sum of many (DP-FTRL)."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message, counted_sum
from dflax.algorithm import Metrics
from dflax.privacy.extra import imported
from dflax.privacy.noise import added, gaussian
from dflax.privacy.private_means import Real, check, cut, divided


class CorrelatedNoise(NamedTuple):
    """The rows of `C^-1 Z`, one a step, where Z is white noise and a release of `C x + Z` is private.

    Attributes:
      init: `init(message) -> state`, the memory.
      step: `step(state, key, t, message) -> (noise, state)`, t `[]` int32 the number of the step from 0;
        of deviation 1 in Z. The key is the same in every step.
      sensitivity: of C to one participant: by how much `C x` moves for changes of length 1.
      steps: for which it was made.
      kind: "tree" or "matrix", for the accountant.
      separation: the least number of steps between two participations of a client.
      participations: the most of one client.
    """

    init: Callable[[Message], Any]
    step: Callable[[Any, Key[Array, ""], Int[Array, ""], Message], tuple[Message, Any]]
    sensitivity: float
    steps: int
    kind: Literal["tree", "matrix"]
    separation: int
    participations: int


def correlated_mean(
    noise: CorrelatedNoise, norm: Real, noise_multiplier: Real, expected: Real
) -> Aggregator:
    """The mean of clipped changes with noise whose running sum stays small (DP-FTRL).

        out_t = (sum_i x_i min(1, R / |x_i|) + z R s (C^-1 Z)_t) / n       s = sensitivity, n = expected

    What the model moves by over t rounds bears the noise of `(A C^-1 Z)_t`, A the prefix sum: with a
    good C of the order of log t, where white noise has sqrt(t). All T rounds are one Gaussian release
    of multiplier z, for clients that take part as the noise was made for; no sampling is needed and
    none helps. See `correlated_plan`. Metrics are those of `private_mean`. The steps of the noise are
    the rounds in which somebody reports.

    Args:
      noise: `tree_noise`, `banded_noise` or `buffered_noise`.
      norm: R > 0, traceable.
      noise_multiplier: z >= 0, traceable; the sensitivity is multiplied in here.
      expected: n > 0 clients of a round; traceable.

    Returns:
      An `Aggregator` whose state is the noise's memory, a key and a count.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Kairouz et al., Practical and Private (Deep) Learning without Sampling or Shuffling, arXiv
      2103.00039; Choquette-Choo et al., (Amplified) Banded Matrix Factorization, arXiv 2306.08153.
    """
    fix = "Make one with dflax.privacy.tree_noise(rounds)."
    validation.instance("noise", noise, CorrelatedNoise, fix)
    check(norm, noise_multiplier, expected)

    def init(message: Message) -> tuple[Any, Array, Array]:
        like = jax.tree.map(
            lambda leaf: jnp.zeros(
                jnp.shape(leaf), jnp.promote_types(jnp.result_type(leaf), jnp.float32)
            ),
            message,
        )
        # Of no use before the first step, which puts its own key there.
        return noise.init(like), jax.random.key_data(jax.random.key(0)), jnp.int32(0)

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        memory, held, count = state
        own = jax.random.key_data(combining.key)
        if own.shape != held.shape:
            raise ValueError(
                "key of the run must be of JAX's default kind for correlated noise, which keeps one, "
                f"got {combining.key.dtype}."
            )
        held = jnp.where(count > 0, held, own)
        found = cut(messages, weights, norm)
        total = counted_sum(messages, found.factors)
        like = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), total
        )
        row, memory = noise.step(memory, jax.random.wrap_key_data(held), count, like)
        scale = noise_multiplier * norm * jnp.asarray(noise.sensitivity)
        scaled = jax.tree.map(lambda leaf: leaf * scale.astype(leaf.dtype), row)
        out = divided(added(total, scaled), expected)
        return out, (memory, held, count + 1), found.metrics

    return Aggregator(init, apply)


def tree_noise(steps: int) -> CorrelatedNoise:
    """The noise of a binary tree over the rounds, started anew after `steps` of them.

        (A C^-1 Z)_t = sum of Z over the nodes that [1, t] is made of: as many as t has binary ones

    A client may take part once in every `steps` rounds. Nothing is remembered: the noise of a node is
    drawn again from its number, so a round draws two nodes on average and `log2(steps) + 1` at most.
    (`jax_privacy` 2.0 has no tree; its matrices remember noise.)

    Args:
      steps: of one tree, >= 1; static.

    Returns:
      A `CorrelatedNoise` of sensitivity 1: the accountant counts the nodes that a client is in.
    """
    validation.integer("steps", steps, low=1)

    def node(
        key: Key[Array, ""], tree: Array, level: Array, place: Array, like: Message
    ) -> Message:
        for number in (tree, level, place):
            key = jax.random.fold_in(key, number)
        return gaussian(key, like, 1.0)

    def step(
        state: tuple[()], key: Key[Array, ""], t: Int[Array, ""], like: Message
    ) -> tuple[Message, tuple[()]]:
        tree, count = t // steps, (t % steps + 1).astype(jnp.uint32)
        zeros = _trailing_zeros(count)
        fresh = node(key, tree, zeros, count >> zeros, like)

        def without(level: Array, total: Message) -> Message:
            level = level.astype(jnp.uint32)
            done = node(key, tree, level, (count - 1) >> level, like)
            return jax.tree.map(jnp.subtract, total, done)

        # In the first round of a tree there is nothing before it that ends.
        return jax.lax.fori_loop(0, zeros.astype(jnp.int32), without, fresh), state

    return CorrelatedNoise(lambda like: (), step, 1.0, steps, "tree", steps, LARGEST)


def banded_noise(
    steps: int, bands: int, *, separation: int | None = None, participations: int | None = None
) -> CorrelatedNoise:
    """The noise of a banded Toeplitz C, found by `jax_privacy` for the least mean squared error.

    The memory is bands - 1 models.

    Args:
      steps: T >= 1 rounds.
      bands: in [1, T]; as many as `separation` are usually best.
      separation: b >= 1, the least number of rounds from one participation of a client to its next;
        default T: everyone once.
      participations: the most of one client; default as many as fit, ceil(T / b).

    Returns:
      A `CorrelatedNoise`.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: jax-privacy is not installed.
    """
    separation, participations = _participation(steps, separation, participations)
    validation.integer("bands", bands, low=1, high=steps)
    toeplitz = imported("jax_privacy.matrix_factorization.toeplitz")
    one = bands == 1
    coefficients = jnp.ones(1) if one else toeplitz.optimize_banded_toeplitz(steps, bands)
    return _of_matrix(
        toeplitz.inverse_as_streaming_matrix(coefficients),
        coefficients,
        steps,
        separation,
        participations,
    )


def buffered_noise(
    steps: int,
    *,
    separation: int | None = None,
    participations: int | None = None,
    buffers: int = 5,
) -> CorrelatedNoise:
    """The noise of a buffered linear Toeplitz C (BLT), found by `jax_privacy` for the least error.

    The memory is a few buffers, each a model, chosen up to `buffers`: less than a band for every
    round between two participations.

    Args:
      steps: T >= 2 rounds.
      separation: as for `banded_noise`.
      participations: as for `banded_noise`.
      buffers: most buffers, in [1, 15].

    Returns:
      A `CorrelatedNoise`.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: jax-privacy is not installed.

    References:
      McMahan, Xu and Zhang, A Hassle-free Algorithm for Strong Differential Privacy in Federated
      Learning Systems, arXiv 2408.08868.
    """
    separation, participations = _participation(steps, separation, participations, least=2)
    validation.integer("buffers", buffers, low=1, high=15)
    blt = imported("jax_privacy.matrix_factorization.buffered_toeplitz")
    with jax.enable_x64(True):
        found = blt.optimize(
            n=steps,
            min_sep=separation,
            max_participations=participations,
            min_buffers=1,
            max_buffers=buffers,
        )
        coefficients = np.asarray(found.toeplitz_coefs(steps))
        parts = np.asarray(found.buf_decay), np.asarray(found.output_scale)
    # Found in double precision; the recurrences of the noise run in that of the noise.
    narrow = blt.BufferedToeplitz.build(*parts, dtype=jnp.float32)
    return _of_matrix(
        narrow.inverse_as_streaming_matrix(), coefficients, steps, separation, participations
    )


# More participations than there are rounds to take part in.
LARGEST = 2**31 - 1


def _of_matrix(
    inverse: Any, coefficients: Any, steps: int, separation: int, participations: int
) -> CorrelatedNoise:
    """A streamed matrix of `jax_privacy`, fed with white noise."""
    toeplitz = imported("jax_privacy.matrix_factorization.toeplitz")
    with jax.enable_x64(True):
        square = toeplitz.minsep_sensitivity_squared(
            jnp.asarray(np.asarray(coefficients), float),
            min_sep=separation,
            max_participations=participations,
            n=steps,
            skip_checks=True,
        )
    _check_decreasing(np.asarray(coefficients))

    def init(like: Message) -> Any:
        return inverse.init_multiply(like)

    def step(
        state: Any, key: Key[Array, ""], t: Int[Array, ""], like: Message
    ) -> tuple[Message, Any]:
        white = gaussian(jax.random.fold_in(key, t), like, 1.0)
        return inverse.multiply_next(white, state)

    return CorrelatedNoise(
        init, step, float(square) ** 0.5, steps, "matrix", separation, participations
    )


def _check_decreasing(coefficients: Float[np.ndarray, " k"]) -> None:
    """The formula of the sensitivity is for coefficients >= 0 that do not grow."""
    slack = 1e-6 * abs(coefficients[0])
    if (coefficients < -slack).any() or (np.diff(coefficients) > slack).any():
        raise ValueError(
            "steps and bands must lead to coefficients >= 0 that do not grow, which the sensitivity is "
            f"known of, got {coefficients[:8]}. Take fewer bands or buffers."
        )


def _participation(
    steps: Any, separation: Any, participations: Any, least: int = 1
) -> tuple[int, int]:
    validation.integer("steps", steps, low=least)
    separation = steps if separation is None else separation
    validation.integer("separation", separation, low=1, high=steps)
    most = -(-steps // separation)
    participations = most if participations is None else participations
    validation.integer("participations", participations, low=1, high=most)
    return separation, participations


def _trailing_zeros(count: Array) -> Array:
    """How often 2 divides a positive number: a power of two has as many ones below it."""
    lowest = count & (~count + 1)
    return jax.lax.population_count(lowest - 1)
