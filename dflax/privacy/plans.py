"""What a run releases: for the accountant, and refused where no accountant covers it."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dflax import validation
from dflax.federation import Federation
from dflax.participation import rule_of
from dflax.population import Population
from dflax.privacy.correlated_noise import CorrelatedNoise
from dflax.privacy.extra import imported
from dflax.privacy.poisson import PoissonSampled

Sampling = Literal["poisson", "fixed", "none", "tree", "matrix"]
OTHER_SAMPLING = (
    "Sample by dflax.participation.bernoulli(q) or uniform(m), let everyone take part, or say "
    "amplified=False, which charges every client in every round, as holds for any cohort that is "
    "drawn without looking at data."
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A planned run as a sequence of private releases; made by `examples_plan` and its siblings.

    Attributes:
      unit: "example" or "client": what is added or removed between two neighbouring data sets. With
        sampling "fixed" one is replaced by another.
      noise_multiplier: z, standard deviation of the noise over the sensitivity; None where it is
        still to be found by `noise_for`.
      rounds: T.
      releases: per round, local steps of DP-SGD for example.
      sampling: how units come into a release: "poisson" each by its own chance, "fixed" as many as
        ever, "none"; "tree" and "matrix" are correlated noise.
      probability: of being in a release, 1 without sampling.
      population: how many units there are.
      failure: at most the probability, per round, that the mechanism does something else than the
        accountant knows of, such as dropping examples for want of a place; it goes into delta.
      steps: of one tree, or of the matrix.
    """

    unit: Literal["example", "client"]
    noise_multiplier: float | None
    rounds: int
    releases: int = 1
    sampling: Sampling = "none"
    probability: float = 1.0
    population: int = 1
    failure: float = 0.0
    steps: int = 0

    def event(self) -> Any:
        """The run as an event of `dp_accounting`."""
        accounting: Any = imported("dp_accounting")
        assert self.noise_multiplier is not None, "checked by whoever asks"
        noise = accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sampling == "matrix":
            return noise
        if self.sampling == "tree":
            whole, left = divmod(self.rounds, self.steps)
            tree = accounting.SingleEpochTreeAggregationDpEvent
            events = [
                accounting.SelfComposedDpEvent(tree(self.noise_multiplier, self.steps), whole)
            ] * (whole > 0)
            events += [tree(self.noise_multiplier, left)] * (left > 0)
            return accounting.ComposedDpEvent(events)
        if self.sampling == "fixed":
            size = round(self.probability * self.population)
            # Another client in the place of one moves the sum by twice as much.
            half = accounting.GaussianDpEvent(self.noise_multiplier / 2)
            noise = accounting.SampledWithoutReplacementDpEvent(self.population, size, half)
        elif self.probability < 1:
            noise = accounting.PoissonSampledDpEvent(self.probability, noise)
        return accounting.SelfComposedDpEvent(noise, self.rounds * self.releases)


