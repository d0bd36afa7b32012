"""What is fine-tuned over the air: a network with adapters, or a closed form that stands for one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dflax import validation
from dflax.algorithm import Params
from dflax.data.dataset import AnyArray, Batch
from dflax.local.oracle import Loss
from dflax.models.split.lora import apply_lora, orthogonality, rank_mask, svd_lora
from dflax.models.split.low_rank import Singular, is_adapter
from dflax.parts import Chooser, name_of


class AdapterTask(NamedTuple):
    """A task whose P adapted matrices have ranks that a policy chooses step by step.

    Attributes:
      start: `(key, params) -> state`; `params` are the frozen model's, () for a task without one.
      step: `(state, params, ranks [P], batch, key) -> (state, loss [])`: one step of training, and
        the loss before it. `batch` is None in rounds without data.
      described: `batch -> [2]`: what the policy sees of a minibatch, such as `token_statistics`.
      model: `(state, params, ranks [P]) -> ` the tuned model's parameters, to be evaluated.
      importance: `state -> [P, R]`, how much each component matters, >= 0.
      sizes: `[P]` int32, parameters that one unit of rank has in each matrix.
      rank: R, the largest rank; static.
      needs_data: whether `batch` is read; static.
    """

    start: Callable[[Key[Array, ""], Params], Any]
    step: Callable[..., tuple[Any, Float[Array, ""]]]
    described: Callable[[Any], Float[Array, "2"]]
    model: Callable[[Any, Params, Int[Array, " P"]], Params]
    importance: Callable[[Any], Float[Array, "P R"]]
    sizes: Int[np.ndarray, " P"]
    rank: int
    needs_data: bool


class Tuned(NamedTuple):
    """What fine-tuning trains and remembers.

    Attributes:
      adapter: a tree of `dflax.models.Singular`.
      head: leaves of the model that are trained whole.
      optimizer: state of the optimiser of both.
      importance: `[P, R]`, a moving mean of `|E gradient of E|`.
    """

    adapter: PyTree[Singular]
    head: dict[str, Array]
    optimizer: PyTree[Array]
    importance: Float[Array, "P R"]


def separable(
    weights: Float[AnyArray, " P"],
    decays: Float[AnyArray, " P"],
    sizes: Int[AnyArray, " P"],
    rank: int,
) -> AdapterTask:
    """A loss in closed form that falls with every rank, for studies of the policy alone.

        f(r) = sum_p c_p exp(-r_p / k_p)

    Nothing is learned, so that the best ranks of every budget are known.

    Args:
      weights: c, `[P]`, each >= 0.
      decays: k, `[P]` in ranks, each > 0.
      sizes: `[P]`, parameters of one unit of rank, each >= 1.
      rank: R >= 1.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    shape = validation.array("weights", weights, kind="real", shape=("P",), low=0.0).shape
    validation.array("decays", decays, kind="real", shape=shape)
    validation.real("decays", decays, low=0.0, low_open=True)
    known = np.asarray(validation.array("sizes", sizes, kind="integer", shape=shape, low=1))
    validation.integer("rank", rank, low=1)
    c, k = jnp.asarray(weights, float), jnp.asarray(decays, float)

    def step(
        state: tuple[()], params: Params, ranks: Array, batch: Any, key: Any
    ) -> tuple[tuple[()], Array]:
        return (), jnp.sum(c * jnp.exp(-ranks / k))

    def importance(state: tuple[()]) -> Array:
        places = jnp.arange(rank)
        return c[:, None] * (jnp.exp(-places / k[:, None]) - jnp.exp(-(places + 1) / k[:, None]))

    return AdapterTask(
        start=lambda key, params: (),
        step=step,
        described=lambda batch: jnp.zeros(2),
        model=lambda state, params, ranks: (),
        importance=importance,
        sizes=known.astype(np.int32),
        rank=rank,
        needs_data=False,
    )


