"""Stochastic discrete lot sizing: machines, items, setups, and a demand that nobody knows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.rl.environment import Environment, Outcome, two_stage


class LotSizing(NamedTuple):
    """An instance with I items and J machines: the task of an agent.

    Attributes:
      production: `[J, I]` >= 0, what a machine makes of an item in a period; 0: it cannot.
      setup_cost: `[J, I]` >= 0, what it costs to set a machine up for an item.
      setup_loss: `[J, I]` >= 0, what is made less in a period with a setup.
      holding_cost: `[I]` >= 0, per unit left at the end of a period.
      lost_cost: `[I]` >= 0, per unit of demand that is not met.
      capacity: `[I]` > 0, what can be kept of an item.
      demand: `[I, K]`, probabilities of a demand of 0, ..., K - 1 in a period.
    """

    production: Float[AnyArray, "J I"]
    setup_cost: Float[AnyArray, "J I"]
    setup_loss: Float[AnyArray, "J I"]
    holding_cost: Float[AnyArray, " I"]
    lost_cost: Float[AnyArray, " I"]
    capacity: Float[AnyArray, " I"]
    demand: Float[AnyArray, "I K"]


class Plant(NamedTuple):
    """The state before a decision, and after it.

    Attributes:
      inventory: `[I]`; after a decision it may be below 0.
      setup: `[J]` int32, the item each machine is set up for, counted from 1; 0: idle.
    """

    inventory: Float[Array, " I"]
    setup: Int[Array, " J"]


def lot_sizing(instance: LotSizing, *, observe_setup: bool = False) -> Environment:
    """Discrete lot sizing in two stages: production, and then demand.

    An action `[J]` says what each machine makes: 0 nothing, i item i. With it

        inventory_i += sum over machines on i of production - (setup_loss if it was not set up for i)
        rx           = - sum of setup_cost of machines that were not set up for what they make

    and then with a demand D

        inventory_i <- min(max(inventory_i - D_i, 0), capacity_i)
        rs           = - sum lost_cost max(D - inventory, 0) - sum holding_cost inventory afterwards

    Episodes begin with uniform inventories below capacity, and machines set up for something that they
    can make. They do not end by themselves, see `time_limit`. What is seen is the inventory: as
    published, not the setups, though they drive the costs.

    Args:
      instance: the task; agents may have others of the same shapes.
      observe_setup: whether the setups are seen as well, `[J (I + 1)]` more numbers, 0 or 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Felizardo et al., arXiv 2504.05150.
    """
    require_instance(instance)
    validation.flag("observe_setup", observe_setup)
    task = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), instance)

    def reset(task: LotSizing, key: Key[Array, ""]) -> Plant:
        inventory_key, setup_key = jax.random.split(key)
        share = jax.random.uniform(inventory_key, task.capacity.shape)
        able = jnp.where(task.production > 0, 0.0, -jnp.inf)
        setup = 1 + jax.random.categorical(setup_key, able)
        return Plant(jnp.floor(share * task.capacity), setup.astype(jnp.int32))

    def post(task: LotSizing, state: Plant, action: Int[Array, " J"]) -> tuple[Plant, Array]:
        action = jnp.asarray(action, jnp.int32)
        # Idle machines have a row of zeros.
        made = jax.nn.one_hot(action - 1, task.capacity.shape[0])
        anew = made * (state.setup != action)[:, None]
        inventory = state.inventory + jnp.sum(
            made * task.production - anew * task.setup_loss, axis=0
        )
        return Plant(inventory, action), -jnp.sum(anew * task.setup_cost)

    def noise(task: LotSizing, decided: Plant, key: Key[Array, ""]) -> Outcome:
        chance = jax.random.uniform(key, task.capacity.shape)
        below = jnp.cumsum(task.demand, axis=-1)[:, :-1]
        demand = jnp.sum(chance[:, None] >= below, axis=-1)
        left = decided.inventory - demand
        kept = jnp.clip(left, 0.0, task.capacity)
        cost = task.lost_cost * jnp.maximum(-left, 0.0) + task.holding_cost * kept
        return Outcome(Plant(kept, decided.setup), -jnp.sum(cost), jnp.bool_(False))

    def observe(task: LotSizing, state: Plant) -> Array:
        if not observe_setup:
            return state.inventory
        setups = jax.nn.one_hot(state.setup, task.capacity.shape[0] + 1)
        return jnp.concatenate([state.inventory, setups.ravel()])

    return two_stage(reset, post, noise, observe, task=task)


def binomial_demand(
    items: int, trials: int = 20, probability: float | Float[AnyArray, " I"] = 0.4
) -> Float[np.ndarray, "I K"]:
    """Demands of a binomial law, `[I, trials + 1]` probabilities.

    Args:
      items: I >= 1.
      trials: >= 1.
      probability: in [0, 1], one number or `[I]`, each item's.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    from scipy.stats import binom

    validation.integer("items", items, low=1)
    validation.integer("trials", trials, low=1, high=10_000)
    validation.real("probability", probability, low=0.0, high=1.0)
    if np.shape(probability) not in ((), (items,)):
        raise ValueError(
            f"probability must be one number or have the shape ({items},), got "
            f"{np.shape(probability)}."
        )
    each = np.broadcast_to(np.asarray(probability, float), (items,))
    return binom.pmf(np.arange(trials + 1), trials, each[:, None])


