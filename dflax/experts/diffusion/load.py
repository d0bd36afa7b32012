"""What a router and a rule make of samples: weights, how sure the router is, each expert's load."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.clients import everywhere
from dflax.experts.diffusion.rules import Rule
from dflax.generative.fields import check_field
from dflax.models.diffusion.noised import Noised
from dflax.models.moe.routing import entropy_of

Router = Callable[[Noised, Key[Array, ""]], Float[Array, "B K"]]


class ExpertLoad(NamedTuple):
    """What a router and a rule come to over a batch of samples.

    Attributes:
      entropy: `[]`, the mean over samples of the router's `- sum_k p_k log p_k`, in nats: 0 for one
        without doubts, log K for one that knows nothing, and without a router.
      share: `[K]`, the mean weight of each expert, of sum 1.
      asked: `[K]`, the share of the samples for which each expert is evaluated.
    """

    entropy: Float[Array, ""]
    share: Float[Array, " K"]
    asked: Float[Array, " K"]


def expert_load(
    router: Router | None, rule: Rule, experts: int, noised: Noised, key: Key[Array, ""]
) -> ExpertLoad:
    """How sure a router is, and how the samples of a batch are spread over the experts.

    With the key that the field of `ensemble` is called with, of what that call does.

    Args:
      router: as for `ensemble`.
      rule: as there.
      experts: K.
      noised: the samples.
      key: of router and rule.

    Raises:
      TypeError, ValueError: naming the argument; a router of another number of experts.
    """
    validation.instance("rule", rule, Rule, "For example dflax.experts.top(1).")
    if rule.routed or router is not None:
        check_field("router", router)
    validation.integer("experts", experts, low=1)
    validation.instance("noised", noised, Noised, "Samples with their times.")
    validation.typed_key("key", key)
    weight_key, _ = jax.random.split(key)
    probabilities, w = weighed(router, rule, experts, noised, weight_key)
    return ExpertLoad(entropy_of(probabilities).mean(), w.mean(0), (w > 0).astype(w.dtype).mean(0))


def weighed(
    router: Router | None, rule: Rule, experts: int, noised: Noised, key: Key[Array, ""]
) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
    """The router's probabilities, and the rule's weights."""
    router_key, rule_key = jax.random.split(key)
    count = noised.x.shape[0]
    if not rule.routed or router is None:
        even = jnp.full((count, experts), 1.0 / experts)
        return even, rule.weigh(rule_key, even)
    logits = router(noised, router_key)
    if logits.shape != (count, experts):
        raise ValueError(
            f"router must give logits [{count}, {experts}], one for each sample and expert, got "
            f"{logits.shape}."
        )
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # A few numbers of each sample, which every device then has without asking the others.
    probabilities = jax.nn.softmax(everywhere(wide), axis=1)
    return probabilities, everywhere(rule.weigh(rule_key, probabilities))
