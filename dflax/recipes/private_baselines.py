"""What DP-BREM is compared with: private and robust methods made of the same parts."""

from jaxtyping import Array

from dflax import aggregation
from dflax.algorithm import Algorithm
from dflax.local import Loss, Oracle
from dflax.privacy import clipped_per_example, noisy, noisy_gradient
from dflax.server import client_momentum
