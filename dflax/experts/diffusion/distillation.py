"""Many experts into one model: a student that learns from each expert on that expert's own data."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.clients import map_cohort, weighted_mean
from dflax.data.dataset import Dataset
from dflax.generative.averaged import average_of, averaging
from dflax.generative.denoising import noising, squared_errors
from dflax.generative.path import Path, check_path
from dflax.generative.times import Times, uniform
from dflax.local.solver import check_optimizer
from dflax.models.adapters.adapter import Apply
from dflax.models.apply import Model, as_apply
from dflax.population import Assignment, Round


class Student(NamedTuple):
    """What the server keeps.

    Attributes:
      params: the student's model.
      optimizer: its optimiser's state, with the average of its models.
    """

    params: Params
    optimizer: PyTree[Array]

    @property
    def average(self) -> Params:
        """The averaged model, from which samples are made."""
        return average_of(self.optimizer)


def distillation(
    student: Model,
    teacher: Model,
    path: Path,
    optimizer: optax.GradientTransformation,
    experts: int,
    *,
    decay: float | Float[Array, ""] = 0.9999,
    times: Times | None = None,
    conditional: bool = False,
    at_once: int | None = None,
) -> Algorithm:
    """One dense model out of K experts, of which each teaches on examples of its own cluster.

        loss_k = mean over x_0 in S_k of |v(x_t, t; psi) - v_k(x_t, t)|^2
        psi    = optimiser(psi, sum_k w_k grad loss_k / sum_k w_k),   w_k the federation's weights

    With weights as the clusters' sizes the minimiser is E[v_c | x_t] = sum_k P(c = k | x_t) v_k: the
    whole ensemble with the ideal router, though no router is asked. Experts stay where they are; a round
    exchanges one gradient of the student.

    Args:
      student: see `dflax.models.as_apply`; its inputs are a `dflax.models.Noised`.
      teacher: of all experts, alike; it predicts the same target.
      path: that of the experts.
      optimizer: the student's.
      experts: K, the clients of the federation.
      decay: of the student's average, in [0, 1); traceable.
      times: law of t; default uniform on [0, 1].
      conditional: whether labels are the condition of student and teachers.
      at_once: experts that a device computes at the same time.

    Returns:
      An `Algorithm`; `init(key, params, teachers)` with `teachers` `[K, ...]`, the experts' averages. A
      round takes one step on all minibatches that it draws. Metrics: "loss".

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      McAllister et al., Decentralized Diffusion Models, arXiv 2501.05450.
    """
    learns, teaches = _as_apply("student", student), _as_apply("teacher", teacher)
    check_path(path)
    check_optimizer("optimizer", optimizer)
    validation.integer("experts", experts, low=1)
    validation.flag("conditional", conditional)
    validation.at_once(at_once)
    times = uniform() if times is None else times
    validation.function("times", times, "It gets a key and a number.", takes=2)
    remembering = averaging(optimizer, decay)

    def init(key: Key[Array, ""], params: Params, teachers: Params) -> FederatedState:
        validation.model("params", params)
        validation.model("teachers", teachers)
        validation.leading_axis("teachers", teachers, experts)
        return FederatedState(jnp.int32(0), Student(params, remembering.init(params)), teachers)

    def work(
        own: Params, assignment: Assignment, params: Params, data: Dataset
    ) -> tuple[Params, Float[Array, ""]]:
        fetch_key, noise_key, model_key = jax.random.split(assignment.key, 3)
        batch = data.fetch(assignment.minibatches.reshape(-1), fetch_key)
        condition = batch.labels if conditional else None
        seen, _ = noising(noise_key, path, times, batch.inputs, condition)
        wanted = jax.lax.stop_gradient(teaches(own, seen))

        def loss(params: Params) -> Float[Array, ""]:
            prediction, carry = learns.forward(params, seen, model_key)
            return jnp.mean(squared_errors(prediction, wanted)) + carry

        value, slope = jax.value_and_grad(loss)(params)
        return slope, value

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        if round.clients != experts:
            raise ValueError(
                f"experts must be the federation's number of clients, {int(round.clients)}, got "
                f"{experts}."
            )
        slopes, values = map_cohort(
            work,
            state.clients,
            round.cohort,
            round.assignments,
            shared=(state.server.params, round.data),
            at_once=at_once,
        )
        slope, value = weighted_mean((slopes, values), round.weights)
        student = state.server
        updates, optimizer_state = remembering.update(slope, student.optimizer, student.params)
        moved = Student(optax.apply_updates(student.params, updates), optimizer_state)
        return FederatedState(state.round + 1, moved, state.clients), {"loss": value}

    return Algorithm(init, step)


def _as_apply(name: str, model: Model) -> Apply:
    """`as_apply`, whose refusal names this argument."""
    try:
        return as_apply(model)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error
