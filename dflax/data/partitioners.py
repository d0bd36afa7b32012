"""Ways to deal a data set to clients; every example goes to exactly one of them."""

import math

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.data.laws import dirichlet_rows
from dflax.data.partition import Partition, from_indices

# Rejection keeps the law of the draw, but a floor may be too unlikely to wait for.
REDRAWS = 20


def iid(examples: int | Shaped[AnyArray, "N ..."], clients: int, seed: int = 0) -> Partition:
    """Examples dealt at random, N / n to each client, rounded down or up.

    Args:
      examples: N, or the labels `[N]`.
      clients: n in [1, N].
      seed: of the deal.

    Returns:
      The `Partition`.

    Raises:
      ValueError, TypeError: counts that are out of range or no integers.

    Examples:
      >>> import dflax as dx
      >>> dx.data.iid(10, clients=3).sizes.tolist()
      [4, 3, 3]
    """
    count = _examples(examples)
    generator = _start(count, clients, 1, seed)
    owner = np.arange(count) * clients // count
    return _deal(generator.permutation(owner), clients, generator)


def dirichlet(
    labels: Int[AnyArray, " N"], clients: int, alpha: float, seed: int = 0, min_size: int = 1
) -> Partition:
    """Label skew: the shares of the n clients in each class are drawn from Dirichlet(alpha 1_n).

    Client i gets a share q_ci of class c, with (q_c1, ..., q_cn) ~ Dirichlet(alpha, ..., alpha)
    independently for every class. alpha to infinity gives every client the same mix; alpha to 0
    gives every class to one client. If some client ends below `min_size`, shares are drawn again;
    after 20 draws the missing examples are taken at random from the largest clients.

    Args:
      labels: `[N]` class numbers >= 0.
      clients: n >= 1.
      alpha: > 0, finite.
      seed: of the draw.
      min_size: smallest allowed client, >= 1, with n min_size <= N.

    Returns:
      The `Partition`.

    Raises:
      ValueError, TypeError: an argument out of range, or a floor that N examples cannot give.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> labels = np.arange(1000) % 10
      >>> partition = dx.data.dirichlet(labels, clients=8, alpha=0.1, seed=0)
      >>> partition.clients, int(partition.sizes.sum()), bool(partition.sizes.min() >= 1)
      (8, 1000, True)

    References:
      Hsu et al., Measuring the Effects of Non-Identical Data Distribution, arXiv 1909.06335.
      Li et al., Federated Learning on Non-IID Data Silos, arXiv 2102.02079.
    """
    numbers = _labels(labels)
    validation.real("alpha", alpha, low=0.0, low_open=True, scalar=True)
    generator = _start(len(numbers), clients, min_size, seed)
    shuffled = generator.permutation(len(numbers))
    shuffled = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    counts = np.bincount(numbers)
    counts = counts[counts > 0]
    owner = np.empty(len(numbers), np.int64)
    for _ in range(REDRAWS):
        shares = dirichlet_rows(generator, alpha, (len(counts), clients))
        owner[shuffled] = np.concatenate(
            [_apportion(row, count) for row, count in zip(shares, counts, strict=True)]
        )
        if np.bincount(owner, minlength=clients).min() >= min_size:
            break
    return _deal(_raise_floor(owner, clients, min_size, generator), clients, generator)


def quantity_skew(
    examples: int | Shaped[AnyArray, "N ..."],
    clients: int,
    alpha: float,
    seed: int = 0,
    min_size: int = 1,
) -> Partition:
    """Size skew: the clients' shares of all examples are drawn from Dirichlet(alpha 1_n).

    Every client's mix of classes is that of the whole. The floor is held as in `dirichlet`.

    Args:
      examples: N, or the labels `[N]`.
      clients: n >= 1.
      alpha: > 0, finite; small for a few large clients and many small ones.
      seed: of the draw.
      min_size: smallest allowed client, >= 1, with n min_size <= N.

    Returns:
      The `Partition`.

    Raises:
      ValueError, TypeError: an argument out of range, or a floor that N examples cannot give.

    Examples:
      >>> import dflax as dx
      >>> sizes = dx.data.quantity_skew(1000, clients=5, alpha=0.5, seed=0).sizes
      >>> int(sizes.sum()), bool(sizes.max() > 2 * sizes.min())
      (1000, True)

    References:
      Li et al., Federated Learning on Non-IID Data Silos, arXiv 2102.02079.
    """
    return dirichlet(np.zeros(_examples(examples), np.int64), clients, alpha, seed, min_size)


