"""Experts on the devices of a mesh: tokens go to them and come back by two all-to-alls.

dispatch   each device writes its tokens into buffers [experts, places, D] and sends each to its rank
experts    multiply what came in, a buffer of fixed size from every rank
combine    outputs go back the same way, are weighted and added up
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from dflax import validation
from dflax.clients import CLIENTS
from dflax.inference.supernode.experts import SCALE
from dflax.inference.supernode.int8 import MOST, rounded
from dflax.inference.supernode.int8_experts import expert_matrices
from dflax.models.moe.routing import Routing

# `([experts of this rank, rows, D], parameters of these experts) -> [experts, rows, D]`
Expert = Callable[[Array, PyTree[Array]], Array]


class Exchanged(NamedTuple):
    """What came of an exchange.

    Attributes:
      outputs: `[T, D]`, where the tokens are.
      overflow: `[]` int32, pairs of a token and an expert that found no place; they add nothing.
      fullest: `[]` int32, the most places that any buffer would have needed.
    """

    outputs: Float[Array, "T D"]
    overflow: Int[Array, ""]
    fullest: Int[Array, ""]


def swiglu_experts(rows: Float[Array, "E R D"], matrices: PyTree[Array]) -> Float[Array, "E R D"]:
    """(silu(x G_e) * (x U_e)) D_e of every expert's rows.

    Args:
      rows: `[E, R, D]`.
      matrices: gate and up `[E, D, H]`, and down `[E, H, D]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = jnp.asarray(validation.array("rows", rows, kind="real", shape=("E", "R", "D")))
    gate, up, down = expert_matrices("matrices", matrices)
    if gate.shape[:2] != (given.shape[0], given.shape[2]):
        raise ValueError(
            "rows must be [E, R, D] for matrices [E, D, H], got shapes "
            f"{given.shape} and {gate.shape}."
        )
    hidden = jax.nn.silu(jnp.einsum("erd,edh->erh", given, gate))
    return jnp.einsum("erh,ehd->erd", hidden * jnp.einsum("erd,edh->erh", given, up), down)


def identity_experts(rows: Float[Array, "E R D"], params: PyTree[Array]) -> Float[Array, "E R D"]:
    """The rows as they came.

    Args:
      rows: `[E, R, D]`.
      params: anything, not read.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    return jnp.asarray(validation.array("rows", rows, kind="real", shape=("E", "R", "D")))


def expert_parallel(
    tokens: Float[Array, "T D"],
    params: PyTree[Array],
    routing: Routing,
    mesh: Mesh,
    *,
    places: int,
    expert: Expert = swiglu_experts,
    early_int8: bool = False,
    combined: Any = None,
) -> Exchanged:
    """A mixture of experts whose experts are dealt to the devices of the mesh axis "clients".

    With P devices each holds T / P tokens and E / P experts. Buffers are `[E, places, D]` on every
    device, whatever the routing: a device sends `places` rows to each expert, the first ones of those
    that chose it. With enough places it is `dflax.models.moe`'s layer, token for token.

    Args:
      tokens: `[T, D]`, T a multiple of P.
      params: of the experts, leaves `[E, ...]`, E a multiple of P; for `swiglu_experts` gate, up, down.
      routing: of the tokens, `[T, a]`.
      mesh: with the axis "clients", for example `dflax.client_mesh()`.
      places: C >= 1, rows that one device sends to one expert at most. T / P never overflows.
      expert: what an expert does.
      early_int8: whether tokens are quantised before they are sent: D bytes and a scale of 4, in one
        message, instead of D numbers.
      combined: dtype of the outputs on their way back; None: that of the tokens.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Lepikhin et al., GShard, arXiv 2006.16668; Zuo et al., arXiv 2506.12708.
    """
    given = validation.array("tokens", tokens, kind="real", shape=("T", "D"))
    validation.instance("mesh", mesh, Mesh, "dflax.client_mesh() makes one.")
    if CLIENTS not in mesh.axis_names:
        raise ValueError(f"mesh must have an axis {CLIENTS!r}, got {mesh.axis_names}.")
    ranks = mesh.shape[CLIENTS]
    validation.instance("routing", routing, Routing)
    validation.integer("places", places, low=1)
    validation.function("expert", expert, "It gets rows and parameters.", takes=2)
    validation.flag("early_int8", early_int8)
    validation.dtype("combined", combined)
    validation.arrays("params", params, some=True)
    if expert is swiglu_experts:
        params = expert_matrices("params", params)
    experts = validation.leading_axis("params", params)
    if experts % ranks or experts != routing.probabilities.shape[1]:
        raise ValueError(
            f"params must be of as many experts as the routing has, {routing.probabilities.shape[1]}, "
            f"and a multiple of the {ranks} devices, got {experts}."
        )
    if given.shape[0] % ranks or given.shape[0] != routing.chosen.shape[0]:
        raise ValueError(
            f"tokens must be as many as the routing has, {routing.chosen.shape[0]}, and a multiple of "
            f"the {ranks} devices, got {given.shape[0]}."
        )
    kind = jnp.asarray(tokens).dtype if combined is None else np.dtype(combined)
    own = _on_a_rank(experts, ranks, places, expert, early_int8, kind)
    dealt: Any = PartitionSpec(CLIENTS)
    whole: Any = PartitionSpec()
    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(dealt, dealt, dealt, dealt),
        out_specs=Exchanged(dealt, whole, whole),
        axis_names={CLIENTS},
        check_vma=False,
    )(jnp.asarray(tokens), routing.chosen, routing.weights, params)


def _on_a_rank(
    experts: int, ranks: int, places: int, expert: Expert, early_int8: bool, combined: Any
) -> Callable[..., Exchanged]:
    """What one device does with its tokens and its experts."""
    mine = experts // ranks

    def own(tokens: Array, chosen: Array, weights: Array, params: PyTree[Array]) -> Exchanged:
        count, active = chosen.shape
        width = tokens.shape[1]
        wanted = chosen.reshape(-1)
        before = jnp.cumsum((wanted[:, None] == jnp.arange(experts)).astype(jnp.int32), axis=0)
        turn = jnp.take_along_axis(before, wanted[:, None], axis=1)[:, 0] - 1
        there = turn < places
        # One row more than the buffers have, for all that find no place.
        place = jnp.where(there, wanted * places + turn, experts * places)
        rows = jnp.repeat(_message(tokens) if early_int8 else tokens, active, axis=0)
        buffers = jnp.zeros((experts * places + 1, rows.shape[1]), rows.dtype).at[place].set(rows)
        came = _exchanged(buffers[:-1].reshape(ranks, mine, places, -1))
        came = _read(came, width).astype(tokens.dtype) if early_int8 else came
        # [from rank, expert, place, D] -> [expert, all rows that came to it, D]
        heard = came.swapaxes(0, 1).reshape(mine, ranks * places, width)
        done = expert(heard, params).astype(combined)
        back = _exchanged(done.reshape(mine, ranks, places, width).swapaxes(0, 1))
        out = back.reshape(experts * places, width)[jnp.minimum(place, experts * places - 1)]
        out = jnp.where(there[:, None], out, 0).astype(jnp.promote_types(tokens.dtype, jnp.float32))
        y = jnp.einsum("tkd,tk->td", out.reshape(count, active, width), weights)
        overflow = jax.lax.psum(jnp.sum(~there).astype(jnp.int32), CLIENTS)
        fullest = jax.lax.pmax(jnp.max(before[-1]), CLIENTS)
        return Exchanged(y.astype(tokens.dtype), overflow, fullest)

    return own


def _exchanged(buffers: Array) -> Array:
    """Row r of rank p becomes row p of rank r."""
    return jax.lax.all_to_all(buffers, CLIENTS, 0, 0)


def _message(tokens: Array) -> Array:
    """`[T, D + 4]` int8: a token's entries, then its float32 scale, byte by byte."""
    scale = jnp.max(jnp.abs(tokens), axis=-1, keepdims=True).astype(jnp.float32) / MOST
    sent = rounded(tokens, scale)
    bytes_of_scale = jax.lax.bitcast_convert_type(sent.scale[:, 0], jnp.int8)
    return jnp.concatenate([sent.values, bytes_of_scale], axis=-1)


def _read(message: Array, width: int) -> Array:
    """The tokens of messages `[..., D + 4]`."""
    scale = jax.lax.bitcast_convert_type(message[..., width : width + SCALE], jnp.float32)
    return message[..., :width] * scale[..., None]
