"""Private methods that hold against some liars or none: what DP-BREM is compared with."""

from jaxtyping import Array

from dflax import aggregation, validation
from dflax.algorithm import Algorithm
from dflax.local import Loss, Oracle
from dflax.privacy import clipped_per_example, noisy, noisy_gradient, noisy_mean
from dflax.server import client_momentum

Rate = float | Array


def dp_momentum(
    loss: Loss | Oracle,
    clients: int,
    *,
    rate: Rate,
    record_clip: Rate,
    noise: Rate,
    beta: Rate = 0.9,
    **options,
) -> Algorithm:
    """The mean of client momenta with the server's noise: what DP-BREM is without a clients' clip.

        g_i = (1 / b_i) sum_r u_r grad_r min(1, R / |grad_r|),     phi_i <- (1 - beta) g_i + beta phi_i
        x   <- x - rate (sum_i phi_i + N(0, (sigma R)^2 I)) / n

    One liar moves it as far as it likes. Its privacy is that of `server.dp_brem` without clipping.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, or an `Oracle`.
      clients: n.
      rate: > 0, traceable; or a function of the round's number.
      record_clip: R > 0, of one example's gradient; traceable.
      noise: sigma >= 0, in units of R, on a sum of averaged gradients; traceable.
      beta: of the momentum, in [0, 1), traceable.
      **options: `channel` and `at_once`, see `server.client_momentum`.

    Returns:
      An `Algorithm`, see `server.client_momentum`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_records(loss, noise, record_clip)
    return client_momentum(
        lambda number, expected: clipped_per_example(loss, record_clip, expected=expected),
        clients,
        rate=rate,
        beta=beta,
        aggregator=noisy_mean(aggregation.mean(), noise * record_clip),
        **options,
    )


def dp_fedsgd(
    loss: Loss | Oracle,
    clients: int,
    *,
    rate: Rate,
    record_clip: Rate,
    radius: Rate,
    noise: Rate,
    **options,
) -> Algorithm:
    """Private gradients that the server cuts around 0: DP-BREM without its momentum and its centre.

        g_i = (1 / b_i) sum_r u_r grad_r min(1, R / |grad_r|)
        x   <- x - rate (sum_i g_i min(1, C / |g_i|) + N(0, (sigma R)^2 I)) / n

    Args:
      loss: see `dp_momentum`, as all arguments that are not here.
      clients: n.
      rate: > 0.
      record_clip: R > 0.
      radius: C > 0, of one client's gradient; traceable.
      noise: sigma >= 0.
      **options: see `dp_momentum`.

    Returns:
      An `Algorithm`, see `server.client_momentum`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_records(loss, noise, record_clip)
    return client_momentum(
        lambda number, expected: clipped_per_example(loss, record_clip, expected=expected),
        clients,
        rate=rate,
        beta=0.0,
        aggregator=noisy_mean(aggregation.norm_bounding(radius), noise * record_clip),
        **options,
    )


def dp_median(
    loss: Loss | Oracle, clients: int, *, rate: Rate, record_clip: Rate, noise: Rate, **options
) -> Algorithm:
    """The median of private gradients, coordinate by coordinate, with the server's noise.

        x <- x - rate (median_i g_i + N(0, (sigma R)^2 I))

    One record moves the median as far as its own client's gradient, R / b_i, so the noise is not divided
    by n: that is what privacy costs a median.

    Args:
      loss: see `dp_momentum`, as all arguments.
      clients: n.
      rate: > 0.
      record_clip: R > 0.
      noise: sigma >= 0.
      **options: see `dp_momentum`.

    Returns:
      An `Algorithm`, see `server.client_momentum`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_records(loss, noise, record_clip)
    return client_momentum(
        lambda number, expected: clipped_per_example(loss, record_clip, expected=expected),
        clients,
        rate=rate,
        beta=0.0,
        aggregator=noisy(aggregation.median(), noise * record_clip),
        **options,
    )


def local_dp_momentum(
    loss: Loss | Oracle,
    clients: int,
    *,
    rate: Rate,
    record_clip: Rate,
    radius: Rate,
    noise: Rate,
    beta: Rate = 0.9,
    **options,
) -> Algorithm:
    """Learning from history with local privacy: every client adds the noise, and the server none.

        g_i   = clipped mean gradient + N(0, (sigma R)^2 I),    phi_i <- (1 - beta) g_i + beta phi_i
        phi   <- phi + mean of (phi_i - phi) min(1, C / |phi_i - phi|),    x <- x - rate phi

    The server need not be trusted. The noise of n clients is n times the variance of `server.dp_brem`'s.

    Args:
      loss: see `dp_momentum`, as all arguments that are not here.
      clients: n.
      rate: > 0.
      record_clip: R > 0.
      radius: C > 0, of one client's difference from the last momentum; traceable.
      noise: sigma >= 0, of each client.
      beta: of the momentum.
      **options: see `dp_momentum`.

    Returns:
      An `Algorithm`, see `server.client_momentum`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_records(loss, noise, record_clip)

    def seen(number, expected):
        clipped = clipped_per_example(loss, record_clip, expected=expected)
        return noisy_gradient(clipped, noise * record_clip)

    rule = aggregation.centred_clipping(radius)
    return client_momentum(seen, clients, rate=rate, beta=beta, aggregator=rule, **options)


def distributed_dp(
    loss: Loss | Oracle,
    clients: int,
    *,
    rate: Rate,
    record_clip: Rate,
    noise: Rate,
    limit: Rate = 0.1,
    **options,
) -> Algorithm:
    """Distributed privacy with a bound on each coordinate: a part of the noise from everybody.

        g_i = clipped mean gradient + N(0, (0.3 sigma R)^2 I),    x <- x - rate mean of clip(g_i, -l, l)

    Privacy is that of the sum, which a secure aggregation would open alone.

    Args:
      loss: see `dp_momentum`, as all arguments that are not here.
      clients: n.
      rate: > 0.
      record_clip: R > 0.
      noise: sigma >= 0; the 0.3 is of the code that DP-BREM was compared with.
      limit: l > 0, of each coordinate; traceable.
      **options: see `dp_momentum`.

    Returns:
      An `Algorithm`, see `server.client_momentum`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_records(loss, noise, record_clip)

    def seen(number, expected):
        clipped = clipped_per_example(loss, record_clip, expected=expected)
        return noisy_gradient(clipped, 0.3 * noise * record_clip)

    rule = aggregation.coordinate_clipping(aggregation.mean(), limit)
    return client_momentum(seen, clients, rate=rate, beta=0.0, aggregator=rule, **options)


def require_records(loss: Loss | Oracle, noise: Rate, record_clip: Rate) -> None:
    """Refuses what is no loss, no noise, or no length to clip records to."""
    clipped_per_example(loss, 1.0)
    validation.real("noise", noise, low=0.0, scalar=True)
    validation.real("record_clip", record_clip, low=0.0, low_open=True, scalar=True)
