"""The local problem of a round, in the four numbers in which nearly all papers differ."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from dflax.algorithm import Params


class Subproblem(NamedTuple):
    """Minimise `scale f_i(x) + <shift, x> + (pull / 2) |x - anchor|^2` over x.

    Its gradient is `scale grad f_i(x) + shift + pull (x - anchor)`. A term that is None is absent and
    costs nothing. FedProx sets pull and anchor; SCAFFOLD shift = c - c_i; FedDyn, FedADMM and their
    kin shift = -lambda_i and a pull; momentum carried by the server scale = beta and
    shift = (1 - beta) m.

    Attributes:
      scale: `[]` weight of the client's own objective; None is 1.
      shift: a tree like the model, added to every gradient; None is 0.
      pull: `[]` strength of the proximal term, >= 0; None is 0.
      anchor: a tree like the model, the proximal centre; needed with `pull`.
    """

    scale: float | Float[Array, ""] | None = None
    shift: Params | None = None
    pull: float | Float[Array, ""] | None = None
    anchor: Params | None = None

    def direction(self, gradient: Params, params: Params) -> Params:
        """The subproblem's gradient at `params`, given that of the client's own objective."""
        if (self.pull is None) != (self.anchor is None):
            raise ValueError(
                "pull and anchor must be given together: the proximal term is "
                f"(pull / 2) |x - anchor|^2, got pull={self.pull} and "
                f"anchor={'None' if self.anchor is None else 'a tree'}."
            )
        if self.scale is not None:
            gradient = jax.tree.map(lambda g: self.scale * g, gradient)
        if self.shift is not None:
            gradient = jax.tree.map(lambda g, h: g + h, gradient, self.shift)
        if self.pull is not None:
            gradient = jax.tree.map(
                lambda g, x, a: g + self.pull * (x - a), gradient, params, self.anchor
            )
        return gradient
