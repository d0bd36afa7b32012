"""Every client's gradient at one model, over all of its examples or over a large sample of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from dflax import counter, validation
from dflax.algorithm import Params
from dflax.clients import map_clients
from dflax.data.class_laws import ClassLaws
from dflax.data.dataset import Dataset
from dflax.federation import Federation
from dflax.local.large_batch import LargeBatch, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient


def client_gradients(
    loss: Loss | Oracle,
    federation: Federation,
    params: Params,
    *,
    examples: int | None = None,
    key: Key[Array, ""] | None = None,
    batch_size: int = 500,
    at_once: int | None = None,
) -> PyTree[Array]:
    """The gradients g_i = (1/n_i) sum over client i's examples of grad f(x; example), as one program.

    What variance-reduced and momentum methods start from: `algorithm.init(key, params, gradients)`.
    Examples are read in batches, the last one of a client filled up with masked examples, so clients
    of different sizes get their exact mean, each with as many batches as it needs.

    Args:
      loss: a loss that respects `batch.mask`, as those of `dflax.losses` do; or an `Oracle`.
      federation: whose clients are asked, all n of them; not its participation or weights. Without
        `examples` it must be known when the program is traced: close over it.
      params: the model x at which all gradients are taken.
      examples: draw so many of each client's examples, with replacement, for a large-batch gradient;
        needs `key`. None: all of them, which asks for clients that own examples.
      key: a typed key: of the draw, and of whatever is random in the loss or the data's transform.
        None: nothing is, as in evaluation.
      batch_size: examples at a time, >= 1.
      at_once: see `dflax.map_clients`.

    Returns:
      A tree like `params` with leaves `[n, ...]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    oracle = gradient(loss)
    validation.instance("federation", federation, Federation, "See dflax.Federation.")
    validation.model("params", params)
    validation.integer("batch_size", batch_size, low=1)
    if key is not None:
        validation.typed_key("key", key)
    if examples is None:
        sizes = federation.partition.sizes
        if isinstance(federation.partition, ClassLaws) or validation.is_traced(sizes):
            raise ValueError(
                "examples must be given, how many to draw from each client, where clients own a law "
                "over classes or the federation is traced, got None. Or close over the federation."
            )
        most = int(np.asarray(sizes).max())
    else:
        validation.integer("examples", examples, low=1, fix="Or None for all of them.")
        if key is None:
            raise ValueError("key must be given with examples, to draw them, got None.")
        most = examples
    width = min(batch_size, most)
    steps = -(-most // width)

    def one(
        batch: LargeBatch, number: Array, params: Params, data: Dataset, key: Array | None
    ) -> Params:
        own_key = None if key is None else jax.random.fold_in(key, number)
        return large_gradient(oracle, params, batch, data, own_key)

    @jax.jit
    def everyone(federation: Federation, params: Params, key: Array | None) -> Params:
        clients = jnp.arange(federation.clients, dtype=jnp.int32)
        # Without replacement the first n_i places of a client's stream are its examples, once each.
        draw_key, own_key = (None, None) if key is None else jax.random.split(key)
        seed = counter.seed_of(jax.random.key(0) if draw_key is None else draw_key)
        minibatches = federation.partition.minibatches(
            seed, clients, jnp.int32(0), steps, width, examples is not None
        )
        if examples is None:
            owned = federation.partition.sizes
        else:
            owned = jnp.full(clients.shape, examples, jnp.int32)
        shared = (params, federation.data, own_key)
        batches = LargeBatch(minibatches, owned)
        return map_clients(one, batches, clients, shared=shared, at_once=at_once)

    return everyone(federation, params, key)
