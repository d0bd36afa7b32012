"""Fine-tuning over the air as an environment: ranks in, a reward of loss and transmission out."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax.algorithm import Metrics, Params
from dflax.clients import select
from dflax.rl.airllm.link import Conditions, RadioLink, transmitted
from dflax.rl.airllm.ranks import decode_ranks, encode_ranks
from dflax.rl.airllm.task import AdapterTask


class Surroundings(NamedTuple):
    """What the environment remembers.

    Attributes:
      task: the task's own state.
      ranks: `[P]` int32, chosen last.
      sent: `[P]` int32, transmitted last.
      conditions: of the next transmission.
      described: `[2]`, what is known of the last minibatch.
    """

    task: Any
    ranks: Int[Array, " P"]
    sent: Int[Array, " P"]
    conditions: Conditions
    described: Float[Array, "2"]


class Outcome(NamedTuple):
    """What a step led to.

    Attributes:
      reward: `- loss - lambda cost`.
      loss: of the task before the step of training; kappa cost where nothing was sent.
      cost: `n(r) bits / (C tau)`, of the ranks that were chosen.
      transmitted: parameters that were sent: n(r), or 0.
      violated: whether the ranks did not fit, so that nothing was sent.
      unreachable: whether no ranks at all would have fitted.
      conditions: of the link.
    """

    reward: Float[Array, ""]
    loss: Float[Array, ""]
    cost: Float[Array, ""]
    transmitted: Float[Array, ""]
    violated: Bool[Array, ""]
    unreachable: Bool[Array, ""]
    conditions: Conditions


class Environment(NamedTuple):
    """Ranks of adapters, chosen transmission by transmission.

    Attributes:
      task: what is fine-tuned.
      link: over which it is sent.
      low: smallest rank; static.
      high: largest rank; static.
      price: lambda.
      penalty: kappa.
    """

    task: AdapterTask
    link: RadioLink
    low: int
    high: int
    price: Float[Array, ""] | float
    penalty: Float[Array, ""] | float

    @property
    def matrices(self) -> int:
        """P."""
        return len(self.task.sizes)

    def start(self, key: Key[Array, ""], params: Params) -> Surroundings:
        """Before the first episode."""
        task_key, link_key = jax.random.split(key)
        ranks = self.first_ranks()
        conditions = self.link.draw(link_key)
        return Surroundings(
            self.task.start(task_key, params), ranks, ranks, conditions, jnp.zeros(2)
        )

    def first_ranks(self) -> Int[Array, " P"]:
        """Those of an episode's start: half of R."""
        return jnp.full(self.matrices, max(self.low, self.task.rank // 2), jnp.int32)

    def begin(self, state: Surroundings, batch: Any, key: Key[Array, ""]) -> Surroundings:
        """A new episode: middling ranks, new conditions; the task goes on."""
        return state._replace(
            ranks=self.first_ranks(),
            conditions=self.link.draw(key),
            described=self.task.described(batch),
        )

    def observed(self, state: Surroundings) -> Float[Array, " 4+P"]:
        """Ratio and bandwidth in [0, 1], two numbers of the last minibatch, ranks over R."""
        ranks = state.ranks / self.task.rank
        return jnp.concatenate([self.link.observed(state.conditions), state.described, ranks])

    def budget(self, state: Surroundings) -> Float[Array, ""]:
        """How many parameters fit into the next transmission."""
        return self.link.budget(state.conditions)

    def decoded(self, x: Float[Array, " P"]) -> Int[Array, " P"]:
        """Ranks of numbers in [-1, 1]."""
        return decode_ranks(x, self.low, self.high)

    def encoded(self, ranks: Int[Array, " P"]) -> Float[Array, " P"]:
        """Numbers in [-1, 1] of ranks."""
        return encode_ranks(ranks, self.low, self.high)

    def step(
        self,
        state: Surroundings,
        params: Params,
        ranks: Int[Array, " P"],
        batch: Any,
        key: Key[Array, ""],
    ) -> tuple[Surroundings, Outcome]:
        """Sends adapters of these ranks and trains them for a step; where they do not fit, neither.

        cost = n(r) / budget;   cost <= 1:  reward = - loss - lambda cost
                                else:       reward = - kappa cost - lambda cost
        """
        task_key, link_key = jax.random.split(key)
        budget, sizes = self.budget(state), self.task.sizes
        count = transmitted(ranks, sizes)
        cost = count / budget
        fits = cost <= 1.0

        def train(task: Any) -> tuple[Any, Array, Array]:
            after, loss = self.task.step(task, params, ranks, batch, task_key)
            return after, loss, self.task.described(batch)

        def wait(task: Any) -> tuple[Any, Array, Array]:
            return task, self.penalty * cost, state.described

        task, loss, described = jax.lax.cond(fits, train, wait, state.task)
        outcome = Outcome(
            reward=-loss - self.price * cost,
            loss=loss,
            cost=cost,
            transmitted=jnp.where(fits, count, 0.0),
            violated=~fits,
            unreachable=self.low * float(sizes.sum()) > budget,
            conditions=state.conditions,
        )
        sent = select(fits, ranks, state.sent)
        return Surroundings(task, ranks, sent, self.link.draw(link_key), described), outcome

    def measured(self, outcomes: Outcome) -> Metrics:
        """Means of an episode's outcomes, and sums by the link's conditions, `[S * B]`."""
        several = len(self.link.bandwidths)
        met = outcomes.conditions.ratio * several + outcomes.conditions.bandwidth
        where = jax.nn.one_hot(met, len(self.link.ratios) * several)
        return {
            "reward": jnp.mean(outcomes.reward),
            "task_loss": jnp.mean(outcomes.loss),
            "cost": jnp.mean(outcomes.cost),
            "transmitted": jnp.mean(outcomes.transmitted),
            "violations": jnp.mean(outcomes.violated.astype(float)),
            "unreachable": jnp.mean(outcomes.unreachable.astype(float)),
            "steps_under": jnp.sum(where, axis=0),
            "reward_under": outcomes.reward @ where,
            "transmitted_under": outcomes.transmitted @ where,
            "violations_under": outcomes.violated.astype(float) @ where,
        }
