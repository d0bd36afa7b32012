"""A function applied to every client: over devices, at once, in chunks, or one after another."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import validation
from dflax.clients.devices import CLIENTS, DealtWithClients, client_devices, known_to_all, platform
from dflax.clients.rows import gather
from dflax.programs.in_place import map_in_place, scan_in_place
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

    Examples:
      >>> import jax.numpy as jnp, dflax as dx
      >>> scaled = lambda own, server: own * server
      >>> dx.map_clients(scaled, jnp.arange(3.0), shared=(jnp.float32(10),)).tolist()
      [0.0, 10.0, 20.0]
    """
    validation.function("function", function)
    count = validation.leading_axis("stacked", stacked)
    validation.at_once(at_once)
    shared = jax.tree.map(jnp.asarray, shared)

    work = functools.partial(_on_one_device, function, at_once)
    if client_devices() == 1:
        return work(stacked, shared)
    # One client is computed by every device, and what comes of it need not be sent to any.
    split = count > 1 or any(map(_is_dealt, jax.tree.leaves(shared, is_leaf=_is_dealt)))
    out = PartitionSpec(CLIENTS if split else None)
    return _rows_of(count, _over_devices(work, count, stacked, shared, out))


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
    reading = _reading(function)
    return map_clients(reading, cohort, *stacked, shared=(*shared, tree), at_once=1)


def sum_cohort(
    function: Callable[..., tuple[PyTree[Array], Any]],
    coefficients: Float[Array, " m"],
    tree: PyTree[Array],
    cohort: Int[Array, " m"] | None,
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
) -> tuple[PyTree[Array], Any]:
    """`map_cohort` of clients in turn, whose first result is added up as they come.

        term_i, out_i = function(tree[cohort[i]], *(other[i] for other in stacked), *shared)
        total         = sum_i c_i term_i

    A device holds one term at a time. Where clients are dealt over devices, each adds up its own, and
    the sums are added.

    Args:
      function: as for `map_cohort`; what it returns first is floating point.
      coefficients: `[m]`, of any sign.
      tree: as for `map_cohort`, and so are all others.
      cohort: as there.
      *stacked: as there.
      shared: as there.

    Returns:
      The total, in the terms' dtypes, from sums in float32 or wider; and what else the function
      returns, each leaf with the leading axis m.
    """
    validation.function("function", function)
    count = coefficients.shape[0]
    if cohort is not None and client_devices() == 1 and jax.tree.leaves(tree):
        function, rows, shared = _reading(function), cohort, (*shared, tree)
    else:
        rows = gather(tree, cohort)
    stacked = (coefficients, rows, *stacked)
    validation.leading_axis("stacked", stacked, count)
    shared = jax.tree.map(jnp.asarray, shared)
    add_up = functools.partial(_added_in_turn, function)
    if client_devices() == 1:
        return add_up(stacked, shared)

    def own(stacked: Any, shared: Any) -> Any:
        factors, *rows = stacked
        number = jax.lax.axis_index(CLIENTS) * len(factors) + jnp.arange(len(factors))
        # Rows that a device repeats count nothing.
        total, others = add_up((jnp.where(number < count, factors, 0), *rows), shared)
        return jax.lax.psum(total, CLIENTS), others

    out = (PartitionSpec(), PartitionSpec(CLIENTS))
    total, others = _over_devices(own, count, stacked, shared, out)
    return total, _rows_of(count, others)


