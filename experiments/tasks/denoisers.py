"""Small diffusion models to be fine-tuned by rewards, and a judge of digits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from dflax import generative as gen
from dflax import rl
from dflax.parts import name_of

# The ring: eight Gaussians, one prompt for each.
MODES, RADIUS, SPREAD = 8, 2.0, 0.2
ANGLES = 2 * np.pi * np.arange(MODES) / MODES
CENTRES = (RADIUS * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)).astype(np.float32)


class Denoiser(NamedTuple):
    """A network, how it is trained and how it samples.

    Attributes:
      model: reads a prompt.
      path: to noise.
      target: what it predicts.
      policy: its sampler.
      data: `[n, D]`.
      prompts: P.
      labels: `[n]`, the prompts of the data; None: drawn at random, so that they say nothing.
    """

    model: Any
    path: gen.Path
    target: Any
    policy: rl.DenoisingPolicy
    data: np.ndarray
    prompts: int
    labels: np.ndarray | None = None

    def example(self) -> gen.Noised:
        """One input."""
        return gen.Noised(jnp.asarray(self.data[:1]), jnp.ones(1), jnp.zeros(1, jnp.int32))

    def pretrained(self, steps: int, batch_size: int, key: jax.Array) -> Any:
        """Parameters after steps of Adam, whose rate falls to 0 along a cosine."""
        drawn = jax.random.randint(jax.random.fold_in(key, 1), (len(self.data),), 0, self.prompts)
        labels = drawn if self.labels is None else jnp.asarray(self.labels, jnp.int32)
        data = dx.data.Dataset(jnp.asarray(self.data), labels, classes=self.prompts)
        everything = dx.data.from_indices([np.arange(len(self.data))])
        source = dx.Federation(
            data, everything, batch_size=batch_size, local_steps=10, replacement=True
        )
        loss = gen.denoising(self.model, self.path, target=self.target, conditional=True)
        adam = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
        algorithm = dx.server.fedavg(loss, adam, keep_optimizer=True, clients=1)

        @jax.jit
        def run(source: Any, key: jax.Array) -> Any:
            params = self.model.init(key, self.example())["params"]
            state, _ = dx.rollout(algorithm, algorithm.init(key, params), source, key, steps // 10)
            return state.server.params

        return run(source, key)

    def samples(self, params: Any, each: int, key: jax.Array, frozen: Any = None) -> jax.Array:
        """Samples `[P, each, D]` of every prompt, by the policy."""
        from dflax.rl.denoising.policy import sampled

        prompts = jnp.repeat(jnp.arange(self.prompts), each)
        weights = self.policy.weights(params, frozen)
        drawn = sampled(self.policy, weights, prompts, len(prompts), key)
        return drawn.states[-1].reshape(self.prompts, each, -1)


def ring(points: int = 8192, seed: int = 0) -> Denoiser:
    """Eight Gaussians on a ring, 100 levels of noise, DDIM in 10 steps with eta = 1."""
    rng = np.random.default_rng(seed)
    x = CENTRES[rng.integers(MODES, size=points)] + SPREAD * rng.normal(size=(points, 2))
    path = gen.discrete(np.linspace(1e-4, 0.1, 100))
    model = dx.models.TimeMLP(64, depth=2, classes=MODES, time_features=8)
    step = gen.ddim(path, gen.targets.noise, eta=1.0, least=0.02, clip=4.0)
    policy = rl.denoising_policy(model, step, gen.grid(10), (2,), logprob_reduction="mean")
    return Denoiser(model, path, gen.targets.noise, policy, x.astype(np.float32), MODES)


def digits(width: int, steps: int) -> Denoiser:
    """scikit-learn's digits 8x8 in [-1, 1] on the straight path, DDIM with eta = 1."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.data / 8.0 - 1.0).astype(np.float32)
    path = gen.rectified()
    model = dx.models.TimeMLP(width, depth=3, classes=10)
    step = gen.ddim(path, eta=1.0, least=0.05)
    policy = rl.denoising_policy(
        model, step, gen.grid(steps), (x.shape[1],), logprob_reduction="mean"
    )
    return Denoiser(model, path, gen.targets.velocity, policy, x, 10, bunch.target)


def adapter(key: jax.Array, params: Any, rank: int) -> Any:
    """A low-rank adapter of all matrices that are large enough, the table of prompts among them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    large = {name_of(path) for path, leaf in leaves if leaf.ndim == 2 and min(leaf.shape) >= rank}
    return dx.models.lora(key, params, rank, lambda path: path in large)


class Judge:
    """Two classifiers of digits that saw different halves: one pays, one is asked afterwards.

    Args:
      seed: of the split.
    """

    def __init__(self, seed: int):
        from sklearn.datasets import load_digits
        from sklearn.linear_model import LogisticRegression
        from sklearn.svm import SVC

        bunch = load_digits()
        x, labels = bunch.data / 8.0 - 1.0, bunch.target
        order = np.random.default_rng(seed).permutation(len(x))
        first, second = order[: len(x) // 2], order[len(x) // 2 :]
        self.paying = LogisticRegression(C=0.05, max_iter=500).fit(x[first], labels[first])
        self.asked = SVC(gamma=0.01, C=10).fit(x[second], labels[second])
        self.real = [x[second][labels[second] == digit] for digit in range(10)]

    def reward(self, samples: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        """The logarithm of the paying classifier's confidence that a sample is the prompt's digit."""
        x = np.clip(np.nan_to_num(samples), -3, 3)
        told = self.paying.predict_log_proba(x)
        return np.maximum(told[np.arange(len(x)), prompts], -20.0)

    def measured(self, samples: np.ndarray) -> dict[str, float]:
        """What the other classifier says of samples `[10, each, 64]`, and how varied they are."""
        right, near, varied = [], [], []
        for digit, own in enumerate(samples):
            right.append(np.mean(self.asked.predict(own) == digit))
            real = self.real[digit]
            far = np.linalg.norm(own[:, None] - np.concatenate(self.real)[None], axis=-1)
            near.append(far.min(1).mean())
            varied.append(own.std(0).mean() / real.std(0).mean())
        return {
            "recognised": float(np.mean(right)),
            "distance to data": float(np.mean(near)),
            "variety": float(np.mean(varied)),
        }
