"""PPO on gymnax's tasks beside PureJaxRL: environment steps a second, and what eight seeds reach."""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks import peers
from benchmarks.measure import Row
from benchmarks.peers.timing import timed

SEEDS, ENVIRONMENTS, STEPS, EPOCHS, MINIBATCHES, RATE = 8, 4, 128, 4, 4, 2.5e-4
# Where along the training returns are compared, as shares of its rounds.
WHEN = (0.1, 0.25, 0.5, 1.0)
# Standard errors of a mean over seeds, of both sides together, that the means may be apart.
APART = 4.0


def rows(quick: bool) -> list[Row]:
    """CartPole as PureJaxRL's README has it, and Acrobot with the same settings."""
    steps = 50_000 if quick else 500_000
    return [row for name in ("CartPole-v1", "Acrobot-v1") for row in trained(name, steps)]


def trained(name: str, total: int) -> list[Row]:
    """A whole training of eight seeds at once, per environment step of one of them."""
    rounds = total // (ENVIRONMENTS * STEPS)
    inner, params = gymnax.make(name)
    network = dx.rl.ActorCritic(inner.action_space(params).n)

    def rate(count: jax.Array) -> jax.Array:
        return RATE * (1.0 - (count // (MINIBATCHES * EPOCHS)) / rounds)

    def networks(params: Any, seen: jax.Array) -> Any:
        return network.apply({"params": params}, seen)

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))
    # It takes a time limit for the end, as gymnax before 1.0 did.
    learner = dx.rl.ppo(
        dx.rl.from_gymnax(inner, params),
        networks,
        optimizer,
        environments=ENVIRONMENTS,
        steps=STEPS,
        epochs=EPOCHS,
        minibatches=MINIBATCHES,
        bootstrap=False,
    )
    # Four networks and what their optimisers keep stay in a core's cache, eight do not.
    algorithm = dx.rl.alone(learner, SEEDS, at_once=SEEDS // 2)
    source, key = dx.Population(SEEDS), jax.random.key(0)
    seen = jnp.zeros((1, *inner.observation_space(params).shape))
    state = algorithm.init(key, lambda key: network.init(key, seen)["params"])
    work = jax.jit(lambda state: dx.rollout(algorithm, state, source, key, rounds)[1])
    units = SEEDS * rounds * ENVIRONMENTS * STEPS
    own, own_cpu, metrics = timed(lambda: work(state), units)
    returns = np.asarray(metrics["episode_return"]).T
    theirs = peers.run(
        "purejaxrl",
        "agents_purejaxrl",
        task=name,
        seeds=SEEDS,
        total=total,
        settings={
            **{"LR": RATE, "NUM_ENVS": ENVIRONMENTS, "NUM_STEPS": STEPS},
            **{"UPDATE_EPOCHS": EPOCHS, "NUM_MINIBATCHES": MINIBATCHES},
        },
    )
    title = f"PPO, an environment step on {name}, {SEEDS} seeds at once, {total} steps each"
    if theirs is not None:
        print(f"{name}: {own_cpu:.3g} ms of CPU a step, PureJaxRL's {theirs['cpu_ms']:.3g}")
        require_alike(name, returns, np.array(theirs["returns"], float))
    return Row(title, own).beside(theirs)


def require_alike(name: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Refuses returns, `[seeds, rounds]`, whose means over seeds are apart by more than chance."""
    found = {}
    for share in WHEN:
        one, other = (_around(returns, share) for returns in (ours, theirs))
        if len(one) < 2 or len(other) < 2:
            print(f"{name}: no episodes of two seeds ended around {share:.0%} of the rounds")
            continue
        error = np.hypot(*(side.std(ddof=1) / np.sqrt(len(side)) for side in (one, other)))
        found[str(share)] = (one.mean(), other.mean(), error)
        if abs(one.mean() - other.mean()) > APART * error:
            raise ValueError(
                f"returns on {name} after {share:.0%} of the rounds must be PureJaxRL's up to "
                f"chance, {other.mean():.1f}, got {one.mean():.1f} with a standard error of "
                f"{error:.1f}."
            )
    print(
        f"{name}: " + ", ".join(f"{k}: {a:.0f}/{b:.0f} ({e:.0f})" for k, (a, b, e) in found.items())
    )
    return found


def _around(returns: np.ndarray, share: float) -> np.ndarray:
    """Mean returns over the twentieth of the rounds that ends there, of seeds with an episode in it."""
    last = max(int(share * returns.shape[1]), 1)
    window = returns[:, max(last - returns.shape[1] // 20, 0) : last]
    return np.nanmean(window[~np.isnan(window).all(1)], axis=1)
