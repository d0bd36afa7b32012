"""Which queries the local models answer, if the best of them is asked."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dflax import validation


def covered(
    accuracy: Float[Array, "M Q"], *, among: Bool[Array, " M"] | None = None
) -> Float[Array, " Q"]:
    """The best local answer to each query: max_{m in local} acc(m, q), `[Q]`; 0 with no local model.

    Args:
      accuracy: `[M, Q]` in [0, 1].
      among: `[M]` bool, which models are local; default all.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("accuracy", accuracy, kind="real", shape=("M", "Q"), low=0.0, high=1.0)
    local = np.ones(given.shape[0], bool) if among is None else among
    validation.array("among", local, kind="boolean", shape=given.shape[:1])
    return jnp.max(jnp.where(jnp.asarray(local)[:, None], jnp.asarray(accuracy), 0.0), axis=0)


def coverage(
    accuracy: Float[Array, "M Q"],
    *,
    among: Bool[Array, " M"] | None = None,
    weights: Float[Array, " Q"] | None = None,
) -> Float[Array, ""]:
    """Share of the queries that some local model answers: mean_q max_{m in local} acc(m, q).

    It never falls when a model is added, is the accuracy of a set of one, and for independent models
    of accuracies p_m is 1 - prod_m (1 - p_m). By domain it is
    `segment_mean(covered(...), domains, count)`.

    Args:
      accuracy: `[M, Q]` in [0, 1].
      among: `[M]` bool, which models are local; default all.
      weights: `[Q]` >= 0; default 1 each.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Saad-Falcon, Narayan et al., Intelligence per Watt, arXiv 2511.07885.
    """
    best = covered(accuracy, among=among)
    own = jnp.ones(best.shape) if weights is None else weights
    validation.array("weights", own, kind="real", shape=best.shape, low=0.0)
    return jnp.sum(best * own) / jnp.sum(own)
