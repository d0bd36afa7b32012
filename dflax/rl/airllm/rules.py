"""Ranks by rules that learn nothing: what a learned policy is compared with."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.data.dataset import Dataset
from dflax.population import Assignment
from dflax.rl.airllm.environment import Environment, Surroundings
from dflax.rl.airllm.episodes import environment_of, episode_of, minibatches, started
from dflax.rl.airllm.link import RadioLink
from dflax.rl.airllm.task import AdapterTask
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server

Rule = Callable[[Environment, Surroundings, Key[Array, ""]], Int[Array, " P"]]


class RuledAgent(NamedTuple):
    """What an agent remembers whose ranks follow a rule.

    Attributes:
      surroundings: its own task and link.
    """

    surroundings: Surroundings


def fixed_ranks(
    task: AdapterTask,
    link: RadioLink,
    rule: Rule,
    *,
    low: int = 1,
    high: int | None = None,
    horizon: int = 15,
    price: float | Array = 0.1,
    penalty: float | Array = 10.0,
    agents: int = 1,
    at_once: int | None = None,
) -> Algorithm:
    """The environment of `airllm` under a rule that learns nothing.

    Args:
      task: as for `airllm`.
      link: as for `airllm`.
      rule: `(environment, surroundings, key) -> ranks [P]`: `uniform_ranks(4)`, `largest_uniform()`,
        `random_ranks()`, `important_ranks(4.0)`, or a function of one's own.
      low: as for `airllm`.
      high: as for `airllm`.
      horizon: as for `airllm`.
      price: as for `airllm`.
      penalty: as for `airllm`.
      agents: as for `airllm`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` with the metrics of `airllm` that are of the environment.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    environment = environment_of(task, link, low, high, price, penalty)
    validation.function("rule", rule, "For example dflax.rl.uniform_ranks(4).", takes=3)
    validation.integer("horizon", horizon, low=1)
    validation.integer("agents", agents, low=1)

    def start(key: Key[Array, ""], nothing: Params, base: Params) -> tuple[Params, RuledAgent]:
        begun = jax.vmap(lambda key: environment.start(key, base))(jax.random.split(key, agents))
        return base, RuledAgent(begun)

    def work(
        assignment: Assignment,
        own: RuledAgent,
        server: Server,
        data: Dataset,
        index: Int[Array, ""],
    ) -> Report:
        state, outcomes, _ = episode_of(
            environment,
            lambda state, key: (rule(environment, state, key).astype(jnp.int32), ()),
            own.surroundings,
            server.memory,
            minibatches(task, assignment, data, horizon),
            assignment.key,
            horizon,
        )
        nothing = jax.tree.map(jnp.zeros_like, server.params)
        return Report(nothing, RuledAgent(state), environment.measured(outcomes))

    def update(server: Server, received: Received) -> tuple[Params, Any, Metrics]:
        return server.params, server.memory, {}

    inner = with_server(start, work, update, clients=agents, at_once=at_once)

    def init(key: Key[Array, ""], params: Params = ()) -> Any:
        return started(inner, lambda key: {"nothing": jnp.zeros(())}, key, params)

    return Algorithm(init, inner.step)


def uniform_ranks(rank: int) -> Rule:
    """The same rank everywhere and always, whether it fits or not.

    Args:
      rank: >= 0; it is refused above the adapters' when the method is run.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("rank", rank, low=0)

    def rule(environment: Environment, state: Surroundings, key: Key[Array, ""]) -> Array:
        if not environment.low <= rank <= environment.high:
            raise ValueError(
                f"rank must be in [{environment.low}, {environment.high}], what the adapters have, "
                f"got {rank}."
            )
        return jnp.full(environment.matrices, rank)

    return rule


def largest_uniform() -> Rule:
    """The largest rank that fits everywhere under the conditions at hand; the smallest if none does."""

    def rule(environment: Environment, state: Surroundings, key: Key[Array, ""]) -> Array:
        most = jnp.floor(environment.budget(state) / float(environment.task.sizes.sum()))
        rank = jnp.clip(most, environment.low, environment.high)
        return jnp.full(environment.matrices, rank.astype(jnp.int32))

    return rule


def random_ranks() -> Rule:
    """Each rank uniform in [low, high], whether they fit or not."""

    def rule(environment: Environment, state: Surroundings, key: Key[Array, ""]) -> Array:
        shape = (environment.matrices,)
        return jax.random.randint(key, shape, environment.low, environment.high + 1)

    return rule


def important_ranks(mean_rank: float | Float[Array, ""]) -> Rule:
    """A budget of components for the most important ones of all matrices, as AdaLoRA deals it out.

    The `mean_rank * P` components of largest importance are counted matrix by matrix; a matrix gets as
    many as it has among them, cut to [low, high]. What is sent are its first ones.

    Args:
      mean_rank: >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang et al., AdaLoRA, arXiv 2303.10512.
    """
    validation.real("mean_rank", mean_rank, low=0.0, scalar=True)

    def rule(environment: Environment, state: Surroundings, key: Key[Array, ""]) -> Array:
        scores = environment.task.importance(state.task)
        order = jnp.argsort(jnp.argsort(-scores.reshape(-1))).reshape(scores.shape)
        counts = jnp.sum(order < mean_rank * len(scores), axis=1)
        return jnp.clip(counts, environment.low, environment.high)

    return rule
