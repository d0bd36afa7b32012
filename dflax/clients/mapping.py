"""A function applied to every client: over devices, at once, in chunks, or one after another."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int, PyTree

from dflax import validation
from dflax.clients.devices import CLIENTS, DealtWithClients, client_devices, known_to_all, platform
from dflax.clients.rows import gather
from dflax.programs.in_place import map_in_place
from dflax.programs.products import contract_last
from dflax.programs.rewriting import traced_once

# On a CPU, clients with fewer elements than the first number run all at once: a step then costs the
# launching of its operations, not the arithmetic in them. Up to the second number, chunks of as many
# clients as the third holds keep all cores busy and the caches warm; beyond, one client after
# another does. Measured in docs/execution.md.
SMALL_CLIENT = 1 << 14
MEDIUM_CLIENT = 1 << 17
CHUNK = 3 << 17


def map_clients(
    function: Callable[..., Any],
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
    at_once: int | None = None,
) -> Any:
    """Apply a function to every client: `out[i] = function(*(tree[i] for tree in stacked), *shared)`.

    Under a mesh with the axis "clients" (`with jax.set_mesh(mesh)`, or `run(..., mesh=mesh)`) the
    clients are dealt over its devices, and nothing is exchanged between them. Within a device they
    run all at once (`vmap`), in chunks, or one after another.

    Args:
      function: works on one client's rows, then on what is shared.
      *stacked: pytrees whose leaves share the leading axis m.
      shared: pytrees that every client reads whole (the server's model, the data set); replicated
        over devices. Pass arrays here rather than close over them: under a mesh, what is closed over
        is laid out for all devices together and cannot be copied or differentiated within one.
      at_once: clients that one device computes at the same time: 1 is one after another, m or more
        all at once. None chooses: all at once on accelerators; on a CPU all for clients of fewer
        than 2^14 elements, chunks of 3 2^17 elements (24 to 3 clients) below 2^17, else one after
        another; docs/execution.md has the measurements.

    Returns:
      What `function` returns, each leaf with the leading axis m.

    Raises:
      ValueError: leading axes that differ, or `at_once` below 1.
    """
    validation.function("function", function)
    count = validation.leading_axis("stacked", stacked)
    validation.at_once(at_once)
    shared = jax.tree.map(jnp.asarray, shared)

    devices = client_devices()
    if devices == 1:
        return _on_one_device(function, at_once, stacked, shared)
    work = functools.partial(_on_one_device, function, at_once)
    uneven = bool(count % devices)
    dealt = jax.shard_map(
        functools.partial(_on_taken_rows, work, count, devices) if uneven else work,
        in_specs=(PartitionSpec() if uneven else PartitionSpec(CLIENTS), _layout(shared, devices)),
        out_specs=PartitionSpec(CLIENTS),
        axis_names={CLIENTS},
        check_vma=False,
    )
    if not uneven:
        return dealt(stacked, shared)
    # Put together on every device and then dealt: an axis that the devices do not divide would else
    # be cut up and sent around piece by piece.
    return jax.tree.map(lambda leaf: leaf[:count], dealt(known_to_all(stacked), shared))


def map_cohort(
    function: Callable[..., Any],
    tree: PyTree[Array],
    cohort: Int[Array, " m"] | None,
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
    at_once: int | None = None,
) -> Any:
    """`map_clients` on the cohort's rows of per-client state, which come first among the arguments.

        out[i] = function(tree[cohort[i]], *(other[i] for other in stacked), *shared)

    Where clients run one after another on one device, each reads its row where it lies, and the
    cohort's rows are never copied out.

    Args:
      function: works on one client's row of the state, its rows of `stacked`, then on what is shared.
      tree: per-client state, leaves `[n, ...]`.
      cohort: `[m]` client ids in [0, n), or None: all n in order.
      *stacked: as for `map_clients`, leading axis m.
      shared: as there.
      at_once: as there.

    Returns:
      What `function` returns, each leaf with the leading axis m.

    Raises:
      ValueError: as `map_clients`.
    """
    validation.function("function", function)
    validation.at_once(at_once)
    if cohort is None or client_devices() > 1 or not jax.tree.leaves(tree):
        rows = gather(tree, cohort)
        return map_clients(function, rows, *stacked, shared=shared, at_once=at_once)
    width = at_once
    if width is None:
        rows = jax.eval_shape(gather, tree, cohort)
        function, width = _clients_at_once(function, (rows, *stacked), shared)
    if width != 1:
        rows = gather(tree, cohort)
        return map_clients(function, rows, *stacked, shared=shared, at_once=width)

    def reading(member: Array, *others: Any) -> Any:
        *given, tree = others
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, member, 0, False), tree)
        return function(own, *given)

    return map_clients(reading, cohort, *stacked, shared=(*shared, tree), at_once=1)


def _on_one_device(
    function: Callable[..., Any], at_once: int | None, stacked: Any, shared: Any
) -> Any:
    """All at once, in chunks, or one after another."""
    if at_once is None:
        function, at_once = _clients_at_once(function, stacked, shared)

    def several(stacked: Any, shared: Any) -> Any:
        here = jax.tree.leaves(stacked)[0].shape[0]
        if at_once >= here > 1:
            return jax.vmap(lambda row: function(*row, *shared))(stacked)
        # A chunk of one goes without vmap, so that a client's conditionals stay conditionals.
        alone = min(at_once, here) == 1
        if alone and platform() != "cpu":
            return map_in_place(lambda row: function(*row, *shared), stacked)
        batch = None if alone else at_once
        return jax.lax.map(lambda row: function(*row, *shared), stacked, batch_size=batch)

    return (contract_last(several) if platform() == "cpu" else several)(stacked, shared)


def _layout(shared: Any, devices: int) -> Any:
    """Where what is shared lies: everywhere, except data that say they are dealt with their clients."""

    def is_dealt(node: Any) -> bool:
        return isinstance(node, DealtWithClients)

    return jax.tree.map(
        lambda node: node.layout(devices) if is_dealt(node) else PartitionSpec(),
        shared,
        is_leaf=is_dealt,
    )


def _on_taken_rows(
    work: Callable[[Any, Any], Any], count: int, devices: int, stacked: Any, shared: Any
) -> Any:
    """The work on a device's own of all rows; the last devices repeat the first row."""
    block = -(-count // devices)
    own = jax.lax.axis_index(CLIENTS) * block + jnp.arange(block)
    own = jnp.where(own < count, own, 0)
    return work(jax.tree.map(lambda leaf: leaf[own], stacked), shared)


def _row(stacked: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), stacked)


def _clients_at_once(
    function: Callable[..., Any], stacked: Any, shared: Any
) -> tuple[Callable[..., Any], int]:
    """The function, traced where its results had to be seen, and how many clients it gets together.

    All for small clients and on accelerators, else one; sizes are of what goes in and comes out.
    """
    leaves = jax.tree.leaves(stacked)
    count = leaves[0].shape[0]
    if platform() != "cpu":
        return function, count
    into = sum(leaf.size for leaf in leaves) // count
    traced, results = traced_once(function, *_row(stacked), *shared)
    return traced, _width(count, max(into, sum(leaf.size for leaf in jax.tree.leaves(results))))


def _width(count: int, size: int) -> int:
    if size < SMALL_CLIENT:
        return count
    if size >= MEDIUM_CLIENT:
        return 1
    # Chunks that divide the clients spare the program a second copy of itself for the remainder.
    widest = CHUNK // size
    even = max(width for width in range(1, widest + 1) if count % width == 0)
    return even if 2 * even >= widest else widest
