import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tasks import assert_trees_close, assert_trees_equal, half_square, quadratics

import dflax as dx
from dflax import local
from dflax.data.dataset import Dataset
from dflax.local import (
    Oracle,
    Subproblem,
    check_pull,
    gradient,
    solver,
)
from dflax.population import Assignment

KEY = jax.random.key(0)
TASK = quadratics(clients=4, dimension=3)


def assignment(steps: int, done: int | None = None, client: int = 0) -> Assignment:
    done = steps if done is None else done
    return Assignment(jnp.full((steps, 1), client, jnp.int32), jnp.int32(done), KEY)


def test_gradient_descent_on_a_quadratic_has_its_closed_form():
    start, center = np.array([1.0, -2.0, 3.0], np.float32), TASK.centers[0]
    solution = solver(half_square, optax.sgd(0.1))(
        Subproblem(), jnp.asarray(start), assignment(7), TASK.data
    )
    np.testing.assert_allclose(
        solution.params, center + 0.9**7 * (start - center), rtol=1e-5, atol=1e-6
    )
    assert solution.gradient is None
    losses = [0.5 * np.sum((0.9**k * (start - center)) ** 2) for k in range(7)]
    np.testing.assert_allclose(solution.metrics["loss"], np.mean(losses), rtol=1e-5)


def test_the_four_numbers_of_a_subproblem_move_its_minimiser():
    """alpha (x - c) + h + mu (x - a) = 0 at x = (alpha c - h + mu a) / (alpha + mu)."""
    scale, pull = 0.5, 2.0
    shift, anchor = jnp.array([0.3, -0.1, 0.2]), jnp.array([1.0, 1.0, -1.0])
    solution = solver(half_square, optax.sgd(0.3))(
        Subproblem(scale, shift, pull, anchor), jnp.zeros(3), assignment(200), TASK.data
    )
    expected = (scale * TASK.centers[0] - shift + pull * anchor) / (scale + pull)
    np.testing.assert_allclose(solution.params, expected, atol=1e-6)


def test_each_term_alone_equals_its_formula():
    params, seen = jnp.array([1.0, 2.0]), jnp.array([0.5, -0.5])
    h, a = jnp.array([3.0, 4.0]), jnp.array([-1.0, 1.0])
    np.testing.assert_array_equal(Subproblem().direction(seen, params), seen)
    np.testing.assert_array_equal(Subproblem(scale=3.0).direction(seen, params), 3 * seen)
    np.testing.assert_array_equal(Subproblem(shift=h).direction(seen, params), seen + h)
    np.testing.assert_array_equal(
        Subproblem(pull=2.0, anchor=a).direction(seen, params), seen + 2 * (params - a)
    )
    with pytest.raises(ValueError, match="pull and anchor must be given together"):
        Subproblem(pull=2.0).direction(seen, params)


def test_around_the_origin_a_problem_has_the_same_gradients():
    params, seen = jnp.array([1.0, 2.0]), jnp.array([0.5, -0.5])
    h, a = jnp.array([3.0, 4.0]), jnp.array([-1.0, 1.0])
    whole = Subproblem(3.0, h, 2.0, a)
    moved = whole.around_origin()
    assert moved.anchor == ()
    np.testing.assert_array_equal(
        moved.direction(seen, params), 3 * seen + h + 2 * (params - a), strict=True
    )
    assert moved.around_origin() is moved
    for other in (Subproblem(), Subproblem(shift=h), Subproblem(pull=2.0, anchor=a)):
        assert other.around_origin() is other
    half = Subproblem(3.0, h.astype(jnp.bfloat16), 2.0, a.astype(jnp.bfloat16))
    assert half.around_origin() is half


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1, momentum=0.9), optax.adam(0.05)])
def test_fewer_steps_equal_a_shorter_run_bit_for_bit(optimizer):
    solve = jax.jit(solver(half_square, optimizer))
    short = solve(Subproblem(), jnp.ones(3), assignment(9, done=4), TASK.data)
    full = solve(Subproblem(), jnp.ones(3), assignment(4), TASK.data)
    assert_trees_equal(short.params, full.params)
    assert_trees_equal(short.optimizer, full.optimizer)
    np.testing.assert_allclose(short.metrics["loss"], full.metrics["loss"], rtol=1e-6)


