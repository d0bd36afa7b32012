"""Nodes that answer and judge: a simulator of latent quality, trained classifiers, and liars."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.inference.swarm.questions import Asked


class Swarm(NamedTuple):
    """What N nodes do with a question.

    Attributes:
      nodes: N.
      init: `(key, params) -> members`, leaves `[N, ...]`: what each node is.
      answer: `(key, members, asked) -> [N]` int32, the option that each chooses.
      quality: `(key, asked, choices) -> [N]`, how good answers are; who wins is measured against it.
      judge: `(members, asked, choices, quality, pairs [N, K, 2]) -> [N, K]`, the probability with which
        each judge prefers the first of its pairs.
      liars: `[N]` bool. They answer the attractor and prefer it: their preference is 1, or 0, where
        only the first, or the second, of a pair is the attractor, else 1/2.
    """

    nodes: int
    init: Callable[[Key[Array, ""], Any], PyTree[Array]]
    answer: Callable[[Key[Array, ""], Any, Asked], Int[Array, " n"]]
    quality: Callable[[Key[Array, ""], Asked, Int[Array, " n"]], Float[Array, " n"]]
    judge: Callable[..., Float[Array, "n k"]]
    liars: Bool[Array, " n"]


class Latent(NamedTuple):
    """Simulated nodes, `[N]` each: skill u, and sharpness J_k as a judge."""

    skill: Float[Array, " n"]
    sharpness: Float[Array, " n"]


def latent_swarm(
    nodes: int = 15,
    *,
    sharpness: float | Float[Array, ""] = 0.6,
    liars: Bool[AnyArray, " n"] | None = None,
    skill: float | Float[Array, ""] = -0.4,
    skill_deviation: float | Float[Array, ""] = 0.6,
    attraction: float | Float[Array, ""] = 0.5,
    noise: float | Float[Array, ""] = 0.3,
) -> Swarm:
    """Nodes of normal skill that judge a latent quality of answers, for `latent_questions`.

        u_i ~ N(skill, skill_deviation), J_k = 2 J U(0.3, 1)          once, by init
        P(right) = sigmoid(u_i - d); a wrong answer is the attractor with probability `attraction`,
        else any wrong option alike
        q_i = 1[right] + N(0, noise), the answer's, the same for all judges
        P(k prefers i to j) = sigmoid(2 J_k (q_i - q_j))

    Args:
      nodes: N >= 3.
      sharpness: J >= 0; traceable, as all real numbers here. Several tokens of reasoning before a
        verdict are a larger J.
      liars: `[N]` who lies, see `Swarm.liars`; default nobody; traceable.
      skill: mean of u.
      skill_deviation: >= 0.
      attraction: in [0, 1].
      noise: >= 0.

    Returns:
      A `Swarm`; its `init` takes no parameters.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("nodes", nodes, low=3)
    validation.real("sharpness", sharpness, low=0.0, scalar=True)
    validation.real("skill", skill, scalar=True)
    validation.real("skill_deviation", skill_deviation, low=0.0, scalar=True)
    validation.probability("attraction", attraction)
    validation.real("noise", noise, low=0.0, scalar=True)

    def init(key: Key[Array, ""], params: Any) -> Latent:
        skill_key, judge_key = jax.random.split(key)
        own = skill + skill_deviation * jax.random.normal(skill_key, (nodes,))
        judges = jax.random.uniform(judge_key, (nodes,), minval=0.3, maxval=1.0)
        return Latent(own, 2.0 * sharpness * judges)

    def answer(key: Key[Array, ""], members: Latent, asked: Asked) -> Int[Array, " n"]:
        right, drawn, other = jax.random.uniform(key, (3, nodes))
        options = asked.content.options
        knows = right < jax.nn.sigmoid(members.skill - asked.content.difficulty)
        # A uniform number may be rounded up to 1.
        step = 1 + jnp.minimum((other * (options - 1)).astype(jnp.int32), options - 2)
        wrong = jnp.where(drawn < attraction, asked.attractor, (asked.truth + step) % options)
        return jnp.where(knows, asked.truth, wrong).astype(jnp.int32)

    def quality(key: Key[Array, ""], asked: Asked, choices: Array) -> Float[Array, " n"]:
        return (choices == asked.truth) + noise * jax.random.normal(key, (nodes,))

    def judge(
        members: Latent, asked: Asked, choices: Array, quality: Array, pairs: Array
    ) -> Float[Array, "n k"]:
        difference = quality[pairs[..., 0]] - quality[pairs[..., 1]]
        return jax.nn.sigmoid(2.0 * members.sharpness[:, None] * difference)

    return Swarm(nodes, init, answer, quality, judge, _liars(liars, nodes))


