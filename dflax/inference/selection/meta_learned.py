"""The meta-learned selector: a perceptron that predicts what each method adds to a task's log-time."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.algorithm import Params
from dflax.inference.selection.losses import Loss, squared_error
from dflax.inference.selection.performance import Centred, Performance, centred
from dflax.inference.selection.selector import (
    Selector,
    Standard,
    lesson,
    standard_of,
    standardised,
)
from dflax.inference.selection.training import Schedule, trained
from dflax.models.mlp import MLP, widths


class Scale(NamedTuple):
    """From a network's outputs to log seconds, `[]` each.

    Attributes:
      relative: deviation of the row-centred log-times z of the training tasks.
      level: mean of their levels.
      spread: deviation of their levels.
    """

    relative: Float[Array, ""]
    level: Float[Array, ""]
    spread: Float[Array, ""]


class Fitted(NamedTuple):
    """A trained ensemble.

    Attributes:
      params: leaves `[members, ...]`.
      standard: of the descriptors of the training tasks.
      scale: of their log-times.
      losses: `[members, epochs]` loss on the held-out rows.
    """

    params: Params
    standard: Standard
    scale: Scale
    losses: Float[Array, "members epochs"]


def meta_learned(
    *,
    hidden: Sequence[int] = (128, 128),
    loss: Loss = squared_error,
    optimizer: optax.GradientTransformation | None = None,
    epochs: int = 300,
    batch: int = 256,
    held: float | Float[Array, ""] = 0.1,
    patience: int = 20,
    members: int = 3,
    level_weight: float | Float[Array, ""] = 1.0,
    row_centred: bool = True,
) -> Selector:
    """A perceptron f of standardised descriptors with K outputs, and a head for the level.

        z_nk = log P_nk - mean_k log P_nk        minimise  sum loss(f(x_n), z_n / sd(z)) / terms
                                                 + level_weight mean (g(x_n) - level_n)^2
        score = sd(z) f(x)        log seconds = level + score

    z has lost the task's own scale, which is irrelevant to the choice; g, a further output of the same
    network, predicts it for the sake of costs, in units of its deviation. The mean over the members of
    the ensemble is what is predicted.

    Args:
      hidden: widths of the hidden layers, with relu; weights are Lecun-normal at first.
      loss: `squared_error`, `centred_squared_error` for a table with gaps, or one of the rankings
        `pairwise_logistic` and `softmax_of_best`, whose scores order methods but are no log-times.
      optimizer: an optax optimiser; None: AdamW of 1e-3 with a decay of 1e-4. Rates in it may be
        traced.
      epochs: most epochs, >= 1.
      batch: rows of a minibatch, >= 1.
      held: share of the training rows that decide when to stop, in [0, 1); 0: never. Traceable.
      patience: epochs without improvement on them after which training stops, >= 1.
      members: of the ensemble, >= 1, trained side by side.
      level_weight: weight of the head for the level, >= 0; traceable. 0: costs mean nothing.
      row_centred: False: log P_nk less the mean over all tasks takes the place of z, and the level is
        no part of the predicted time. For comparison.

    Returns:
      A `Selector` whose `fit` gives a `Fitted` and can be under `jax.vmap` over keys, tables, weights.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Du et al., Meta-Learning for Speeding Up Large Model Inference in Decentralized Environments,
      arXiv 2508.09194 and 2410.21340; targets, losses and network are ours.
    """
    widths("hidden", hidden)
    validation.function("loss", loss, "It gets predictions, targets and a mask.", takes=3)
    rule = optax.adamw(1e-3, weight_decay=1e-4) if optimizer is None else optimizer
    validation.instance("optimizer", rule, optax.GradientTransformation)
    for name, count in (("epochs", epochs), ("batch", batch), ("patience", patience)):
        validation.integer(name, count, low=1)
    validation.integer("members", members, low=1)
    validation.probability("held", held, high_open=True)
    validation.real("level_weight", level_weight, low=0.0, scalar=True)
    validation.flag("row_centred", row_centred)
    schedule = Schedule(epochs, batch, held, patience)

    def network(outputs: int) -> MLP:
        return MLP(tuple(hidden), outputs)

    def fit(key: Key[Array, ""], x: Any, table: Performance, weights: Any = None) -> Fitted:
        validation.typed_key("key", key)
        x, table, weights = lesson(x, table, weights)
        standard = standard_of(x, weights)
        inputs = standardised(x, standard)
        targets, scale = _targets(table, weights, row_centred)
        model = network(table.seconds.shape[1] + 1)

        def of_rows(params: Params, rows: Array, counted: Array) -> Array:
            out = model.apply({"params": params}, inputs[rows])
            assert isinstance(out, jax.Array)
            each = loss(out[:, :-1], targets.relative[rows], table.observed[rows])
            known = counted * table.observed[rows].any(-1)
            level = known @ (out[:, -1] - targets.level[rows]) ** 2
            return counted @ each.total / jnp.maximum(counted @ each.terms, 1.0) + (
                level_weight * level / jnp.maximum(known.sum(), 1.0)
            )

        def member(key: Key[Array, ""]) -> tuple[Params, Array]:
            init_key, train_key = jax.random.split(key)
            params = model.init(init_key, inputs[:1])["params"]
            return trained(of_rows, rule, params, weights, train_key, schedule)

        params, losses = jax.vmap(member)(jax.random.split(key, members))
        return Fitted(params, standard, scale, losses)

    def outputs(fitted: Fitted, x: Array) -> Array:
        inputs = standardised(jnp.asarray(x), fitted.standard)
        last = fitted.params[f"Dense_{len(hidden)}"]["bias"]
        model = network(last.shape[-1])
        told: Any = jax.vmap(lambda params: model.apply({"params": params}, inputs))(fitted.params)
        return jnp.mean(told, 0)

    def score(fitted: Fitted, x: Array) -> Array:
        return fitted.scale.relative * outputs(fitted, x)[:, :-1]

    def log_seconds(fitted: Fitted, x: Array) -> Array:
        out, scale = outputs(fitted, x), fitted.scale
        level = scale.level + scale.spread * out[:, -1:] * row_centred
        return level + scale.relative * out[:, :-1]

    return Selector(fit, score, log_seconds)


def _targets(
    table: Performance, weights: Float[Array, " n"], row_centred: bool
) -> tuple[Centred, Scale]:
    """What is learned, in units of its deviation over the training tasks, and those units."""
    relative, level = centred(table)
    rows = weights * table.observed.any(-1)
    mean = rows @ level / jnp.maximum(rows.sum(), 1.0)
    spread = _positive(rows @ (level - mean) ** 2 / jnp.maximum(rows.sum(), 1.0))
    if not row_centred:
        relative = jnp.where(table.observed, relative + (level - mean)[:, None], 0.0)
    counted = weights[:, None] * table.observed
    deviation = _positive((counted * relative**2).sum() / jnp.maximum(counted.sum(), 1.0))
    scaled = Centred(relative / deviation, (level - mean) / spread)
    return scaled, Scale(deviation, mean, spread)


def _positive(variance: Array) -> Array:
    """The deviation; 1 where there is none."""
    return jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 1.0)
