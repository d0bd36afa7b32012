"""Expectation truncation: EM whose posteriors are over few states of an example's best latents."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.data.dataset import Batch
from dflax.server.statistics import Cut, expectation_maximisation
from dflax.sparse_coding.annealing import Annealing
from dflax.sparse_coding.states import Truncation, mass_within

Coding = Any


class Joints(NamedTuple):
    """Log-joints of the kept states with each of B examples, up to a constant of the model.

    Attributes:
      none: `[B]`, no latent.
      alone: `[B, V, H]`, each latent alone, with each value.
      together: `[B, S]`, the patterns of the example's candidates.
    """

    none: Float[Array, " B"]
    alone: Float[Array, "B V H"]
    together: Float[Array, "B S"]


class Model(NamedTuple):
    """A sparse coding model as expectation truncation sees it.

    Attributes:
      truncation: the kept states.
      candidates: `(coding, y [B, D]) -> [B, H']` int32, each example's best latents.
      joints: `(coding, y, candidates, temperature) -> Joints`.
      statistics: `(coding, y, candidates, posterior: Joints, temperature) -> tree` of sums over B,
        the posteriors weighted by the mask.
      nothing: `coding -> tree`, these of no example.
      maximise: `(coding, sums, examples []) -> coding`.
      active: `coding -> []`, the prior's probability that a latent is not 0.
      normaliser: `coding -> []`, the constant that is missing in the log-joints.
    """

    truncation: Truncation
    candidates: Callable[[Coding, Array], Int[Array, "B C"]]
    joints: Callable[[Coding, Array, Array, Array], Joints]
    statistics: Callable[[Coding, Array, Array, Joints, Array], PyTree[Array]]
    nothing: Callable[[Coding], PyTree[Array]]
    maximise: Callable[[Coding, PyTree[Array], Array], Coding]
    active: Callable[[Coding], Float[Array, ""]]
    normaliser: Callable[[Coding], Float[Array, ""]]


def evidence(joints: Joints) -> Float[Array, " B"]:
    """The log of the sum over the kept states."""
    flat = jnp.concatenate(
        [joints.none[:, None], joints.alone.reshape(len(joints.none), -1), joints.together], axis=1
    )
    return jax.nn.logsumexp(flat, axis=1)


def posterior(joints: Joints, total: Float[Array, " B"], weight: Float[Array, " B"]) -> Joints:
    """Probabilities of the kept states, times each example's weight."""

    def share(leaf: Array) -> Array:
        shape = (-1,) + (1,) * (leaf.ndim - 1)
        return jnp.exp(leaf - total.reshape(shape)) * weight.reshape(shape)

    return jax.tree.map(share, joints)


def expectation_truncation(
    model: Model, annealing: Annealing, *, batch_size: int = 250, **options: Any
) -> Algorithm:
    """Truncated EM of a sparse coding model over clients, an EM step a round.

        C_n  = the H' best latents of example n
        q_n  = softmax of F_n(s) over no latent, each alone, and up to gamma of C_n,   at temperature T
        keep the N (1 - (1 - A) cut) examples of the largest log sum_s exp F_n(s)
        M step from sums over those: the model's

    A is the prior's mass of at most gamma causes: examples of more causes than the states know would
    draw the model away. Clients send sums of statistics and, where examples are cut away, one score for
    each example, so who owns what makes no difference.

    Args:
      model: `bsc`, `tsc`, `dsc`, `mca`, `mmca` or `gsc`.
      annealing: temperatures and cuts.
      batch_size: examples at once; memory grows with it times the number of patterns.
      **options: `aggregator`, `channel`, `at_once` of `dflax.server.expectation_maximisation`.

    Returns:
      An `Algorithm`; `init(key, coding)`, `coding` from the model's own start. The inputs of the
      federation's data are `[N, D]`. Metrics: `bound`, the mean over kept examples of the log-evidence
      within the kept states, before the step; `kept`, how many; `temperature`; `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Luecke and Eggert, Expectation Truncation and the Benefits of Preselection, JMLR 11, 2010;
      Exarchakis et al., ProSper, arXiv 1908.06843.
    """
    validation.instance("model", model, Model, "For example dflax.sparse_coding.bsc(10, 8, 5).")
    fix = "Make one with dflax.sparse_coding.annealing(steps, temperature)."
    validation.instance("annealing", annealing, Annealing, fix)

    def scored(coding: Coding, batch: Batch, number: Array) -> tuple[Array, Joints, Array, Array]:
        temperature, _ = annealing.at(number)
        y = batch.inputs
        candidates = model.candidates(coding, y)
        joints = model.joints(coding, y, candidates, temperature)
        return candidates, joints, evidence(joints), temperature

    def score(coding: Coding, batch: Batch, number: Array) -> Float[Array, " B"]:
        return scored(coding, batch, number)[2]

    def threshold(
        scores: Float[Array, " P"], there: Bool[Array, " P"], coding: Coding, number: Array
    ) -> Float[Array, ""]:
        _, cut = annealing.at(number)
        within, _ = mass_within(model.truncation, model.active(coding))
        examples = there.sum()
        kept = jnp.floor(examples * (1 - (1 - within) * cut) + 1e-4).astype(jnp.int32)
        ordered = jnp.sort(jnp.where(there, scores, -jnp.inf))
        return ordered[jnp.maximum(scores.shape[0] - jnp.maximum(kept, 1), 0)]

    def nothing(coding: Coding) -> PyTree[Array]:
        zero = jnp.zeros((), jnp.result_type(float))
        return {"model": model.nothing(coding), "kept": zero, "evidence": zero}

    def expect(coding: Coding, batch: Batch, least: Array, number: Array) -> PyTree[Array]:
        candidates, joints, total, temperature = scored(coding, batch, number)
        mask = 1.0 if batch.mask is None else batch.mask
        weight = jnp.where(total >= least, mask, 0).astype(total.dtype)
        found = posterior(joints, total, weight)
        return {
            "model": model.statistics(coding, batch.inputs, candidates, found, temperature),
            "kept": weight.sum(),
            "evidence": jnp.sum(jnp.where(weight > 0, total, 0) * weight),
        }

    def maximise(coding: Coding, sums: PyTree[Array], number: Array) -> tuple[Coding, Metrics]:
        temperature, _ = annealing.at(number)
        within, _ = mass_within(model.truncation, model.active(coding))
        kept = sums["kept"]
        bound = sums["evidence"] / kept + model.normaliser(coding) - jnp.log(within)
        after = model.maximise(coding, sums["model"], kept)
        after = jax.tree.map(lambda new, old: new.astype(old.dtype), after, coding)
        return after, {"bound": bound, "kept": kept, "temperature": temperature}

    return expectation_maximisation(
        nothing,
        expect,
        maximise,
        cut=None if annealing.cut is None else Cut(score, threshold),
        batch_size=batch_size,
        **options,
    )
