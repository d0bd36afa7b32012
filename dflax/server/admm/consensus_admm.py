"""Consensus ADMM with duals at the clients, over links that may be noisy: the textbook's way."""

from jaxtyping import Array, Float

from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm
from dflax.channel.broadcast import without_memory
from dflax.channel.channel import Channel
from dflax.data.dataset import Dataset
from dflax.local.consensus import Minimised, Nearby, Splitting
from dflax.local.convex.quadratic import Quadratic, objective_of, proximal_points
from dflax.population import Assignment
from dflax.server.admm.consensus import consensus


def consensus_admm(
    penalty: float,
    *,
    uplink: Channel | None = None,
    downlink: Channel | None = None,
    aggregator: Aggregator | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Consensus ADMM on quadratic objectives f_k, over noisy links, with some clients a round.

    For the cohort S of a round:

        x_k   <- argmin over x of f_k(x) + <phi_k, x> + (rho / 2) |x - downlink(z)|^2       k in S
        z     <- mean over S of uplink(x_k + phi_k / rho)
        phi_k <- phi_k + rho (x_k - downlink'(z))                                           k in S

    with noise of its own each time a client receives z. The duals start at 0 and the models at the
    proximal points of z_0, which everybody knows, so that the first round has no local update. With
    everyone in S and perfect links z is the plain mean of the models.

    Args:
      penalty: rho > 0; traceable.
      uplink: from clients to server, without memory; default perfect. A client whose message is lost
        keeps model and dual.
      downlink: from server to each client, without memory; default perfect. A client
        whose copy is lost leaves out what it was for.
      aggregator: of the messages; default the mean.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params, objectives)`: z_0 `[d]`, usually
      zeros, and the clients' `Quadratic`. Its rounds are of `dflax.local.quadratic_federation`. z is
      `state.server.params`, x_k and phi_k are `state.clients.memory`. The schedule S is the
      federation's participation; reporting clients count the same. Metrics: `clients_reporting`,
      `numbers_up`, `numbers_down`, and what the links measure.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Boyd et al., Distributed Optimization and Statistical Learning via ADMM, chapter 7, 2011.
    """

    def start(
        z: Float[Array, " d"], objectives: Quadratic
    ) -> tuple[Float[Array, "n d"], tuple[()]]:
        return proximal_points(objectives, z, penalty), ()

    def minimise(
        assignment: Assignment, own: Splitting, nearby: Nearby, data: Dataset, index: Array
    ) -> Minimised:
        x = objective_of(assignment, data).proximal_point(nearby.center, nearby.penalty)
        return Minimised(x.astype(own.params.dtype))

    return consensus(
        minimise,
        penalty,
        start=start,
        proximal_start=True,
        aggregator=aggregator,
        channel=without_memory("uplink", uplink),
        downlink=without_memory("downlink", downlink),
        at_once=at_once,
    )
