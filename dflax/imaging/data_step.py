"""The solver's step towards the data: a ridge problem, solved in the eigenbasis of A A^H or by CG."""

from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Complex, Float, PyTree

from dflax.imaging.forward import HIGHEST, Measurements, Operator, Reflectivity

RELATIVE = 1e-5


class Basis(NamedTuple):
    """A A^H = U diag(s) U^H.

    Attributes:
      vectors: U, `[M, M]`, unitary.
      values: s, `[M]`, >= 0.
    """

    vectors: Complex[Array, "M M"]
    values: Float[Array, " M"]


def basis_of(operator: Operator, arrays: PyTree[Array]) -> Basis:
    """The eigenbasis of A A^H, which serves every penalty."""
    values, vectors = jnp.linalg.eigh(operator.gram(arrays))
    return Basis(vectors, jnp.maximum(values, 0))


def in_basis(
    operator: Operator,
    arrays: PyTree[Array],
    basis: Basis,
    center: Reflectivity,
    target: Measurements,
    kappa: Float[Array, ""],
) -> tuple[Reflectivity, Measurements]:
    """The minimiser x of |A x - q|^2 + kappa |x - c|^2, and A x.

        A x = U (kappa U^H A c + s U^H q) / (kappa + s),   x = c + A^H (q - A x) / kappa

    by Woodbury's identity: one product with A and one with A^H, whatever kappa.
    """
    U, s = basis
    both = jnp.stack([operator.forward(arrays, center).reshape(-1), target.reshape(-1)])
    turned = jnp.matmul(both.conj(), U, precision=HIGHEST).conj()
    seen = jnp.matmul((kappa * turned[0] + s * turned[1]) / (kappa + s), U.T, precision=HIGHEST)
    seen = seen.reshape(target.shape)
    return center + operator.adjoint(arrays, target - seen) / kappa, seen


def by_gradients(
    operator: Operator,
    arrays: PyTree[Array],
    start: Reflectivity,
    center: Reflectivity,
    target: Measurements,
    kappa: Float[Array, ""],
    steps: int,
) -> tuple[Reflectivity, Measurements]:
    """The same after so many steps of conjugate gradients from a start, as in the authors' code."""

    def normal(x: Array) -> Array:
        return operator.adjoint(arrays, operator.forward(arrays, x)) + kappa * x

    wanted = kappa * center + operator.adjoint(arrays, target)
    x, _ = cg(normal, wanted, start, tol=RELATIVE, maxiter=steps)
    return x, operator.forward(arrays, x)


def first_guess(operator: Operator, arrays: PyTree[Array], y: Measurements) -> Reflectivity:
    """A^H y, of greatest magnitude 1."""
    x = operator.adjoint(arrays, y)
    most = jnp.max(jnp.abs(x))
    return x / jnp.where(most > 0, most, 1)
