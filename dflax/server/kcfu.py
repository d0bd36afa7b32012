"""Knowledge-compensatory federated update: balanced local training, and a teacher for rare classes."""

import enum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dflax import counter, validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import against, replicate
from dflax.data.dataset import Batch, Dataset
from dflax.data.pools import Pools
from dflax.local.solver import Optimizer, check_optimizer
from dflax.losses import balanced
from dflax.models.apply import Model, as_apply
from dflax.population import Assignment, Round
from dflax.server.framework.averaging import descent, local_change, memory_of
from dflax.server.framework.protocol import Report, Server
from dflax.server.framework.with_server import with_server


class Partner(enum.Enum):
    """Which unlabelled example each one of a minibatch is mixed with.

    Attributes:
      PERMUTED: another of the minibatch, by a random permutation.
      ONE: one random example for the whole minibatch, as in the authors' code.
    """

    PERMUTED = "permuted"
    ONE = "one"


class Task(NamedTuple):
    """What a client has to do.

    Attributes:
      assignment: with minibatches `[K, 2 B]`, B labelled examples and then B unlabelled ones; `[K, B]`
        where there is no compensation.
      counts: `[C]` labels of each class.
      compensates: `[]` whether the client has unlabelled examples.
    """

    assignment: Assignment
    counts: Int[Array, " C"]
    compensates: Bool[Array, ""]

    @property
    def local_steps(self) -> Int[Array, ""]:
        """How many steps the client manages."""
        return self.assignment.local_steps


