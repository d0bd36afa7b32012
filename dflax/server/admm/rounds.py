"""What server and clients do in a round of consensus ADMM."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from dflax import returned, validation
from dflax.algorithm import Metrics, Params
from dflax.clients import replicate, select
from dflax.data.dataset import Dataset
from dflax.local.consensus import Minimise, Nearby, Splitting, identity, minimised
from dflax.models.averaged import of_weights
from dflax.population import Assignment
from dflax.server.admm.residuals import Residuals
from dflax.server.framework.protocol import Arrived, Heard, Received, Report, Server
from dflax.server.framework.rates import Rate, rate_at


class Coordinator(NamedTuple):
    """What the server remembers beside z.

    Attributes:
      mean: the mean over all n of their last messages, where it is kept; () otherwise.
      started: `[]` whether a round has been combined.
      penalty: `[]` rho, where it adapts; () where it is fixed.
      done: `[]` whether the run has stopped, where it may; () otherwise.
    """

    mean: PyTree[Array]
    started: Bool[Array, ""]
    penalty: Float[Array, ""] | tuple[()]
    done: Bool[Array, ""] | tuple[()]


Combine = Callable[[PyTree[Array], Float[Array, ""], Key[Array, ""]], PyTree[Array]]


Combine = Callable[[PyTree[Array], Float[Array, ""], Key[Array, ""]], PyTree[Array]]
Adapt = Callable[[Array, Residuals], Array]


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What a method states, as the arguments of `dflax.server.consensus`, and what follows."""

    minimise: Minimise
    penalty: float
    clients: int | None
    start: Callable[..., tuple[Params, Any]] | None
    view: Callable[[Params], PyTree[Array]]
    combine: Combine | None
    ascends_first: bool
    mirrored: bool
    remember: bool
    rate: Rate | None
    adapts: bool
    stops: bool
    proximal_start: bool
    listens: bool

    def begin(self, key: Key[Array, ""], z: Params, *given: Any) -> tuple[Coordinator, Splitting]:
        """All that is remembered before the first round."""
        x, memory = (
            (replicate(z, int(self.clients or 0)), ())
            if self.start is None
            else self.start(z, *given)
        )
        n = validation.leading_axis("the variables that start gives", x, self.clients)
        # Duals are sums over many rounds: float32 also for models in half precision.
        duals = jax.tree.map(
            lambda leaf: jnp.zeros((n, *leaf.shape), jnp.promote_types(leaf.dtype, jnp.float32)), z
        )
        rho = jnp.asarray(self.penalty, jnp.result_type(float)) if self.adapts else ()
        done = jnp.bool_(False) if self.stops else ()
        coordinator = Coordinator(self.kept(z), jnp.bool_(False), rho, done)
        return coordinator, Splitting(x, duals, replicate(rho, n), memory)

    def publish(self, server: Server) -> tuple[PyTree[Array], Bool[Array, ""]]:
        """Sends z down, unless it is z_0 and all know it."""
        return server.params, server.memory.started | (not self.proximal_start)

    def heard(self, seen: Any) -> Heard:
        """What a client has of z: its own copy where there is a downlink, the server's otherwise."""
        return seen if self.listens else Heard(*self.publish(seen))

    def known(self, own: Splitting) -> Any:
        """A client's rho."""
        return own.penalty if self.adapts else self.penalty

    def kept(self, mean: PyTree[Array]) -> PyTree[Array]:
        """The mean of the last messages of all, where z is not that mean itself."""
        return mean if self.remember and self.combine is not None else ()

    def risen(self, own: Splitting, seen: PyTree[Array], z: PyTree[Array]) -> PyTree[Array]:
        """lambda_i + rho (E x_i - z), of weights."""
        apart = of_weights(jax.tree.map(jnp.subtract, seen, z))
        return jax.tree.map(lambda y, d: (y + self.known(own) * d).astype(y.dtype), own.dual, apart)

    def with_dual(self, seen: PyTree[Array], own: Splitting) -> PyTree[Array]:
        """E x_i + lambda_i / rho."""
        return jax.tree.map(lambda x, y: x + (y / self.known(own)).astype(x.dtype), seen, own.dual)

    def work(
        self, assignment: Assignment, own: Splitting, seen: Any, data: Dataset, index: Array
    ) -> Report:
        """One client's minimisation, and its message."""
        z, arrived = self.heard(seen)
        rho = self.known(own)
        center = jax.tree.map(lambda z, y: (z - y / rho).astype(z.dtype), z, own.dual)
        nearby = Nearby(center, rho, z)
        after, metrics = minimised(self.minimise, assignment, own, nearby, data, index)
        if self.ascends_first:
            after = after._replace(dual=self.risen(own, self.view(after.params), z))
        if self.proximal_start or self.listens:
            after = select(arrived, after, own)
        message = self.view(after.params)
        if not self.mirrored:
            message = self.with_dual(message, after)
        if self.remember:
            before = self.with_dual(self.view(own.params), own)
            message = jax.tree.map(jnp.subtract, message, before)
        return Report(message, after, metrics)

    def read(self, own: Splitting, arrived: Arrived) -> PyTree[Array]:
        """The message with the dual that the server mirrors."""
        return self.with_dual(arrived.message, own)

    def update(self, server: Server, received: Received) -> tuple[Params, Coordinator, Metrics]:
        """The new z."""
        z, memory, mean = server.params, server.memory, received.message
        if self.remember:
            share = received.share if self.rate is None else rate_at(self.rate, received.number)
            before = z if self.combine is None else memory.mean
            mean = jax.tree.map(lambda m, d: m + jnp.asarray(share, m.dtype) * d, before, mean)
        made = mean
        if self.combine is not None:
            rho = memory.penalty if self.adapts else self.penalty
            total = jnp.asarray(rho) * received.reporting / received.share
            made = self.combine(mean, total, received.key)
            returned.alike("what combine returns", made, z, "the shared point", dtypes=False)
        made = jax.tree.map(lambda new, old: new.astype(old.dtype), made, z)
        return made, memory._replace(mean=self.kept(mean), started=jnp.bool_(True)), {}

    def ascend(self, own: Splitting, arrived: Arrived, seen: Any, index: Array) -> Splitting:
        """The dual after the new z, as the client hears of it."""
        z, heard = seen if self.listens else (seen.params, jnp.bool_(True))
        shared = arrived.message if self.mirrored else self.view(own.params)
        after = own._replace(dual=self.risen(own, shared, z))
        if self.mirrored and self.view is identity:
            after = after._replace(params=shared)
        return select(heard, after, own) if self.listens else after