def random_instance(
    seed: int,
    items: int,
    machines: int,
    *,
    capacity: float = 100.0,
    unable: float = 0.4,
) -> LotSizing:
    """A random instance as the published ones are made, drawn again until every item has a machine.

    Numbers come from unit grids, or with some probability are the least: production 0 with probability
    `unable`, else 1..40; setup costs 15 with 0.2, else 16..30; setup losses 1 with 0.7, else 2 or 3;
    lost sales 0.1 with 1/2, else 1.1. Holding costs 0.01; demand is binomial, 20 trials of 0.4.

    Args:
      seed: of NumPy's generator.
      items: I >= 1.
      machines: J >= 1.
      capacity: > 0, of every item.
      unable: in [0, 1), how often a machine cannot make an item.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.seed("seed", seed)
    validation.integer("items", items, low=1)
    validation.integer("machines", machines, low=1)
    validation.real("capacity", capacity, low=0.0, low_open=True, scalar=True)
    validation.probability("unable", unable, high_open=True)
    draw = np.random.default_rng(seed)

    def grid(most: float, least: float, probability: float, shape: tuple[int, ...]) -> np.ndarray:
        values = np.arange(least + 1, most + 1)
        others = draw.choice(values, shape)
        return np.where(draw.random(shape) < probability, least, others)

    both = (machines, items)
    production = np.zeros(both)
    for _ in range(1_000):
        able = (production > 0).any(0).all() and (production > 0).any(1).all()
        if able:
            break
        production = grid(40, 0, unable, both)
    else:
        raise ValueError(
            f"unable must leave every item a machine, got {unable} with {items} items and {machines} "
            "machines, and none of 1,000 draws did. Take a smaller one."
        )
    return LotSizing(
        production=production,
        setup_cost=grid(30, 15, 0.2, both),
        setup_loss=grid(3, 1, 0.7, both),
        holding_cost=np.full(items, 0.01),
        lost_cost=draw.choice([0.1, 1.1], items),
        capacity=np.full(items, float(capacity)),
        demand=binomial_demand(items),
    )


def require_instance(instance: Any) -> None:
    """Refuse what is no instance of fitting shapes and values."""
    validation.instance("instance", instance, LotSizing, "See dflax.rl.random_instance.")
    validation.array("instance.production", instance.production, shape=("J", "I"), kind="real")
    machines, items = np.shape(instance.production)
    shapes: dict[str, tuple[int | str, ...]] = {
        **dict.fromkeys(("production", "setup_cost", "setup_loss"), (machines, items)),
        **dict.fromkeys(("holding_cost", "lost_cost", "capacity"), (items,)),
        "demand": (items, "K"),
    }
    for name, shape in shapes.items():
        value = getattr(instance, name)
        validation.array(f"instance.{name}", value, shape=shape, kind="real")
        validation.real(f"instance.{name}", value, low=0.0, low_open=name == "capacity")
    if validation.is_traced(instance.demand):
        return
    if np.any(np.abs(np.sum(np.asarray(instance.demand), -1) - 1) > 1e-4):
        raise ValueError(
            "instance.demand must have rows that sum to 1, probabilities of a demand of 0, 1, ..., got "
            f"sums {validation.shown(np.sum(np.asarray(instance.demand), -1))}."
        )
    if not np.all(np.any(np.asarray(instance.production) > 0, axis=1)):
        raise ValueError(
            "instance.production must have a positive entry in every row, got a machine that can make "
            "nothing. Leave it out."
        )
