"""Acquisitions: what the label of each example is worth to a client, the larger the better."""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import Dataset
from dflax.losses import adjusted
from dflax.models.adapters.adapter import Apply
from dflax.models.apply import Model, as_apply


class Query(NamedTuple):
    """What one client knows when it chooses.

    Attributes:
      key: a typed key of its own.
      local: its last local model.
      server: the server's model.
      examples: `[P]` numbers of its examples in the data set; empty places repeat the first.
      labelled: `[P]` whose labels it has.
      unlabelled: `[P]` whose labels it may buy.
      counts: `[C]` its labels of each class.
    """

    key: Key[Array, ""]
    local: Params
    server: Params
    examples: Int[Array, " P"]
    labelled: Bool[Array, " P"]
    unlabelled: Bool[Array, " P"]
    counts: Int[Array, " C"]


Acquisition = Callable[[Query, Dataset], Float[Array, " P"]]
"""`(query, data) -> [P]`: how much a client wants the label of each of its P places."""


class Judge(enum.Enum):
    """Whose model judges an example.

    Attributes:
      SERVER: the server's.
      LOCAL: the client's own last one.
    """

    SERVER = "server"
    LOCAL = "local"

    def params(self, query: Query) -> Params:
        """The model of a client's query."""
        return query.server if self is Judge.SERVER else query.local


def random() -> Acquisition:
    """Scores uniform in [0, 1): labels are bought at random."""

    def score(query: Query, data: Dataset) -> Float[Array, " P"]:
        return jax.random.uniform(query.key, query.examples.shape)

    return score


def entropy(model: Model, *, judge: Judge = Judge.SERVER, chunk: int = 256) -> Acquisition:
    """Entropy of the predicted law, - sum_c p_c log p_c in nats.

    Args:
      model: gives class scores `[B, C]`, see `dflax.models.as_apply`.
      judge: whose model predicts.
      chunk: examples at a time, >= 1.
    """

    def score(scores: Float[Array, "B C"]) -> Float[Array, " B"]:
        logs = jax.nn.log_softmax(scores)
        return -jnp.sum(jnp.exp(logs) * logs, axis=-1)

    return _judged(model, judge, chunk, score)


def margin(model: Model, *, judge: Judge = Judge.SERVER, chunk: int = 256) -> Acquisition:
    """Minus the lead of the likeliest class over the second, p_(2) - p_(1), in [-1, 0].

    Args:
      model: gives class scores `[B, C]`, C >= 2, see `dflax.models.as_apply`.
      judge: whose model predicts.
      chunk: examples at a time, >= 1.
    """

    def score(scores: Float[Array, "B C"]) -> Float[Array, " B"]:
        first, second = jnp.moveaxis(jax.lax.top_k(jax.nn.softmax(scores), 2)[0], -1, 0)
        return second - first

    return _judged(model, judge, chunk, score)


def divergence(model: Model, *, chunk: int = 256) -> Acquisition:
    """The symmetric divergence of the two models' predictions p (local) and q (server's).

        (1/2) [KL(p || q) + KL(q || p)] = (1/2) sum_c (p_c - q_c) (log p_c - log q_c)

    Args:
      model: gives class scores `[B, C]`, see `dflax.models.as_apply`.
      chunk: examples at a time, >= 1.
    """
    return _compared(model, chunk, lambda scores, counts: scores)


def ksas(model: Model, *, strength: float | Array = 1.0, chunk: int = 256) -> Acquisition:
    """Knowledge-specialised active sampling (KSAS): `divergence` by what the client knows well.

    Both models' scores are moved by `strength log n_c`, n_c the client's labels of class c, before
    their laws are compared: disagreement about the client's frequent classes counts more, and classes
    that it has no label of do not count. With equal n_c it is `divergence`.

    Args:
      model: gives class scores `[B, C]`, see `dflax.models.as_apply`.
      strength: of the class frequencies, >= 0; traceable.
      chunk: examples at a time, >= 1.

    References:
      Cao et al., Knowledge-Aware Federated Active Learning with Non-IID Data, arXiv 2211.13579.
    """
    validation.real("strength", strength, low=0.0, scalar=True)
    return _compared(model, chunk, lambda scores, counts: adjusted(scores, counts, strength))