def test_a_client_that_does_nothing_keeps_everything():
    solution = solver(half_square, optax.adam(0.1), mean_gradient=True)(
        Subproblem(), jnp.ones(3), assignment(5, done=0), TASK.data
    )
    np.testing.assert_array_equal(solution.params, 1.0)
    np.testing.assert_array_equal(solution.gradient, 0.0)
    assert solution.metrics["loss"] == 0.0


def test_mean_gradient_is_the_mean_of_raw_gradients():
    """With plain SGD and a subproblem of f alone: x_0 - x_K = eta sum_k q_k."""
    for done in (5, 3):
        solution = solver(half_square, optax.sgd(0.1), mean_gradient=True)(
            Subproblem(), jnp.ones(3), assignment(5, done), TASK.data
        )
        np.testing.assert_allclose(
            solution.gradient, (1.0 - solution.params) / (0.1 * done), rtol=1e-5
        )


def test_optimizer_state_can_be_kept_from_round_to_round():
    solve = solver(half_square, optax.sgd(0.1, momentum=0.9))
    first = solve(Subproblem(), jnp.ones(3), assignment(3), TASK.data)
    second = solve(
        Subproblem(), first.params, assignment(2), TASK.data, optimizer_state=first.optimizer
    )
    whole = solve(Subproblem(), jnp.ones(3), assignment(5), TASK.data)
    assert_trees_close(second.params, whole.params, rtol=1e-6)


def test_the_learning_rate_may_follow_the_round():
    solve = jax.jit(solver(half_square, lambda t: optax.sgd(0.1 * 0.5**t)))
    later = solve(Subproblem(), jnp.ones(3), assignment(1), TASK.data, index=jnp.int32(2))
    expected = 1.0 - 0.025 * (1.0 - TASK.centers[0])
    np.testing.assert_allclose(later.params, expected, rtol=1e-6)


def test_hyper_parameters_can_be_swept():
    def final(rate, pull):
        problem = Subproblem(pull=pull, anchor=jnp.zeros(3))
        return solver(half_square, optax.sgd(rate))(
            problem, jnp.ones(3), assignment(3), TASK.data
        ).params

    rates, pulls = jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0])
    swept = jax.vmap(final)(rates, pulls)
    single = jnp.stack([final(r, p) for r, p in zip(rates, pulls, strict=True)])
    np.testing.assert_allclose(swept, single, rtol=1e-6)


def test_local_work_is_differentiable():
    """d x_K / d x_0 = (1 - eta)^K for a quadratic."""

    def end(start):
        return solver(half_square, optax.sgd(0.1))(
            Subproblem(), start, assignment(6, done=4), TASK.data
        ).params.sum()

    np.testing.assert_allclose(jax.grad(end)(jnp.ones(3)), 0.9**4, rtol=1e-5)


def test_an_oracle_is_taken_as_it_is_and_sees_fresh_keys():
    def noise(params, batch, key):
        return jax.random.normal(key, params.shape), {}

    oracle = Oracle(noise)
    assert gradient(oracle) is oracle
    draws = []
    for done in (1, 2):
        solution = solver(oracle, optax.sgd(1.0))(
            Subproblem(), jnp.zeros(3), assignment(2, done), TASK.data
        )
        draws.append(np.asarray(solution.params))
    assert np.abs(draws[1] - 2 * draws[0]).min() > 1e-3


def counting(params, batch, key, memory):
    """The gradient of half_square plus how often it was asked for."""
    (_, metrics), seen = jax.value_and_grad(half_square, has_aux=True)(params, batch, key)
    return seen + memory, metrics, memory + 1.0


def as_noted(seen, noted, params, memory):
    return seen, noted


@pytest.mark.parametrize("done", [5, 3, 0])
def test_an_oracle_may_remember(done):
    solution = solver(Oracle(counting, conclude=as_noted), optax.sgd(0.1), mean_gradient=True)(
        Subproblem(), jnp.ones(3), assignment(5, done), TASK.data, memory=jnp.float32(2.0)
    )
    x = np.ones(3)
    for k in range(done):
        x = x - 0.1 * (x - TASK.centers[0] + 2 + k)
    np.testing.assert_allclose(solution.params, x, rtol=1e-5)
    assert solution.memory == 2 + done


