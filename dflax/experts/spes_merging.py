"""The warm-up of SPES: experts of a layer move towards those that are most like them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dflax import validation
from dflax.clients import against
from dflax.parts import name_of

Experts = PyTree[Array]


class Merging(NamedTuple):
    """When and how far experts move; make one with `merging`.

    Attributes:
      strength: alpha_0, `[]`.
      every: rounds between two merges.
      until: rounds after which there are none.
      donors: kappa.
      like: name of the matrix on which experts are compared.
    """

    strength: Float[Array, ""] | float
    every: Int[Array, ""] | int
    until: Float[Array, ""] | float
    donors: int
    like: str

    def at(self, rounds: Int[Array, ""]) -> Float[Array, ""]:
        """The strength after so many rounds, 0 where nothing merges."""
        left = jnp.maximum(1.0 - rounds / self.until, 0.0)
        return jnp.where(rounds % self.every == 0, self.strength * left, 0.0)


def merging(
    strength: float | Float[Array, ""] = 0.05,
    *,
    every: int | Int[Array, ""] = 5,
    until: float | Float[Array, ""] = 100.0,
    donors: int = 4,
    like: str = "gate",
) -> Merging:
    """Merging that fades out in a straight line.

    After round t = 1, 2, ..., where t is a multiple of `every`:

        alpha = alpha_0 max(0, 1 - t / until)
        w_e  <- w_e + alpha (mean over j in T_e of w_j - w_e)          all experts of a layer at once

    T_e are the `donors` experts of the same layer, other than e, whose matrix `like` has the largest
    cosine with that of e. A paper's merge after M local steps is one after M / H rounds.

    Args:
      strength: alpha_0 in [0, 1]; traceable.
      every: rounds, >= 1; traceable.
      until: rounds, > 0; traceable.
      donors: kappa >= 1, at most the number of experts less one.
      like: name of the compared matrix: the gate's in a `dflax.models.MoE`.

    Returns:
      A `Merging` for `dflax.experts.spes`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang et al., SPES, arXiv 2602.11543.
    """
    validation.real("strength", strength, low=0.0, high=1.0, scalar=True)
    if not validation.is_traced(every):
        validation.integer("every", every, low=1)
    validation.real("until", until, low=0.0, low_open=True, scalar=True)
    validation.integer("donors", donors, low=1)
    validation.text("like", like)
    return Merging(strength, every, until, donors, like)


def merged(experts: Experts, alpha: Float[Array, ""], donors: int, like: str) -> Experts:
    """The experts after one merge, layer by layer; leaves with the same parent are a layer's.

    Args:
      experts: leaves `[E, ...]`, None for what is no expert.
      alpha: in [0, 1].
      donors: kappa in [1, E - 1].
      like: last name of the compared leaf.
    """
    similar = {parent: cosines(leaf) for parent, leaf in compared(experts, like).items()}

    def moved(path: tuple, leaf: Array) -> Array:
        cosine = similar[parent_of(path)]
        others = jnp.where(jnp.eye(len(leaf), dtype=bool), -jnp.inf, cosine)
        _, chosen = jax.lax.top_k(others, donors)
        share = (chosen[..., None] == jnp.arange(len(leaf))).sum(1) / donors
        wide = leaf.astype(cosine.dtype).reshape(len(leaf), -1)
        towards = jnp.matmul(share, wide, precision=jax.lax.Precision.HIGHEST) - wide
        return (wide + alpha * towards).astype(leaf.dtype).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(moved, experts)


def compared(experts: Experts, like: str) -> dict[str, Array]:
    """The leaf on which the experts of each layer are compared.

    Raises:
      ValueError: a layer without one.
    """
    leaves = jax.tree_util.tree_leaves_with_path(experts)
    found = {parent_of(path): leaf for path, leaf in leaves if name_of(path).split("/")[-1] == like}
    for path, _ in leaves:
        if parent_of(path) not in found:
            raise ValueError(
                f"like must name a leaf of every layer of experts, got {like!r}, which is not beside "
                f"{name_of(path)!r}."
            )
    return found


def cosines(leaf: Float[Array, "E ..."]) -> Float[Array, "E E"]:
    """The cosine of every two experts' matrices."""
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)).reshape(len(leaf), -1)
    norms = jnp.sqrt(jax.vmap(jnp.vdot)(wide, wide))
    unit = wide / against(jnp.maximum(norms, 1e-8), wide)
    return jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)


def mean_cosine(experts: Experts, like: str) -> Float[Array, ""]:
    """The mean cosine of two different experts of a layer, over layers; 0 where there is one expert."""

    def off_diagonal(leaf: Array) -> Array:
        count = len(leaf)
        table = cosines(leaf)
        return (table.sum() - jnp.trace(table)) / max(count * (count - 1), 1)

    return jnp.mean(jnp.stack([off_diagonal(leaf) for leaf in compared(experts, like).values()]))


def parent_of(path: tuple) -> str:
    """The path of a leaf without its last name."""
    return name_of(path[:-1])
