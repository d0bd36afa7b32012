"""Several gossip steps in one round."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dflax import validation
from dflax.algorithm import Metrics
from dflax.gossip.mixer import (
    Mixer,
    MixerState,
    Mixing,
    Models,
    mix,
    over_several,
    require_mixer,
)


def repeat(mixer: Mixer, steps: int) -> Mixer:
    """`X <- W_{Q t + Q - 1} ... W_{Q t} X`: Q mixings in round t, `W^Q X` on a fixed graph.

    Gossip step q of round t sees the index `Q t + q` and a key of its own, so a schedule advances
    with every gossip step: Q = log2 n steps of the one-peer exponential graph average exactly in
    every round. A function of the index, such as the r of `random_neighbours`, counts gossip steps.

    Args:
      mixer: what is repeated.
      steps: Q >= 1, static; 1 returns the mixer itself.

    Returns:
      A `Mixer`. `models_sent` is summed over the steps, all other metrics are averaged.

    Raises:
      TypeError: anything but a mixer, or `steps` that is no integer.
      ValueError: `steps` below 1.

    Examples:
      >>> import jax, jax.numpy as jnp, dflax as dx
      >>> mixer = dx.gossip.repeat(dx.gossip.ring(4), 3)
      >>> models = jnp.array([27.0, 0.0, 0.0, 0.0])
      >>> mixing = dx.gossip.Mixing(jax.random.key(0), jnp.int32(0))
      >>> mixed, state, metrics = mixer.apply(models, mixer.init(models), mixing)
      >>> mixed.round(2).tolist(), float(metrics["models_sent"])
      ([7.0, 7.0, 6.0, 7.0], 24.0)

    References:
      Shi et al., Improving the Model Consistency of Decentralized Federated Learning,
      arXiv 2302.04083 (multiple gossip steps).
    """
    require_mixer(mixer)
    validation.integer("steps", steps, low=1)
    if steps == 1:
        return mixer

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        def once(
            carry: tuple[Models, MixerState], step: Int[Array, ""]
        ) -> tuple[tuple[Models, MixerState], Metrics]:
            models, state = carry
            own = mixing._replace(
                key=jax.random.fold_in(mixing.key, step), index=mixing.index * steps + step
            )
            models, state, metrics = mix(mixer, models, state, own)
            return (models, state), metrics

        models = jax.tree.map(jnp.asarray, models)
        (models, state), metrics = jax.lax.scan(once, (models, state), jnp.arange(steps))
        return models, state, over_several(metrics)

    return mixer._replace(apply=apply)
