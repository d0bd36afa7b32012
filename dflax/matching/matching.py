"""What finds the permutations that bring other models into one's own basis."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import Dataset
from dflax.matching import moments
from dflax.matching.assignment import assign
from dflax.matching.derived import activations
from dflax.matching.symmetries import Permutations, Symmetries, require_symmetries, widths_of
from dflax.models.apply import Model

Assignment = Callable[[Float[Array, "*B d d"]], Int[Array, "*B d"]]


class Matching(NamedTuple):
    """A way of matching models; see `by_activations`, `by_weights`.

    Attributes:
      symmetries: of the models.
      match: `(own, others, data, rows) -> (permutations, similarity)`: one model, K of them with leaves
        `[K, ...]`, a data set and `[T, B]` examples of it that the owner has. `permutations` are
        `[K, d]` by name, to be applied to the others; `similarity` is `[K]`, a mean correlation of
        matched units in [-1, 1].
      reads_data: whether `match` looks at data; else it may be given None for both.
    """

    symmetries: Symmetries
    match: Callable[..., tuple[Permutations, Float[Array, " K"]]]
    reads_data: bool


def by_activations(
    model: Model,
    symmetries: Symmetries,
    *,
    assign: Assignment = assign,
    epsilon: float | Float[Array, ""] = 1e-7,
) -> Matching:
    """Activation matching: units are matched that say the same about the same examples.

        corr_uv = cov(a_u, b_v) / max(sd(a_u) sd(b_v), epsilon)
        p       = argmax over permutations of sum_u corr[u, p(u)]          for every group of units

    a and b are the activations of the own model and of another on the owner's examples, positions
    pooled. Every other model is matched to the own one only, every group by itself. They are never
    stored: of each batch only the moments are kept. Units that always say the same correlate with
    nothing and are matched arbitrarily.

    Args:
      model: see `dflax.models.as_apply`.
      symmetries: of the model, see `dflax.matching.symmetries`.
      assign: solves the assignment problems: `assign` on the device, `assign_by_optax`, or
        `assign_on_host`.
      epsilon: smallest product of deviations, > 0; traceable.

    Returns:
      A `Matching`; its similarity is the mean over all units of all groups of the matched correlations.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Saadati et al., DIMAT: Decentralized Iterative Merging-And-Training for Deep Learning Models,
      arXiv 2404.08079.
      Li et al., Convergent Learning: Do Different Neural Networks Learn the Same Representations?,
      arXiv 1511.07543.
    """
    require_symmetries(symmetries)
    validation.function("assign", assign)
    validation.real("epsilon", epsilon, low=0.0, low_open=True, scalar=True)
    read = activations(model, symmetries)

    def match(
        own: Params, others: Params, data: Dataset, rows: Int[Array, "T B"]
    ) -> tuple[Permutations, Float[Array, " K"]]:
        count = jax.tree.leaves(others)[0].shape[0]
        empty = {
            name: moments.none_yet(count, width)
            for name, width in widths_of(symmetries, own).items()
        }

        def one_batch(held: dict[str, moments.Moments], rows: Array) -> tuple[Any, None]:
            inputs = data.fetch(rows).inputs
            mine = read(own, inputs)
            theirs = jax.lax.map(lambda other: read(other, inputs), others)
            return {name: moments.add(held[name], mine[name], theirs[name]) for name in held}, None

        held, _ = jax.lax.scan(one_batch, empty, rows)
        found = {name: moments.correlations(known, epsilon) for name, known in held.items()}
        permutations = _assign_together(assign, found)
        matched = [picked(found[name], permutations[name]) for name in found]
        return permutations, jnp.concatenate(matched, axis=-1).mean(-1)

    return Matching(symmetries, match, reads_data=True)


def _assign_together(
    assign: Assignment, profits: dict[str, Float[Array, "K d d"]]
) -> dict[str, Int[Array, "K d"]]:
    """The assignments of all groups, those of equal widths as one batch: few loops, not many."""
    alike: dict[int, list[str]] = {}
    for name, profit in profits.items():
        alike.setdefault(profit.shape[-1], []).append(name)
    found: dict[str, Array] = {}
    for names in alike.values():
        together = assign(jnp.stack([profits[name] for name in names]))
        found |= {name: together[place] for place, name in enumerate(names)}
    return {name: found[name] for name in profits}


def picked(profit: Float[Array, "*B d d"], permutation: Int[Array, "*B d"]) -> Float[Array, "*B d"]:
    """`profit[..., u, p(u)]`."""
    return jnp.take_along_axis(profit, permutation[..., None], axis=-1)[..., 0]


def fixed_units(permutations: Permutations) -> Float[Array, " K"]:
    """The fraction of units u with p(u) = u, over all groups."""
    still = [p == jnp.arange(p.shape[-1]) for p in permutations.values()]
    return jnp.concatenate(still, axis=-1).mean(-1, dtype=jnp.float32)
