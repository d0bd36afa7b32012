"""Functions of all clients' rows that take each coordinate for itself, without all rows on a device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from dflax.aggregation.rows.coordinates import axis_to_deal
from dflax.clients import CLIENTS, MODEL, client_devices, model_devices, shared_axis


def by_coordinates(
    function: Callable[..., Float[Array, "n ..."]],
    x: Float[Array, "n ..."],
    *tables: Array,
    axis: int | None = None,
) -> Float[Array, "n ..."]:
    """`function(x, *tables)`, where n clients are dealt over p devices on 1 / p of the coordinates each.

    The rows are dealt over the devices by coordinates, and what the function makes of them by rows
    again: two all-to-alls, in each of which a device sends its own n / p rows at most once. It never
    holds more than their size. All n rows on every device would be p times as much to hold.

    Args:
      function: `(values, *tables) -> [n, ...]` on values `[n, ...]` of any part of the coordinates, each
        coordinate for itself.
      x: `[n, ...]`.
      *tables: what the function reads whole; held by every device.
      axis: of x, behind the first, along which alone the coordinates may be cut, for functions that do
        not take those of the other axes for themselves. None: any.
    """
    devices = client_devices(x.shape[0])
    # Of one number a client, every device may have all.
    if devices == 1 or x.ndim == 1:
        return function(x, *tables)

    def dealt(own: Array, *tables: Array) -> Array:
        cut = axis_to_deal(own.shape, devices) if axis is None else axis
        if cut is None:
            flat = own.reshape(own.shape[0], -1)
            return filled_up(flat, 1, *tables).reshape(own.shape)
        return filled_up(own, cut, *tables)

    def filled_up(own: Array, cut: int, *tables: Array) -> Array:
        count = own.shape[cut]
        if not count % devices:
            return there_and_back(own, cut, *tables)
        missing = [(0, -count % devices if place == cut else 0) for place in range(own.ndim)]
        made = there_and_back(jnp.pad(own, missing), cut, *tables)
        return jax.lax.slice_in_dim(made, 0, count, axis=cut)

    def there_and_back(own: Array, cut: int, *tables: Array) -> Array:
        values = jax.lax.all_to_all(own, CLIENTS, split_axis=cut, concat_axis=0, tiled=True)
        made = function(values, *tables)
        return jax.lax.all_to_all(made, CLIENTS, split_axis=0, concat_axis=cut, tiled=True)

    # Left to the compiler, devices that share models would bring them together before they are dealt.
    sharing = model_devices()
    shared = shared_axis(x.shape[1:], sharing)
    others = (MODEL if place == shared else None for place in range(x.ndim - 1))
    rows = PartitionSpec(CLIENTS, *others)
    return jax.shard_map(
        dealt,
        in_specs=(rows, *(PartitionSpec() for _ in tables)),
        out_specs=rows,
        axis_names={CLIENTS, MODEL} if sharing > 1 else {CLIENTS},
        check_vma=False,
    )(x, *tables)