def kcfu(
    model: Model,
    optimizer: Optimizer,
    clients: int,
    *,
    compensation: float | Array = 1.0,
    strength: float | Array = 1.0,
    mixing: tuple[int, int] = (2, 2),
    partner: Partner = Partner.PERMUTED,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Knowledge-compensatory federated update (KCFU): training where few examples have labels.

    The federation's partition is `dflax.data.Pools`. With n_{i,c} labels of class c, every client of
    the cohort goes from the server's model x on a labelled minibatch and an unlabelled one, u, by

        cross-entropy(y, softmax(z + strength log n_i))            `dflax.losses.balanced`
        + compensation mean_j w_j KL_j                              from the second round on

    where u~_j = beta_j u_j + (1 - beta_j) u_{pi(j)} with beta ~ Beta(a, b), KL_j is that from the
    server's class probabilities at u~_j to the client's, divided by the number of classes, and w_j
    says how rare the server's favourite classes of u~_j and u~_{pi(j)} are among the client's labels
    (`compensate`). The server takes the mean by numbers of labels. Labels that are not in the pools
    are never read. Unlabelled examples are drawn with replacement.

    Clients keep their optimisers, and their last local models for who buys labels by them.

    Args:
      model: gives class scores `[B, C]`, see `dflax.models.as_apply`; without running statistics.
      optimizer: the clients' optax optimiser, kept from round to round; or a function of the round's
        number that returns one.
      clients: n, the number of clients of the federation.
      compensation: weight of the second term, >= 0; traceable. A plain 0.0 costs nothing: balanced
        training alone.
      strength: of the class frequencies, >= 0; traceable.
      mixing: (a, b) of the Beta law, integers >= 1.
      partner: who is mixed with whom.
      aggregator: default the weighted mean.
      channel: between clients and server; default perfect.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm`; the model is `state.server.params`, the clients' last ones are
      `state.clients.params`. Metrics: `loss` and `accuracy` of the balanced term, `compensation`
      (the mean before its weight, 0 in the first round) and `clients_reporting`.

    Raises:
      TypeError, ValueError: naming the argument; from `step` a round whose partition is no `Pools`, or
        whose data do not say how many classes there are.

    References:
      Cao et al., Knowledge-Aware Federated Active Learning with Non-IID Data, arXiv 2211.13579.
    """
    apply = as_apply(model)
    check_optimizer("optimizer", optimizer)
    validation.integer("clients", clients, low=1)
    validation.real("compensation", compensation, low=0.0, scalar=True)
    validation.real("strength", strength, low=0.0, scalar=True)
    for place, one in enumerate(validation.sequence("mixing", mixing, "integers", least=2)):
        validation.integer(f"mixing[{place}]", one, low=1)
    if len(mixing) != 2:
        raise ValueError(f"mixing must be the two parameters (a, b), got {len(mixing)}.")
    validation.instance("partner", partner, Partner, "For example Partner.PERMUTED.")
    taught = isinstance(compensation, jax.Array) or bool(compensation)
    begin, update = descent()

    def start(key: Key[Array, ""], params: Params) -> tuple[PyTree[Array], PyTree[Array]]:
        memory, _ = begin(key, params)
        own = memory_of(optimizer, params, keep_optimizer=True, keep_model=True)
        return memory, replicate(own, clients)

    def assign(round: Round, key: Key[Array, ""]) -> Task:
        return _task(round, key, taught)

    def work(task: Task, own: Any, server: Server, data: Dataset, index: Array) -> Report:
        def loss(
            params: Params, batch: Batch, key: Key[Array, ""] | None
        ) -> tuple[Float[Array, ""], Metrics]:
            balance = balanced(apply, task.counts, strength=strength)
            if not taught:
                return balance(params, batch, key)
            assert key is not None, "local steps have one"
            model_key, beta_key, partner_key = jax.random.split(key, 3)
            known, unlabelled = _halves(batch)
            value, metrics = balance(params, known, model_key)
            inputs, beta, partners = mixed(unlabelled, beta_key, partner_key, mixing, partner)
            taught_by = jax.lax.stop_gradient(apply(server.params, inputs))
            extra = compensate(apply(params, inputs), taught_by, task.counts, beta, partners)
            extra = jnp.where((index > 0) & task.compensates, extra, 0.0)
            return value + compensation * extra, metrics | {"compensation": extra}

        follow = local_change(loss, optimizer, keep_optimizer=True, keep_model=True)
        return follow(task.assignment, own, server, data, index)

    return with_server(
        start,
        work,
        update,
        assign=assign,
        aggregator=aggregator,
        channel=channel,
        clients=clients,
        at_once=at_once,
    )


def rarity(counts: Float[Array, " C"]) -> Float[Array, " C"]:
    """Gamma_c = [n_c > 0] (sum n / n_c), divided by its sum over c: rare classes weigh most.

    Args:
      counts: n, `[C]` labels of each class, >= 0.
    """
    inverse = jnp.where(counts > 0, 1.0 / jnp.maximum(counts, 1), 0.0)
    return inverse / jnp.maximum(jnp.sum(inverse), 1e-30)


def compensate(
    student: Float[Array, "B C"],
    teacher: Float[Array, "B C"],
    counts: Int[Array, " C"],
    beta: Float[Array, " B"],
    partners: Int[Array, " B"],
) -> Float[Array, ""]:
    """Knowledge compensation, (1/B) sum_j w_j KL(softmax(teacher_j) || softmax(student_j)) / C.

    With the teacher's favourite class c_j of each mixed example:
    `w_j = beta_j Gamma_{c_j} + (1 - beta_j) Gamma_{c_{pi(j)}}`, Gamma the `rarity`.

    Args:
      student: class scores of the client.
      teacher: class scores of the server's model on the same mixed examples.
      counts: n, labels of each class at the client.
      beta: shares of the examples in their mixtures, in [0, 1].
      partners: pi, numbers in [0, B).
    """
    rare = rarity(counts)[jnp.argmax(teacher, axis=-1)]
    weights = beta * rare + (1.0 - beta) * rare[partners]
    log_teacher, log_student = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
    # A mean over classes: the authors' KL divides by C.
    apart = jnp.mean(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
    return jnp.mean(weights * apart)


def _task(round: Round, key: Key[Array, ""], taught: bool) -> Task:
    pools, classes = round.partition, round.data.classes
    fix = "Make it with dflax.data.pools, and the federation with partition=pools."
    validation.instance("the round's partition", pools, Pools, fix)
    if classes is None:
        raise ValueError(
            "data must say how many classes there are, got classes=None. Make it with "
            "dflax.data.from_arrays, or give Dataset(..., classes=C)."
        )
    assignments, members = round.assignments, round.members
    counts = pools.class_counts(round.data.labels, classes)[members]
    able = pools.unlabelled
    if taught:
        _, steps, size = assignments.minibatches.shape
        seed = counter.seed_of(key)
        more = pools.part(able).minibatches(seed, members, jnp.int32(0), steps, size, True)
        both = jnp.concatenate([assignments.minibatches, more], axis=-1)
        assignments = assignments._replace(minibatches=both)
    return Task(assignments, counts, jnp.any(able, axis=1)[members])


def _halves(batch: Batch) -> tuple[Batch, PyTree[Array]]:
    """The labelled half of a minibatch, and the inputs alone of the other."""
    count = batch.labels.shape[0] // 2
    known = jax.tree.map(lambda leaf: leaf[:count], batch)
    return known, jax.tree.map(lambda leaf: leaf[count:], batch.inputs)


def mixed(
    inputs: PyTree[Array],
    beta_key: Key[Array, ""],
    partner_key: Key[Array, ""],
    mixing: tuple[int, int],
    partner: Partner,
) -> tuple[PyTree[Array], Float[Array, " B"], Int[Array, " B"]]:
    """Mixed inputs, the examples' own shares beta in them, and who is mixed with whom.

    Args:
      inputs: `[B, ...]` of the unlabelled examples.
      beta_key: of the shares.
      partner_key: of the partners.
      mixing: (a, b) of the Beta law.
      partner: how partners are drawn.
    """
    count = jax.tree.leaves(inputs)[0].shape[0]
    first, second = mixing
    # Beta(a, b) of integers: the a-th smallest of a + b - 1 uniform numbers.
    uniform = jax.random.uniform(beta_key, (first + second - 1, count))
    beta = jnp.sort(uniform, axis=0)[first - 1]
    if partner is Partner.PERMUTED:
        partners = jax.random.permutation(partner_key, count)
    else:
        partners = jnp.full(count, jax.random.randint(partner_key, (), 0, count))

    def mix(leaf: Array) -> Array:
        share = against(beta, leaf)
        return share * leaf + (1.0 - share) * leaf[partners]

    return jax.tree.map(mix, inputs), beta, partners
