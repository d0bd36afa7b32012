"""The methods that DP-BREM is compared with, on the same numbers."""

from typing import Any, NamedTuple

import optax

import dflax as dx
from dflax import privacy, recipes
from experiments.tasks.private_records import CLIENTS, Method

BREM, MEAN, CLIP, MEDIAN, LDP = "DP-BREM", "mean", "clip", "median", "LDP"
SHEET = (BREM, MEAN, CLIP, MEDIAN, LDP)
DDP, RSA, FEDAVG, FTRL = "DDP", "DP-RSA", "DP-FedAvg", "DP-FTRL"
OTHERS = (DDP, RSA, FEDAVG, FTRL)
BETA = 0.9


class Numbers(NamedTuple):
    """What all methods share.

    Attributes:
      rate: of the server in the first round; a tenth at the end.
      record_clip: R.
      radius: C.
      noise: sigma; 0: the lane's value.
    """

    rate: float = 2.0
    record_clip: float = 0.5
    radius: float = 0.1
    noise: float = 0.05


def methods(numbers: Numbers, rounds: int) -> dict[str, Method]:
    """By name, `(loss, value, channel) -> algorithm`."""
    rate = optax.linear_schedule(numbers.rate, numbers.rate / 10, rounds)
    record, radius = numbers.record_clip, numbers.radius

    def options(value: Any, channel: Any) -> dict[str, Any]:
        noise = numbers.noise or value
        return {"rate": rate, "record_clip": record, "noise": noise, "channel": channel}

    def clients_unit(rule: Any) -> Method:
        """Gradients of clients as they are, cut and blurred by a rule whose unit is a client."""

        def method(loss: Any, value: Any, channel: Any) -> dx.Algorithm:
            def seen(number: Any, expected: Any) -> dx.local.Oracle:
                oracle = privacy.clipped_per_example(loss, 1e9, expected=expected)
                # Of two clips only the rule's is one.
                return dx.local.Oracle(lambda *given: (oracle(*given)[0], {}))

            return dx.server.client_momentum(
                seen, CLIENTS, rate=rate, beta=0.0, aggregator=rule(value), channel=channel
            )

        return method

    def same_noise(value: Any) -> Any:
        return (numbers.noise or value) * record / radius

    return {
        BREM: lambda loss, v, c: dx.server.dp_brem(
            loss, CLIENTS, radius=radius, beta=BETA, **options(v, c)
        ),
        MEAN: lambda loss, v, c: recipes.dp_momentum(loss, CLIENTS, beta=BETA, **options(v, c)),
        CLIP: lambda loss, v, c: recipes.dp_fedsgd(loss, CLIENTS, radius=radius, **options(v, c)),
        MEDIAN: lambda loss, v, c: recipes.dp_median(loss, CLIENTS, **options(v, c)),
        LDP: lambda loss, v, c: recipes.local_dp_momentum(
            loss, CLIENTS, radius=radius, beta=BETA, **options(v, c)
        ),
        DDP: lambda loss, v, c: recipes.distributed_dp(loss, CLIENTS, **options(v, c)),
        RSA: lambda loss, v, c: dx.server.dp_rsa(loss, CLIENTS, **options(v, c)),
        FEDAVG: clients_unit(lambda v: privacy.private_mean(radius, same_noise(v), CLIENTS)),
        FTRL: clients_unit(
            lambda v: privacy.correlated_mean(
                privacy.tree_noise(rounds), radius, same_noise(v), CLIENTS
            )
        ),
    }


def counter_check(rounds: int) -> dict[str, Method]:
    """More noise than C can follow: sigma R sqrt(d) / n is 0.25, C is 0.1."""
    return methods(Numbers(record_clip=2.0, radius=0.1, noise=0.1), rounds)
