"""Every client's model on the client's own held-out data, as it is or after some steps of its own."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from dflax import counter, validation
from dflax.algorithm import FederatedState, Metrics
from dflax.clients import map_clients, weighted_mean
from dflax.data.dataset import Dataset
from dflax.data.partition import Partition
from dflax.evaluation.measure import Bound, metrics_of
from dflax.evaluation.measures import Models
from dflax.local.oracle import Loss, Oracle
from dflax.local.solver import Optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment


def on_own_data(
    loss: Loss,
    data: Dataset,
    held_out: Partition,
    *,
    models: Models | None = None,
    batch_size: int = 100,
    at_once: int | None = None,
) -> Callable[[FederatedState], Metrics]:
    """What each client measures on its own held-out examples, as a distribution over clients.

    For every metric of the loss, over the n clients, all of them counted the same: the mean `own_NAME`,
    and `own_NAME_std`, `_min`, `_max`, `_lowest_tenth` and `_highest_tenth`, the means over the
    ceil(n / 10) clients with the lowest and the highest values. For accuracies the worst decile is
    the lowest tenth, for losses the highest.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, see `on`.
      data: that `held_out` points into.
      held_out: each client's examples to measure on, see `dflax.data.train_test_per_client`.
      models: `state -> stacked models [n, ...]`, for example `lambda state: state.clients.params`, or
        `dflax.server.own_models`; default: the server's model for everyone.
      batch_size: examples at a time, >= 1.
      at_once: see `dflax.map_clients`.

    Returns:
      An evaluation `state -> metrics`, for `run(..., evaluate=...)`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    width, batches = _verified(loss, data, held_out, models, batch_size, at_once)
    measured = Bound(_own, loss, None, None, models, (0, 0, width, batches), at_once)
    return Partial(measured, data, held_out, held_out, None)


def personalized(
    loss: Loss,
    optimizer: Optimizer,
    data: Dataset,
    train: Partition,
    held_out: Partition,
    key: Key[Array, ""],
    *,
    local_steps: int,
    training_loss: Loss | Oracle | None = None,
    models: Models | None = None,
    tuning_batch_size: int = 32,
    batch_size: int = 100,
    at_once: int | None = None,
) -> Callable[[FederatedState], Metrics]:
    """As `on_own_data`, after every client has fine-tuned its model: `tuned_NAME` and its distribution.

        z_i = K steps of `optimizer` on client i's training examples, from x (or from its own model)

    The state is not changed by it: nobody hears of z_i.

    Args:
      loss: as in `on_own_data`, as are `data`, `held_out`, `models`, `batch_size` and `at_once`.
      optimizer: of the fine-tuning, fresh.
      data: that both partitions point into.
      train: each client's examples to tune on.
      held_out: each client's examples to measure on; of the same clients.
      key: of the minibatches: the same in every evaluation; another one than the run's.
      local_steps: K >= 1.
      training_loss: what is tuned; default `loss`.
      models: which models are tuned.
      tuning_batch_size: examples per step, >= 1.
      batch_size: of the measuring.
      at_once: see `dflax.map_clients`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    width, batches = _verified(loss, data, held_out, models, batch_size, at_once)
    validation.instance("train", train, Partition, "See dflax.data.train_test_per_client.")
    if train.clients != held_out.clients:
        raise ValueError(
            f"train must have the {held_out.clients} clients of held_out, got {train.clients}."
        )
    validation.typed_key("key", key)
    validation.integer("local_steps", local_steps, low=1)
    validation.integer("tuning_batch_size", tuning_batch_size, low=1)
    if training_loss is not None:
        validation.function("training_loss", training_loss, "As a loss, or an Oracle.", takes=3)
    tuned = loss if training_loss is None else training_loss
    solver(tuned, optimizer)  # Refuses here what it would refuse in the compiled program.
    sizes = (local_steps, tuning_batch_size, width, batches)
    measured = Bound(_own, loss, tuned, optimizer, models, sizes, at_once)
    return Partial(measured, data, train, held_out, key)


def distribution(name: str, values: Float[Array, "n ..."]) -> Metrics:
    """The mean over clients under `name`, and its spread under `name_std`, `name_min` and so on."""
    tenth = math.ceil(values.shape[0] / 10)
    ordered = jnp.sort(values, axis=0)
    return {
        name: values.mean(0),
        f"{name}_std": values.std(0),
        f"{name}_min": ordered[0],
        f"{name}_max": ordered[-1],
        f"{name}_lowest_tenth": ordered[:tenth].mean(0),
        f"{name}_highest_tenth": ordered[-tenth:].mean(0),
    }


def _verified(
    loss: Loss, data: Any, held_out: Any, models: Any, batch_size: int, at_once: int | None
) -> tuple[int, int]:
    """Examples of a batch, and batches of the client that has most of them."""
    validation.function("loss", loss)
    validation.instance("data", data, Dataset, "Of a Split pass the part that was dealt.")
    validation.instance("held_out", held_out, Partition, "See dflax.data.train_test_per_client.")
    validation.integer("batch_size", batch_size, low=1)
    if models is not None:
        validation.function("models", models, takes=1)
    validation.at_once(at_once)
    most = int(np.asarray(held_out.sizes).max())
    width = min(batch_size, most)
    return width, -(-most // width)


def _own(
    loss: Loss,
    tuned: Loss | Oracle | None,
    optimizer: Optimizer | None,
    models: Models | None,
    sizes: tuple[int, int, int, int],
    at_once: int | None,
    data: Dataset,
    train: Partition,
    held_out: Partition,
    key: Key[Array, ""] | None,
    state: FederatedState,
) -> Metrics:
    steps, tuning_batch, width, batches = sizes
    clients = jnp.arange(held_out.clients, dtype=jnp.int32)
    assignments: Any = ()
    solve = None
    if tuned is not None and optimizer is not None:
        solve = solver(tuned, optimizer)
        assert key is not None, "fine-tuning draws minibatches"
        draw_key, own_key = jax.random.split(key)
        minibatches = train.minibatches(
            counter.seed_of(draw_key), clients, jnp.int32(0), steps, tuning_batch, False
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(own_key, clients)
        done = jnp.full(clients.shape, steps, jnp.int32)
        assignments = Assignment(minibatches, done, keys, clients)
    own = () if models is None else models(state)
    common = state.server.params if models is None else ()

    def one(
        client: Array, assignment: Any, own: Any, common: Any, data: Dataset, held_out: Partition
    ) -> Metrics:
        model = common if models is None else own
        if solve is not None:
            model = solve(Subproblem(), model, assignment, data).params
        offset, size = held_out.offsets[client], held_out.sizes[client]

        def one_batch(number: Array) -> tuple[Metrics, Array]:
            places = number * width + jnp.arange(width)
            mask = (places < size).astype(jnp.float32)
            batch = data.fetch(held_out.indices[offset + jnp.minimum(places, size - 1)])
            return metrics_of(loss, model, batch._replace(mask=mask)), mask.sum()

        metrics, counts = jax.lax.map(one_batch, jnp.arange(batches))
        return weighted_mean(metrics, counts)

    measured = map_clients(
        one, clients, assignments, own, shared=(common, data, held_out), at_once=at_once
    )
    prefix = "own" if solve is None else "tuned"
    spread: Metrics = {}
    for name, values in measured.items():
        spread |= distribution(f"{prefix}_{name}", values)
    return spread
