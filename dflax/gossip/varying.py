"""Mixing over graphs that change from round to round."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dflax import validation
from dflax.algorithm import Metrics
from dflax.gossip.mixer import (
    Known,
    Mixer,
    MixerState,
    Mixing,
    Models,
    mix,
    of_several,
    require_mixer,
)
from dflax.gossip.products.linear import Rows, linear
from dflax.gossip.products.stored import dense_rows, slot_rows
from dflax.topology import Schedule, Slots
from dflax.topology.graph import require_connected_together


def scheduled(schedule: Schedule) -> Mixer:
    """`X <- W_t X` with the matrix that a schedule draws for round t from the mixing's key."""
    fix = "Make one with dflax.topology, for example random_matching(n); gossip.mixer takes graphs."
    validation.instance("schedule", schedule, Schedule, fix)

    def plan(tables: object, mixing: Mixing) -> tuple[Rows, Array]:
        drawn = schedule.draw(tables, mixing.key, mixing.index)
        if isinstance(drawn, Slots):
            return slot_rows(drawn.neighbours, drawn.weights, mixing.active)
        return dense_rows(drawn, mixing.active)

    known = Known(schedule.symmetric, schedule.symmetric or schedule.doubly_stochastic)
    return linear(schedule.nodes, schedule.tables, plan, known)


def alternate(mixers: Sequence[Mixer], *, disconnected: bool = False) -> Mixer:
    """Mixer number `t mod T` in round t; each keeps its own structure and its own state.

    Args:
      mixers: T >= 1 mixers of the same number of clients.
      disconnected: whether mixers are accepted over all of whose graphs, a whole period, the model of
        some client never reaches another. Each of them alone may be disconnected.

    Returns:
      A `Mixer` whose state is the tuple of theirs.

    Raises:
      TypeError: anything but mixers.
      ValueError: no mixers, numbers of clients that differ, or a union of the mixers' graphs, where all
        are known, that is not (strongly) connected.
    """
    validation.flag("disconnected", disconnected)
    # A Mixer is a tuple itself.
    if isinstance(mixers, Mixer) or not isinstance(mixers, (list, tuple)):
        raise TypeError(
            f"mixers must be a list or tuple of mixers, got {type(mixers).__name__}. To use one alone, "
            "pass it as it is."
        )
    if not mixers:
        raise ValueError("mixers must hold at least one mixer, got none.")
    for number, mixer in enumerate(mixers):
        require_mixer(mixer, f"mixers[{number}]")
    sizes = [mixer.clients for mixer in mixers]
    if len(set(sizes)) > 1:
        raise ValueError(f"mixers must be of one number of clients, got {sizes}.")
    graphs = [mixer.known.graph for mixer in mixers if mixer.known.graph is not None]
    if not disconnected and len(graphs) == len(mixers):
        require_connected_together("mixers over a whole period", graphs)

    def init(models: Models) -> MixerState:
        return tuple(mixer.init(models) for mixer in mixers)

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        def take_turn(turn: int) -> Callable[..., tuple[Models, MixerState, Metrics]]:
            def once(models: Models, state: MixerState) -> tuple[Models, MixerState, Metrics]:
                models, new, metrics = mix(mixers[turn], models, state[turn], mixing)
                return models, (*state[:turn], new, *state[turn + 1 :]), metrics

            return once

        models = jax.tree.map(jnp.asarray, models)
        turns = same_metrics([take_turn(turn) for turn in range(len(mixers))], models, state)
        return jax.lax.switch(jnp.asarray(mixing.index) % len(mixers), turns, models, state)

    return of_several(mixers, init, apply)


def sometimes(mixer: Mixer, probability: float | Float[Array, ""]) -> Mixer:
    """`X <- W_t X` with a probability, else nothing is sent and every client keeps its model.

    The coin is tossed once for all clients, in every mixing anew.

    Args:
      mixer: W.
      probability: of mixing, in [0, 1]; traceable.

    Returns:
      A `Mixer`. Where nothing is mixed, `models_sent` is 0 and what else the mixer measures is NaN.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_mixer(mixer)
    validation.real("probability", probability, low=0.0, high=1.0, scalar=True)

    def tossed(mixing: Mixing) -> tuple[Bool[Array, ""], Mixing]:
        coin_key, own_key = jax.random.split(mixing.key)
        return jax.random.bernoulli(coin_key, probability), mixing._replace(key=own_key)

    return _where(mixer, tossed)


def every(mixer: Mixer, rounds: int) -> Mixer:
    """`X <- W_t X` in the rounds 0, T, 2 T, ..., else nothing is sent and every client keeps its model.

    The mixer counts these rounds alone: 0, 1, 2, ...

    Args:
      mixer: W.
      rounds: T >= 1, static.

    Returns:
      A `Mixer`. Where nothing is mixed, `models_sent` is 0 and what else the mixer measures is NaN.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_mixer(mixer)
    validation.integer("rounds", rounds, low=1)

    def due(mixing: Mixing) -> tuple[Bool[Array, ""], Mixing]:
        index = jnp.asarray(mixing.index)
        return index % rounds == 0, mixing._replace(index=index // rounds)

    return _where(mixer, due)


def _where(mixer: Mixer, decide: Callable[[Mixing], tuple[Bool[Array, ""], Mixing]]) -> Mixer:
    """Mixes where `decide(mixing) -> (whether, the mixer's own mixing)` says so."""

    def apply(
        models: Models, state: MixerState, mixing: Mixing
    ) -> tuple[Models, MixerState, Metrics]:
        mixes, own = decide(mixing)

        def together(models: Models, state: MixerState) -> tuple[Models, MixerState, Metrics]:
            return mix(mixer, models, state, own)

        def alone(models: Models, state: MixerState) -> tuple[Models, MixerState, Metrics]:
            return models, state, {"models_sent": jnp.zeros((), jnp.float32)}

        models = jax.tree.map(jnp.asarray, models)
        branches = same_metrics([alone, together], models, state)
        return jax.lax.switch(mixes.astype(jnp.int32), branches, models, state)

    return mixer._replace(apply=apply)


def same_metrics(
    branches: Sequence[Callable[..., tuple[Models, MixerState, Metrics]]], *arguments: PyTree[Array]
) -> list[Callable[..., tuple[Models, MixerState, Metrics]]]:
    """Mixings of which one takes place, each with the metrics of all: NaN for what it lacks."""
    shapes = [jax.eval_shape(branch, *arguments)[2] for branch in branches]
    every = {name: shape for metrics in shapes for name, shape in metrics.items()}

    def filled(branch: Callable[..., Any]) -> Callable[..., Any]:
        def once(*arguments: Any) -> tuple[Models, MixerState, Metrics]:
            models, state, metrics = branch(*arguments)
            nothing = {
                name: jax.tree.map(lambda leaf: jnp.full(leaf.shape, jnp.nan, leaf.dtype), shape)
                for name, shape in every.items()
                if name not in metrics
            }
            return models, state, metrics | nothing

        return once

    return [filled(branch) for branch in branches]
