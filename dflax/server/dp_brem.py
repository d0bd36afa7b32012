"""DP-BREM: client momentum, clipped around the last public one, with noise for privacy of records."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dflax import validation
from dflax.aggregation.aggregator import Aggregator, Combining, Message
from dflax.aggregation.clipped import norm_bounding
from dflax.aggregation.recentred import recentred
from dflax.aggregation.sampled import sampled
from dflax.aggregation.scheduled import scheduled
from dflax.algorithm import Algorithm, Metrics
from dflax.local.oracle import Loss, Oracle
from dflax.privacy.clipped_gradients import clipped_per_example
from dflax.privacy.noisy_mean import noisy_mean
from dflax.privacy.proved_norms import proved_norms
from dflax.privacy.secure_aggregation.protocol import SecureAggregation
from dflax.server.framework.client_momentum import client_momentum
from dflax.server.framework.rates import Rate, check_rate, rate_at

SomeClients = int | Int[Array, " k"] | Bool[Array, " n"] | Sequence[int]


def dp_brem(
    loss: Loss | Oracle,
    clients: int,
    *,
    rate: Rate,
    record_clip: Rate,
    radius: Rate,
    noise: float | Float[Array, ""],
    beta: float | Float[Array, ""] = 0.9,
    sampling: float | Float[Array, ""] = 1.0,
    joint: bool = False,
    examples_at_once: int | None = 8,
    **options: Any,
) -> Algorithm:
    """DP-BREM: the server learns a noisy mean of momenta that no client moves far, none of its records.

        g_i   = (1 / b_i) sum_r u_r grad_r min(1, R / |grad_r|)         u_r Bernoulli(p), b_i = p n_i
        phi_i <- (1 - beta) g_i + beta phi_i
        c_i   = (phi_i - phi) min(1, C / |phi_i - phi|)
        phi   <- phi + (sum_{i in I} c_i + N(0, (sigma R)^2 I)) / |I|
        x     <- x - rate phi

    I holds each client with probability q, and one at least. Everybody updates phi_i, in I or not. With
    beta 0 that is not needed: let `participation.bernoulli(q, nonempty=True)` draw I instead.
    Make the federation with `privacy.poisson_sampled(partition, p)` and `local_steps=1`; R, C and the
    rate may follow the round, as `optax.linear_schedule(R, 0.3 R, T)` does.

    The unit of privacy is one record of one client, added or removed. The server is trusted to add the
    noise. The noise multiplier of client i is sigma b_i; `privacy.momentum_plans` has what T rounds
    cost, by a bound that always holds and by one that rests on no client being clipped. The norm of the
    noise, sigma R sqrt(d) / n, must stay well below C, or C is used up to follow it. An arbitrary client
    moves phi by 2 C / |I| at most.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      clients: n.
      rate: > 0, traceable, or a function of the round's number.
      record_clip: R > 0, of one example's gradient, likewise.
      radius: C > 0, of one client's difference from the last momentum, likewise.
      noise: sigma >= 0, in units of R, on a sum of averaged gradients; traceable.
      beta: in [0, 1), traceable.
      sampling: q in (0, 1], traceable.
      joint: whether the noise comes from everybody's random words, see `privacy.noisy_mean`.
      examples_at_once: see `privacy.clipped_per_example`.
      **options: `channel`, where hostile clients lie in place of phi_i, and `at_once`, as for
        `server.with_server`.

    Returns:
      An `Algorithm`; phi is `state.server.memory`, phi_i are `state.clients.memory`. Metrics:
      the loss's own, `clipped` (share of records), `momentum_norm`, `distance` (mean |phi_i - phi|
      before the update), `messages_clipped`, `messages_sampled`. They are exact and for the simulation:
      to publish them costs privacy.

    Raises:
      TypeError, ValueError: naming the argument; and, while a round is traced, more than one local step.

    References:
      Gu, Li and Xiong, DP-BREM: Differentially-Private and Byzantine-Robust Federated Learning with
      Client Momentum, USENIX Security 2025, arXiv 2306.12608.
    """
    _check(record_clip, radius, noise, sampling)

    def rule(number: Int[Array, ""]) -> Aggregator:
        return noisy_mean(
            norm_bounding(rate_at(radius, number)),
            noise * rate_at(record_clip, number),
            joint=joint,
        )

    return client_momentum(
        records_of(loss, record_clip, examples_at_once),
        clients,
        rate=rate,
        beta=beta,
        aggregator=recentred(sampled(scheduled(rule), sampling)),
        **options,
    )


def dp_brem_plus(
    loss: Loss | Oracle,
    clients: int,
    secure: SecureAggregation,
    *,
    rate: Rate,
    record_clip: Rate,
    radius: Rate,
    noise: float | Float[Array, ""],
    beta: float | Float[Array, ""] = 0.9,
    sampling: float | Float[Array, ""] = 1.0,
    uncut: SomeClients | None = None,
    examples_at_once: int | None = 8,
    **options: Any,
) -> Algorithm:
    """DP-BREM+: `dp_brem` without a trusted server, by secure aggregation and noise made jointly.

        c_i   = (phi_i - phi) min(1, C / |phi_i - phi|)               by client i, who proves |c_i| <= C
        phi   <- phi + (secure sum of round(c_i 2^s) 2^-s + N(0, (sigma R)^2 I)) / |I|

    In a round of the same state, messages and noise phi differs from that of `dp_brem(joint=True)` by
    rounding alone: 2^-(s + 1) per coordinate. Clients whose proof fails are left out. In a round that
    secure aggregation drops nothing is opened, and phi stays.

    This simulates what comes out, and what is sent. It protects nobody: see
    `privacy.secure_aggregation`, `privacy.proved_norms`, and `privacy.noisy_mean` for joint noise. An
    attack on the paper's joint noise has been reported (arXiv 2608.27766): take it for no guarantee.

    Args:
      loss: see `dp_brem`, as all arguments that are not here.
      clients: n.
      secure: of at least n messages, with a `bound` of C at least, the greatest of a schedule.
      rate: see `dp_brem`, as the arguments below.
      record_clip: R.
      radius: C.
      noise: sigma.
      beta: of the momentum.
      sampling: q.
      uncut: clients that do not cut what they send, see `privacy.proved_norms`.
      examples_at_once: see `privacy.clipped_per_example`.
      **options: see `dp_brem`.

    Returns:
      An `Algorithm`, see `dp_brem`; with the metrics of secure aggregation, and `proofs_refused`.

    Raises:
      TypeError, ValueError: naming the argument; a bound below C.
    """
    _check(record_clip, radius, noise, sampling)
    validation.instance(
        "secure", secure, SecureAggregation, "Make one with privacy.secure_aggregation."
    )
    if not callable(radius) and not validation.is_traced(radius) and radius > secure.encoding.bound:
        raise ValueError(
            f"secure must have a bound of at least the radius {float(radius):g}, got "
            f"{secure.encoding.bound:g}."
        )

    def rule(number: Int[Array, ""]) -> Aggregator:
        opened = _opened(noisy_mean(secure.mean, noise * rate_at(record_clip, number), joint=True))
        return proved_norms(opened, rate_at(radius, number), secure.encoding, uncut=uncut)

    return client_momentum(
        records_of(loss, record_clip, examples_at_once),
        clients,
        rate=rate,
        beta=beta,
        aggregator=recentred(sampled(scheduled(rule), sampling)),
        **options,
    )


def _opened(rule: Aggregator) -> Aggregator:
    """The rule, 0 in rounds that secure aggregation drops."""

    def apply(
        messages: Message, weights: Float[Array, " m"], state: Any, combining: Combining
    ) -> tuple[Message, Any, Metrics]:
        out, state, metrics = rule.apply(messages, weights, state, combining)
        dropped = metrics["rounds_dropped"] > 0
        return jax.tree.map(lambda leaf: jnp.where(dropped, 0, leaf), out), state, metrics

    return Aggregator(rule.init, apply)


def records_of(loss: Loss | Oracle, record_clip: Rate, at_once: int | None) -> Any:
    """From the round and b_i to the oracle of clipped records."""
    if at_once is not None:
        validation.integer("examples_at_once", at_once, low=1, fix="None takes all at once.")
    clipped_per_example(loss, 1.0)
    check_rate("record_clip", record_clip, low=0.0, low_open=True)

    def seen(number: Int[Array, ""], expected: Float[Array, ""]) -> Oracle:
        norm = rate_at(record_clip, number)
        return clipped_per_example(loss, norm, expected=expected, at_once=at_once)

    return seen


def _check(record_clip: Rate, radius: Rate, noise: Any, sampling: Any) -> None:
    check_rate("record_clip", record_clip, low=0.0, low_open=True)
    check_rate("radius", radius, low=0.0, low_open=True)
    validation.real("noise", noise, low=0.0, scalar=True)
    validation.probability("sampling", sampling, low_open=True)
