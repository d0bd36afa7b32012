"""The order of statements: which of two is the later, ties broken by what else they say."""

from jaxtyping import Array, Bool


def larger(a: tuple[Array, ...], b: tuple[Array, ...]) -> Bool[Array, "..."]:
    """Whether a is larger than b, entry by entry, lexicographically.

    A join that takes the larger one is commutative, associative and idempotent.
    """
    found, equal = a[0] > b[0], a[0] == b[0]
    for x, y in zip(a[1:], b[1:], strict=True):
        found, equal = found | (equal & (x > y)), equal & (x == y)
    return found