def classifier_swarm(
    apply: Callable[[PyTree[Array], Array], Float[Array, " c"]],
    nodes: int,
    *,
    sharpness: float | Float[Array, ""] = 1.0,
    liars: Bool[AnyArray, " n"] | None = None,
) -> Swarm:
    """Trained classifiers as nodes, for `example_questions`: each judges by its own log-probabilities.

        answer = argmax_c log p_i(c | x)
        P(k prefers i to j) = sigmoid(kappa (log p_k(answer_i | x) - log p_k(answer_j | x)))

    Args:
      apply: `(params, x) -> [C]` logits of one node and one example.
      nodes: N >= 3.
      sharpness: kappa >= 0; traceable.
      liars: `[N]` who lies, see `Swarm.liars`; default nobody; traceable.

    Returns:
      A `Swarm`; its `init` takes the nodes' parameters, leaves `[N, ...]`. The quality of an answer is
      1 if it is right, else 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("apply", apply, "It gives logits of (params, x).", takes=2)
    validation.integer("nodes", nodes, low=3)
    validation.real("sharpness", sharpness, low=0.0, scalar=True)

    def init(key: Key[Array, ""], params: PyTree[Array]) -> PyTree[Array]:
        validation.arrays("params", params, "Stack the nodes' parameters.", some=True)
        validation.leading_axis("params", params, nodes)
        return jax.tree.map(jnp.asarray, params)

    def believed(members: PyTree[Array], asked: Asked) -> Float[Array, "n c"]:
        logits = jax.vmap(apply, in_axes=(0, None))(members, asked.content)
        if logits.ndim != 2:
            raise ValueError(
                f"apply must give logits [classes] of one example, got shape {logits.shape[1:]}."
            )
        return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def answer(key: Key[Array, ""], members: PyTree[Array], asked: Asked) -> Int[Array, " n"]:
        return jnp.argmax(believed(members, asked), axis=-1).astype(jnp.int32)

    def quality(key: Key[Array, ""], asked: Asked, choices: Array) -> Float[Array, " n"]:
        return (choices == asked.truth).astype(jnp.float32)

    def judge(
        members: PyTree[Array], asked: Asked, choices: Array, quality: Array, pairs: Array
    ) -> Float[Array, "n k"]:
        # Compiled once with the nodes' answers: it is the same work.
        of_answers = believed(members, asked)[:, choices]
        judges = jnp.arange(nodes)[:, None]
        first, second = of_answers[judges, pairs[..., 0]], of_answers[judges, pairs[..., 1]]
        return jax.nn.sigmoid(sharpness * (first - second))

    return Swarm(nodes, init, answer, quality, judge, _liars(liars, nodes))


def answers_of(
    swarm: Swarm, key: Key[Array, ""], members: PyTree[Array], asked: Asked
) -> Int[Array, " n"]:
    """What nodes answer, liars the attractor."""
    return jnp.where(swarm.liars, asked.attractor, swarm.answer(key, members, asked))


def preferences_of(
    swarm: Swarm,
    members: PyTree[Array],
    asked: Asked,
    choices: Int[Array, " n"],
    quality: Float[Array, " n"],
    pairs: Int[Array, "n k 2"],
) -> Float[Array, "n k"]:
    """Probabilities with which judges prefer the first of their pairs; liars prefer the attractor."""
    honest = swarm.judge(members, asked, choices, quality, pairs)
    wanted = (choices == asked.attractor).astype(honest.dtype)
    lied = 0.5 * (1.0 + wanted[pairs[..., 0]] - wanted[pairs[..., 1]])
    return jnp.where(swarm.liars[:, None], lied, honest)


def _liars(liars: Any, nodes: int) -> Bool[Array, " n"]:
    own = np.zeros(nodes, bool) if liars is None else liars
    return jnp.asarray(validation.array("liars", own, kind="boolean", shape=(nodes,)))