def examples_plan(
    federation: Federation, noise_multiplier: float | None, rounds: int, *, amplified: bool = True
) -> Plan:
    """DP-SGD on clients' examples: Poisson minibatches, clipped gradients, noise in every local step.

    The unit is one example, added or removed. z is the deviation of the noise over the sensitivity R /
    b, both of the same gradient. What a client sends is made of its noisy steps, and clients' examples
    are disjoint, so the epsilon is that of the client whose examples are sampled most. That a client
    sits rounds out is not counted in its favour.

    Args:
      federation: whose partition is `poisson_sampled`; or any, with `amplified=False`.
      noise_multiplier: z >= 0; None where `noise_for` is to find it.
      rounds: T >= 1.
      amplified: whether sampling counts. False charges every example in every local step. It holds for
        epochs as well, whose minibatches depend on the number of examples: there the neighbour has one
        whose gradient is 0 in the place of the example.

    Returns:
      A `Plan`.

    Raises:
      TypeError, ValueError: naming the argument; minibatches whose law no accountant covers.
    """
    fix = "The unit is an example, which a federation has."
    validation.instance("federation", federation, Federation, fix)
    _check(noise_multiplier, rounds)
    validation.flag("amplified", amplified)
    partition, steps = federation.partition, federation.local_steps
    sizes = np.asarray(partition.sizes)
    total = int(sizes.sum())
    poisson = isinstance(partition, PoissonSampled)
    if not poisson:
        if amplified or federation.replacement:
            raise ValueError(
                "federation must have Poisson-sampled minibatches for this accountant, got "
                f"{'draws with replacement' if federation.replacement else 'epochs'}, whose "
                "amplification it does not cover. Make its partition with "
                "dflax.privacy.poisson_sampled(partition, p); or, of epochs, say amplified=False, which "
                "charges every example in every local step."
            )
        uneven = sizes[sizes % federation.batch_size > 0]
        if len(uneven):
            raise ValueError(
                "federation must have clients whose numbers of examples batch_size divides, got "
                f"batch_size={federation.batch_size} and {int(uneven[0])} examples. A minibatch in "
                "which an epoch ends can hold an example twice, which moves it twice as far. Take "
                "another batch_size, or dflax.privacy.poisson_sampled."
            )
        return Plan("example", noise_multiplier, rounds, steps, population=total)
    chances = np.broadcast_to(np.asarray(partition.probability, float), sizes.shape)
    failure = float(_overflow(federation.batch_size, sizes, chances).max()) * steps
    if not amplified:
        return Plan("example", noise_multiplier, rounds, steps, "none", 1.0, total, failure)
    most = float(chances.max())
    return Plan("example", noise_multiplier, rounds, steps, "poisson", most, total, failure)


def clients_plan(
    source: Population, noise_multiplier: float | None, rounds: int, *, amplified: bool = True
) -> Plan:
    """DP-FedAvg: whole clients, one release a round by `private_mean` or `adaptive_private_mean`.

    The unit is one client with all that it has. Of `participation.bernoulli(q)` it is added or removed;
    of `uniform(m)`, cohorts of a fixed size without replacement, one is replaced by another, which
    moves the sum by 2 R; otherwise its neighbour sends 0 in its place. `dropout` and `stragglers` around
    them do no harm and count for nothing, except that a round may be empty.

    Args:
      source: a `Federation` or `Population`, of which the participation is read.
      noise_multiplier: z >= 0: the noise of the sum has the deviation z R; None where `noise_for` is
        to find it.
      rounds: T >= 1.
      amplified: whether sampling counts. False charges every client in every round.

    Returns:
      A `Plan`.

    Raises:
      TypeError, ValueError: naming the argument; a participation whose law no accountant covers.
    """
    validation.instance("source", source, Population, "Make a dflax.Federation.")
    _check(noise_multiplier, rounds)
    validation.flag("amplified", amplified)
    clients = source.clients
    rule, given = rule_of(source.participation)
    stays = 1.0
    while rule in ("dropout", "stragglers"):
        stays *= 1 - float(given[1]) if rule == "dropout" else 1
        rule, given = rule_of(given[0])
    if rule == "everyone" or not amplified:
        return Plan("client", noise_multiplier, rounds, population=clients)
    if rule == "bernoulli":
        capacity, _, chance = given
        chance = float(chance)
        # A round without anybody releases nothing, not even noise; or it is never drawn.
        failure = (1 - chance * stays) ** clients
        if capacity is not None:
            sizes = np.array([clients])
            failure += float(_overflow(int(capacity), sizes, np.array([chance]))[0])
        return Plan("client", noise_multiplier, rounds, 1, "poisson", chance, clients, failure)
    if rule == "uniform":
        size = int(given[0])
        failure = (1 - stays) ** size
        return Plan(
            "client", noise_multiplier, rounds, 1, "fixed", size / clients, clients, failure
        )
    raise ValueError(
        f"source must have a participation whose law the accountant covers, got "
        f"{rule or 'one of your own'}. {OTHER_SAMPLING}"
    )


