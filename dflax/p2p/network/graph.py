"""Links as a graph of `dflax.topology`, for any method without a server."""

import numpy as np
from jaxtyping import Bool

from dflax import topology, validation
from dflax.data.dataset import AnyArray


def topology_of(link: Bool[AnyArray, "n n"], *, disconnected: bool = True) -> topology.Graph:
    """The graph of links: `dflax.gossip.mixer(topology_of(network.link))` mixes over it.

    Args:
      link: `[n, n]` bools; the diagonal does not matter.
      disconnected: whether a graph in which some peer cannot reach another is accepted.

    Returns:
      A `dflax.topology.Graph`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.flag("disconnected", disconnected)
    found = validation.array("link", link, kind="boolean", shape=("n", "n"))
    if found.shape[0] != found.shape[1]:
        raise ValueError(f"link must be square, got shape {found.shape}.")
    return topology.from_adjacency(np.array(found), disconnected=disconnected, name="link")
