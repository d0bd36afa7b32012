"""Audits: examples that are in a run by the toss of a coin, and how well the run tells which."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import AnyArray, Batch, Dataset, Split
from dflax.data.partition import Partition, from_indices
from dflax.local.oracle import Loss
from dflax.privacy.extra import imported

PARTITION_FIX = "Make one with dflax.data.iid, dirichlet or from_indices."


class Canaries(NamedTuple):
    """A federation's data with canaries among them.

    Attributes:
      data: training examples, the canaries that are in after all others; a `Split` keeps its test part.
      partition: who owns what, canaries as well.
      examples: all m canaries, in or not, as a data set.
      included: `[m]` whether each is in: an independent toss of a fair coin.
    """

    data: Any
    partition: Partition
    examples: Dataset
    included: Bool[np.ndarray, " m"]


def with_canaries(
    data: Dataset | Split,
    partition: Partition,
    count: int,
    *,
    seed: int = 0,
    inputs: PyTree[AnyArray] | None = None,
    labels: Int[AnyArray, " m"] | None = None,
    own_clients: bool = False,
) -> Canaries:
    """Canaries for an audit in one run: each is in by the toss of a fair coin, and given to a client.

    Run the mechanism on the federation that is made of `data` and `partition`, score every canary
    by `canary_scores`, and hand scores and tosses to `epsilon_lower_bound`.

    Args:
      data: training examples, or a `Split`.
      partition: who owns them.
      count: m >= 2 canaries.
      seed: of tosses, owners, and the canaries themselves.
      inputs: `[m, ...]` as they are stored; default noise: every number from the same place of an
        example of its own, so that no two canaries have much in common.
      labels: `[m]`; default random ones among those of the data.
      own_clients: whether each canary that is in is a client of its own, the last ones, for audits of
        whole clients. Otherwise each goes to one of the clients at random.

    Returns:
      The `Canaries`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    train = data.train if isinstance(data, Split) else data
    validation.instance("data", train, Dataset, "Make one with dflax.data.from_arrays.")
    validation.instance("partition", partition, Partition, PARTITION_FIX)
    validation.integer("count", count, low=2)
    validation.seed("seed", seed)
    validation.flag("own_clients", own_clients)
    generator = np.random.default_rng(seed)
    stored = jax.tree.map(np.asarray, train.inputs)
    if inputs is None:
        inputs = jax.tree.map(lambda leaf: _noise(leaf, count, generator), stored)
    else:
        validation.leading_axis("inputs", inputs, count)
        inputs = _alike("inputs", inputs, stored)
    if labels is None:
        labels = generator.choice(np.asarray(train.labels), count)
    else:
        validation.leading_axis("labels", labels, count)
        labels = _alike("labels", labels, np.asarray(train.labels))
    included = generator.random(count) < 0.5
    places = len(train) + np.arange(int(included.sum()))
    owned = partition.as_lists()
    if own_clients:
        owned += [np.array([place]) for place in places]
    else:
        for place, client in zip(places, generator.integers(len(owned), size=len(places))):  # noqa: B905
            owned[client] = np.append(owned[client], place)

    def joined(leaf: Any, more: Any) -> Array:
        return jnp.concatenate([jnp.asarray(leaf), jnp.asarray(more[included], leaf.dtype)])

    whole = _with(train, jax.tree.map(joined, train.inputs, inputs), joined(train.labels, labels))
    examples = _with(train, jax.tree.map(jnp.asarray, inputs), jnp.asarray(labels))
    made = data._replace(train=whole) if isinstance(data, Split) else whole
    return Canaries(made, from_indices(owned, seed=seed), examples, included)


