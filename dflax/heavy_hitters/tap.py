"""TAP and TAPS, and what they are compared with: PEM in every party, and the whole domain at once."""

from jaxtyping import Array, Int

from dflax import validation
from dflax.algorithm import Algorithm
from dflax.heavy_hitters.extension import Extension, adaptive, fixed
from dflax.heavy_hitters.levels import MOST_CANDIDATES, prefix_tree
from dflax.heavy_hitters.pruning import Pruning, prior
from dflax.heavy_hitters.words import MOST_BITS
from dflax.privacy.local_privacy import FrequencyOracle


def tap(
    oracle: FrequencyOracle,
    *,
    bits: int,
    levels: int,
    k: int,
    sharing: int | Int[Array, ""],
    extension: Extension | None = None,
) -> Algorithm:
    """Target-aligned prefix tree: the first levels are shared, the others each party grows alone.

    While prefixes are short the server adds up all parties' estimates and broadcasts what to extend.
    So every party looks below prefixes that matter to all, not only to itself. `prefix_tree` says how.

    The extension rule is inferred; a function of your own takes its place.

    Args:
      oracle: how users report.
      bits: m in [1, 64] of an item.
      levels: g in [1, m].
      k: how many items are looked for.
      sharing: g_s in [0, g], a quarter to a half of the levels; 0: every party alone; traceable.
      extension: how many prefixes are extended; default `adaptive(k)`.

    Returns:
      An `Algorithm`, see `prefix_tree`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang, Ye and Hu, Federated heavy hitter analytics with local differential privacy,
      arXiv 2412.14832.
    """
    rule = _extension_or_adaptive(extension, k)
    return prefix_tree(oracle, bits=bits, levels=levels, k=k, sharing=sharing, extension=rule)


def taps(
    oracle: FrequencyOracle,
    *,
    bits: int,
    levels: int,
    k: int,
    sharing: int | Int[Array, ""],
    extension: Extension | None = None,
    pruning: Pruning | None = None,
) -> Algorithm:
    """TAP whose parties work one after another, each leaving out what the one before it ruled out.

    Fewer candidates are less noise and fewer false positives. What a party hands on is private already.

    Args:
      oracle: how users report.
      bits: m in [1, 64] of an item.
      levels: g in [1, m].
      k: how many items are looked for.
      sharing: g_s in [0, g]; traceable.
      extension: how many prefixes are extended; default `adaptive(k)`.
      pruning: what is left out; default `prior()`.

    Returns:
      An `Algorithm`, see `prefix_tree`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang, Ye and Hu, arXiv 2412.14832.
    """
    return prefix_tree(
        oracle,
        bits=bits,
        levels=levels,
        k=k,
        sharing=sharing,
        extension=_extension_or_adaptive(extension, k),
        pruning=prior() if pruning is None else pruning,
    )


def fedpem(oracle: FrequencyOracle, *, bits: int, levels: int, k: int) -> Algorithm:
    """PEM in every party alone: the top k are extended, and the server adds up the parties' top k.

    Of one party (all users pooled) it is PEM, the upper bound of what parties alone can find.

    Args:
      oracle: how users report.
      bits: m in [1, 64] of an item.
      levels: g in [1, m].
      k: how many items are looked for.

    Returns:
      An `Algorithm`, see `prefix_tree`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Wang, Li and Jha, Locally differentially private heavy hitter identification, arXiv 1708.06674.
    """
    validation.integer("k", k, low=1)
    return prefix_tree(oracle, bits=bits, levels=levels, k=k, sharing=0, extension=fixed(k))


def direct(oracle: FrequencyOracle, *, bits: int, k: int) -> Algorithm:
    """The oracle over the whole domain: every user reports its item itself, in one round.

    Args:
      oracle: how users report.
      bits: m in [1, 22] of an item: 2^m candidates.
      k: how many items are looked for.

    Returns:
      An `Algorithm`, see `prefix_tree`; the source is `grouped` with one level.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    most = MOST_CANDIDATES.bit_length() - 1
    fix = "A longer item needs a prefix tree, for example tap." if most < MOST_BITS else ""
    validation.integer("bits", bits, low=1, high=most, fix=fix)
    return prefix_tree(oracle, bits=bits, levels=1, k=k, sharing=1, extension=fixed(1))


def _extension_or_adaptive(extension: Extension | None, k: int) -> Extension:
    if extension is not None:
        return extension
    validation.integer("k", k, low=1)
    return adaptive(k)
