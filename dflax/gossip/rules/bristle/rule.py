"""The rule of Bristle: a client takes over columns of a classifier's last layer, class by class."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.aggregation.rows.distances import finite_rows
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.gossip.mixer import Known
from dflax.gossip.rules.bristle.class_tests import ClassTests, f1_by_class
from dflax.gossip.rules.bristle.draws import Draw, distances_to, prioritised
from dflax.gossip.rules.bristle.trust import Scoring, Trust, trust
from dflax.gossip.rules.neighbour_rule import Neighbourhood, NeighbourRule
from dflax.models.apply import Model, as_apply


class Trusted(NamedTuple):
    """What a client remembers of its last mixing, in the order of its neighbours.

    Attributes:
      neighbours: `[k]` their numbers.
      drawn: `[k]` 1 for those whose models it looked at, else 0.
      familiar: `[k]` the mean weight in the columns of the classes that it graded them by.
      foreign: `[k]` the weight in the columns of foreign classes.
    """

    neighbours: Int[Array, " k"]
    drawn: Float[Array, " k"]
    familiar: Float[Array, " k"]
    foreign: Float[Array, " k"]


def bristle(
    model: Model,
    tests: ClassTests,
    *,
    draw: Draw | None = None,
    better: float = 3.0,
    worse: float = 4.0,
    bound: float = 100.0,
    scale: float = 100.0,
) -> NeighbourRule:
    """Bristle's mixing of classifiers: peers are graded on the client's own test set, class by class.

    A client draws some of the models that it hears and takes the F1 score of every class that it owns
    (familiar classes) for its own model and for theirs. `d = 10 |F_j - F|` of a class is the base of
    a score, `d^(better + F)` for a model that knows the class better and `-d^(worse + F)` for a worse
    one, F the own F1. Scores become weights w(s) = max(0, 10 / (1 + exp(-s / scale)) - 4), and

        certainty_j = max(0, mean - std of F_j over the classes S_j)
        a_jc = certainty_j w(max(-bound, score_jc))    c in S_j        b_j = certainty_j w(sum of scores)
        W[:, c] <- (W[:, c] + sum_j a_jc W_j[:, c]) / (1 + sum_j a_jc)              familiar c
        W[:, c] <- (W[:, c] + sum_j b_j W_j[:, c]) / (1 + sum_j b_j)                foreign c
        W[:, c] <- W[:, c] - mean of W[:, c]

    S_j are the familiar classes that model j knows best, as many as j has in common with the client.
    Who shares no class is never believed. A model that holds a NaN or an infinity counts as absent.
    What is heard counts, not the mixing weights.

    What does well on a client's own test set is believed, also in foreign columns, of which the test
    says nothing: a liar that knows the honest models can pass it.

    Args:
      model: see `dflax.models.as_apply`; gives scores `[B, C]` of a tree in which every leaf is
        `[..., H, C]`, a column for each class and no bias, such as one kernel on frozen features.
      tests: see `class_tests`.
      draw: which models a client looks at; default `prioritised(0.4, 10)`.
      better: >= 0, traceable, see `Scoring`.
      worse: >= 0, traceable.
      bound: >= 0, traceable.
      scale: > 0, traceable.

    Returns:
      A `NeighbourRule` with the memory `Trusted`. Metrics, averaged over clients: `own_f1`, the own
      model's over familiar classes; over neighbours that are heard: `drawn`, `familiar_weight`,
      `foreign_weight`.

    Raises:
      TypeError, ValueError: naming the argument; from `init` of the mixer, a model of another form.

    References:
      Verbraeken, de Vos and Pouwelse, Bristle: Decentralized Federated Learning in Byzantine,
      Non-i.i.d. Environments, arXiv 2110.11006, and the public code of its authors.
    """
    apply_model = as_apply(model)
    validation.instance("tests", tests, ClassTests, "Make one with dflax.gossip.class_tests.")
    choose = prioritised() if draw is None else draw
    validation.function("draw", choose, "Make one with dflax.gossip.prioritised.", takes=3)
    for name, value in (("better", better), ("worse", worse), ("bound", bound)):
        validation.real(name, value, low=0.0, scalar=True)
    validation.real("scale", scale, low=0.0, low_open=True, scalar=True)
    scoring, classes = Scoring(better, worse, bound, scale), tests.familiar.shape[-1]

    def init(own: Params, neighbours: Int[Array, " k"]) -> Trusted:
        require_columns(own, classes)
        nothing = jnp.zeros(neighbours.shape)
        return Trusted(neighbours, nothing, nothing, nothing)

    def apply(
        own: Params, others: Params, weights: Array, memory: Trusted, here: Neighbourhood
    ) -> tuple[Params, Trusted, Metrics]:
        mine: ClassTests = here.private

        def f1(params: Params) -> Float[Array, " C"]:
            predicted = jnp.argmax(apply_model(params, mine.inputs), axis=-1)
            return f1_by_class(predicted, mine.labels, mine.mask, classes)

        present = (weights > 0) & finite_rows(others)
        key = jax.random.fold_in(here.key, here.client)
        places, valid = choose(distances_to(own, others), present, key)
        looked_at = jax.tree.map(
            # 0 times NaN would be NaN.
            lambda leaf, x: jnp.where(against(valid, leaf[places]), leaf[places], x),
            others,
            own,
        )
        common = jnp.where(valid, mine.common[here.neighbours[places]], 0)
        own_f1 = f1(own)
        found = trust(own_f1, jax.vmap(f1)(looked_at), mine.familiar, common, scoring)
        after = centred(integrated(own, looked_at, found, mine.familiar))
        graded = jnp.maximum(jnp.minimum(common, jnp.sum(mine.familiar)), 1)

        def by_slot(values: Array) -> Array:
            return jnp.zeros(weights.shape).at[places].add(jnp.where(valid, values, 0))

        remembered = Trusted(
            here.neighbours,
            by_slot(jnp.ones(len(places))),
            by_slot(jnp.sum(found.familiar, 1) / graded),
            by_slot(found.foreign),
        )
        known_classes = jnp.maximum(jnp.sum(mine.familiar), 1)
        metrics = {
            "own_f1": jnp.sum(jnp.where(mine.familiar, own_f1, 0)) / known_classes,
            "drawn": remembered.drawn,
            "familiar_weight": remembered.familiar,
            "foreign_weight": remembered.foreign,
        }
        return after, remembered, metrics

    known = Known(False, False, linear=False, whole_models=True)
    return NeighbourRule(init, apply, known, private=tests)


def integrated(own: Params, others: Params, found: Trust, familiar: Float[Array, " C"]) -> Params:
    """Every column as the mean of the own one, of weight 1, and those of m others.

    Args:
      own: leaves `[..., H, C]`.
      others: leaves `[m, ..., H, C]`, finite.
      found: their weights.
      familiar: which columns take the weights of their own class.

    Returns:
      As `own`.
    """
    shares = jnp.where(familiar, found.familiar, found.foreign[:, None])

    def mean(mine: Array, theirs: Array) -> Array:
        wide = jnp.promote_types(mine.dtype, jnp.float32)
        weights = shares.astype(wide)
        total = mine.astype(wide) + jnp.einsum("jc,j...c->...c", weights, theirs.astype(wide))
        return (total / (1 + jnp.sum(weights, 0))).astype(mine.dtype)

    return jax.tree.map(mean, own, others)


def centred(params: Params) -> Params:
    """Every column less its mean, as in CWR: leaves `[..., H, C]`, over all axes but the classes'."""

    def apart(leaf: Array) -> Array:
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        return (wide - jnp.mean(wide, axis=tuple(range(leaf.ndim - 1)))).astype(leaf.dtype)

    return jax.tree.map(apart, params)


def require_columns(params: Params, classes: int) -> None:
    """Refuse a model without a column for every class, or with a bias.

    Raises:
      ValueError: a leaf of another shape.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.ndim(leaf) < 2 or leaf.shape[-1] != classes:
            raise ValueError(
                f"models{jax.tree_util.keystr(path)} must be [..., H, {classes}], a column for each of "
                f"the {classes} classes of tests and no bias, got shape {jnp.shape(leaf)}. Train the "
                "last layer alone, on features that are computed once."
            )
