"""Who of the experts gets which examples: clusters of features, found once, on the host."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray, Dataset, Split
from dflax.data.partition import from_indices
from dflax.federation import Federation


class Clusters(NamedTuple):
    """A partition of a feature space.

    Attributes:
      labels: `[n]` int32, the cluster of each example, in [0, K).
      centroids: `[C, F]`, of the fine clusters.
      groups: `[C]` int32, the cluster that each fine one belongs to.
    """

    labels: Int[np.ndarray, " n"]
    centroids: Float[np.ndarray, "C F"]
    groups: Int[np.ndarray, " C"]

    def assign(self, features: Float[AnyArray, "m F"]) -> Int[np.ndarray, " m"]:
        """The clusters of other examples: that of the nearest centroid, `[m]` int32."""
        shape = ("m", self.centroids.shape[1])
        rows = validation.array("features", features, kind="real", shape=shape)
        from sklearn.metrics import pairwise_distances_argmin

        return self.groups[pairwise_distances_argmin(rows, self.centroids)]


def clusters(
    features: Float[AnyArray, "n F"], experts: int, *, seed: int = 0, fine: int | None = None
) -> Clusters:
    """K-means clusters of features, in one stage or two.

    With `fine` the features are first cut into that many, and the centroids of these are grouped into K:
    the paper's way for sets too large to be clustered coarsely at once. Sizes are not evened out.

    Args:
      features: `[n, F]`, for example principal components, or embeddings of a pretrained network.
      experts: K in [1, n].
      seed: of k-means.
      fine: in [K, n]; None for one stage.

    Returns:
      `Clusters`, none of them empty.

    Raises:
      TypeError, ValueError: naming the argument; fewer different features than clusters.

    References:
      McAllister et al., Decentralized Diffusion Models, arXiv 2501.05450.
    """
    rows = validation.array("features", features, kind="real", shape=("n", "F"))
    validation.integer("experts", experts, low=1, high=len(rows))
    validation.seed("seed", seed)
    if fine is not None:
        validation.integer("fine", fine, low=experts, high=len(rows))
    from sklearn.cluster import KMeans

    different = len(np.unique(rows, axis=0))
    if different < (fine or experts):
        raise ValueError(
            f"features must have at least {fine or experts} different rows, one for each cluster, got "
            f"{different}. Ask for fewer experts."
        )
    start = seed % 2**32
    found = KMeans(fine or experts, n_init=4, random_state=start).fit(np.asarray(rows, np.float64))
    groups = np.arange(experts)
    if fine is not None:
        coarse = KMeans(experts, n_init=4, random_state=start).fit(found.cluster_centers_)
        groups = coarse.labels_
    groups = groups.astype(np.int32)
    return Clusters(groups[found.labels_], found.cluster_centers_.astype(np.float32), groups)


def apart(
    data: Dataset | Split,
    labels: Int[AnyArray, " n"],
    *,
    batch_size: int,
    experts: int | None = None,
    local_steps: int = 1,
) -> Federation:
    """The federation of K experts, each of which sees its own cluster, at the cost of one model.

    A total batch B is B / K for each expert, drawn with replacement: K experts then take as many
    floating-point operations a step as one model with the batch B.

    Args:
      data: the examples.
      labels: `[n]` the cluster of each, in [0, K).
      batch_size: B, divisible by K.
      experts: K; None for the largest label + 1.
      local_steps: steps of a round.

    Returns:
      A `Federation`, whose weights are the clusters' sizes.

    Raises:
      TypeError, ValueError: naming the argument; a cluster without examples; a K that does not divide B.
    """
    train = data.train if isinstance(data, Split) else data
    validation.instance("data", train, Dataset, "Make one with dflax.data.from_arrays.")
    validation.integer("batch_size", batch_size, low=1)
    rows = validation.array("labels", labels, kind="integer", shape=(len(train),), low=0)
    if experts is not None:
        validation.integer("experts", experts, low=1)
    count = int(rows.max()) + 1 if experts is None else experts
    if int(rows.max()) >= count:
        raise ValueError(f"labels must lie in [0, experts = {count}), got {int(rows.max())}.")
    counts = np.bincount(rows, minlength=count)
    if counts.min() == 0:
        raise ValueError(
            f"labels must give every expert at least one example, got none for cluster "
            f"{int(counts.argmin())} of {count}. Use fewer experts, or other clusters."
        )
    if batch_size % count:
        raise ValueError(
            f"batch_size must be divisible by the number of experts, {count}, got {batch_size}. "
            f"Take {count * max(batch_size // count, 1)}."
        )
    owned = [np.flatnonzero(rows == k) for k in range(count)]
    return Federation(
        train,
        from_indices(owned, examples=len(train)),
        batch_size=batch_size // count,
        local_steps=local_steps,
        weights=jnp.asarray(counts, float),
        replacement=True,
    )
