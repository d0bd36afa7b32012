"""Returns, advantages and the clipped objective against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dflax as dx

rl = dx.rl
RNG = np.random.default_rng(0)
T, E = 7, 3
REWARDS, VALUES = RNG.normal(size=(2, T, E))
ENDS = RNG.random((T, E)) < 0.3
BEYOND = RNG.normal(size=E)


def returns_by_loop(rewards, ends, discount, beyond):
    out, later = np.zeros_like(rewards), beyond
    for t in reversed(range(len(rewards))):
        later = rewards[t] + discount * (1 - ends[t]) * later
        out[t] = later
    return out


def gae_by_sums(rewards, values, ends, beyond, discount, decay):
    """The definition: discounted sums of temporal differences up to the end of the episode."""
    following = np.concatenate([values[1:], beyond[None]])
    delta = rewards + discount * following * (1 - ends) - values
    out = np.zeros_like(rewards)
    for e in range(E):
        for t in range(T):
            for k in range(t, T):
                out[t, e] += (discount * decay) ** (k - t) * delta[k, e]
                if ends[k, e]:
                    break
    return out


def test_discounted_returns():
    found = rl.discounted_returns(REWARDS, ENDS, 0.9, beyond=BEYOND)
    np.testing.assert_allclose(found, returns_by_loop(REWARDS, ENDS, 0.9, BEYOND), atol=1e-5)


def test_generalised_advantages():
    found = rl.gae(REWARDS, VALUES, ENDS, BEYOND, 0.9, 0.8)
    wanted = gae_by_sums(REWARDS, VALUES, ENDS, BEYOND, 0.9, 0.8)
    np.testing.assert_allclose(found.advantages, wanted, atol=1e-5)
    np.testing.assert_allclose(found.returns, wanted + VALUES, atol=1e-5)


def test_with_a_decay_of_one_advantages_are_returns_minus_values():
    found = rl.gae(REWARDS, VALUES, ENDS, BEYOND, 0.9, 1.0)
    wanted = returns_by_loop(REWARDS, ENDS, 0.9, BEYOND)
    np.testing.assert_allclose(found.returns, wanted, atol=1e-5)


def test_two_steps_by_hand():
    found = rl.gae(np.ones(2), np.zeros(2), np.array([False, True]), 5.0, 0.95, 0.95)
    np.testing.assert_allclose(found.advantages, [1.9025, 1.0], rtol=1e-6)


def test_leave_one_out():
    np.testing.assert_allclose(rl.leave_one_out(np.array([1.0, 2.0, 6.0])), [-3.0, -1.5, 4.5])
    rewards = RNG.normal(size=(4, 5))
    others = (rewards.sum(-1, keepdims=True) - rewards) / 4
    np.testing.assert_allclose(rl.leave_one_out(rewards), rewards - others, atol=1e-6)


def test_leaving_one_out_of_one_is_refused():
    with pytest.raises(ValueError, match="group of one leaves no baseline"):
        rl.leave_one_out(np.ones((4, 1)))


def test_standardised_counts_only_what_counts():
    weights = np.array([1.0, 1.0, 0.0, 1.0])
    found = np.asarray(rl.standardised(np.array([1.0, 2.0, 100.0, 3.0]), weights))
    np.testing.assert_allclose(found[[0, 1, 3]], np.array([-1.0, 0.0, 1.0]) * 1.5**0.5, rtol=1e-5)


@pytest.mark.parametrize(("advantage", "objective", "slope"), [(1.0, 1.2, 0.0), (-1.0, -1.3, -1.3)])
def test_a_clipped_ratio(advantage, objective, slope):
    """rho = 1.3 and eps = 0.2: a gain is cut and has no gradient, a loss is kept whole."""

    def value(log_ratio):
        return rl.clipped(log_ratio[None], np.array([advantage]), 0.2).objective[0]

    found = jax.value_and_grad(value)(jnp.log(jnp.float32(1.3)))
    np.testing.assert_allclose(found, (objective, slope), rtol=1e-6)


def test_what_is_measured_of_ratios():
    log_ratio = RNG.normal(size=50) * 0.3
    ratio = np.exp(log_ratio)
    found = rl.clipped(log_ratio, np.ones(50), 0.2).metrics
    np.testing.assert_allclose(found["clip_fraction"], np.mean(abs(ratio - 1) > 0.2), rtol=1e-5)
    np.testing.assert_allclose(found["approximate_kl"], np.mean(ratio - 1 - log_ratio), rtol=1e-4)


def test_without_pessimism_only_the_clipped_ratio_counts():
    found = rl.clipped(np.log([0.5, 1.5]), np.array([1.0, -1.0]), 0.2, pessimistic=False)
    np.testing.assert_allclose(found.objective, [0.8, -1.2], rtol=1e-6)


def test_distributions():
    logits = RNG.normal(size=(3, 4))
    policy = rl.Categorical(jnp.asarray(logits))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    action = jnp.array([0, 3, 1])
    np.testing.assert_allclose(policy.log_prob(action), np.log(p[np.arange(3), action]), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), -(p * np.log(p)).sum(-1), rtol=1e-5)
    joint = rl.Joint(policy)
    np.testing.assert_allclose(joint.log_prob(action), policy.log_prob(action).sum(), rtol=1e-6)
    mean, deviation = RNG.normal(size=(3, 2)), np.array([0.5, 2.0])
    normal = rl.Gaussian(jnp.asarray(mean), jnp.log(jnp.asarray(deviation)))
    x = RNG.normal(size=(3, 2))
    density = -0.5 * ((x - mean) / deviation) ** 2 - np.log(deviation) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(normal.log_prob(jnp.asarray(x)), density.sum(-1), rtol=1e-4)
    wanted = np.log(deviation).sum() + np.log(2 * np.pi * np.e)
    np.testing.assert_allclose(normal.entropy(), np.full(3, wanted), rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_against_rlax(decay):
    rlax = pytest.importorskip("rlax")
    discounts = 0.9 * (1.0 - ENDS)
    values = np.concatenate([VALUES, BEYOND[None]])
    theirs = jax.vmap(
        lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, decay, v), 1, 1
    )(jnp.asarray(REWARDS), jnp.asarray(discounts), jnp.asarray(values))
    ours = rl.gae(REWARDS, VALUES, ENDS, BEYOND, 0.9, decay).advantages
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    ratio, advantage = np.exp(RNG.normal(size=20)), RNG.normal(size=20)
    loss = rlax.clipped_surrogate_pg_loss(jnp.asarray(ratio), jnp.asarray(advantage), 0.2)
    mine = -np.mean(rl.clipped(np.log(ratio), advantage, 0.2).objective)
    np.testing.assert_allclose(mine, loss, atol=1e-6)
