"""From a coarse action to the ranks of all matrices: by diffusion, by a linear map, or as it is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from dflax import generative as gen
from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import AnyArray, Batch
from dflax.replay import Ring, drawn
from dflax.rl.advantages import floating, standardised
from dflax.rl.airllm.networks import RankDenoiser

# DDPM's chain of "scaled-linear" betas.
CHAIN = 1000
BETAS = np.linspace(1e-4**0.5, 0.02**0.5, CHAIN) ** 2


class Tried(NamedTuple):
    """One row of what was tried.

    Attributes:
      coarse: z, `[m]`.
      x: the ranks that were executed, as numbers in [-1, 1], `[P]`.
      reward: `[]`.
    """

    coarse: Float[Array, " m"]
    x: Float[Array, " P"]
    reward: Float[Array, ""]


class RankDecoder(NamedTuple):
    """How a coarse action z in [-1, 1]^m becomes numbers x in [-1, 1]^P, from which ranks are decoded.

    Attributes:
      coarse: `P -> m`.
      init: `(key, P) -> params`, a pytree of real arrays; `{}` for none.
      begin: `params -> state` of what it learns with; () for none.
      decode: `(params, z [m], P, key) -> x [P]`.
      learn: `(params, state, ring of Tried, key) -> (params, state, metrics)`, once an episode.
      capacity: how many rows are kept for it; 0 for none; static.
    """

    coarse: Callable[[int], int]
    init: Callable[[Key[Array, ""], int], Params]
    begin: Callable[[Params], Any]
    decode: Callable[..., Float[Array, " P"]]
    learn: Callable[..., tuple[Params, Any, Metrics]]
    capacity: int


def diffusion_decoder(
    *,
    coarse: int = 16,
    hidden: int = 512,
    guidance: float | Float[Array, ""] = 1.5,
    drop: float | Float[Array, ""] = 0.1,
    reward_weight: float | Float[Array, ""] = 0.1,
    optimizer: optax.GradientTransformation | None = None,
    updates: int = 4,
    batch_size: int = 32,
    capacity: int = 10_000,
    warm_up: int = 128,
    steps: int = 50,
) -> RankDecoder:
    """Ranks by a conditional diffusion model, sampled by DDIM with classifier-free guidance.

        e    = e(x, t, 0) + g (e(x, t, z) - e(x, t, 0)),   x_0 = clip((x - s e) / a, -1, 1)
        loss = mean_i w_i mean_p (e(x_t, t, z_i or 0) - eps)^2,   w_i = `reward_weights`

    It is trained on what was executed, after each episode once there are `warm_up` rows.

    Args:
      coarse: m >= 1.
      hidden: width of the denoiser.
      guidance: g; 1 is the conditional model; traceable.
      drop: probability in [0, 1) that a condition gives way to 0 in training; traceable.
      reward_weight: c_r >= 0; 0 is plain diffusion; traceable.
      optimizer: default Adam at 5e-5 after a clip of the gradient's norm to 1.
      updates: U >= 1 steps after an episode.
      batch_size: of each.
      capacity: rows that are kept, >= 1; fewer are younger ones.
      warm_up: rows that must be there before it is trained, >= 1.
      steps: of DDIM, in [1, 1000].

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Yang et al., AirLLM, arXiv 2507.11515; Song et al., DDIM, arXiv 2010.02502; Ho and Salimans,
      arXiv 2207.12598.
    """
    for name, count in (("coarse", coarse), ("updates", updates), ("batch_size", batch_size)):
        validation.integer(name, count, low=1)
    validation.integer("capacity", capacity, low=1)
    validation.integer("warm_up", warm_up, low=1, high=capacity)
    validation.real("guidance", guidance, scalar=True)
    validation.probability("drop", drop, high_open=True)
    validation.real("reward_weight", reward_weight, low=0.0, scalar=True)
    made = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-5))
    if optimizer is not None:
        validation.instance("optimizer", optimizer, optax.GradientTransformation)
        made = optimizer
    network, path, times = RankDenoiser(hidden), chain(), ddim_times(steps)
    move = gen.ddim(path, gen.targets.noise, clip=1.0)
    loss = rank_loss(network, drop)

    def init(key: Key[Array, ""], matrices: int) -> Params:
        seen = gen.Noised(jnp.zeros((1, matrices)), jnp.zeros(1), jnp.zeros((1, coarse)))
        return network.init(key, seen)["params"]

    def decode(params: Params, z: Array, matrices: int, key: Key[Array, ""]) -> Array:
        start_key, walk_key = jax.random.split(key)
        field = gen.guided(gen.field(_apply(network), params), guidance, 0.0)
        start = jax.random.normal(start_key, (1, matrices))
        return gen.sample(field, move, start, times, walk_key, condition=z[None])[0]

    def learn(
        params: Params, state: Any, ring: Ring, key: Key[Array, ""]
    ) -> tuple[Params, Any, Metrics]:
        def one(carry: Any, key: Key[Array, ""]) -> tuple[Any, Array]:
            params, state = carry
            draw_key, loss_key = jax.random.split(key)
            rows = drawn(ring, draw_key, batch_size)
            weights = reward_weights(rows.reward, reward_weight)
            value, slope = jax.value_and_grad(loss)(params, rows.x, rows.coarse, weights, loss_key)
            changes, state = made.update(slope, state, params)
            return (optax.apply_updates(params, changes), state), value

        def train(carry: Any) -> tuple[Any, Array]:
            after, values = jax.lax.scan(one, carry, jax.random.split(key, updates))
            return after, values[-1]

        def wait(carry: Any) -> tuple[Any, Array]:
            return carry, jnp.full((), jnp.nan)

        after, value = jax.lax.cond(ring.filled >= warm_up, train, wait, (params, state))
        return *after, {"denoising_loss": value}

    return RankDecoder(lambda matrices: coarse, init, made.init, decode, learn, capacity)


def linear_decoder(*, coarse: int = 16) -> RankDecoder:
    """Ranks by a random linear map, `x = clip(W z, -1, 1)`, W ~ N(0, 1 / m), which is not trained.

    Args:
      coarse: m >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("coarse", coarse, low=1)

    def init(key: Key[Array, ""], matrices: int) -> Params:
        return {"map": jax.random.normal(key, (matrices, coarse)) / coarse**0.5}

    def decode(params: Params, z: Array, matrices: int, key: Key[Array, ""]) -> Array:
        return jnp.clip(params["map"] @ z, -1.0, 1.0)

    return RankDecoder(lambda matrices: coarse, init, lambda params: (), decode, _unlearned, 0)


