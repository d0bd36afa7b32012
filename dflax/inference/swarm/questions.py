"""Queries to a swarm: a source that draws one a round, who takes part, and calibration questions."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.participation import PARTICIPATION_FIX, Cohort, Count, Participation, everyone


class Asked(NamedTuple):
    """A question.

    Attributes:
      truth: `[]` int32, the right option.
      attractor: `[]` int32, a wrong option that many wrong answers share; liars agree on it.
      content: what nodes see of it.
      domain: `[]` int32, in which answering track it counts.
    """

    truth: Int[Array, ""]
    attractor: Int[Array, ""]
    content: PyTree[Array]
    domain: Int[Array, ""] = 0  # type: ignore[assignment]  # a default that is converted


class Question(NamedTuple):
    """What is asked in one round.

    Attributes:
      key: the round's typed key.
      number: `[]` int32, which query of the run this is.
      present: `[N]` bool, who is asked and answers.
      asked: the question.
      exam: calibration questions, leaves `[M, ...]`; None without.
    """

    key: Key[Array, ""]
    number: Int[Array, ""]
    present: Bool[Array, " n"]
    asked: Asked
    exam: Asked | None


class LatentQuestion(NamedTuple):
    """A question without words: how hard it is, and how many options it has."""

    difficulty: Float[Array, ""]
    options: Int[Array, ""]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Questions:
    """A source of queries to N nodes.

    Attributes:
      nodes: N >= 1.
      ask: `(key) -> Asked`, for example `latent_questions()`; what a `jax.tree_util.Partial` of it
        holds travels as data.
      participation: who takes part, see `dflax.participation`; default everyone.
      exam: M >= 0 calibration questions in each round, for who is not admitted.

    Raises:
      TypeError, ValueError: naming the argument.
    """

    nodes: int
    ask: Callable[[Key[Array, ""]], Asked]
    participation: Participation | None = None
    exam: int = 0

    def __post_init__(self) -> None:
        validation.integer("nodes", self.nodes, low=1)
        validation.function("ask", self.ask, "For example latent_questions().", takes=1)
        if self.participation is not None:
            validation.function("participation", self.participation, PARTICIPATION_FIX, takes=3)
        validation.integer("exam", self.exam, low=0)
        asked: Any = jax.eval_shape(self.ask, jax.random.key(0))
        validation.instance("what ask returns", asked, Asked, "For example latent_questions().")

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Question:
        """Query number `index` of the run whose key is `key`."""
        own, ask_key, cohort_key, exam_key = jax.random.split(jax.random.fold_in(key, index), 4)
        number = jnp.asarray(index, jnp.int32)
        rule = everyone() if self.participation is None else self.participation
        cohort = rule(cohort_key, number, self.nodes)
        validation.instance("what participation returns", cohort, Cohort)
        exam = None
        if self.exam:
            exam = jax.vmap(self._asked)(jax.random.split(exam_key, self.exam))
        return Question(own, number, _present(cohort, self.nodes), self._asked(ask_key), exam)

    def _asked(self, key: Key[Array, ""]) -> Asked:
        asked = self.ask(key)
        truth, attractor, domain = (
            jnp.asarray(value, jnp.int32) for value in (asked.truth, asked.attractor, asked.domain)
        )
        return Asked(truth, attractor, asked.content, domain)

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """What functions hold as children; plain functions are wrapped."""
        held = [one if one is None else _partial(one) for one in (self.ask, self.participation)]
        names = (jax.tree_util.GetAttrKey("ask"), jax.tree_util.GetAttrKey("participation"))
        return list(zip(names, held, strict=True)), (self.nodes, self.exam)

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> "Questions":
        """Rebuilds the source without checking again: its leaves may be anything."""
        source = object.__new__(cls)
        values = dict(zip(("ask", "participation"), children, strict=True))
        for name, value in (values | dict(zip(("nodes", "exam"), static, strict=True))).items():
            object.__setattr__(source, name, value)
        return source


def latent_questions(
    *,
    options: int = 4,
    mean: float | Float[Array, ""] = 0.0,
    deviation: float | Float[Array, ""] = 1.0,
) -> Callable[[Key[Array, ""]], Asked]:
    """Questions of normal difficulty d; the right option and the attractor, another one, are uniform.

    Args:
      options: >= 2.
      mean: of d; traceable.
      deviation: of d, >= 0; traceable.

    Returns:
      An `ask` for `Questions`; contents are a `LatentQuestion`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("options", options, low=2)
    validation.real("mean", mean, scalar=True)
    validation.real("deviation", deviation, low=0.0, scalar=True)
    return Partial(
        _latent, Count(options), *(jnp.asarray(v, jnp.float32) for v in (mean, deviation))
    )


def example_questions(
    inputs: Float[AnyArray, "q ..."],
    labels: Int[AnyArray, " q"],
    *,
    classes: int,
    domains: Int[AnyArray, " q"] | None = None,
) -> Callable[[Key[Array, ""]], Asked]:
    """Questions are examples of a data set, drawn with replacement; the attractor is a wrong class.

    Args:
      inputs: `[Q, ...]`; contents are one of them.
      labels: `[Q]` right classes in [0, classes).
      classes: >= 2.
      domains: `[Q]` the domain of each; default 0.

    Returns:
      An `ask` for `Questions`, which holds the examples as data.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    given = validation.array("inputs", inputs, kind="real")
    if given.ndim < 1 or given.shape[0] < 1:
        raise ValueError(f"inputs must be at least one example, got shape {given.shape}.")
    validation.integer("classes", classes, low=2)
    count = given.shape[:1]
    fix = "There is one for each of inputs."
    right = validation.array(
        "labels", labels, kind="integer", shape=count, low=0, high=classes - 1, fix=fix
    )
    own = np.zeros(count, np.int32) if domains is None else domains
    own = validation.array("domains", own, kind="integer", shape=count, low=0)
    whole = (jnp.asarray(right, jnp.int32), jnp.asarray(own, jnp.int32))
    return Partial(_example, Count(classes), jnp.asarray(given), *whole)


def _latent(options: int, mean: Array, deviation: Array, key: Key[Array, ""]) -> Asked:
    difficulty_key, truth_key, wrong_key = jax.random.split(key, 3)
    truth = jax.random.randint(truth_key, (), 0, options, jnp.int32)
    other = jax.random.randint(wrong_key, (), 1, options, jnp.int32)
    difficulty = mean + deviation * jax.random.normal(difficulty_key)
    content = LatentQuestion(difficulty, jnp.int32(options))
    return Asked(truth, (truth + other) % options, content)


def _example(
    classes: int, inputs: Array, labels: Array, domains: Array, key: Key[Array, ""]
) -> Asked:
    row_key, wrong_key = jax.random.split(key)
    row = jax.random.randint(row_key, (), 0, inputs.shape[0], jnp.int32)
    other = jax.random.randint(wrong_key, (), 1, classes, jnp.int32)
    truth = labels[row]
    return Asked(truth, (truth + other) % classes, inputs[row], domains[row])


def _partial(function: Callable[..., Any]) -> Any:
    """A plain function is no pytree; wrapped, it becomes part of the structure."""
    return Partial(function) if jax.tree_util.all_leaves([function]) else function


def _present(cohort: Cohort, nodes: int) -> Bool[Array, " n"]:
    """Who is invited and reports."""
    if cohort.clients is None:
        return jnp.ones(nodes, bool) if cohort.reports is None else cohort.reports > 0
    reports = jnp.ones(cohort.clients.shape) if cohort.reports is None else cohort.reports
    return jnp.zeros(nodes).at[cohort.clients].max(reports.astype(jnp.float32)) > 0
