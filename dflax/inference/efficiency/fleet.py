"""A fleet that is not here: models on accelerators by rooflines, answers by item response."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.inference.costs import roofline_costs
from dflax.inference.efficiency.metrics import Measurements
from dflax.inference.hardware import Accelerator, Network, power


class Fleet(NamedTuple):
    """What M models on H accelerators would measure over Q queries. From `fleet`.

    Attributes:
      measured: for `efficiency`; a pair whose weights do not fit into the memory is not present.
      flops: `[M, Q]` arithmetic of a query.
      dollars: `[M, H, Q]` price of a query.
    """

    measured: Measurements
    flops: Float[Array, "M Q"]
    dollars: Float[Array, "M H Q"]


def item_response(
    key: Key[Array, ""], skill: Float[Array, " M"], difficulty: Float[Array, " Q"]
) -> Float[Array, "M Q"]:
    """Answers of an item-response model (Rasch): right with probability sigmoid(skill_m - difficulty_q).

    Args:
      key: of the draws; models answer independently, given the difficulties.
      skill: `[M]`, any real numbers.
      difficulty: `[Q]`, any real numbers.

    Returns:
      `[M, Q]`, 1 for a right answer and 0 for a wrong one.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    validation.array("skill", skill, kind="real", shape=("M",))
    validation.array("difficulty", difficulty, kind="real", shape=("Q",))
    chance = jax.nn.sigmoid(jnp.asarray(skill)[:, None] - jnp.asarray(difficulty))
    return jax.random.bernoulli(key, chance).astype(jnp.float32)


def fleet(
    networks: Network,
    accelerators: Accelerator,
    accuracy: Float[Array, "M Q"],
    input_tokens: Float[Array, " Q"],
    output_tokens: Float[Array, " Q"],
) -> Fleet:
    """Latency, power, energy and price of single queries, one at a time, by rooflines.

        tau  = prefill(n_in) + sum_{i < n_out} decode(1, n_in + i)          see `roofline_costs`
        u    = max(FLOP/s / peak FLOP/s, B/s / peak B/s), in either phase
        P    = P_idle + (P_peak - P_idle) u, mean over the query's time,  E = P tau
        C    = 2 active (n_in + n_out) FLOP,  $ = price tau / 3600

    Args:
      networks: M of them: numbers of `network`, each one for all or `[M]`.
      accelerators: H of them: numbers of `accelerator`, each one for all or `[H]`; `peak_watts` > 0.
      accuracy: `[M, Q]` in [0, 1], for example of `item_response`.
      input_tokens: `[Q]` >= 1.
      output_tokens: `[Q]` >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    models, queries = validation.array(
        "accuracy", accuracy, kind="real", shape=("M", "Q"), low=0.0, high=1.0
    ).shape
    for name, tokens in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        fix = "One for each query of accuracy."
        validation.array(name, tokens, kind="real", shape=(queries,), low=1.0, fix=fix)
    _several("networks", networks, Network, models)
    hardware = _several("accelerators", accelerators, Accelerator)
    validation.real("accelerators", accelerators.peak_watts, low=0.0, low_open=True)
    net = jax.tree.map(lambda leaf: _along(leaf, models, 3), networks)
    device = jax.tree.map(lambda leaf: _along(leaf, hardware, 2), accelerators)
    given, made = jnp.asarray(input_tokens, float), jnp.asarray(output_tokens, float)
    costs = roofline_costs(net, device)
    prefill = costs.prefill(given, given**2)
    # Decoding is affine in the context, so the mean context gives the sum.
    one = costs.decode(jnp.ones(()), given + (made - 1.0) / 2.0)
    decode = made * one
    busy = [
        _busy(device, 2.0 * net.active * given, net.weight_bytes, prefill),
        _busy(device, 2.0 * net.active, net.active_bytes, one),
    ]
    latency = prefill + decode
    energy = power(device, busy[0]) * prefill + power(device, busy[1]) * decode
    fits = jnp.broadcast_to(net.weight_bytes <= device.memory, latency.shape)
    measured = Measurements(
        jnp.asarray(accuracy, float), energy / latency, latency, energy, None, fits
    )
    flops = 2.0 * net.active[:, 0] * (given + made)
    return Fleet(measured, flops, device.price * latency / 3600.0)


def _busy(device: Accelerator, flops: Array, read: Array, seconds: Array) -> Array:
    """The share of its peak at which the busier of arithmetic and memory works."""
    share = jnp.maximum(flops / device.flops, read / device.bandwidth) / seconds
    return jnp.clip(share, 0.0, 1.0)


def _along(leaf: Any, count: int, axes: int) -> Array:
    return jnp.broadcast_to(jnp.asarray(leaf, float), (count,)).reshape(count, *(1,) * (axes - 1))


def _several(name: str, value: Any, kind: type, count: int | None = None) -> int:
    """How many there are; each number is one for all, or one for each."""
    validation.instance(
        name, value, kind, f"Make them with dflax.inference.{kind.__name__.lower()}."
    )
    lengths = {jnp.shape(leaf) for leaf in jax.tree.leaves(value)} - {()}
    wanted = {(count,)} if count is not None else lengths
    if len(lengths) > 1 or not lengths <= wanted or any(len(shape) != 1 for shape in lengths):
        many = "their number" if count is None else f"{count}"
        raise ValueError(
            f"{name} must have numbers that are one for all or one for each of {many}, got shapes "
            f"{sorted(lengths)}."
        )
    return count or (next(iter(lengths))[0] if lengths else 1)