def label_shards(
    labels: Int[AnyArray, " N"], clients: int, shards_per_client: int = 2, seed: int = 0
) -> Partition:
    """The pathological split: examples sorted by label, cut into shards, s shards to each client.

    The n s shards have N / (n s) examples, rounded down or up; if each lies within one class, a
    client sees at most s classes.

    Args:
      labels: `[N]` class numbers >= 0.
      clients: n >= 1.
      shards_per_client: s >= 1, with n s <= N.
      seed: of the order within a class and of the deal of the shards.

    Returns:
      The `Partition`.

    Raises:
      ValueError, TypeError: an argument out of range, or more shards than examples.

    Examples:
      >>> import numpy as np, dflax as dx
      >>> labels = np.arange(100) % 10
      >>> partition = dx.data.label_shards(labels, clients=10, shards_per_client=2)
      >>> counts = dx.data.class_counts(partition, labels)
      >>> int((counts > 0).sum(1).max())  # classes of a client
      2

    References:
      McMahan et al., Communication-Efficient Learning of Deep Networks, arXiv 1602.05629.
    """
    numbers = _labels(labels)
    validation.integer("shards_per_client", shards_per_client, low=1)
    generator = _start(len(numbers), clients, shards_per_client, seed, "shards_per_client")
    shuffled = generator.permutation(len(numbers))
    shuffled = shuffled[np.argsort(numbers[shuffled], kind="stable")]
    shards = clients * shards_per_client
    shard_owner = generator.permutation(np.repeat(np.arange(clients), shards_per_client))
    owner = np.empty(len(numbers), np.int64)
    owner[shuffled] = shard_owner[np.arange(len(numbers)) * shards // len(numbers)]
    return _deal(owner, clients, generator)


def by_group(groups: Shaped[AnyArray, " N"], seed: int = 0) -> Partition:
    """Natural clients: one for each distinct id, in sorted order of the ids.

    Args:
      groups: `[N]` id of the writer, user or device of each example; numbers or strings.
      seed: of the order within a client.

    Returns:
      The `Partition`; client i is `numpy.unique(groups)[i]`.

    Raises:
      ValueError: no examples, ids that are not one list, or NaN or None among them.
      TypeError: numbers and words mixed.

    Examples:
      >>> import dflax as dx
      >>> partition = dx.data.by_group(["ann", "bob", "ann", "cem"])
      >>> partition.clients, partition.sizes.tolist()
      (3, [2, 1, 1])
    """
    ids = np.asarray(groups)
    if ids.ndim != 1 or len(ids) == 0:
        raise ValueError(f"groups must be one id per example, got an array of shape {ids.shape}.")
    # The gaps of a column of words are None, or NaN, which does not equal itself.
    gaps = 0
    if ids.dtype == object:
        gaps = sum(one is None or bool(one != one) for one in ids)
    elif np.issubdtype(ids.dtype, np.floating):
        gaps = int(np.isnan(ids).sum())
    if gaps:
        raise ValueError(
            f"groups must tell the group of every example, got NaN for {gaps} of {len(ids)}. Leave "
            "these examples out, or give them an id of their own."
        )
    try:
        distinct, owner = np.unique(ids, return_inverse=True)
    except TypeError as error:
        raise TypeError(f"groups must be all numbers or all words, got both: {error}.") from error
    return _deal(owner, len(distinct), _start(len(ids), len(distinct), 1, seed))


def train_test_per_client(
    partition: Partition, test_fraction: float, seed: int = 0
) -> tuple[Partition, Partition]:
    """Split every client's examples in two, to judge personal models on the client's own law.

    Client i keeps max(1, round(test_fraction n_i)) of its examples for testing, at most n_i - 1.

    Args:
      partition: n clients with at least 2 examples each.
      test_fraction: in (0, 1).
      seed: of the choice.

    Returns:
      The partition to train on and the one to test on; together they hold what `partition` does.

    Raises:
      ValueError: a fraction out of range, or a client with a single example.
      TypeError: `partition` is no `Partition`.

    Examples:
      >>> import dflax as dx
      >>> train, test = dx.data.train_test_per_client(dx.data.iid(20, clients=2), test_fraction=0.2)
      >>> train.sizes.tolist(), test.sizes.tolist()
      ([8, 8], [2, 2])
    """
    validation.instance("partition", partition, Partition)
    validation.probability("test_fraction", test_fraction, low_open=True, high_open=True)
    validation.seed("seed", seed)
    sizes = np.asarray(partition.sizes)
    if sizes.min() < 2:
        raise ValueError(
            f"partition must give every client at least 2 examples, got {int(sizes.min())} for "
            f"client {int(sizes.argmin())}. Use a partitioner with min_size=2."
        )
    generator = np.random.default_rng(seed)
    held_out = np.clip(np.rint(test_fraction * sizes).astype(np.int64), 1, sizes - 1)
    lists = [generator.permutation(rows) for rows in partition.as_lists()]
    train = [rows[count:] for rows, count in zip(lists, held_out, strict=True)]
    test = [rows[:count] for rows, count in zip(lists, held_out, strict=True)]
    return (
        from_indices(train, seed=_child(generator)),
        from_indices(test, seed=_child(generator)),
    )


def _examples(examples: int | Shaped[AnyArray, "N ..."]) -> int:
    if isinstance(examples, (list, tuple, np.ndarray, jax.Array)) and np.ndim(examples) > 0:
        if len(examples) == 0:
            raise ValueError("examples must be N >= 1 or the labels of N examples, got none.")
        return len(examples)
    validation.integer("examples", examples, low=1, fix="Pass N or the labels.")
    return int(examples)


def _labels(labels: Int[AnyArray, " N"]) -> np.ndarray:
    fix = "Number the classes from 0, for example with numpy.unique(labels, return_inverse=True)."
    return validation.array("labels", labels, kind="integer", shape=("N",), low=0, fix=fix)


def _start(
    count: int, clients: int, min_size: int, seed: int, floor: str = "min_size"
) -> np.random.Generator:
    """The generator of a deal that gives each of the clients at least `min_size` examples."""
    validation.integer("clients", clients, low=1)
    validation.integer(floor, min_size, low=1)
    validation.seed("seed", seed)
    if clients * min_size > count:
        raise ValueError(
            f"clients={clients} with {floor}={min_size} must need at most the {count} examples there "
            f"are, got {clients * min_size}. Use fewer clients or a smaller {floor}."
        )
    return np.random.default_rng(seed)


def _child(generator: np.random.Generator) -> int:
    """A seed for a shuffle that shares no draw with the generator's own stream."""
    return int(generator.integers(2**31))


def _apportion(shares: Float[np.ndarray, " n"], count: int) -> Int[np.ndarray, " count"]:
    """Owners of `count` examples in a row, in proportion to the shares to within one."""
    positions = (np.arange(count) + 0.5) / count
    bounds = np.cumsum(shares)
    return np.searchsorted(bounds[:-1] / bounds[-1], positions, side="right")


def _raise_floor(
    owner: Int[np.ndarray, " N"], clients: int, min_size: int, generator: np.random.Generator
) -> Int[np.ndarray, " N"]:
    """Move as few examples as possible, from the largest clients, until none has under min_size."""
    sizes = np.bincount(owner, minlength=clients)
    missing = np.maximum(min_size - sizes, 0)
    need = int(missing.sum())
    if need == 0:
        return owner
    # The highest water level above which there are enough examples to give away.
    low, high = min_size, int(sizes.max())
    while low < high:
        level = math.ceil((low + high) / 2)
        enough = np.maximum(sizes - level, 0).sum() >= need
        low, high = (level, high) if enough else (low, level - 1)
    given = np.maximum(sizes - low, 0)
    spare = int(given.sum()) - need
    given[np.flatnonzero(given)[:spare]] -= 1
    order = np.lexsort((generator.random(len(owner)), owner))
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    moved = generator.permutation(order[rank < np.repeat(given, sizes)])
    result = owner.copy()
    result[moved] = np.repeat(np.arange(clients), missing)
    return result


def _deal(owner: Int[np.ndarray, " N"], clients: int, generator: np.random.Generator) -> Partition:
    """The partition in which example j belongs to client `owner[j]`."""
    order = np.argsort(owner, kind="stable")
    ends = np.cumsum(np.bincount(owner, minlength=clients))
    return from_indices(np.split(order, ends[:-1]), seed=_child(generator), examples=len(owner))
