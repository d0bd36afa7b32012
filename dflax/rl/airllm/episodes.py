"""Episodes of transmissions as scans, for whoever chooses the ranks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Params
from dflax.data.dataset import Batch, Dataset
from dflax.population import Assignment, NoData
from dflax.rl.airllm.environment import Environment, Outcome, Surroundings
from dflax.rl.airllm.link import RadioLink
from dflax.rl.airllm.ranks import check_ranks
from dflax.rl.airllm.task import AdapterTask, check_task

Fetch = Callable[[Int[Array, ""]], Batch | None]


def environment_of(
    task: AdapterTask, link: RadioLink, low: int, high: int | None, price: Any, penalty: Any
) -> Environment:
    """The environment of a method, its arguments checked."""
    check_task(task)
    validation.instance("link", link, RadioLink, "Make one with dflax.rl.radio_link.")
    most = task.rank if high is None else high
    check_ranks(low, most, task.rank)
    validation.real("price", price, low=0.0, scalar=True)
    validation.real("penalty", penalty, low=0.0, scalar=True)
    _check_reach(task, link, low)
    return Environment(task, link, low, most, price, penalty)


def _check_reach(task: AdapterTask, link: RadioLink, low: int) -> None:
    """Refuse a link over which nothing could ever be sent."""
    if any(map(validation.is_traced, link)):
        return
    ratios, widths, latency, bits = map(np.asarray, link)
    least = low * int(task.sizes.sum())
    fits = float(widths.max() * np.log2(1 + 10 ** (ratios.max() / 10)) * latency / bits)
    if least > fits:
        raise ValueError(
            f"link must carry the smallest ranks under its best conditions, got bandwidths up to "
            f"{float(widths.max()):g} Hz, in which {fits:,.0f} parameters fit and "
            f"{least:,} are wanted: nothing would ever be sent. Take a larger bandwidth or latency, "
            "or low=0."
        )


def minibatches(task: AdapterTask, assignment: Assignment, data: Dataset, horizon: int) -> Fetch:
    """Which minibatch each transmission trains on; None in rounds without data."""
    if not task.needs_data:
        return lambda number: None
    if isinstance(assignment.minibatches, NoData):
        raise TypeError(
            "the round must have data, which the task reads, got one of a dflax.Population. Use a "
            f"dflax.Federation with local_steps={horizon}."
        )
    steps = assignment.minibatches.shape[0]
    if steps != horizon:
        raise ValueError(
            f"local_steps of the federation must be the horizon {horizon}, a minibatch for each "
            f"transmission, got {steps}."
        )
    return lambda number: data.fetch(assignment.minibatches[number])


def episode_of(
    environment: Environment,
    choose: Callable[[Surroundings, Key[Array, ""]], tuple[Int[Array, " P"], Any]],
    state: Surroundings,
    params: Params,
    fetch: Fetch,
    key: Key[Array, ""],
    horizon: int,
) -> tuple[Surroundings, Outcome, tuple[Int[Array, "H P"], Any]]:
    """H transmissions: `ranks, seen = choose(state, key)`, then a step of the environment.

    Returns:
      The surroundings after it, and leaves `[H, ...]` of outcomes, of the ranks, and of what was seen.
    """
    begin_key, walk_key = jax.random.split(key)
    state = environment.begin(state, fetch(jnp.int32(0)), begin_key)

    def one(state: Surroundings, number: Int[Array, ""]) -> tuple[Surroundings, Any]:
        choose_key, step_key = jax.random.split(jax.random.fold_in(walk_key, number))
        ranks, seen = choose(state, choose_key)
        state, outcome = environment.step(state, params, ranks, fetch(number), step_key)
        return state, (outcome, (ranks, seen))

    state, (outcomes, tried) = jax.lax.scan(one, state, jnp.arange(horizon, dtype=jnp.int32))
    return state, outcomes, tried


def started(
    inner: Algorithm, policies: Callable[..., Params], key: Key[Array, ""], params: Params
) -> FederatedState:
    """The state before the first episode, of policies from the key and a frozen model."""
    validation.typed_key("key", key)
    validation.arrays("params", params)
    policy_key, start_key = jax.random.split(key)
    return inner.init(start_key, policies(policy_key), params)


def tuned_models(task: AdapterTask, state: FederatedState) -> Params:
    """Every agent's model with the adapters that it sent last, leaves `[n, ...]`.

    Args:
      task: of the algorithm, with a model: `adapter_tuning`.
      state: of `airllm` or `fixed_ranks`.

    Raises:
      TypeError: naming the argument.
    """
    check_task(task)
    validation.instance("state", state, FederatedState, "Of dflax.rl.airllm or fixed_ranks.")
    there = state.clients.memory.surroundings

    def one(own: Any, ranks: Array) -> Params:
        return task.model(own, state.server.memory, ranks)

    return jax.vmap(one)(there.task, there.sent)