def adapter_tuning(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    params: Params,
    rank: int,
    *,
    where: Chooser,
    head: Chooser | None = None,
    alpha: float | Float[Array, ""] = 32.0,
    orthogonal: float | Float[Array, ""] = 0.01,
    described: Callable[[Batch], Float[Array, "2"]] | None = None,
    smoothing: float | Float[Array, ""] = 0.85,
) -> AdapterTask:
    """A network whose adapters of singular values, and whose head, are trained a step at a time.

        W = W_0 + (alpha / R) P diag(E mask(r)) Q
        a step on   loss + w_o mean_p (|P_r^T P_r - I|_F^2 + |Q_r Q_r^T - I|_F^2)

    The mask keeps the first r components. The scale is that of the largest rank, whatever r is.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)` of the whole model, such as
        `dflax.losses.classification(model)`.
      optimizer: of adapters and head; for example `optax.chain(optax.clip_by_global_norm(1.0),
        optax.adamw(5e-5, weight_decay=1e-5))`.
      params: the frozen model's parameters, or their shapes; the values are those that
        `Algorithm.init` gets.
      rank: R >= 1, at most the smaller side of each matrix.
      where: whether a matrix is adapted, by its path, names joined by "/".
      head: whether a leaf is trained whole, by its path; none of those that are adapted. None for none.
      alpha: of the scale; traceable.
      orthogonal: w_o >= 0; traceable.
      described: what the policy sees of a minibatch, `batch -> [2]`; default zeros.
      smoothing: of the importance, in [0, 1); traceable.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Zhang et al., AdaLoRA, arXiv 2303.10512; Yang et al., AirLLM, arXiv 2507.11515.
    """
    validation.function("loss", loss, "For example dflax.losses.classification(model).", takes=3)
    validation.instance("optimizer", optimizer, optax.GradientTransformation, "An optax one.")
    validation.model("params", params)
    validation.real("alpha", alpha, scalar=True)
    validation.real("orthogonal", orthogonal, low=0.0, scalar=True)
    validation.probability("smoothing", smoothing, high_open=True)
    if head is not None:
        validation.function("head", head, "It says of a path whether it is trained.", takes=1)
    if described is not None:
        validation.function("described", described, "It gets a Batch.", takes=1)
    shapes = jax.eval_shape(lambda key, tree: svd_lora(key, tree, rank, where), _key(), params)
    adapters = jax.tree.leaves(shapes, is_leaf=is_adapter)
    sizes = [own.left.shape[0] + own.right.shape[1] + 1 for own in adapters]
    chosen = _chosen_head(params, where, head)

    def joined(tuned: Any, params: Params, ranks: Array) -> Params:
        adapter, trained = tuned
        kept = jax.tree.map(jnp.multiply, adapter, rank_mask(adapter, ranks))
        whole = jax.tree_util.tree_map_with_path(
            lambda path, leaf: trained.get(name_of(path), leaf), params
        )
        return apply_lora(whole, kept, scale=alpha / rank)

    def start(key: Key[Array, ""], params: Params) -> Tuned:
        leaves = {name_of(p): v for p, v in jax.tree_util.tree_leaves_with_path(params)}
        adapter, own = svd_lora(key, params, rank, where), {name: leaves[name] for name in chosen}
        begun = optimizer.init((adapter, own))
        return Tuned(adapter, own, begun, jnp.zeros((len(sizes), rank)))

    def step(
        state: Tuned, params: Params, ranks: Array, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Tuned, Array]:
        def objective(tuned: Any) -> tuple[Array, Array]:
            value, _ = loss(joined(tuned, params, ranks), batch, key)
            return value + orthogonal * orthogonality(tuned[0], ranks), value

        before = (state.adapter, state.head)
        slope, value = jax.grad(objective, has_aux=True)(before)
        changes, memory = optimizer.update(slope, state.optimizer, before)
        adapter, own = optax.apply_updates(before, changes)
        felt = jnp.abs(_values(state.adapter) * _values(slope[0]))
        smoothed = smoothing * state.importance + (1.0 - smoothing) * felt
        return Tuned(adapter, own, memory, smoothed), value

    return AdapterTask(
        start=start,
        step=step,
        described=(lambda batch: jnp.zeros(2)) if described is None else described,
        model=lambda state, params, ranks: joined((state.adapter, state.head), params, ranks),
        importance=lambda state: state.importance,
        sizes=np.asarray(sizes, np.int32),
        rank=rank,
        needs_data=True,
    )


def token_statistics(
    tokens: Int[AnyArray, "..."],
    vocabulary: int,
    *,
    padding: int | None = None,
    unknown: int | None = None,
) -> Float[Array, "2"]:
    """What a policy sees of a minibatch of language: the tokens' entropy, and how many are unknown.

        entropy = - sum_v f_v log2 f_v / log2(number of distinct tokens),   f the frequencies

    Args:
      tokens: numbers in [0, V), of any shape.
      vocabulary: V >= 1.
      padding: the token that is not counted; None for none.
      unknown: the token that stands for words out of the vocabulary; None where there is none.

    Returns:
      `[2]`, both in [0, 1]; the entropy of one distinct token is 0.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("vocabulary", vocabulary, low=1)
    validation.array("tokens", tokens, kind="integer", low=0, high=vocabulary - 1)
    if not np.size(tokens):
        raise ValueError("tokens must be at least one, got none.")
    flat = jnp.asarray(tokens).reshape(-1)
    counted = jnp.ones(flat.shape)
    for name, token in (("padding", padding), ("unknown", unknown)):
        if token is not None:
            validation.integer(name, token, low=0, high=vocabulary - 1)
    if padding is not None:
        counted = jnp.where(flat == padding, 0.0, counted)
    counts = jax.ops.segment_sum(counted, flat, vocabulary)
    total = jnp.maximum(jnp.sum(counts), 1.0)
    distinct = jnp.sum(counts > 0)
    entropy = -jnp.sum(jax.scipy.special.xlogy(counts / total, counts / total))
    entropy = entropy / jnp.log(jnp.maximum(distinct, 2).astype(entropy.dtype))
    missing = jnp.zeros(()) if unknown is None else counts[unknown] / total
    return jnp.stack([entropy, missing])


def check_task(task: Any) -> None:
    """Refuse what is no `AdapterTask`."""
    validation.instance("task", task, AdapterTask, "Make one with dflax.rl.adapter_tuning.")


def _key() -> Key[Array, ""]:
    return jax.random.key(0)


def _values(adapter: PyTree[Singular]) -> Float[Array, "P R"]:
    return jnp.stack([own.values for own in jax.tree.leaves(adapter, is_leaf=is_adapter)])


def _chosen_head(params: Params, where: Chooser, head: Chooser | None) -> list[str]:
    """Paths of the leaves that are trained whole."""
    names = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    chosen = [] if head is None else [name for name in names if head(name)]
    both = [name for name in chosen if where(name)]
    if both:
        raise ValueError(
            f"head must choose no leaf that is adapted, got {both[0]!r} from both head and where."
        )
    return chosen
