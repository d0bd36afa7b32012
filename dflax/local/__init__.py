"""What a client does between two communications."""

from dflax.local.oracle import Loss, Oracle, gradient
from dflax.local.sam import perturbed, sam
from dflax.local.solver import Optimizer, Solution, check_optimizer, optimizer_at, solver
from dflax.local.subproblem import Subproblem
