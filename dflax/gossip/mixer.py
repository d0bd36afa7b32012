"""The protocol of everything that turns n models into n models."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, PyTree

from dflax.algorithm import Metrics

Models = PyTree[Array]
MixerState = Any


class Mixer(NamedTuple):
    """One mixing of all clients' models, `[n, ...]` to `[n, ...]`.

    Attributes:
      clients: n, the number of clients it mixes (static).
      init: `init(models) -> state`. `models` is a pytree with leaves `[n, ...]`. The state holds what
        the rule carries (push-sum weights) and every table it reads (neighbours, weights, schedules):
        tables are data of the compiled program, never constants in it.
      apply: `apply(models, state, key, index, active=None) -> (models, state, metrics)`. `key` is a
        typed key for random graphs, `index` the `[]` int32 number of the round for time-varying ones.
        `active` is a mask `[n]` of the clients that take part, None for all of them: an inactive
        client keeps its model, and the weight it would have had at a neighbour goes to that
        neighbour's own model. Metrics are a dict of scalars, `models_sent` among them: the number of
        models sent over all directed edges in this mixing.
    """

    clients: int
    init: Callable[[Models], MixerState]
    apply: Callable[..., tuple[Models, MixerState, Metrics]]
