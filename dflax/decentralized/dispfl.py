"""DisPFL: personalised sparse models, averaged where they overlap and trained sparse to sparse."""

import enum

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from dflax import validation
from dflax.aggregation.by_leaf import Weighted
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.data.dataset import Batch, Dataset
from dflax.decentralized.framework.protocol import Client, combine_then_adapt
from dflax.gossip.by_leaf import weighted_by_leaf
from dflax.gossip.mixer import PLAIN_AND_AFRESH, Mixer, require_any_tree
from dflax.local.masks import Masks, active_entries, masked, prune_and_grow, random_masks
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.solver import Optimizer, check_optimizer, solver
from dflax.local.subproblem import Subproblem
from dflax.population import Assignment


class Grow(enum.Enum):
    """Which inactive entries become active.

    Attributes:
      GRADIENT: those of the largest gradient on one minibatch, one gradient more a round.
      RANDOM: any.
    """

    GRADIENT = "gradient"
    RANDOM = "random"


def dispfl(
    loss: Loss | Oracle,
    optimizer: Optimizer,
    mixer: Mixer,
    *,
    rounds: int,
    density: float = 0.5,
    anneal: float = 0.5,
    grow: Grow = Grow.GRADIENT,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """DisPFL: every client trains a sparse model of its own on a mask of its own.

    A round t, m_i the client's mask, 0 / 0 read as x_i:

        x_i = m_i * (sum_j W_ij x_j) / (sum_j W_ij m_j)         the mean over those who have the entry
        x_i = K steps of `optimizer` on f_i, gradients masked by m_i
        in each leaf the share a_t of least |x_i| among the active entries is pruned, and as many that
        were inactive before grow from 0;    a_t = (anneal / 2) (1 + cos(pi t / T))

    Masks start at random, each client's its own, with the leaf densities of the Erdős–Rényi-kernel
    rule; the number of active entries of a leaf never changes. With density 1 it is DFedAvg in the
    order combine-then-adapt.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      optimizer: every client's optax optimiser, fresh in every round; or a function of the round's
        number. It must leave entries at 0 whose gradient is 0, as SGD, momentum and Adam do.
      mixer: the gossip, see `dflax.gossip`; published with uniform weights over the neighbours. It
        mixes sums whose ratio is the model: no `variance_corrected`.
      rounds: T >= 1, after which masks no longer move.
      density: share of active entries in the whole model, in (0, 1]; static.
      anneal: share of the active entries that moves in round 0, in [0, 1]; traceable.
      grow: see `Grow`.
      channel: what happens to models and masks on the way; see `adapt_then_combine`.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` on a `FederatedState`; models are `state.clients.params`, from a client's first
      round on zero outside its mask, and masks `state.clients.memory`. Its `init` is that of
      `dfedavg`. Metrics: the loss's own; `active`, the share of active entries; `moved`,
      the share of them that is new;
      `clients_active`, and the mixer's; `models_sent` counts the active entries of a model, and a bit
      for every entry of its mask.

    Raises:
      TypeError, ValueError: naming the argument; a mixer of whole models alone (`gossip.recalibrated`).

    References:
      Dai et al., DisPFL: Towards Communication-Efficient Personalized Federated Learning via
      Decentralized Sparse Training, arXiv 2206.00187.
    """
    require_any_tree(mixer, "DisPFL", "masks", PLAIN_AND_AFRESH)
    check_optimizer("optimizer", optimizer)
    validation.integer("rounds", rounds, low=1)
    validation.real("density", density, low=0.0, high=1.0, low_open=True, scalar=True)
    validation.real("anneal", anneal, low=0.0, high=1.0, scalar=True)
    validation.instance("grow", grow, Grow, "Grow.GRADIENT or Grow.RANDOM.")
    oracle = gradient(loss)

    def entries(params: Params) -> PyTree[int]:
        return active_entries(params, density)

    def start(key: Key[Array, ""], models: Params) -> Masks:
        counts = entries(jax.tree.map(lambda leaf: leaf[0], models))
        keys = jax.random.split(key, mixer.clients)
        return jax.vmap(lambda own, model: random_masks(own, model, counts))(keys, models)

    def sparse(own: Client, index: Array) -> Weighted:
        model = masked(own.params, own.memory)
        held = jax.tree.map(lambda mask, x: mask.astype(x.dtype), own.memory, model)
        return Weighted(model, held)

    def local_work(
        assignment: Assignment,
        own: Client,
        heard: Weighted,
        data: Dataset,
        index: Array,
    ) -> tuple[Client, Metrics]:
        masks = own.memory
        model = masked(heard.value, masks)

        def on_mask(params: Params, batch: Batch, key: Array) -> tuple[Params, Metrics]:
            seen, metrics = oracle(params, batch, key)
            return masked(seen, masks), metrics

        solve = solver(Oracle(on_mask), optimizer)
        solution = solve(Subproblem(), model, assignment, data, index=index)
        # Numbers up to K belong to the local steps.
        last = jax.random.fold_in(assignment.key, assignment.minibatches.shape[0])
        fetch_key, grow_key = jax.random.split(last)
        if grow is Grow.GRADIENT:
            batch = data.fetch(assignment.minibatches[0], fetch_key)
            seen, _ = oracle(solution.params, batch, grow_key)
            wish = jax.tree.map(jnp.abs, seen)
        else:
            wish = _uniform_like(grow_key, model)
        progress = jnp.minimum(index / rounds, 1.0)
        share = 0.5 * anneal * (1.0 + jnp.cos(jnp.pi * progress))
        moved = prune_and_grow(solution.params, masks, wish, share, entries(model))
        measured = {
            "active": _share(moved, moved),
            "moved": _share(jax.tree.map(lambda new, old: new & ~old, moved, masks), moved)
            / _share(moved, moved),
        }
        return Client(masked(solution.params, moved), moved), solution.metrics | measured

    def sent(message: Weighted, model: Params) -> float:
        counts, leaves = entries(model), jax.tree.leaves(model)
        active, every = sum(jax.tree.leaves(counts)), sum(leaf.size for leaf in leaves)
        # Who has every entry sends no mask.
        bits = sum(8 * leaf.size * leaf.dtype.itemsize for leaf in leaves)
        return active / every + (every / bits if active < every else 0.0)

    return combine_then_adapt(
        local_work,
        weighted_by_leaf(mixer),
        start=start,
        message=sparse,
        size=sent,
        channel=channel,
        at_once=at_once,
    )


def _share(chosen: Masks, masks: Masks) -> Float[Array, ""]:
    """The number of chosen entries as a share of all entries of the model."""
    size = sum(leaf.size for leaf in jax.tree.leaves(masks))
    counts = [jnp.sum(leaf, dtype=jnp.float32) for leaf in jax.tree.leaves(chosen)]
    return jnp.sum(jnp.stack(counts)) / size


def _uniform_like(key: Key[Array, ""], tree: Params) -> PyTree[Array]:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = [jax.random.uniform(own, leaf.shape) for own, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)
