"""Consensus ADMM: local objectives, one shared point, a dual for each client; what a method states."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, FederatedState, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import select
from dflax.local.consensus import Minimise, identity
from dflax.metrics import disjoint
from dflax.population import Round
from dflax.server.admm.residuals import Stop, residuals_of
from dflax.server.admm.rounds import Adapt, Combine, Rounds
from dflax.server.framework.rates import Rate, check_rate
from dflax.server.framework.with_server import with_server


def consensus(
    minimise: Minimise,
    penalty: float,
    clients: int | None = None,
    *,
    start: Callable[..., tuple[Params, Any]] | None = None,
    view: Callable[[Params], PyTree[Array]] = identity,
    combine: Combine | None = None,
    duals: Literal["after", "before"] = "after",
    mirrored: bool = False,
    remember: bool = False,
    rate: Rate | None = None,
    adapt: Adapt | None = None,
    stop: Stop | None = None,
    proximal_start: bool = False,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    downlink: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """Consensus ADMM: minimise sum_i f_i(x_i) + R(z) subject to E x_i = z, from what a method states.

    A round, for the clients i of the cohort:

        z_i      = downlink(z)
        x_i      = argmin of f_i(x) + (rho / 2) |E x - c|^2, c = z_i - lambda_i / rho, or near it
        lambda_i = lambda_i + rho (E x_i - z_i)                              duals="before"
        m_i      = channel(E x_i + lambda_i / rho)
        z        = combine(aggregator(m_i), n rho)
        lambda_i = lambda_i + rho (E x_i - downlink'(z))                     duals="after"
        rho      = adapt(rho, residuals)

    Duals are unscaled, so that rho may change. They are of weights: running statistics ("batch_stats")
    have none. Whoever takes no part keeps x_i and lambda_i; the mean is over those who report, or over
    the last messages of all (`remember`). With everyone, exact minimisation and perfect links both
    orders of the duals reach the optimum of convex objectives.

    Args:
      minimise: `(assignment, own, nearby, data, index) -> Minimised` for one client; see `Splitting`
        and `Nearby`.
      penalty: rho > 0, the first one where it adapts; traceable.
      clients: n; None where `start` gives the clients' variables.
      start: `(z, *given) -> (x, memory)` with leaves `[n, ...]`, `given` what a user passes to `init`
        after z. Default: all start at z, and remember nothing.
      view: E, from a client's variable to what is shared; linear. Default all of it.
      combine: `(mean, n rho, key) -> z`: the prox of R / (n rho), a projection, a rounding. Default z
        is the mean.
      duals: whether clients move their duals after they hear of the new z, or before they send.
      mirrored: clients send E x_i alone, over a channel that rounds it, say, and the server adds
        lambda_i / rho, which it knows from what was sent before. What arrived takes the place of
        E x_i in the duals and, without a `view`, of x_i.
      remember: the mean is over the last messages of all n, absent clients included. Needs
        duals="before", where a message's change is known from x_i and lambda_i, and a fixed penalty.
      rate: by how much of the change of that mean z moves; default |S| / n, which makes it exact. Needs
        `remember`.
      adapt: `(rho, residuals) -> rho`, after each round, for example
        `dflax.server.residual_balancing()`. The new penalty travels as it is.
      stop: `residuals -> whether to stop`, for example `dflax.server.residuals_within(1e-3, 1e-3)`.
        From then on the state stands still, bit for bit, while rounds go on.
      proximal_start: what `start` gives are the minimisers around z_0, which everybody knows: the first
        round minimises and sends down nothing.
      aggregator: of messages; default the mean. Reporting clients count the same.
      channel: from clients to server; with memory only where messages are changes, with `remember`.
      downlink: from server to each client, without memory; default none, and no copies are made.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm`; z is `state.server.params`, x_i, lambda_i are in `state.clients.memory`, a
      `Splitting`. Metrics: what `minimise` measures, `clients_reporting`, what links measure; with
      `adapt` or `stop` also `primal_residual`, `dual_residual`, `penalty` (of the round), `done`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Boyd et al., Distributed Optimization and Statistical Learning via ADMM, 2011.
    """
    _check(minimise, start, view, combine, duals, mirrored, remember, rate, adapt, stop)
    validation.flag("proximal_start", proximal_start)
    validation.real("penalty", penalty, low=0.0, low_open=True, scalar=True)
    if clients is not None:
        validation.integer("clients", clients, low=1)
    elif start is None:
        raise ValueError("clients must be given where start is not, got None. Pass n.")
    stated = Rounds(
        minimise=minimise,
        penalty=penalty,
        clients=clients,
        start=start,
        view=view,
        combine=combine,
        ascends_first=duals == "before",
        mirrored=mirrored,
        remember=remember,
        rate=rate,
        adapts=adapt is not None,
        stops=stop is not None,
        proximal_start=proximal_start,
        listens=downlink is not None,
    )
    options: dict[str, Any] = {}
    if downlink is not None:
        options |= {"publish": stated.publish, "downlink": downlink}
    if duals == "after":
        options["receive"] = stated.ascend
        if downlink is not None:
            options["answer"] = stated.publish
    rounds = with_server(
        stated.begin,
        stated.work,
        stated.update,
        clients=clients,
        aggregator=aggregator,
        channel=channel,
        read=stated.read if mirrored else None,
        equal=True,
        at_once=at_once,
        **options,
    )
    return (
        rounds if adapt is None and stop is None else _watched(rounds, view, adapt, stop, penalty)
    )


def _watched(
    rounds: Algorithm,
    view: Callable[[Params], PyTree[Array]],
    adapt: Adapt | None,
    stop: Stop | None,
    penalty: Any,
) -> Algorithm:
    """The rounds with their residuals measured, the penalty adapted and the state frozen at the end."""

    def step(state: FederatedState, round: Round) -> tuple[FederatedState, Metrics]:
        after, metrics = rounds.step(state, round)
        rho = penalty if adapt is None else state.server.memory.penalty
        own, memory = after.clients.memory, after.server.memory
        residuals = residuals_of(
            jax.vmap(view)(own.params), own.dual, after.server.params, state.server.params, rho
        )
        measured = {
            "primal_residual": residuals.primal,
            "dual_residual": residuals.dual,
            "penalty": jnp.asarray(rho, residuals.primal.dtype),
        }
        if adapt is not None:
            # A round that nobody reached says nothing of the penalty.
            moved = jnp.where(metrics["clients_reporting"] > 0, adapt(rho, residuals), rho)
            moved = moved.astype(memory.penalty.dtype)
            memory = memory._replace(penalty=moved)
            own = own._replace(penalty=jnp.broadcast_to(moved, own.penalty.shape))
        if stop is not None:
            enough = stop(residuals) & (metrics["clients_reporting"] > 0)
            memory = memory._replace(done=state.server.memory.done | enough)
            measured["done"] = memory.done
        after = after._replace(
            server=after.server._replace(memory=memory),
            clients=after.clients._replace(memory=own),
        )
        if stop is not None:
            frozen = state._replace(round=after.round)
            after = select(state.server.memory.done, frozen, after)
        return after, disjoint(rounds=metrics, residuals=measured)

    return Algorithm(rounds.init, step)


def _check(
    minimise: Any,
    start: Any,
    view: Any,
    combine: Any,
    duals: Any,
    mirrored: Any,
    remember: Any,
    rate: Any,
    adapt: Any,
    stop: Any,
) -> None:
    """Refuses what does not fit together."""
    validation.function("minimise", minimise, takes=5)
    validation.function("view", view, takes=1)
    for name, given, takes in (
        ("start", start, None),
        ("combine", combine, 3),
        ("adapt", adapt, 2),
        ("stop", stop, 1),
    ):
        if given is not None:
            validation.function(name, given, takes=takes)
    validation.choice("duals", duals, ("after", "before"))
    validation.flag("mirrored", mirrored)
    validation.flag("remember", remember)
    if mirrored and duals == "before":
        raise ValueError(
            'duals must be "after" where they are mirrored, got "before": before it has the message '
            "the server cannot move the dual."
        )
    if remember and (duals == "after" or adapt is not None):
        raise ValueError(
            'remember needs duals="before" and a fixed penalty, got '
            f"duals={duals!r} and adapt={validation.shown(adapt)}."
        )
    if rate is not None:
        if not remember:
            raise ValueError(
                f"rate needs remember=True, got {validation.shown(rate)} without it: the mean over "
                "those who report is no change."
            )
        check_rate("rate", rate, low=0.0, low_open=True)