def test_plain_oracles_remember_nothing():
    solution = solver(half_square, optax.sgd(0.1))(
        Subproblem(), jnp.ones(3), assignment(2), TASK.data
    )
    assert solution.memory == ()
    with pytest.raises(TypeError, match="loss must be a loss or an Oracle without memory"):
        gradient(Oracle(counting, conclude=as_noted))


@pytest.mark.parametrize(
    ("optimizer", "largest"),
    [
        (optax.sgd(0.5), 2.0),
        (optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.5)), 1.5),
        (lambda t: optax.sgd(0.5 * 0.9**t), 2.0),
    ],
)
def test_a_pull_that_a_step_overshoots_is_refused(optimizer, largest):
    check_pull("pull", 0.99 * largest, optimizer)
    with pytest.raises(ValueError, match=r"local rate times \(pull \+ weight decay\) is below 1"):
        check_pull("pull", 1.01 * largest, optimizer)
    with pytest.raises(ValueError, match="pull must be a finite number in"):
        check_pull("pull", 0.0, optimizer)
    check_pull("pull", 100.0, optax.adam(0.5))
    jax.vmap(lambda pull, rate: check_pull("pull", pull, optax.sgd(rate)))(jnp.ones(2), jnp.ones(2))
    jax.vmap(lambda rate: check_pull("pull", 5.0, optax.sgd(rate)))(jnp.ones(2))


@pytest.mark.parametrize("done", [600, 400])
def test_means_over_many_steps_are_added_up_in_float32(done):
    """Ones in bfloat16 stop adding up at 256."""

    def ones(params, batch, key):
        measured = {
            "one": jnp.ones((), jnp.bfloat16),
            "count": jnp.int32(3),
            "right": k_is_even(key),
        }
        return jnp.ones_like(params), measured

    def k_is_even(key):
        return jax.random.bits(key) % 2 == 0

    solution = jax.jit(solver(Oracle(ones), optax.sgd(0.0), mean_gradient=True))(
        Subproblem(), jnp.zeros(2, jnp.bfloat16), assignment(600, done), TASK.data
    )
    assert solution.gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(solution.gradient.astype(np.float32), 1)
    assert {leaf.dtype for leaf in solution.metrics.values()} == {jnp.dtype("float32")}
    assert solution.metrics["one"] == 1
    assert solution.metrics["count"] == 3
    assert 0.4 < solution.metrics["right"] < 0.6


def test_in_float64_the_solver_is_exact_to_float64():
    generator = np.random.default_rng(0)
    center, start = generator.normal(size=(2, 3))
    shift, anchor = generator.normal(size=(2, 3))
    scale, pull, rate = 0.7, 0.3, 0.11
    x, seen, losses = start, [], []
    for _ in range(3):
        seen.append(x - center)
        losses.append(0.5 * np.sum((x - center) ** 2))
        x = x - rate * (scale * (x - center) + shift + pull * (x - anchor))
    with jax.enable_x64(True):
        data = Dataset(jnp.asarray(center[None]), jnp.zeros(1, jnp.int32))
        problem = Subproblem(scale, jnp.asarray(shift), pull, jnp.asarray(anchor))
        work = Assignment(jnp.zeros((5, 1), jnp.int32), jnp.int32(3), KEY)
        solution = jax.jit(solver(half_square, optax.sgd(rate), mean_gradient=True))(
            problem, jnp.asarray(start), work, data
        )
    assert solution.gradient.dtype == solution.metrics["loss"].dtype == np.float64
    for found, exact in (
        (solution.params, x),
        (solution.gradient, np.mean(seen, 0)),
        (solution.metrics["loss"], np.mean(losses)),
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-14)


def test_optimisers_that_ask_for_values_get_those_of_the_subproblem():
    """Polyak's step (F(x) - F*) / |grad F|^2 and L-BFGS, on scale f + <h, x> + (mu / 2) |x - a|^2."""
    scale, pull = 0.5, 2.0
    shift, anchor = np.array([0.3, -0.1, 0.2]), np.array([1.0, 1.0, -1.0])
    center = TASK.centers[0].astype(np.float64)
    best = (scale * center - shift + pull * anchor) / (scale + pull)

    def value(x):
        f = 0.5 * np.sum((x - center) ** 2)
        return scale * f + shift @ x + 0.5 * pull * np.sum((x - anchor) ** 2)

    problem = Subproblem(
        scale, jnp.asarray(shift, jnp.float32), pull, jnp.asarray(anchor, jnp.float32)
    )
    polyak = optax.polyak_sgd(max_learning_rate=10.0, f_min=float(value(best)))
    out = jax.jit(solver(half_square, polyak))(
        problem, jnp.zeros(3), assignment(4, done=3), TASK.data
    )
    x = np.zeros(3)
    for _ in range(3):
        slope = (scale + pull) * (x - best)
        x = x - (value(x) - value(best)) / (slope @ slope) * slope
    np.testing.assert_allclose(out.params, x, rtol=1e-4)
    np.testing.assert_allclose(out.params - best, -best / 8, rtol=1e-3)
    out = jax.jit(solver(half_square, optax.lbfgs()))(
        problem, jnp.zeros(3), assignment(3), TASK.data
    )
    np.testing.assert_allclose(out.params, best, atol=1e-4)