def canary_scores(
    loss: Loss, start: Params, params: Params, canaries: Dataset
) -> Float[np.ndarray, " m"]:
    """How far training has gone against each canary's gradient, compared with others of its label.

        d_j = <start - params, grad loss(start; canary j)>,     score_j = d_j - mean of d over j's label

    What the whole data have taught the model about a label is taken off. The products are one
    derivative in the direction of `start - params`, so no gradient is made.

    Args:
      loss: of a minibatch; it is evaluated, with no key.
      start: the model before training.
      params: the trained model, or any later model that the run published.
      canaries: `Canaries.examples`.

    Returns:
      `[m]`, larger for those that were more likely in.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("loss", loss, "Make one with dflax.losses.")
    validation.model("start", start)
    validation.model("params", params)
    structures: Any = [jax.tree.structure(tree) for tree in (start, params)]
    if structures[0] != structures[1]:
        raise ValueError(
            "start must have the structure of params, got another. Give the same model."
        )
    validation.instance("canaries", canaries, Dataset, "Give Canaries.examples.")

    @jax.jit
    def progress(start: Params, params: Params, canaries: Dataset) -> Float[Array, " m"]:
        batch = canaries.fetch(jnp.arange(len(canaries)))._replace(mask=None)

        def losses(params: Params) -> Float[Array, " m"]:
            def one(example: Batch) -> Array:
                return loss(params, jax.tree.map(lambda leaf: leaf[None], example), None)[0]

            return jax.vmap(one)(batch)

        away = jax.tree.map(jnp.subtract, start, params)
        return jax.jvp(losses, (start,), (away,))[1]

    found = np.asarray(progress(start, params, canaries), float)
    labels = np.asarray(canaries.labels).reshape(len(found), -1)
    _, kind = np.unique(labels, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    return found - (np.bincount(kind, found) / np.bincount(kind))[kind]


def epsilon_lower_bound(
    scores: Float[AnyArray, " m"],
    included: Bool[AnyArray, " m"],
    delta: float,
    *,
    confidence: float = 0.95,
    guesses: int | None = None,
) -> float:
    """What epsilon is at least, with confidence, by one run: a claim of less is refuted.

    Of m canaries the k / 2 with the largest scores are guessed to be in, the k / 2 with the smallest
    to be out. An (epsilon, delta) private run lets a guess be right with probability
    e^epsilon / (1 + e^epsilon) at most, up to delta; the bound is the largest epsilon under which so
    many right guesses have a probability below 1 - confidence. Of all that could be guessed in a
    perfect audit, k right ones of k give `log(q / (1 - q))`, `q = (1 - confidence)^(1 / k)`: 100 cannot
    show more than 3.5.

    Args:
      scores: `[m]`, see `canary_scores`; any statistic of what the run published will do.
      included: `[m]`, `Canaries.included`.
      delta: of the claim, in (0, 1).
      confidence: in (0, 1).
      guesses: k, even, in [2, m]. Fix it before you see the scores. Default about m / 4.

    Returns:
      The lower bound, 0 where nothing is refuted.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: jax-privacy is not installed.

    References:
      Steinke, Nasr and Jagielski, Privacy Auditing with One (1) Training Run, arXiv 2305.08846.
    """
    values = validation.array("scores", scores, kind="real", shape=("m",))
    inside = validation.array("included", included, kind="boolean", shape=values.shape)
    validation.probability("delta", delta, low_open=True, high_open=True)
    validation.probability("confidence", confidence, low_open=True, high_open=True)
    if len(values) < 2:
        raise ValueError("scores must be of at least 2 canaries, got 1.")
    guesses = max(2 * (len(values) // 8), 2) if guesses is None else guesses
    validation.integer("guesses", guesses, low=2, high=len(values))
    if guesses % 2:
        raise ValueError(f"guesses must be even, half for in and half for out, got {guesses}.")
    auditing = imported("jax_privacy.auditing")
    # Ties are broken by a shuffle, so that the order of the canaries tells nothing.
    shuffled = np.random.default_rng(0).permutation(len(values))
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    half = guesses // 2
    right = int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum())
    # The auditor counts what lies above a threshold: right guesses as "in", wrong ones as "out". Of what
    # is not guessed only the number matters; both kinds must be there, if need be by one more each.
    rest = max(len(values) - guesses, 2)
    auditor = auditing.CanaryScoreAuditor(
        np.repeat([1.0, 0.0], [right, rest - 1]), np.repeat([1.0, 0.0], [guesses - right, 1])
    )
    bound = auditor.epsilon_one_run(
        1 - float(confidence), float(delta), threshold_strategy=auditing.Explicit(0.5)
    )
    return float(bound)


def _noise(stored: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Examples whose every number is that of another example in the same place."""
    rows = stored.reshape(len(stored), -1)
    chosen = generator.integers(len(rows), size=(count, rows.shape[1]))
    mixed = np.take_along_axis(rows, chosen, axis=0)
    return mixed.reshape(count, *stored.shape[1:])


def _alike(name: str, given: Any, stored: Any) -> Any:
    """Canaries of the caller's own, if they are of the data's shapes."""
    structures: Any = [jax.tree.structure(tree) for tree in (given, stored)]
    if structures[0] != structures[1]:
        raise ValueError(f"{name} must have the structure of the data's, got another.")

    def one(leaf: Any, like: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        if leaf.shape[1:] != like.shape[1:]:
            raise ValueError(
                f"{name} must have the shape {like.shape[1:]} of one in the data, got {leaf.shape[1:]}."
            )
        return leaf.astype(like.dtype)

    return jax.tree.map(one, given, stored)


def _with(data: Dataset, inputs: Any, labels: Array) -> Dataset:
    return dataclasses.replace(data, inputs=inputs, labels=labels)
