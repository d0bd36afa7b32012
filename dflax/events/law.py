"""What random events were drawn by, kept with them so that no method takes those of another graph."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np

from dflax import validation
from dflax.topology.gossip_rates import GossipRates


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class Law:
    """What events were drawn by: a static part of their tables, so that a method knows its own.

    Two are equal when their graphs, rates and dwelling times are, number by number.

    Attributes:
      rates: of the links.
      gradient_rate: gradients per node and unit of time.
    """

    rates: GossipRates
    gradient_rate: float

    def __post_init__(self) -> None:
        fix = "Make them for example with dflax.topology.uniform_rates."
        validation.instance("rates", self.rates, GossipRates, fix)
        validation.real("gradient_rate", self.gradient_rate, low=0.0, scalar=True)

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the links, their rates, the dwelling time and the gradients' rate."""
        found = hashlib.sha256(
            repr((self.rates.nodes, self.rates.dwell, self.gradient_rate)).encode()
        )
        for graph, each in zip(self.rates.graphs, self.rates.rates, strict=True):
            found.update(repr(graph.links.shape).encode())
            found.update(np.ascontiguousarray(graph.links, np.int64).tobytes())
            found.update(np.ascontiguousarray(each, np.float64).tobytes())
        return found.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Law) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Law({self.described}, digest={self.digest[:16]})"

    @property
    def described(self) -> str:
        """In words, for messages."""
        names = " and ".join(dict.fromkeys(graph.name for graph in self.rates.graphs))
        return (
            f"{names} with {self.rates.nodes} nodes, {self.rates.total:.6g} communications and "
            f"{self.gradient_rate:g} gradients a node per unit of time"
        )


def require_drawn_by(law: Law, rates: GossipRates, gradient_rate: float, fix: str) -> None:
    """Refuse events that were drawn on another graph, or at other rates, than a method is made for.

    Rates may differ by rounding, as two computations of them do.

    Raises:
      ValueError: saying what the events were drawn by, and what the method is made for.
    """
    if law.gradient_rate == gradient_rate and _alike(law.rates, rates):
        return
    raise ValueError(
        f"events must be drawn by the rates of the method, {Law(rates, gradient_rate).described}, got "
        f"events of {law.described}: links, rates or dwelling times differ. {fix}"
    )


def _alike(one: GossipRates, other: GossipRates) -> bool:
    if (one.nodes, len(one.graphs)) != (other.nodes, len(other.graphs)):
        return False
    links = all(
        np.array_equal(a.links, b.links) for a, b in zip(one.graphs, other.graphs, strict=True)
    )
    if not links or (len(one.graphs) > 1 and not np.isclose(one.dwell, other.dwell, rtol=1e-6)):
        return False
    return all(
        np.allclose(a, b, rtol=1e-6, atol=1e-9 * np.max(b, initial=0.0))
        for a, b in zip(one.rates, other.rates, strict=True)
    )