@pytest.mark.parametrize("optimizer", [optax.polyak_sgd(), optax.lbfgs()])
def test_where_no_values_are_known_such_optimisers_are_refused(optimizer):
    solve = solver(local.sam(half_square, 0.1), optimizer)
    with pytest.raises(TypeError, match=r"optimizer must be one of gradients alone.*'value'"):
        solve(Subproblem(), jnp.ones(3), assignment(1), TASK.data)
    with pytest.raises(TypeError, match="server_optimizer must be an optimiser of gradients alone"):
        dx.server.fedavg(half_square, optax.sgd(0.1), optimizer)
    with pytest.raises(TypeError, match="optimizer must be an optimiser of gradients alone"):
        dx.server.fednova(half_square, optimizer)
    check_pull("pull", 100.0, optimizer)


def test_an_optimiser_that_asks_for_something_else_is_refused():
    def update(updates, state, params=None, *, curvature, **others):
        return updates, state

    strange = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"no more than value, grad and value_fn.*'curvature'"):
        solver(half_square, strange)(Subproblem(), jnp.ones(3), assignment(1), TASK.data)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, b, k: p.sum(), r"loss must return \(loss, metrics\), got one array.*: \{\}"),
        (lambda p, b, k: (p.sum(), {}, 1), r"loss must return \(loss, metrics\), got a tuple of 3"),
        (lambda p, b, k: (p, {}), r"loss must return .* one real number.*float32 of shape \(3,\)"),
        (lambda p, b, k: (1, {}), "loss must return .* one real number.*got int32"),
        (lambda p, b, k: (p.sum(), None), "loss must return a dict of arrays.*got NoneType"),
        (lambda p, b, k: (p.sum(), p), "loss must return a dict of arrays"),
        (lambda p, b, k: (p.sum(), {"a": "b"}), r"numbers for its metrics, got metrics\['a'\]"),
        (lambda p, b, k: (p.sum(), {"k": k}), r"numbers for its metrics, got metrics\['k'\]"),
        (Oracle(lambda p, b, k: p), r"an oracle must return \(gradient, metrics\), got one array"),
        (Oracle(lambda p, b, k: (p, None)), "an oracle must return a dict of arrays"),
        (Oracle(lambda p, b, k: ({"a": p}, {})), "gradient of an oracle must have the structure"),
        (Oracle(lambda p, b, k: (p[:1], {})), r"gradient of an oracle must have shape \(3,\)"),
    ],
)
def test_what_a_loss_or_an_oracle_returns_is_checked_by_name(loss, message):
    solve = solver(loss, optax.sgd(0.1))
    with pytest.raises((TypeError, ValueError), match=message):
        solve(Subproblem(), jnp.ones(3), assignment(1), TASK.data)


def test_a_loss_may_measure_nothing_or_pythons_numbers():
    for metrics in ({}, {"two": 2.0, "one": 1, "yes": True}):
        solution = solver(
            lambda p, b, k, metrics=metrics: (half_square(p, b, k)[0], metrics), optax.sgd(0.1)
        )(Subproblem(), jnp.ones(3), assignment(2), TASK.data)
        assert solution.metrics == metrics


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="loss must be a function"):
        solver(3.0, optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"linen module Dense.*losses.classification\(model\)"):
        gradient(nn.Dense(2))
    with pytest.raises(TypeError, match=r"optimizer must be an optax optimiser.*got 0.1"):
        solver(half_square, 0.1)
    with pytest.raises(TypeError, match="optimizer must be an optax optimiser"):
        solver(half_square, lambda t: 0.1)
