"""FPO and DPPO beside the authors' own code, run once on these batches in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dflax import generative, rl
from dflax.rl import flow

# What github.com/akanazawa/fpo (418c255) says of `fpo_batch`, for both of its output modes.
FPO = {
    True: {
        "old": 0.59675039,
        "new": 0.59278675,
        "first": [0.3242755, 0.00835675, 0.01033835],
        "loss": 0.001034660503460072,
        "ratio": 1.0041104752053758,
        "most": 1.053721858330668,
        "clipped": 1 / 12,
        "slope": 0.05706653713937921,
    },
    False: {
        "old": 2.35210166,
        "new": 2.34430581,
        "first": [2.02672187, 0.83567454, 0.25845874],
        "loss": 0.009494126546976445,
        "ratio": 1.0093050143125362,
        "most": 1.1010482324797572,
        "clipped": 3 / 12,
        "slope": 0.2694554085833766,
    },
}
FPO_VALUE_LOSS = 0.3273920748865985
# What github.com/irom-princeton/dppo (cc7234a) says of `dppo_batch`, a flow's Euler steps in its place.
DPPO = {
    "old": 0.8500210888570402,
    "new": 0.8567843304110562,
    "loss": 0.021100511775288468,
    "clipped": 0.96,
    "kl": 0.0012778269943465447,
    "ratio": 1.0080410685483623,
    "slope": [[0.07681661, 0.47514395], [-0.187974, -0.28714853]],
    "value_loss": 0.32267643056851514,
}


def fpo_batch():
    """Twelve actions with eight noises each, and a linear network of states, points and times."""
    rng = np.random.RandomState(20)

    def normal(*shape):
        return rng.normal(size=shape)

    return {
        "seen": normal(12, 3),
        "action": normal(12, 2),
        "noise": normal(12, 8, 2),
        "time": (1 + rng.randint(0, 10, size=(12, 8))) / 10.0,
        "old": 0.4 * normal(13, 2),
        "bias": 0.1 * normal(2),
        "moved": 0.06 * normal(13, 2),
        "value": 0.3 * normal(3, 1),
        "reward": normal(12),
        "beyond": normal(12, 3),
    }


def dppo_batch():
    """Ten actions in five steps, and a linear velocity."""
    rng = np.random.RandomState(21)

    def normal(*shape):
        return rng.normal(size=shape)

    return {
        "seen": normal(10, 3),
        "start": normal(10, 2),
        "noise": normal(10, 5, 2),
        "advantage": normal(10),
        "returns": normal(10),
        "field": 0.4 * normal(2, 2),
        "of_seen": 0.3 * normal(2, 3),
        "bias": 0.1 * normal(2),
        "moved": 0.02 * normal(2, 2),
        "value": 0.3 * normal(3),
    }


@pytest.mark.slow
@pytest.mark.parametrize("as_noise", [True, False])
def test_fpo_has_the_authors_ratios_losses_and_gradients(as_noise):
    published = FPO[as_noise]
    with jax.enable_x64(True):
        b = {name: jnp.asarray(value) for name, value in fpo_batch().items()}

        def velocity(params, noised):
            angles = noised.time[:, None] * 2.0 ** jnp.arange(4)
            inputs = (noised.condition, noised.x, jnp.cos(angles), jnp.sin(angles))
            return 0.25 * (jnp.concatenate(inputs, axis=1) @ params + b["bias"])

        policy = flow.FlowPolicy(
            velocity, lambda p, s: s @ b["value"][:, 0], lambda p: jnp.zeros(2), 2
        )
        value = policy.value(None, b["seen"])
        advantage = b["reward"] + 0.995 * policy.value(None, b["beyond"]) - value
        given = (b["seen"], b["action"], b["noise"], b["time"])
        old = flow.matching_losses(policy, b["old"], *given, as_noise=as_noise)

        def loss(params):
            new = flow.matching_losses(policy, params, *given, as_noise=as_noise)
            log_ratio = old.mean(1) - new.mean(1)
            moved = rl.clipped(log_ratio, rl.standardised(advantage), 0.05)
            return -jnp.mean(moved.objective), (new, jnp.exp(log_ratio), moved.metrics)

        (policy_loss, (new, ratio, measured)), slope = jax.value_and_grad(loss, has_aux=True)(
            b["old"] + b["moved"]
        )
        np.testing.assert_allclose(old[0, :3], published["first"], rtol=1e-5)
        np.testing.assert_allclose(old.mean(), published["old"], rtol=1e-7)
        np.testing.assert_allclose(new.mean(), published["new"], rtol=1e-7)
        np.testing.assert_allclose(policy_loss, published["loss"], rtol=1e-9)
        np.testing.assert_allclose(measured["ratio"], published["ratio"], rtol=1e-12)
        np.testing.assert_allclose(ratio.max(), published["most"], rtol=1e-12)
        # Theirs came in float32.
        np.testing.assert_allclose(measured["clip_fraction"], published["clipped"], rtol=1e-6)
        np.testing.assert_allclose(jnp.linalg.norm(slope), published["slope"], rtol=1e-9)
        # Their weight of the value's error, 0.25, is half of 0.5.
        np.testing.assert_allclose(0.5 * 0.5 * jnp.mean(advantage**2), FPO_VALUE_LOSS, rtol=1e-7)


@pytest.mark.slow
def test_dppo_has_the_authors_log_probabilities_losses_and_gradients():
    with jax.enable_x64(True):
        b = {name: jnp.asarray(value) for name, value in dppo_batch().items()}

        def velocity(params, noised):
            return noised.x @ params.T + noised.condition @ b["of_seen"].T + b["bias"]

        policy = flow.FlowPolicy(velocity, lambda p, s: s @ b["value"], lambda p: jnp.zeros(2), 2)
        states = [b["start"]]
        for k in range(5):
            time = jnp.full(10, 1 - k / 5)
            u = velocity(b["field"], generative.Noised(states[-1], time, b["seen"]))
            states.append(states[-1] - u / 5 + 0.1 * b["noise"][:, k])
        chain = jnp.stack(states, axis=1)
        old = flow.chain_log_probs(policy, b["field"], b["seen"], chain, 0.1)
        # Torch's deviation is that of a sample of 50.
        away = b["advantage"] - b["advantage"].mean()
        advantage = away / (jnp.sqrt(5 * jnp.sum(away**2) / 49) + 1e-8)
        discounts = 0.99 ** jnp.arange(4, -1, -1)

        def loss(params):
            new = flow.chain_log_probs(policy, params, b["seen"], chain, 0.1)
            each = advantage[:, None] * discounts
            moved = rl.clipped(new - old, each, flow.clip_ranges(5, 0.01, 0.001, 3.0))
            return -jnp.mean(moved.objective), (new, moved.metrics)

        (policy_loss, (new, measured)), slope = jax.value_and_grad(loss, has_aux=True)(
            b["field"] + b["moved"]
        )
        np.testing.assert_allclose(old.mean(), DPPO["old"], rtol=1e-12)
        np.testing.assert_allclose(new.mean(), DPPO["new"], rtol=1e-12)
        np.testing.assert_allclose(measured["ratio"], DPPO["ratio"], rtol=1e-12)
        np.testing.assert_allclose(measured["approximate_kl"], DPPO["kl"], rtol=1e-9)
        # Their clip fractions and times are in float32.
        np.testing.assert_allclose(measured["clip_fraction"], DPPO["clipped"], rtol=1e-6)
        np.testing.assert_allclose(policy_loss, DPPO["loss"], rtol=1e-6)
        np.testing.assert_allclose(slope, DPPO["slope"], rtol=1e-6)
        value = policy.value(None, b["seen"])
        np.testing.assert_allclose(
            0.5 * jnp.mean((value - b["returns"]) ** 2), DPPO["value_loss"], rtol=1e-9
        )


NETWORKS = flow.FlowActorCritic(2, (8,), gain=1.0)
SMALL = {"environments": 4, "steps": 4, "epochs": 1, "minibatches": 1, "flow_steps": 3}


@pytest.mark.some(1)
@pytest.mark.parametrize("method", [flow.fpo, flow.dppo])
def test_nothing_has_moved_in_the_first_step_and_something_after_it(method):
    env = rl.time_limit(rl.goals.multi_goal(), 4)
    learner = method(env, flow.flow_policy(NETWORKS), optax.sgd(0.1), **SMALL)
    params = NETWORKS.init(jax.random.key(0), jnp.zeros((1, 2)))["params"]
    memory = learner.init(jax.random.key(1), params, env.task)
    after, _, measured = jax.jit(learner.learn)(jax.random.key(2), params, memory)
    np.testing.assert_allclose(measured["ratio"], 1.0, rtol=1e-5)
    assert float(measured["clip_fraction"]) == 0.0
    change = after["actor"]["Dense_0"]["kernel"] - params["actor"]["Dense_0"]["kernel"]
    assert 0 < float(jnp.abs(change).max()) < 1


SOME = {"w": np.zeros(1, np.float32)}
WRONG = {
    "deviation": lambda: flow.chain_log_probs(
        flow.flow_policy(NETWORKS), SOME, np.zeros((1, 2)), np.zeros((1, 2, 2)), 0.0
    ),
    "states": lambda: flow.chain_log_probs(
        flow.flow_policy(NETWORKS), SOME, np.zeros((1, 2)), np.zeros((1, 1, 2)), 0.1
    ),
    "time": lambda: flow.matching_losses(
        flow.flow_policy(NETWORKS),
        SOME,
        np.zeros((1, 2)),
        np.zeros((1, 2)),
        np.zeros((1, 3, 2)),
        [[2.0]],
    ),
    "flow_steps": lambda: flow.clip_ranges(0),
}


@pytest.mark.parametrize("argument", WRONG)
def test_wrong_values_are_refused_by_name(argument):
    with pytest.raises(ValueError, match=rf"^{argument} must"):
        WRONG[argument]()


def test_clip_ranges_run_from_the_first_to_the_last():
    k = np.arange(5) / 4
    wanted = 0.001 + 0.009 * (np.exp(3 * k) - 1) / (np.exp(3) - 1)
    np.testing.assert_allclose(flow.clip_ranges(5), wanted, rtol=1e-5)
    np.testing.assert_allclose(flow.clip_ranges(1), [0.01], rtol=1e-6)
