"""Samplers as scans over times: samples, whole trajectories, log-probabilities of their steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.generative.fields import Field, check_field
from dflax.generative.steps import Step
from dflax.models.diffusion.noised import Noised


class Trajectory(NamedTuple):
    """What a sampler went through.

    Attributes:
      states: `[N + 1, B, ...]`, from the start to the sample.
      log_probs: `[N, B]`, of each state given the one before it.
    """

    states: Float[Array, "steps B ..."]
    log_probs: Float[Array, "N B"]


def grid(steps: int, *, last: float = 0.0) -> Float[np.ndarray, " N"]:
    """The even grid from t = 1 down to `last`, `[steps + 1]`.

    Args:
      steps: N >= 1.
      last: in [0, 1).

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("steps", steps, low=1)
    validation.probability("last", last, high_open=True)
    return np.linspace(1.0, float(last), steps + 1, dtype=np.float32)


def sample(
    field: Field,
    step: Step,
    start: Float[AnyArray, "B ..."],
    times: Float[AnyArray, " N"],
    key: Key[Array, ""],
    condition: PyTree[Array] | None = None,
) -> Float[Array, "B ..."]:
    """Samples: `x <- step(x, times[i], times[i + 1])`, i = 0, ..., N - 1.

    Pure, differentiable and one scan; memory is that of one step.

    Args:
      field: see `dflax.generative.field`.
      step: `euler`, `heun` or `ddim`.
      start: x at the first time, `[B, ...]`; at t = 1 it is N(0, I).
      times: `[N + 1]` in [0, 1], falling.
      key: of steps that draw, and of fields that do.
      condition: leaves `[B, ...]`; None for nothing.

    Raises:
      TypeError, ValueError: naming the argument; times outside of [0, 1] or not falling.
    """
    given = _checked(field, step, start, times, condition)
    validation.typed_key("key", key)

    def one(x: Array, row: tuple[Array, Array, Array]) -> tuple[Array, None]:
        number, t, earlier = row
        law, draw_key = _law(field, step, x, t, earlier, jax.random.fold_in(key, number), condition)
        return law.draw(draw_key) if step.random else law.mean, None

    return jax.lax.scan(one, *given)[0]


def trajectory(
    field: Field,
    step: Step,
    start: Float[AnyArray, "B ..."],
    times: Float[AnyArray, " N"],
    key: Key[Array, ""],
    condition: PyTree[Array] | None = None,
) -> Trajectory:
    """As `sample`, with all states and the log-probabilities of the steps between them.

    The last state is what `sample` gives for the same key.

    Args:
      field: as for `sample`.
      step: one that draws: `ddim` with eta > 0.
      start: as for `sample`.
      times: as for `sample`; the last one above 0, or a step with `least` > 0.
      key: as for `sample`.
      condition: as for `sample`.

    Raises:
      TypeError, ValueError: naming the argument; a step without noise.
    """
    x, rows = _checked(field, step, start, times, condition)
    require_noise(step, times)
    validation.typed_key("key", key)

    def one(x: Array, row: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        number, t, earlier = row
        law, draw_key = _law(field, step, x, t, earlier, jax.random.fold_in(key, number), condition)
        after = law.draw(draw_key)
        return after, (after, law.log_prob(after))

    _, (states, log_probs) = jax.lax.scan(one, x, rows)
    return Trajectory(jnp.concatenate([x[None], states]), log_probs)


def log_probs(
    field: Field,
    step: Step,
    states: Float[AnyArray, "steps B ..."],
    times: Float[AnyArray, " N"],
    key: Key[Array, ""],
    condition: PyTree[Array] | None = None,
) -> Float[Array, "N B"]:
    """Log-probabilities of a trajectory's steps under another field, `[N, B]`, for ratios of policies.

    Args:
      field: as for `sample`, for example with other parameters than those that drew the states.
      step: the step that drew them.
      states: `[N + 1, B, ...]`.
      times: `[N + 1]`, those of the trajectory.
      key: of fields that draw; with the trajectory's own key they draw what they drew.
      condition: as for `sample`.

    Raises:
      TypeError, ValueError: naming the argument; a step without noise.
    """
    check_times(times)
    validation.array("states", states, kind="real")
    if np.ndim(states) < 2 or np.shape(states)[0] != len(times):
        raise ValueError(
            f"states must have the shape [{len(times)}, B, ...], one for each of times, got "
            f"{np.shape(states)}."
        )
    states = jnp.asarray(states)
    _, rows = _checked(field, step, states[0], times, condition)
    require_noise(step, times)
    validation.typed_key("key", key)

    def one(_: None, row: Any) -> tuple[None, Array]:
        (number, t, earlier), x, after = row
        step_key = jax.random.fold_in(key, number)
        law, _ = _law(field, step, x, t, earlier, step_key, condition)
        return None, law.log_prob(after)

    return jax.lax.scan(one, None, (rows, states[:-1], states[1:]))[1]


def _law(
    field: Field, step: Step, x: Array, t: Array, earlier: Array, key: Array, condition: Any
) -> Any:
    """Where a step leads, and the key to draw it with."""
    move_key, draw_key = jax.random.split(key)
    batch = x.shape[:1]
    noised = Noised(x, jnp.broadcast_to(t, batch), condition)
    return step.move(field, noised, jnp.broadcast_to(earlier, batch), move_key), draw_key


def _checked(field: Field, step: Step, start: Any, times: Any, condition: Any) -> Any:
    """The start and the rows of the scan: number, time and next time of each step."""
    check_field("field", field)
    validation.instance("step", step, Step, "For example dflax.generative.euler(rectified()).")
    validation.array("start", start, kind="real")
    if np.ndim(start) < 2:
        raise ValueError(f"start must have the shape [B, ...], got {np.shape(start)}.")
    check_times(times)
    if condition is not None:
        validation.arrays("condition", condition)
        validation.leading_axis("condition", condition, np.shape(start)[0])
    x = jnp.asarray(start)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    when = jnp.asarray(times, x.dtype)
    return x, (jnp.arange(len(when) - 1), when[:-1], when[1:])


def check_times(times: Any) -> None:
    """Refuse times that are not two or more in [0, 1], falling."""
    fix = "Make them with dflax.generative.grid(50)."
    validation.array("times", times, kind="real", shape=("N",), low=0.0, high=1.0, fix=fix)
    if len(times) < 2:
        raise ValueError(f"times must be at least two, the first and the last, got {len(times)}.")
    if not validation.is_traced(times) and not np.all(np.diff(np.asarray(times)) < 0):
        raise ValueError(
            f"times must fall from noise to data, got {validation.shown(times)}. {fix}"
        )


def require_noise(step: Step, times: Any) -> None:
    """Refuse a step without noise, or whose noise ends before the last time: it has no likelihood."""
    if not step.random:
        raise ValueError(
            "step must draw, so that its states have probabilities, got one without noise. Take "
            "dflax.generative.ddim(path, target, eta=1.0)."
        )
    if not step.floored and not validation.is_traced(times) and float(times[-1]) == 0.0:
        raise ValueError(
            f"times must end above 0 where the step's deviation has no floor, got a last time "
            f"{float(times[-1])}. Take ddim(..., least=0.01), or grid(steps, last=0.02)."
        )
