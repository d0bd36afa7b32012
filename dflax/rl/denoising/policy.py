"""A sampler of a diffusion model as a policy: states are noised samples, actions the next ones."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import AnyArray
from dflax.generative.fields import Field, field, guided
from dflax.generative.sampling import Trajectory, check_times, require_noise, trajectory
from dflax.generative.steps import Step
from dflax.models.apply import Model, as_apply
from dflax.models.diffusion.noised import Noised
from dflax.models.split.lora import apply_lora


class DenoisingPolicy(NamedTuple):
    """A sampler as a Markov decision process of T steps, whose reward comes with the last one.

    The state is (prompt, t, x_t), the action x_{t-1} ~ N(mu(x_t, t, prompt), sigma_t^2 I), and the first
    state x_T ~ N(0, I).

    Attributes:
      weights: `(params, frozen) -> weights` of the network: what is trained, put into what is not.
      field: `weights -> field`, with guidance where there is any, in sampling and in training alike.
      step: one that draws.
      times: `[T + 1]`, falling.
      shape: of one sample.
      mean: whether log-probabilities are means over the entries of a sample, else sums.
    """

    weights: Callable[[Params, Params | None], Params]
    field: Callable[[Params], Field]
    step: Step
    times: Float[AnyArray, " N"]
    shape: tuple[int, ...]
    mean: bool

    @property
    def steps(self) -> int:
        """T."""
        return len(self.times) - 1


def denoising_policy(
    model: Model,
    step: Step,
    times: Float[AnyArray, " N"],
    shape: Sequence[int],
    *,
    guidance: float | Float[Array, ""] | None = None,
    null: PyTree[Array] | int | None = None,
    scale: float | Float[Array, ""] = 1.0,
    logprob_reduction: str = "sum",
) -> DenoisingPolicy:
    """A policy that samples with a network, for `loop` and its kin.

    Args:
      model: see `dflax.models.as_apply`; its inputs are a `dflax.models.Noised`, whose condition is the
        prompt. It runs as in evaluation.
      step: one that draws: `dflax.generative.ddim` with eta > 0, and `least` > 0 where the last time is
        0.
      times: `[T + 1]` in [0, 1], falling, such as `dflax.generative.grid(50)`.
      shape: of one sample, each side >= 1.
      guidance: of classifier-free guidance; None for none; traceable.
      null: the condition of nobody, needed with guidance.
      scale: of a low-rank adapter's change, where one is trained; traceable.
      logprob_reduction: "sum" over the D entries of a sample, the density's own logarithm; or "mean", as
        DDPO takes. It decides about clip ranges: with the mean, ratios are nearer to 1 by a factor of D
        in their logarithm, and the clip range must be, too.

    Raises:
      TypeError, ValueError: naming the argument; a step without noise, or whose noise ends with the last
        step: there are no likelihoods.
    """
    as_apply(model)
    validation.instance("step", step, Step, "For example dflax.generative.ddim(path, eta=1.0).")
    check_times(times)
    require_noise(step, times)
    sides = tuple(
        validation.sequence("shape", shape, "sides of a sample", fix="For example (8, 8, 1).")
    )
    for side in sides:
        validation.integer("shape", side, low=1)
    if guidance is not None:
        validation.real("guidance", guidance, scalar=True)
    if null is not None:
        validation.arrays("null", null, some=True)
    if (guidance is None) != (null is None):
        raise ValueError(
            "guidance must be given together with null, the condition of nobody, got "
            f"guidance={validation.shown(guidance)} and null={validation.shown(null)}."
        )
    validation.real("scale", scale, scalar=True)
    validation.choice("logprob_reduction", logprob_reduction, ("sum", "mean"))

    def weights(params: Params, frozen: Params | None) -> Params:
        return params if frozen is None else apply_lora(frozen, params, scale=scale)

    def asked(own: Params) -> Field:
        plain = field(model, own)
        return plain if guidance is None else guided(plain, guidance, null)

    return DenoisingPolicy(weights, asked, step, times, sides, logprob_reduction == "mean")


def sampled(
    policy: DenoisingPolicy,
    weights: Params,
    condition: PyTree[Array],
    count: int,
    key: Key[Array, ""],
) -> Trajectory:
    """Trajectories of a batch: states `[T + 1, B, ...]`, log-probabilities `[T, B]` as the policy's."""
    start_key, run_key = jax.random.split(key)
    start = jax.random.normal(start_key, (count, *policy.shape))
    drawn = trajectory(policy.field(weights), policy.step, start, policy.times, run_key, condition)
    return drawn._replace(log_probs=_reduced(policy, drawn.log_probs))


def log_probs_at(
    policy: DenoisingPolicy,
    weights: Params,
    states: Float[Array, "steps B ..."],
    numbers: Int[Array, "c B"],
    condition: PyTree[Array],
) -> Float[Array, "c B"]:
    """Log-probabilities of chosen steps of each trajectory, under any weights.

    Args:
      policy: the sampler.
      weights: of the network.
      states: `[T + 1, B, ...]`.
      numbers: `[c, B]` in [0, T), which steps of each trajectory.
      condition: leaves `[B, ...]`.
    """
    chunk, count = numbers.shape
    rows = jnp.arange(count)
    times = jnp.asarray(policy.times, states.dtype)

    def flat(leaf: Array) -> Array:
        return leaf.reshape(chunk * count, *leaf.shape[2:])

    def repeated(leaf: Array) -> Array:
        return flat(jnp.broadcast_to(leaf, (chunk, *leaf.shape)))

    seen = Noised(
        flat(states[numbers, rows]), flat(times[numbers]), jax.tree.map(repeated, condition)
    )
    # Networks in evaluation draw nothing.
    law: Any = policy.step.move(
        policy.field(weights), seen, flat(times[numbers + 1]), jax.random.key(0)
    )
    found = law.log_prob(flat(states[numbers + 1, rows]))
    return _reduced(policy, found).reshape(chunk, count)


def _reduced(policy: DenoisingPolicy, log_probs: Array) -> Array:
    return log_probs / np.prod(policy.shape) if policy.mean else log_probs
