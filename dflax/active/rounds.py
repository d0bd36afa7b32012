"""Rounds of active learning: train from a fresh model, score, buy labels; pools are masks."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.active.acquisition import Acquisition, Query
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params, rollout, verify_algorithm
from dflax.clients import map_clients
from dflax.data.dataset import Dataset
from dflax.data.pools import Pools, within
from dflax.federation import Federation
from dflax.metrics import disjoint
from dflax.participation import everyone

# Budgets are 32-bit integers.
LARGEST = 2**31 - 1


class Campaign(NamedTuple):
    """What an active round works with.

    Attributes:
      key: a typed key of its own.
      number: `[]` int32, which one it is, from 0.
      federation: who owns what, and how its communication rounds are drawn.
    """

    key: Key[Array, ""]
    number: Int[Array, ""]
    federation: Federation


class Labels(NamedTuple):
    """What the n clients carry from one active round to the next.

    Attributes:
      labelled: `[n, P]` whose labels they have.
      params: their last local models, `[n, ...]`.
    """

    labelled: Bool[Array, "n P"]
    params: Params


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class ActiveRounds:
    """A source of active rounds: the same federation in each, under a key of its own.

    Attributes:
      federation: with `dflax.data.Pools` for its partition and `local_steps`, since epochs would
        change their length as labels are bought.

    Raises:
      TypeError, ValueError: another federation.
    """

    federation: Federation

    def __post_init__(self) -> None:
        fix = "Its partition must be dflax.data.Pools."
        validation.instance("federation", self.federation, Federation, fix)
        pools_of(self.federation)
        if self.federation.local_epochs is not None:
            raise ValueError(
                "federation must have local_steps, for epochs grow with the pools, got local_epochs="
                f"{self.federation.local_epochs}. Use federation.replace(local_steps=...)."
            )

    def tree_flatten_with_keys(self) -> tuple[Any, None]:
        """The federation as the only child."""
        return ((jax.tree_util.GetAttrKey("federation"), self.federation),), None

    @classmethod
    def tree_unflatten(cls, static: None, children: Any) -> "ActiveRounds":
        """Rebuilds the source without checking again: its leaves may be anything."""
        source = object.__new__(cls)
        object.__setattr__(source, "federation", children[0])
        return source

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Campaign:
        """Active round number `index`."""
        number = jnp.asarray(index, jnp.int32)
        return Campaign(jax.random.fold_in(key, number), number, self.federation)


def active_learning(
    algorithm: Algorithm,
    acquisition: Acquisition,
    budgets: int | Int[Array, " n"],
    restart: Callable[[Key[Array, ""]], Params],
    *,
    rounds: int,
    at_once: int | None = None,
) -> Algorithm:
    """Active learning in a federation: in each active round clients train together, then buy labels.

        x, y_i  = `rounds` rounds of `algorithm` on the labelled pools, from restart(key)
        s_i     = acquisition(y_i, x, client i's pools)                        for every client i
        buy the labels of the b_i unlabelled examples with the largest s_i

    In the last of the communication rounds all clients take part, so that all have a local model of
    x's own time; before it the federation's participation rules. Clients weigh by their numbers of
    labels unless the federation has weights of its own. Scoring sees no labels. The active rounds are
    rounds of `dflax.rollout` or `dflax.run` on the source `ActiveRounds(federation)`: one program,
    however many labels there are.

    Args:
      algorithm: with `state.clients.params`, the clients' last local models: `dflax.server.kcfu`, or
        `dflax.server.fedavg(..., keep_model=True, clients=n)`.
      acquisition: `(query, data) -> scores [P]` of one client, for example `dflax.active.ksas(model)`.
      budgets: b_i, `[n]` or one number for all, >= 0, see `dflax.data.budgets`. Who has fewer
        unlabelled examples left buys them all.
      restart: `key -> params`, the model from which an active round starts.
      rounds: T >= 1, communication rounds in each.
      at_once: clients that score at the same time, see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState` with `init(key, params, pools)`. The state's server is that
      of `algorithm` at the end of the training, its clients are `Labels` after the purchase. Metrics:
      those of the last communication round, and `labels` (in all pools, while training), `bought`,
      `bought_of_class` `[n, C]`, `score_of_bought` and `score_of_rest` (means over examples, NaN where
      there are none), and `class_entropy` (of each client's labels before the purchase, in nats, the
      mean over clients).

    Raises:
      TypeError, ValueError: naming the argument; from `init`, budgets above a client's number of
        examples, or an algorithm without local models.
    """
    verify_algorithm("algorithm", algorithm)
    fix = "For example dflax.active.ksas(model)."
    validation.function("acquisition", acquisition, fix, takes=2)
    shape = None if np.ndim(budgets) == 0 else ("n",)
    wanted = validation.array(
        "budgets", budgets, kind="integer", shape=shape or (), low=0, high=LARGEST
    )
    validation.function("restart", restart, "From a key to a model's parameters.", takes=1)
    validation.integer("rounds", rounds, low=1)
    validation.at_once(at_once)

    def init(key: Key[Array, ""], params: Params, pools: Pools) -> FederatedState:
        validation.instance("pools", pools, Pools, "Make them with dflax.data.pools.")
        if np.ndim(wanted):
            validation.leading_axis("budgets", wanted, pools.clients)
        if not (validation.is_traced(pools.valid) or validation.is_traced(wanted)):
            sizes = np.asarray(pools.valid).sum(1)
            within("budgets", np.broadcast_to(wanted, sizes.shape), sizes)
        first = algorithm.init(key, params)
        return FederatedState(
            jnp.int32(0), first.server, Labels(pools.labelled, _local_models(first))
        )

    def step(state: FederatedState, campaign: Campaign) -> tuple[FederatedState, Metrics]:
        pools = dataclasses.replace(pools_of(campaign.federation), labelled=state.clients.labelled)
        federation = _holding(campaign.federation, pools)
        start_key, init_key, run_key, query_key = jax.random.split(campaign.key, 4)
        inner = algorithm.init(init_key, restart(start_key))
        if rounds > 1:
            inner, _ = rollout(algorithm, inner, federation, run_key, rounds - 1)
        inner, trained = rollout(
            algorithm, inner, _of_everyone(federation), run_key, 1, start=rounds - 1
        )
        trained = jax.tree.map(lambda leaf: leaf[0], trained)
        counts = pools.class_counts(federation.data.labels, _classes(federation.data))
        local = _local_models(inner)
        query = _query(query_key, local, pools, counts)
        scores = _scores(acquisition, query, inner.server.params, federation.data, at_once)
        after = pools.bought(scores, jnp.asarray(wanted, jnp.int32))
        known = after.class_counts(federation.data.labels, _classes(federation.data))
        measured = _measured(pools, after, scores, counts, known)
        state = FederatedState(state.round + 1, inner.server, Labels(after.labelled, local))
        return state, disjoint(training=trained, buying=measured)

    return Algorithm(init, step)


def pools_of(federation: Federation) -> Pools:
    """The federation's pools; refuses one whose partition is something else."""
    validation.instance(
        "federation.partition",
        federation.partition,
        Pools,
        "Make it with dflax.data.pools(partition, labelled).",
    )
    return federation.partition


def _holding(federation: Federation, pools: Pools) -> Federation:
    """The same federation with other labels, inside a compiled program."""
    same = copy.copy(federation)
    same.partition, same.largest = pools, pools.owned.shape[1]
    if not federation.weighted:
        same.weights = pools.sizes.astype(federation.weights.dtype)
    return same


def _of_everyone(federation: Federation) -> Federation:
    same = copy.copy(federation)
    same.participation, same.cohort_size = everyone(), federation.clients
    return same


def _local_models(state: FederatedState) -> Params:
    memory = getattr(state.clients, "memory", None)
    if not hasattr(memory, "params"):
        raise ValueError(
            "algorithm must keep the clients' local models as state.clients.params, got one that does "
            "not. Use dflax.server.kcfu, or dflax.server.fedavg(..., keep_model=True, clients=n)."
        )
    return state.clients.params


def _classes(data: Dataset) -> int:
    if data.classes is None:
        raise ValueError(
            "data must say how many classes there are, got classes=None. Make it with "
            "dflax.data.from_arrays, or give Dataset(..., classes=C)."
        )
    return data.classes


def _query(key: Key[Array, ""], local: Params, pools: Pools, counts: Int[Array, "n C"]) -> Query:
    """All clients' queries, the server's model left out."""
    keys = jax.random.split(key, pools.clients)
    return Query(keys, local, (), pools.owned, pools.labelled, pools.unlabelled, counts)


def _scores(
    acquisition: Acquisition, query: Query, server: Params, data: Dataset, at_once: int | None
) -> Float[Array, "n P"]:
    blind = dataclasses.replace(data, labels=jnp.full_like(data.labels, -1))

    def one(own: Query, server: Params, data: Dataset) -> Float[Array, " P"]:
        found = acquisition(own._replace(server=server), data)
        if jnp.shape(found) != own.examples.shape:
            raise ValueError(
                f"acquisition must return one score for each place, {own.examples.shape}, got shape "
                f"{jnp.shape(found)}."
            )
        return found

    return map_clients(one, query, shared=(server, blind), at_once=at_once)


def _measured(
    before: Pools,
    after: Pools,
    scores: Float[Array, "n P"],
    counts: Int[Array, "n C"],
    known: Int[Array, "n C"],
) -> Metrics:
    bought = after.labelled & ~before.labelled

    def mean(mask: Bool[Array, "n P"]) -> Float[Array, ""]:
        total = jnp.sum(mask)
        value = jnp.sum(jnp.where(mask, scores, 0.0)) / jnp.maximum(total, 1)
        return jnp.where(total > 0, value, jnp.nan)

    share = counts / jnp.maximum(counts.sum(1, keepdims=True), 1)
    surprise = -jnp.sum(share * jnp.log(jnp.where(share > 0, share, 1.0)), axis=1)
    return {
        "labels": jnp.sum(before.labelled),
        "bought": jnp.sum(bought),
        "bought_of_class": known - counts,
        "score_of_bought": mean(bought),
        "score_of_rest": mean(after.unlabelled),
        "class_entropy": jnp.mean(surprise),
    }
