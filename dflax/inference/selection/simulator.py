"""An analytic simulator of five accelerations of inference, as a pure function."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dflax import validation
from dflax.inference.hardware import Accelerator, Network
from dflax.inference.selection.performance import Performance
from dflax.inference.selection.tasks import Tasks, Workload, check_tasks

METHODS = ("none", "prefix caching", "batching", "chunked prefill", "all")

# The constants of the simulator. They are nobody's measurements: they encode that no method wins
# everywhere and that all of them together are not always best.
LEAST_LEFT = 0.5e9  # B that a cache has, however large the weights are
BURST = 6.0  # requests after which most prompts find their prefix cached
LOOKED_UP, CROWDED = 1.05, 0.25  # what looking prefixes up costs, and what it adds in a full memory
KEPT = 1.02
FULL = 0.8
JOINED = 1.10  # what joining and leaving costs a batch's iteration
SCHEDULED, TOGETHER = 4e-3, 12e-3  # s a token, of batching and of everything
CHUNKED, OVERLAPPED = 1.12, 0.35  # what chunks cost a prefill, and the share that decoding hides


def latencies(
    network: Network, accelerator: Accelerator, workload: Workload
) -> Float[Array, "... 5"]:
    """Seconds of a workload with each of `METHODS`, without noise.

    With p parameters, b requests, prompts of L and answers of G tokens:

        prefill(t) = 2 p t / F      decode = max(2 p / W, 2 p b' / F) + b' (L + G/2) kv / W
        left = max(memory - weights, 0.5 GB)      b' = clip(left / (kv (L + G)), 1, b)
        waves = ceil(b / b')      longest = G (1 + variation log(1 + b) / 2)
        hit = shared (1 - exp(-b / 6))      crowded = 1.05 + 0.25 [b kv L > 0.8 left]

        none       waves (prefill(b' L) + longest decode)
        prefix     1.02 crowded waves (prefill(b' L (1 - hit)) + longest decode)
        batching   sqrt(waves) (prefill(b' L) + 1.10 G decode) + 4 ms G
        chunked    waves (1.12 prefill(b' L) + longest decode - 0.35 prefill(b' L))
        all        1.05 crowded sqrt(waves) (1.12 prefill(b' L (1 - hit)) + 1.10 G decode) + 12 ms G

    F and W are the FLOP/s and B/s that the accelerator reaches. b' is not rounded.

    Args:
      network: any leading shape, as the others; they broadcast.
      accelerator: the same.
      workload: the same.

    Raises:
      TypeError: naming the argument.
    """
    validation.instance("network", network, Network)
    validation.instance("accelerator", accelerator, Accelerator)
    validation.instance("workload", workload, Workload)
    b, prompt, output, shared, variation = map(jnp.asarray, workload)
    flops, bandwidth = accelerator.reached_flops, accelerator.reached_bandwidth
    left = jnp.maximum(accelerator.memory - network.weight_bytes, LEAST_LEFT)
    most = jnp.clip(left / (network.cache_bytes * (prompt + output)), 1.0, b)
    waves = jnp.ceil(b / most)
    longest = output * (1.0 + variation * jnp.log1p(b) / 2.0)
    hit = shared * (1.0 - jnp.exp(-b / BURST))
    full = b * network.cache_bytes * prompt > FULL * left
    crowded = LOOKED_UP + CROWDED * full

    prefill = 2.0 * network.active * most * prompt / flops
    rest = prefill * (1.0 - hit)
    weights = jnp.maximum(network.active_bytes / bandwidth, 2.0 * network.active * most / flops)
    decode = weights + most * (prompt + output / 2.0) * network.cache_bytes / bandwidth
    together = jnp.sqrt(waves)
    return jnp.stack(
        jnp.broadcast_arrays(
            waves * (prefill + longest * decode),
            KEPT * crowded * waves * (rest + longest * decode),
            together * (prefill + JOINED * output * decode) + SCHEDULED * output,
            waves * (CHUNKED * prefill + longest * decode - OVERLAPPED * prefill),
            LOOKED_UP * crowded * together * (CHUNKED * rest + JOINED * output * decode)
            + TOGETHER * output,
        ),
        -1,
    )


def simulated(
    key: Key[Array, ""], tasks: Tasks, noise: float | Float[Array, ""] = 0.03
) -> Performance:
    """The full performance table of tasks, each time multiplied by exp(N(0, noise)).

    The noise belongs to the task: the fastest method is that of the noisy row.

    Args:
      key: a typed key.
      tasks: n of them.
      noise: deviation of log-times, >= 0; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.typed_key("key", key)
    check_tasks(tasks)
    validation.real("noise", noise, low=0.0, scalar=True)
    exact = latencies(tasks.network, tasks.accelerator, tasks.workload)
    times = exact * jnp.exp(noise * jax.random.normal(key, exact.shape))
    return Performance(times, jnp.ones(times.shape, bool))
