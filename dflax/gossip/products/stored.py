"""Products of a mixing matrix and all clients' rows, one for each way of storing the matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax.clients import CLIENTS, against, platform
from dflax.gossip.products.by_coordinates import by_coordinates
from dflax.gossip.products.linear import Rows

# On a CPU, a gather of rows that do not fit the cache runs several times faster in chunks of about
# this many elements than as one loop over all rows; long rows and small leaves gain nothing.
CHUNK = 1 << 14
LARGE_LEAF = 1 << 20


def dense_rows(
    matrix: Float[Array, "n n"], active: Bool[Array, " n"] | None
) -> tuple[Rows, Float[Array, ""]]:
    """Multiplication by a row-stochastic `[n, n]` matrix, masked, and the models it sends."""
    clients = matrix.shape[0]
    itself = jnp.eye(clients, dtype=bool)
    if active is not None:
        matrix = jnp.where(itself | ~(active[:, None] & active), 0, matrix)
        matrix = jnp.where(itself, 1 - matrix.sum(1), matrix)

    def multiply(x: Array, matrix: Array) -> Array:
        flat, exact = x.reshape(clients, -1), jax.lax.Precision.HIGHEST
        return jnp.matmul(matrix.astype(x.dtype), flat, precision=exact).reshape(x.shape)

    def rows(x: Array) -> Array:
        return by_coordinates(multiply, x, matrix)

    return rows, count_sent(jnp.where(itself, 0, matrix))


def slot_rows(
    neighbours: Int[Array, "n k"],
    weights: Float[Array, "n k"],
    active: Bool[Array, " n"] | None,
    own: Float[Array, " n"] | None = None,
) -> tuple[Rows, Float[Array, ""]]:
    """Multiplication by weighted neighbours, masked, and the models it sends.

    `own` is the diagonal; when it is None each row sums to 1.
    """
    if active is not None:
        weights = jnp.where(active[:, None] & active[neighbours], weights, 0)
    if own is None:
        own = 1 - weights.sum(1)

    def combine(x: Array, here: Array, neighbours: Array, weights: Array, own: Array) -> Array:
        total = against(own.astype(x.dtype), here) * here
        for k in range(neighbours.shape[1]):
            heard = x.at[neighbours[:, k]].get(mode="promise_in_bounds")
            total = total + against(weights[:, k].astype(x.dtype), here) * heard
            if platform() == "tpu":
                # It would read the rows of all slots first, and hold them all.
                x, total = jax.lax.optimization_barrier((x, total))
        return total

    def rows(x: Array) -> Array:
        width = x.size // x.shape[0]
        if not _in_chunks(x.size, width):
            return by_coordinates(
                lambda x, *tables: combine(x, x, *tables), x, neighbours, weights, own
            )

        def one(row: tuple[Array, ...]) -> Array:
            return combine(x, *(part[None] for part in row))[0]

        return jax.lax.map(one, (x, neighbours, weights, own), batch_size=max(1, CHUNK // width))

    return rows, count_sent(weights)


def edge_rows(
    senders: Int[Array, " E"],
    receivers: Int[Array, " E"],
    weights: Float[Array, " E"],
    own: Float[Array, " n"],
) -> Rows:
    """Multiplication by a matrix given as weighted edges sorted by receiver, and its diagonal."""

    def combine(x: Array, senders: Array, receivers: Array, weights: Array, own: Array) -> Array:
        heard = x.at[senders].get(mode="promise_in_bounds")
        heard = against(weights.astype(x.dtype), heard) * heard
        total = jax.ops.segment_sum(heard, receivers, x.shape[0], indices_are_sorted=True)
        return against(own.astype(x.dtype), x) * x + total

    def rows(x: Array) -> Array:
        return by_coordinates(combine, x, *map(jnp.asarray, (senders, receivers, weights, own)))

    return rows


def count_sent(weights: Array) -> Float[Array, ""]:
    """The number of positive weights, each of which is a model that travels."""
    return jnp.sum(weights > 0, dtype=jnp.float32)


def _in_chunks(size: int, width: int) -> bool:
    """A loop over rows would bring sharded clients to every device, so only where none are."""
    sharded = CLIENTS in jax.sharding.get_abstract_mesh().axis_names
    large = size >= LARGE_LEAF and width <= CHUNK
    return large and not sharded and platform() == "cpu"
