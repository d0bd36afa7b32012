"""Methods of the literature in a few lines each, made of public names: to use and to start from."""

from dflax.recipes.anarchic import afa
from dflax.recipes.diloco import diloco
from dflax.recipes.ditto import Personal, ditto
from dflax.recipes.dp_fedavg import dp_fedavg
from dflax.recipes.dp_ftrl import dp_ftrl
from dflax.recipes.exact_diffusion import exact_diffusion
from dflax.recipes.fedbuff import fedbuff
from dflax.recipes.fedexp import fedexp
from dflax.recipes.k_gt import k_gt
from dflax.recipes.learn import learn
from dflax.recipes.monna import monna
from dflax.recipes.private_baselines import (
    distributed_dp,
    dp_fedsgd,
    dp_median,
    dp_momentum,
    local_dp_momentum,
)
from dflax.recipes.scaffnew import scaffnew

__all__ = [
    "Personal",
    "afa",
    "diloco",
    "distributed_dp",
    "ditto",
    "dp_fedavg",
    "dp_fedsgd",
    "dp_ftrl",
    "dp_median",
    "dp_momentum",
    "exact_diffusion",
    "fedbuff",
    "fedexp",
    "k_gt",
    "learn",
    "local_dp_momentum",
    "monna",
    "scaffnew",
]


def __dir__() -> list[str]:
    return __all__
