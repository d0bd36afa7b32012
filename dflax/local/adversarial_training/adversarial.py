"""Adversarial training: gradients taken at attacked inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import Metrics, Params
from dflax.clients import against
from dflax.data.dataset import Batch
from dflax.local.adversarial_training.attack import Attack, distances
from dflax.local.oracle import Loss, Oracle, gradient


def adversarial(
    loss: Loss | Oracle,
    attack: Attack,
    *,
    share: float | Array = 1.0,
    at: Params | None = None,
) -> Oracle:
    """The oracle of adversarial training, the outer half of `min_x mean_j max_|delta|<=r loss_j`.

    On one minibatch:

        inputs_j + delta_j = attack(x, batch)_j         the inner maximisation, at the current model x
        q = grad_x mean_j loss(x; inputs_j + delta_j)   with delta held fixed (Danskin)

    Costs P + 1 gradients for an attack of P steps.

    Args:
      loss: a loss, or an `Oracle` to take the gradient from.
      attack: `(params, batch, key) -> batch`, for example `projected_gradient(loss, 0.5, 5)`.
      share: of each minibatch that is attacked, in [0, 1]: the first ceil(share B) examples, whose
        order is random anyway; the others stay clean (mixed training); traceable.
      at: attack this model instead of the current one, for example that of the round's start.

    Returns:
      An `Oracle`. Its metrics are the loss's, at the attacked inputs, and `perturbation`, the largest
      Euclidean distance from an example's inputs to the attacked ones.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, arXiv 1706.06083;
      Zizzo et al., FAT: Federated Adversarial Training, arXiv 2012.01791 (the share).
    """
    oracle = gradient(loss)
    validation.function("attack", attack, "Make one with dflax.local.projected_gradient.")
    validation.real("share", share, low=0.0, high=1.0, scalar=True)

    def evaluate(params: Params, batch: Batch, key: Key[Array, ""]) -> tuple[Params, Metrics]:
        attack_key, oracle_key = jax.random.split(key)
        moved = attack(params if at is None else at, batch, attack_key)
        count = moved.labels.shape[0]
        # 1e-5: a share of 0.3 of 10 examples is 3 of them, whatever its last bit.
        attacked = jnp.arange(count) < jnp.ceil(share * count - 1e-5)
        inputs = jax.tree.map(
            lambda new, old: jnp.where(against(attacked, new), new, old),
            moved.inputs,
            batch.inputs,
        )
        seen, metrics = oracle(params, moved._replace(inputs=inputs), oracle_key)
        return seen, metrics | {"perturbation": distances(inputs, batch.inputs).max()}

    return Oracle(evaluate)
