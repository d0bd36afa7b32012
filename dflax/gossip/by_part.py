"""Gossip of a model's parts, each by a mixer of its own."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from dflax import validation
from dflax.algorithm import Metrics
from dflax.gossip.mixer import (
    Mixer,
    MixerState,
    Mixing,
    Models,
    in_models,
    mix,
    of_several,
    require_mixer,
)
from dflax.metrics import disjoint
from dflax.parts import joined, name_of, part


def by_part(mixers: Mapping[str, Mixer], of: Callable[[str], str]) -> Mixer:
    """Mixes each part of what is mixed by the mixer of its name, as `optax.multi_transform` steps.

        x_i[part] <- mixers[part](x[part])_i                        every leaf is in one part

    For example the body by a ring, and the head not at all:
    `by_part({"body": ring(n), "head": identity(n)}, lambda path: "head" if "Dense_1" in path else
    "body")`; or the head in every fifth round, `every(ring(n), 5)`.

    Args:
      mixers: by the parts' names, all of one number of clients.
      of: `path -> name`, which part a leaf is in, by its path in what is mixed, names joined by "/".

    Returns:
      A `Mixer` whose state is a dict of theirs. `models_sent` counts what all parts send; every other
      metric, and what a part sends, bears the part's name: "body_models_sent". A part without leaves
      is not mixed.

    Raises:
      TypeError: anything but mixers by name, or no function.
      ValueError: no mixers, or numbers of clients that differ; from `init`, a leaf in a part that has
        no mixer.
    """
    fix = 'For example {"body": gossip.ring(n), "head": gossip.identity(n)}.'
    validation.instance("mixers", mixers, Mapping, fix)
    if not mixers:
        raise ValueError(f"mixers must hold at least one mixer, got none. {fix}")
    for name, mixer in mixers.items():
        validation.text("mixers' names", name)
        require_mixer(mixer, f"mixers[{name!r}]")
    sizes = {name: mixer.clients for name, mixer in mixers.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"mixers must be of one number of clients, got {sizes}.")
    validation.function("of", of, 'It says of a path in which part that leaf is: "body".', takes=1)

    def parts(models: Models) -> dict[str, Models]:
        """The parts that have leaves."""
        cut = {name: part(models, lambda path, name=name: of(path) == name) for name in mixers}
        return {name: tree for name, tree in cut.items() if jax.tree.leaves(tree)}

    def init(models: Models) -> MixerState:
        for path, _ in jax.tree_util.tree_leaves_with_path(models):
            name = of(name_of(path))
            if name not in mixers:
                raise ValueError(
                    f"of must return the name of one of mixers, {sorted(mixers)}, got "
                    f"{validation.shown(name)} for {name_of(path)!r}."
                )
        return {name: mixers[name].init(tree) for name, tree in parts(models).items()}

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        after, mixed, measured, sent = {}, models, {}, jnp.zeros(())
        for number, (name, tree) in enumerate(parts(models).items()):
            own = mixing._replace(key=jax.random.fold_in(mixing.key, number))
            tree, after[name], metrics = mix(mixers[name], tree, state[name], own)
            metrics = in_models(metrics, tree, models)
            sent = sent + metrics["models_sent"]
            measured[name] = {f"{name}_{metric}": value for metric, value in metrics.items()}
            mixed = joined(tree, mixed)
        return mixed, after, disjoint(mixing={"models_sent": sent}, **measured)

    one = of_several(list(mixers.values()), init, apply)
    # One matrix mixes all numbers only where there is one part.
    return one if len(mixers) == 1 else one._replace(known=one.known._replace(linear=False))
