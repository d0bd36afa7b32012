"""Traffic as a source of rounds: every round is the next block of requests."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.inference.arrivals import Arrivals
from dflax.inference.lengths import Lengths, ranked
from dflax.inference.requests import Requests


class Scenario(NamedTuple):
    """One kind of traffic, from `scenario`.

    Attributes:
      prompt: tokens of prompts.
      output: tokens of answers.
      prefixes: how many prefixes are shared; 0 for none.
      exponent: of their popularity, P(k) ~ (k + 1)^-exponent.
      reused: share of a prompt that is its prefix's.
      probability: that a request begins with one.
    """

    prompt: Lengths
    output: Lengths
    prefixes: int
    exponent: float | Float[Array, ""]
    reused: float | Float[Array, ""]
    probability: float | Float[Array, ""]


def scenario(
    prompt: Lengths,
    output: Lengths,
    *,
    prefixes: int = 0,
    exponent: float | Float[Array, ""] = 1.0,
    reused: float | Float[Array, ""] = 0.0,
    probability: float | Float[Array, ""] = 1.0,
) -> Scenario:
    """One kind of traffic: lengths, and prefixes that requests have in common.

    Args:
      prompt: tokens of prompts, for example `log_normal(6.0, 0.5)`.
      output: tokens of answers.
      prefixes: how many there are, >= 0.
      exponent: of their popularity, P(k) ~ (k + 1)^-exponent, >= 0; traceable.
      reused: share of a prompt that is its prefix's, in [0, 1]; traceable.
      probability: that a request begins with one, in [0, 1]; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "It gets a key and a number. dflax.inference.log_normal makes one."
    validation.function("prompt", prompt, fix, takes=2)
    validation.function("output", output, fix, takes=2)
    validation.integer("prefixes", prefixes, low=0)
    validation.real("exponent", exponent, low=0.0, scalar=True)
    validation.probability("reused", reused)
    validation.probability("probability", probability)
    return Scenario(prompt, output, prefixes, exponent, reused, probability)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Traffic:
    """A source whose round t is `(Requests, key)`, drawn from the run's key and t. From `traffic`.

    Attributes:
      arrivals: when requests come; every block begins anew at time 0.
      scenarios: what they are.
      weights: `[s]` how often each scenario is drawn.
      size: n, requests of a block.
    """

    arrivals: Arrivals
    scenarios: tuple[Scenario, ...]
    weights: tuple[float, ...]
    size: int

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> tuple[Requests, Key[Array, ""]]:
        """Block number `index`, and a key of its own for what the simulator draws."""
        coming, kind, rest, left = jax.random.split(jax.random.fold_in(key, index), 4)
        arrived = self.arrivals(coming, self.size)
        which = jax.random.choice(
            kind, len(self.scenarios), (self.size,), p=np.asarray(self.weights, np.float32)
        ).astype(jnp.int32)
        drawn = [
            _bodies(one, jax.random.fold_in(rest, s), self.size, first)
            for s, (one, first) in enumerate(zip(self.scenarios, self._first, strict=True))
        ]
        body = jax.tree.map(lambda *columns: _chosen(which, columns), *drawn)
        return Requests(arrived, body.prompt, body.output, which, body.prefix, body.shared), left

    @property
    def _first(self) -> tuple[int, ...]:
        """The number of each scenario's first prefix: no two scenarios share one."""
        return tuple(np.cumsum([0] + [one.prefixes for one in self.scenarios])[:-1].tolist())

    @property
    def prefixes(self) -> int:
        """How many prefixes there are in all."""
        return sum(one.prefixes for one in self.scenarios)


def traffic(
    arrivals: Arrivals,
    scenarios: Scenario | Sequence[Scenario],
    size: int,
    *,
    weights: Sequence[float] | None = None,
) -> Traffic:
    """Blocks of `size` requests that arrive by `arrivals`, each of one of the scenarios.

    Args:
      arrivals: for example `poisson(10.0)`.
      scenarios: one or several, from `scenario`.
      size: n >= 1, requests of a block, which is one round.
      weights: `[s]` how often each scenario is drawn, >= 0 with a sum > 0; default all alike.

    Returns:
      A source for `dflax.run`, `dflax.sweep` and `dflax.rollout`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    fix = "It gets a key and a number. dflax.inference.poisson makes one."
    validation.function("arrivals", arrivals, fix, takes=2)
    if isinstance(scenarios, Scenario):
        scenarios = (scenarios,)
    kinds = validation.sequence("scenarios", scenarios, "scenarios")
    for one in kinds:
        validation.instance("scenarios", one, Scenario, "Make them with dflax.inference.scenario.")
    validation.integer("size", size, low=1)
    given = np.ones(len(kinds)) if weights is None else weights
    shares = validation.array("weights", given, kind="real", shape=(len(kinds),), low=0.0)
    if not shares.sum() > 0:
        raise ValueError(f"weights must have a sum > 0, got {weights}.")
    return Traffic(arrivals, tuple(kinds), tuple((shares / shares.sum()).tolist()), size)


class _Body(NamedTuple):
    prompt: Int[Array, " n"]
    output: Int[Array, " n"]
    prefix: Int[Array, " n"]
    shared: Int[Array, " n"]


def _bodies(one: Scenario, key: Key[Array, ""], n: int, first: int) -> _Body:
    asked, answered, popular, begun = jax.random.split(key, 4)
    prompt, output = one.prompt(asked, n), one.output(answered, n)
    if not one.prefixes:
        return _Body(prompt, output, jnp.full((n,), -1, jnp.int32), jnp.zeros((n,), jnp.int32))
    begins = jax.random.uniform(begun, (n,)) < one.probability
    prefix = first + ranked(popular, n, one.exponent, one.prefixes)
    shared = jnp.floor(one.reused * prompt).astype(jnp.int32)
    return _Body(prompt, output, jnp.where(begins, prefix, -1), jnp.where(begins, shared, 0))


def _chosen(which: Int[Array, " n"], columns: tuple[Array, ...]) -> Array:
    return jnp.take_along_axis(jnp.stack(columns), which[None], axis=0)[0]
