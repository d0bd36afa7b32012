"""GTF: a trie in every party, with groups of users that grow, merged by shares."""

from jaxtyping import Array, Float

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.heavy_hitters.extension import fixed
from dflax.heavy_hitters.levels import by_own_share, prefix_tree
from dflax.privacy.local_privacy import k_rr


def gtf(epsilon: float | Float[Array, ""], *, bits: int, levels: int, k: int) -> Algorithm:
    """GTF: a trie from the root in every party, k-RR, the top k extended, growing groups of users.

    At the end a party tells its top k with its counts of reports, divided by their sum. The server adds
    these up: a small party has as much weight as a large one. Use `grouped(..., growing=True)`.

    The authors' code leaves out users whose prefix is no candidate, which gives away who they are, and
    their XTF answers with such a prefix itself. Neither is locally private, so neither is done here.

    Args:
      epsilon: > 0, traceable.
      bits: m in [1, 64] of an item.
      levels: g in [1, m].
      k: how many items are looked for.

    Returns:
      An `Algorithm`, see `prefix_tree`. The counts that it finds are sums of shares.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Shao et al., arXiv 2307.02277.
    """
    validation.integer("k", k, low=1)
    return prefix_tree(
        k_rr(epsilon),
        bits=bits,
        levels=levels,
        k=k,
        sharing=0,
        extension=fixed(k),
        weighing=by_own_share,
    )