def map_present(
    function: Callable[..., Any],
    present: Bool[Array, " m"],
    *stacked: PyTree[Array],
    shared: tuple[PyTree[Array], ...] = (),
    chunk: int | None = None,
    at_once: int | None = None,
) -> Any:
    """`map_clients` that passes over clients who are absent, whose results are zeros.

    Where clients run one after another on one device, each absent one is passed over. Those who run at
    the same time are taken by chunks, and a chunk in which nobody is there is passed over. An absent
    client beside one who is there gives what `function` makes of its row.

    Args:
      function: as for `map_clients`.
      present: `[m]` who is there.
      *stacked: as for `map_clients`.
      shared: as there.
      chunk: clients of a chunk, a divisor of m; None or m passes over nobody.
      at_once: as for `map_clients`.

    Returns:
      What `function` returns, each leaf with the leading axis m.

    Raises:
      ValueError: as `map_clients`; a chunk that does not divide m.
    """
    validation.function("function", function)
    validation.at_once(at_once)
    count = validation.leading_axis("stacked", stacked)
    if chunk is None or chunk == count:
        return map_clients(function, *stacked, shared=shared, at_once=at_once)
    validation.integer("chunk", chunk, low=1)
    if count % chunk:
        raise ValueError(f"chunk must divide the {count} clients, got {chunk}.")
    if client_devices() == 1:
        width = at_once
        if width is None:
            function, width = _clients_at_once(function, stacked, shared)
        if width == 1:
            one = functools.partial(if_there, function)
            return map_clients(one, present, *stacked, shared=shared, at_once=1)

    def together(rows: tuple[Any, ...], shared: tuple[Any, ...]) -> Any:
        return map_clients(function, *rows, shared=shared, at_once=at_once)

    pieces = jax.tree.map(lambda leaf: leaf.reshape(-1, chunk, *leaf.shape[1:]), (present, stacked))
    made = jax.lax.map(lambda piece: if_there(together, piece[0].any(), piece[1], shared), pieces)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), made)


def if_there(function: Callable[..., Any], there: Bool[Array, ""], *given: Any) -> Any:
    """`function(*given)`, or zeros of its shapes, for which nothing is computed."""
    shapes = jax.eval_shape(function, *given)

    def nothing(*given: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(there, function, nothing, *given)


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


def _added_in_turn(function: Callable[..., Any], stacked: Any, shared: Any) -> Any:
    """The sum of `coefficient * term`, the coefficients being the first of `stacked`, and the rest."""
    row = _row(stacked)
    term, _ = jax.eval_shape(lambda row: function(*row[1:], *shared), row)
    zeros = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)), term
    )

    def one(shared: Any, total: Any, row: Any) -> Any:
        factor, *given = row
        term, others = function(*given, *shared)
        total = jax.tree.map(
            lambda sums, leaf: sums + factor.astype(sums.dtype) * leaf.astype(sums.dtype),
            total,
            term,
        )
        return total, others

    def in_turn(stacked: Any, shared: Any) -> Any:
        scan = jax.lax.scan if platform() == "cpu" else scan_in_place
        return scan(functools.partial(one, shared), zeros, stacked)

    total, others = (contract_last(in_turn) if platform() == "cpu" else in_turn)(stacked, shared)
    return jax.tree.map(lambda sums, leaf: sums.astype(leaf.dtype), total, term), others


def _reading(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a client's number, which reads the row of the last of what is shared."""

    def reading(member: Array, *others: Any) -> Any:
        *given, tree = others
        own = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, member, 0, False), tree)
        return function(own, *given)

    return reading


def _layout(shared: Any, devices: int) -> Any:
    """Where what is shared lies: everywhere, except data that say they are dealt with their clients."""
    return jax.tree.map(
        lambda node: node.layout(devices) if _is_dealt(node) else PartitionSpec(),
        shared,
        is_leaf=_is_dealt,
    )


def _is_dealt(node: Any) -> bool:
    return isinstance(node, DealtWithClients)


def _over_devices(
    work: Callable[[Any, Any], Any], count: int, stacked: Any, shared: Any, out: Any
) -> Any:
    """The work of every device on its own rows; where they are uneven, the last repeat the first row."""
    devices = client_devices()
    uneven = bool(count % devices)

    def on_taken_rows(stacked: Any, shared: Any) -> Any:
        block = -(-count // devices)
        own = jax.lax.axis_index(CLIENTS) * block + jnp.arange(block)
        return work(
            jax.tree.map(lambda leaf: leaf[jnp.where(own < count, own, 0)], stacked), shared
        )

    dealt = jax.shard_map(
        on_taken_rows if uneven else work,
        in_specs=(PartitionSpec() if uneven else PartitionSpec(CLIENTS), _layout(shared, devices)),
        out_specs=out,
        axis_names={CLIENTS},
        check_vma=False,
    )
    # Put together on every device and then dealt: an axis that the devices do not divide would else
    # be cut up and sent around piece by piece.
    return dealt(known_to_all(stacked) if uneven else stacked, shared)


def _rows_of(count: int, tree: Any) -> Any:
    """The first rows of leaves that may have been filled up."""
    return jax.tree.map(lambda leaf: leaf[:count] if len(leaf) > count else leaf, tree)


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
