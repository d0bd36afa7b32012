"""What a client does between two communications."""

from dflax.local.adversarial_training.adversarial import adversarial
from dflax.local.adversarial_training.attack import (
    Attack,
    Norm,
    distances,
    fast_gradient_sign,
    projected_gradient,
)
from dflax.local.adversarial_training.trades import trades
from dflax.local.change_on import change_on
from dflax.local.client_gradients import client_gradients
from dflax.local.clipping import clipped
from dflax.local.consensus import Minimised, Nearby, Splitting
from dflax.local.convex.proximal import (
    group_threshold,
    on_magnitude,
    onto_ball,
    onto_box,
    onto_simplex,
    soft_threshold,
)
from dflax.local.convex.quadratic import (
    Quadratic,
    proximal_points,
    quadratic_federation,
    quadratic_objectives,
)
from dflax.local.large_batch import LargeBatch, large_batches, large_gradient
from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.per_example import per_example
from dflax.local.polyak import polyak
from dflax.local.pruning import el2n
from dflax.local.recursive import Estimate, recursive
from dflax.local.sam import perturbed, sam
from dflax.local.solver import (
    Optimizer,
    Solution,
    check_no_value,
    check_optimizer,
    check_pull,
    optimizer_at,
    solver,
)
from dflax.local.subproblem import Subproblem
from dflax.local.travel import travel

__all__ = [
    "Attack",
    "Estimate",
    "LargeBatch",
    "Loss",
    "Minimised",
    "Nearby",
    "Norm",
    "Optimizer",
    "Oracle",
    "Quadratic",
    "Solution",
    "Splitting",
    "Subproblem",
    "adversarial",
    "change_on",
    "check_no_value",
    "check_optimizer",
    "check_pull",
    "client_gradients",
    "clipped",
    "distances",
    "el2n",
    "fast_gradient_sign",
    "gradient",
    "group_threshold",
    "large_batches",
    "large_gradient",
    "on_magnitude",
    "onto_ball",
    "onto_box",
    "onto_simplex",
    "optimizer_at",
    "per_example",
    "perturbed",
    "polyak",
    "projected_gradient",
    "proximal_points",
    "quadratic_federation",
    "quadratic_objectives",
    "recursive",
    "sam",
    "soft_threshold",
    "solver",
    "trades",
    "travel",
]


def __dir__() -> list[str]:
    return __all__