def core_set(
    features: Model, picks: int, *, judge: Judge = Judge.SERVER, chunk: int = 256
) -> Acquisition:
    """Core-set: k-centre greedy, again and again the example farthest from all that are chosen.

    From the labelled examples as centres, k = 1, ..., picks: the unlabelled example with the largest
    Euclidean distance to its nearest centre becomes the next centre, with the score picks - k + 1. All
    others have 0.

    Args:
      features: `(params, inputs) -> [B, d]`, see `dflax.models.as_apply`: of the last hidden layer,
        for example.
      picks: k, at least the largest budget.
      judge: whose model gives the features.
      chunk: examples at a time, >= 1.

    References:
      Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach,
      arXiv 1708.00489.
    """
    if not isinstance(features, tuple):
        validation.function("features", features, "From (params, inputs) to arrays [B, d].")
    apply = as_apply(features)
    validation.integer("picks", picks, low=1)
    _check(judge, chunk)

    def score(query: Query, data: Dataset) -> Float[Array, " P"]:
        points = _outputs(apply, judge.params(query), query.examples, data, chunk)
        points = points.reshape(points.shape[0], -1)

        def to(centre: Float[Array, " d"]) -> Float[Array, " P"]:
            return jnp.sum(jnp.square(points - centre), axis=1)

        def nearest(distance: Array, place: Array) -> tuple[Array, None]:
            near = jnp.minimum(distance, to(points[place]))
            return jnp.where(query.labelled[place], near, distance), None

        def pick(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
            distance, scores = carry
            able = query.unlabelled & (scores == 0)
            place = jnp.argmax(jnp.where(able, distance, -1.0))
            worth = jnp.where(able[place], picks - k, scores[place])
            return (jnp.minimum(distance, to(points[place])), scores.at[place].set(worth)), None

        count = query.examples.shape[0]
        far = jnp.full(count, jnp.inf, points.dtype)
        distance, _ = jax.lax.scan(nearest, far, jnp.arange(count))
        start = distance, jnp.zeros(count, points.dtype)
        return jax.lax.scan(pick, start, jnp.arange(picks))[0][1]

    return score


def _judged(model: Model, judge: Judge, chunk: int, of_scores: Callable) -> Acquisition:
    """An acquisition of one model's class scores."""
    apply = as_apply(model)
    _check(judge, chunk)

    def score(query: Query, data: Dataset) -> Float[Array, " P"]:
        return of_scores(_outputs(apply, judge.params(query), query.examples, data, chunk))

    return score


def _compared(model: Model, chunk: int, moved: Callable) -> Acquisition:
    """The symmetric divergence of the local model's and the server's scores, both moved."""
    apply = as_apply(model)
    validation.integer("chunk", chunk, low=1)

    def score(query: Query, data: Dataset) -> Float[Array, " P"]:
        own, servers = (
            jax.nn.log_softmax(
                moved(_outputs(apply, params, query.examples, data, chunk), query.counts)
            )
            for params in (query.local, query.server)
        )
        return 0.5 * jnp.sum((jnp.exp(own) - jnp.exp(servers)) * (own - servers), axis=-1)

    return score


def _check(judge: Any, chunk: Any) -> None:
    validation.instance("judge", judge, Judge, "For example dflax.active.Judge.SERVER.")
    validation.integer("chunk", chunk, low=1)


def _outputs(
    apply: Apply, params: Params, examples: Int[Array, " P"], data: Dataset, chunk: int
) -> Float[Array, "P ..."]:
    """The model's outputs for all examples, a chunk at a time, in float32 or wider."""
    count = examples.shape[0]
    width = min(chunk, count)
    rows = jnp.pad(examples, (0, -count % width), mode="edge").reshape(-1, width)
    found = jax.lax.map(lambda some: apply(params, data.fetch(some).inputs), rows)
    found = found.reshape(-1, *found.shape[2:])[:count]
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))
