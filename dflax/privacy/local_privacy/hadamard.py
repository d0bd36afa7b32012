"""Hadamard response: a short report that leans to one half of a block of answers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.privacy.local_privacy.oracle import (
    Domain,
    Estimates,
    FrequencyOracle,
    chance,
    histogram,
    present_users,
    require_epsilon,
    require_values,
)


def hadamard_response(epsilon: float | Float[Array, ""], *, blocks: int = 1) -> FrequencyOracle:
    """Hadamard response with B blocks of b answers, K = B b.

    Value x has the set S_x of s = b/2 answers in block x mod B at which its row of the Hadamard matrix
    is +1. Each answer in S_x is e^epsilon times as likely as each answer outside:

        P(y) = e^epsilon / Z in S_x, 1 / Z else,   Z = s e^epsilon + K - s.

    Sets of one block share half of their answers. So the sum W_x of +1 for a report in S_x, -1 for one
    in the rest of its block, is 0 in the mean for all other values, and

        f_x = Z / (s (e^epsilon - 1)) * W_x / n.

    All W come from the counts by one fast Walsh-Hadamard transform of every block. Who has none of the
    values answers anything with the same probability.

    Args:
      epsilon: > 0, traceable.
      blocks: B, a power of two (static). 1 suits epsilon up to about 1; more suit a larger epsilon,
        about e^epsilon / 2 of them, at most d.

    Returns:
      A `FrequencyOracle`; a report is an int32 in [0, K).

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Acharya, Sun and Zhang, Hadamard response, arXiv 1802.04705.
    """
    require_epsilon("epsilon", epsilon)
    validation.integer("blocks", blocks, low=1, high=2**20)
    if blocks & (blocks - 1):
        raise ValueError(f"blocks must be a power of two, got {blocks}. Take the next one.")
    odds = jnp.exp(jnp.asarray(epsilon, jnp.float32))

    def block_length(domain: Domain) -> int:
        """Static b: rows 1, ..., b - 1 of the matrix are those of a block's values."""
        return 1 << (-(-int(domain.padded) // blocks)).bit_length()

    def scale(domain: Domain) -> Float[Array, ""]:
        """Z / (s (e^epsilon - 1)), and so that it stays finite."""
        half = block_length(domain) // 2
        rest = blocks * block_length(domain) - half
        return (1 + rest / (half * odds)) / (1 - 1 / odds)

    def respond(key: Key[Array, ""], values: Int[Array, " n"], domain: Domain) -> Array:
        values = require_values(values, domain)
        lean_key, other_key, which_key, any_key = jax.random.split(key, 4)
        length = block_length(domain)
        half, answers = length // 2, blocks * length
        leans = chance(lean_key, 1 / (1 + (answers - half) / (half * odds)), values.shape)
        row = values // blocks + 1
        first = (values % blocks) * length
        # The place-th element of a half: all bits but one of the row's are free, and that one is set
        # so that the sign comes out.
        which = jax.random.randint(which_key, values.shape, 0, half)
        inside = first + _with_sign(which, row, 0)
        # The answers that are not in S_x: the other half of the block, then the other blocks.
        drawn = jax.random.randint(other_key, values.shape, 0, answers - half)
        elsewhere = drawn - half
        elsewhere = elsewhere + jnp.where(elsewhere >= first, length, 0)
        outside = jnp.where(drawn < half, first + _with_sign(drawn, row, 1), elsewhere)
        uniform = jax.random.randint(any_key, values.shape, 0, answers)
        return jnp.where(domain.holds(values), jnp.where(leans, inside, outside), uniform)

    def estimate(
        reports: Int[Array, " n"], domain: Domain, present: Bool[Array, " n"] | None = None
    ) -> Estimates:
        length, padded = block_length(domain), int(domain.padded)
        counts = histogram(reports, blocks * length, present).reshape(blocks, length)
        values = jnp.arange(padded)
        sums = _walsh_hadamard(counts)[values % blocks, values // blocks + 1]
        of_block = counts.sum(1)[values % blocks]
        users = present_users(reports, present)
        n = jnp.maximum(users, 1).astype(jnp.float32)
        valid, factor = domain.valid, scale(domain)
        deviation = jnp.where(users > 0, factor * jnp.sqrt(of_block) / n, jnp.inf)
        return Estimates(
            jnp.where(valid, factor * sums / n, 0.0),
            jnp.where(valid, deviation, 0.0),
            jnp.where(valid, (of_block + sums) // 2, 0),
            users,
        )

    def simulate(
        key: Key[Array, ""],
        values: Int[Array, " n"],
        domain: Domain,
        present: Bool[Array, " n"] | None = None,
    ) -> Estimates:
        return estimate(respond(key, values, domain), domain, present)

    def supports(reports: Int[Array, " n"], domain: Domain) -> Bool[Array, "n D"]:
        length, values = block_length(domain), jnp.arange(int(domain.padded))
        return _in_half(reports[:, None], values, length) & domain.valid

    def _in_half(report: Array, value: Array, length: int) -> Array:
        here = report // length == value % blocks
        return here & ~_odd((report % length) & (value // blocks + 1))

    def log_likelihood(
        reports: Int[Array, " n"], values: Int[Array, " n"], domain: Domain
    ) -> Float[Array, " n"]:
        length = block_length(domain)
        half, answers = length // 2, blocks * length
        normaliser = jnp.log(half * odds + answers - half)
        known = jnp.where(_in_half(reports, values, length), jnp.log(odds), 0.0) - normaliser
        return jnp.where(domain.holds(values), known, -jnp.log(float(answers)))

    def variance(
        frequency: Float[Array, " D"], users: int | Int[Array, ""], domain: Domain
    ) -> Float[Array, " D"]:
        length, values = block_length(domain), jnp.arange(int(domain.padded))
        half, answers = length // 2, blocks * length
        shares = jnp.where(domain.valid, frequency, 0.0)
        in_block = jnp.zeros(blocks).at[values % blocks].add(shares)
        total = half + (answers - half) / odds
        own, other = half * (1 + 1 / odds) / total, length / odds / total
        nobody = 1 - shares.sum()
        squares = in_block * own + (shares.sum() - in_block) * other + nobody / blocks
        factor = scale(domain)
        found = (factor**2 * squares[values % blocks] - shares) / users
        return jnp.where(domain.valid, found, 0.0)

    def bits(domain: Domain) -> Float[Array, ""]:
        return jnp.log2(float(blocks * block_length(domain)))

    return FrequencyOracle(respond, estimate, simulate, supports, log_likelihood, variance, bits)


def _odd(word: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether an odd number of bits is set."""
    return jax.lax.population_count(word) % 2 == 1


def _with_sign(place: Int[Array, " n"], row: Int[Array, " n"], odd: int) -> Int[Array, " n"]:
    """The place-th column at which a row of the Hadamard matrix is +1, or -1 where `odd`."""
    last = row & -row
    low = place & (last - 1)
    spread = ((place - low) << 1) | low
    wrong = _odd(spread & row) != bool(odd)
    return jnp.where(wrong, spread | last, spread)


def _walsh_hadamard(counts: Int[Array, "B b"]) -> Int[Array, "B b"]:
    """Of every row the sums of its entries with the signs of each row of the Hadamard matrix."""
    blocks, length = counts.shape
    step = 1
    while step < length:
        pairs = counts.reshape(blocks, -1, 2, step)
        even, odd = pairs[:, :, 0], pairs[:, :, 1]
        counts = jnp.stack([even + odd, even - odd], axis=2).reshape(blocks, length)
        step *= 2
    return counts