def identity_decoder() -> RankDecoder:
    """Ranks as the policy says them, m = P: plain PPO on all of them."""

    def decode(params: Params, z: Array, matrices: int, key: Key[Array, ""]) -> Array:
        return z

    return RankDecoder(
        lambda matrices: matrices,
        lambda key, matrices: {},
        lambda params: (),
        decode,
        _unlearned,
        0,
    )


def chain() -> gen.Path:
    """The path of 1000 betas from 1e-4 to 0.02, linear in their square roots."""
    return gen.discrete(BETAS)


def ddim_times(steps: int) -> Float[np.ndarray, " N"]:
    """The times of DDIM: `steps` of the chain's, evenly from its last to its first, then 0.

    Args:
      steps: in [1, 1000].

    Returns:
      `[steps + 1]`, falling from 1 to 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("steps", steps, low=1, high=CHAIN)
    numbers = np.linspace(CHAIN - 1, 0, steps).astype(int)
    return np.append((numbers + 1) / CHAIN, 0.0).astype(np.float32)


def reward_weights(
    rewards: Float[AnyArray, " B"], strength: float | Float[Array, ""]
) -> Float[Array, " B"]:
    """How much each example counts: `clip(1 + c_r (R - mean R) / (std R + 1e-6), 0.1, 10)`.

    Args:
      rewards: R, `[B]`.
      strength: c_r >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.array("rewards", rewards, kind="real", shape=("B",))
    validation.real("strength", strength, low=0.0, scalar=True)
    return jnp.clip(1.0 + strength * standardised(floating(rewards), least=1e-6), 0.1, 10.0)


def rank_loss(
    network: RankDenoiser, drop: float | Float[Array, ""]
) -> Callable[..., Float[Array, ""]]:
    """`(params, x [B, P], coarse [B, m], weights [B], key) -> mean_i w_i mean_p (e - eps)^2`."""

    def times(key: Key[Array, ""], count: int) -> Float[Array, " B"]:
        return (jax.random.randint(key, (count,), 0, CHAIN) + 1) / CHAIN

    loss = gen.denoising(
        _apply(network),
        chain(),
        target=gen.targets.noise,
        times=times,
        conditional=True,
        null=0.0,
        drop=drop,
    )

    def weighted(params: Params, x: Array, coarse: Array, weights: Array, key: Any) -> Array:
        # The mask's mean is one over the weights' sum.
        value, _ = loss(params, Batch(x, coarse, weights), key)
        return jnp.mean(weights) * value

    return weighted


def _apply(network: RankDenoiser) -> Callable[..., Array]:
    def apply(params: Params, noised: gen.Noised) -> Array:
        answer: Any = network.apply({"params": params}, noised)
        return answer

    return apply


def _unlearned(params: Params, state: Any, ring: Any, key: Any) -> tuple[Params, Any, Metrics]:
    return params, state, {}