def correlated_plan(
    source: Population, noise: CorrelatedNoise, noise_multiplier: float | None, rounds: int
) -> Plan:
    """DP-FTRL: whole clients, whose rounds are known beforehand, and `correlated_mean`.

    The unit is one client with all that it has, 0 in its place. Looked at is who is invited in every
    round: no client may come back earlier, or more often, than the noise was made for. No sampling is
    counted.

    Args:
      source: a `Federation` or `Population` whose cohorts do not depend on chance, such as
        `participation.from_table(...)`, and in which somebody reports in every round.
      noise: what `correlated_mean` is made with.
      noise_multiplier: z >= 0; None where `noise_for` is to find it.
      rounds: T, in [1, steps of a matrix].

    Returns:
      A `Plan`.

    Raises:
      TypeError, ValueError: naming the argument; clients that come back too early.
    """
    validation.instance("source", source, Population, "Make a dflax.Federation.")
    fix = "Make one with dflax.privacy.tree_noise(rounds)."
    validation.instance("noise", noise, CorrelatedNoise, fix)
    _check(noise_multiplier, rounds)
    if noise.kind == "matrix" and rounds > noise.steps:
        raise ValueError(
            f"rounds must be at most {noise.steps}, the steps of the noise, got {rounds}. Make the "
            "noise for as many."
        )
    rule, _ = rule_of(source.participation)
    if rule not in ("everyone", "from_table"):
        raise ValueError(
            "source must have cohorts that are known beforehand for correlated noise, got "
            f"{rule or 'a participation of your own'}. Give dflax.participation.from_table a table in "
            "which nobody comes back early."
        )
    took_part = _who(source, rounds)
    if not took_part.any(1).all():
        raise ValueError(
            "source must have somebody who reports in every round, got a round without: its noise "
            f"would be missing. The first is round {int(np.argmin(took_part.any(1)))}."
        )
    _check_separation(took_part, noise)
    return Plan(
        "client", noise_multiplier, rounds, 1, noise.kind, 1.0, source.clients, 0.0, noise.steps
    )


def _check(noise_multiplier: Any, rounds: Any) -> None:
    if noise_multiplier is not None:
        if validation.is_traced(noise_multiplier):
            raise TypeError(
                "noise_multiplier must be a number that is known on the host, got a traced one. Account "
                "for the largest run of a sweep outside of it."
            )
        validation.real("noise_multiplier", noise_multiplier, low=0.0, scalar=True)
    validation.integer("rounds", rounds, low=1)


def _overflow(places: int, sizes: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """The probability that a Poisson sample has more members than places."""
    import scipy.stats

    return scipy.stats.binom.sf(places, sizes, chances)


def _who(source: Population, rounds: int) -> np.ndarray:
    """`[T, n]` who is invited in which round."""
    clients = source.clients
    participation = source.participation

    def one(index: Any) -> Any:
        cohort = participation(jax.random.key(0), index, clients)
        ids = jnp.arange(clients) if cohort.clients is None else cohort.clients
        there = jnp.ones(ids.shape, bool) if cohort.reports is None else cohort.reports > 0
        return jnp.zeros(clients, bool).at[ids].max(there)

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(rounds)))


def _check_separation(took_part: np.ndarray, noise: CorrelatedNoise) -> None:
    rounds, clients = took_part.shape
    if noise.kind == "tree":
        trees = -(-rounds // noise.steps)
        filled = np.zeros((trees * noise.steps, clients), bool)
        filled[:rounds] = took_part
        often = filled.reshape(trees, noise.steps, clients).sum(1)
        if often.max() > 1:
            raise ValueError(
                f"source must invite a client at most once in every {noise.steps} rounds, the steps of "
                f"the tree, got client {int(often.max(0).argmax())} {int(often.max())} times. Make a "
                "table in which it is so, or smaller trees."
            )
        return
    for client in range(clients):
        when = np.flatnonzero(took_part[:, client])
        gap = int(np.diff(when).min(initial=rounds + noise.separation))
        if gap < noise.separation or len(when) > noise.participations:
            raise ValueError(
                f"source must invite a client every {noise.separation} rounds at most and "
                f"{noise.participations} times in all, as the noise was made for, got client {client} "
                f"{len(when)} times, {gap if len(when) > 1 else rounds} rounds apart. Make the noise "
                "for that (separation=, participations=), or another table."
            )
