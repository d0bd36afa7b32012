"""The local problem of a round, in the four numbers in which nearly all papers differ."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dflax.algorithm import Params
from dflax.local.clipping import squared_norm
from dflax.models.averaged import of_weights, with_statistics_of


class Subproblem(NamedTuple):
    """Minimise `scale f_i(x) + <shift, x> + (pull / 2) |x - anchor|^2` over x.

    Its gradient is `scale grad f_i(x) + shift + pull (x - anchor)`. A term that is None is absent and
    costs nothing. FedProx sets pull and anchor; SCAFFOLD shift = c - c_i; FedDyn, FedADMM and their
    kin shift = -lambda_i and a pull; momentum carried by the server scale = beta and
    shift = (1 - beta) m. Running statistics ("batch_stats" of a variables dict) have no gradient:
    their change goes through as it is.

    Attributes:
      scale: `[]` weight of the client's own objective; None is 1.
      shift: a tree like the model, added to every gradient; None is 0.
      pull: `[]` strength of the proximal term, >= 0; None is 0.
      anchor: a tree like the model, the proximal centre; needed with `pull`. () is the origin.
    """

    scale: float | Float[Array, ""] | None = None
    shift: Params | None = None
    pull: float | Float[Array, ""] | None = None
    anchor: Params | tuple[()] | None = None

    def direction(self, gradient: Params, params: Params) -> Params:
        """The subproblem's gradient at `params`, given that of the client's own objective."""
        if (self.pull is None) != (self.anchor is None):
            raise ValueError(
                "pull and anchor must be given together: the proximal term is "
                f"(pull / 2) |x - anchor|^2, got pull={self.pull} and "
                f"anchor={'None' if self.anchor is None else 'a tree'}."
            )
        seen = gradient
        if self.scale is not None:
            gradient = jax.tree.map(lambda g: self.scale * g, gradient)
        if self.shift is not None:
            gradient = jax.tree.map(lambda g, h: g + h, gradient, self.shift)
        if self.pull is not None:
            apart = params
            if not _is_origin(self.anchor):
                apart = jax.tree.map(jnp.subtract, params, self.anchor)
            gradient = jax.tree.map(lambda g, d: g + self.pull * d, gradient, apart)
        return with_statistics_of(seen, gradient)

    def value(self, objective: Float[Array, ""], params: Params) -> Float[Array, ""]:
        """The subproblem's value at `params`, given that of the client's own objective."""
        if self.scale is not None:
            objective = self.scale * objective
        params = of_weights(params)
        if self.shift is not None:
            objective = objective + optax.tree.vdot(of_weights(self.shift), params)
        if self.pull is not None:
            apart = params
            if not _is_origin(self.anchor):
                apart = jax.tree.map(jnp.subtract, params, of_weights(self.anchor))
            objective = objective + 0.5 * self.pull * squared_norm(apart)
        return objective

    def around_origin(self) -> "Subproblem":
        """The same gradients, shift and anchor put into one tree: a local step then reads one less.

        `shift + pull (x - anchor) = (shift - pull anchor) + pull x`. A problem without both stays
        what it is, and so does one in half precision, where the difference must come first.
        """
        absent = any(term is None for term in (self.shift, self.pull, self.anchor))
        if absent or _is_origin(self.anchor):
            return self
        if any(leaf.dtype.itemsize < 4 for leaf in jax.tree.leaves(self.anchor)):
            return self
        shift = jax.tree.map(lambda h, a: h - self.pull * a, self.shift, self.anchor)
        return self._replace(shift=shift, anchor=())


def _is_origin(anchor: Params | tuple[()] | None) -> bool:
    return isinstance(anchor, tuple) and not anchor
