"""Mixing over graphs that change from round to round."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from dflax import validation
from dflax.algorithm import Metrics
from dflax.gossip.linear import Rows, linear
from dflax.gossip.mixer import Mixer, MixerState, Models, all_known
from dflax.gossip.products import dense_rows, slot_rows
from dflax.topology import Schedule, Slots
from dflax.topology.graph import require_connected_together


def scheduled(schedule: Schedule) -> Mixer:
    """`X <- W_t X` with the matrix that a schedule draws for round t from the mixing's key."""
    fix = "Make one with dflax.topology, for example random_matching(n); gossip.mixer takes graphs."
    validation.instance("schedule", schedule, Schedule, fix)

    def plan(tables: object, key: Array, index: Array, active: Array | None) -> tuple[Rows, Array]:
        drawn = schedule.draw(tables, key, index)
        if isinstance(drawn, Slots):
            return slot_rows(drawn.neighbours, drawn.weights, active)
        return dense_rows(drawn, active)

    return linear(
        schedule.nodes,
        schedule.tables,
        plan,
        symmetric=schedule.symmetric,
        doubly_stochastic=schedule.symmetric or schedule.doubly_stochastic,
    )


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
    if not mixers:
        raise ValueError("mixers must hold at least one mixer, got none.")
    for number, mixer in enumerate(mixers):
        fix = "Make one with dflax.gossip, for example mixer(graph)."
        validation.instance(f"mixers[{number}]", mixer, Mixer, fix)
    sizes = [mixer.clients for mixer in mixers]
    if len(set(sizes)) > 1:
        raise ValueError(f"mixers must be of one number of clients, got {sizes}.")
    graphs = [mixer.graph for mixer in mixers if mixer.graph is not None]
    if not disconnected and len(graphs) == len(mixers):
        require_connected_together("mixers over a whole period", graphs)

    def init(models: Models) -> MixerState:
        return tuple(mixer.init(models) for mixer in mixers)

    def apply(
        models: Models,
        state: MixerState,
        key: Key[Array, ""],
        index: Int[Array, ""],
        active: Array | None = None,
    ) -> tuple[Models, MixerState, Metrics]:
        def take_turn(turn: int) -> Callable[..., tuple[Models, MixerState, Metrics]]:
            def mix(models: Models, state: MixerState) -> tuple[Models, MixerState, Metrics]:
                models, new, metrics = mixers[turn].apply(models, state[turn], key, index, active)
                return models, (*state[:turn], new, *state[turn + 1 :]), metrics

            return mix

        models = jax.tree.map(jnp.asarray, models)
        turns = [take_turn(turn) for turn in range(len(mixers))]
        return jax.lax.switch(jnp.asarray(index) % len(mixers), turns, models, state)

    return Mixer(
        sizes[0],
        init,
        apply,
        per_client=tuple(mixer.per_client for mixer in mixers),
        symmetric=all_known([mixer.symmetric for mixer in mixers]),
        doubly_stochastic=all_known([mixer.doubly_stochastic for mixer in mixers]),
        whole_models=any(mixer.whole_models for mixer in mixers),
        averages_statistics=any(mixer.averages_statistics for mixer in mixers),
    )
