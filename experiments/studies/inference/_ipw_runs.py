"""Runs of intelligence per watt: what small programs take here, and by which law they run elsewhere."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import inference
from dflax.inference import efficiency as ipw
from experiments.tasks import digit_sizes as sizes


def numbers(*values: float) -> Any:
    """One number for each of several designs."""
    return np.array(values)


# Assumed of two cores of a server's processor; there is nothing here to measure them by.
THIS_MACHINE = inference.accelerator(150e9, 10e9, 8e9, price=0.1, idle_watts=5.0, peak_watts=25.0)
METER = "modelled, 2 cores of 5 to 25 W assumed"
# A telephone, a laptop and an accelerator of a data centre, by watts and bytes per second.
DEVICES = inference.accelerator(
    numbers(2e12, 20e12, 1000e12),
    numbers(0.1e12, 0.5e12, 8e12),
    numbers(8e9, 64e9, 192e9),
    price=numbers(0.02, 0.2, 6.0),
    idle_watts=numbers(1.0, 6.0, 100.0),
    peak_watts=numbers(15.0, 60.0, 700.0),
)
HARDWARE = ("this machine", "15 W", "60 W", "700 W")
PHONE, LAPTOP, CLOUD = 1, 2, 3
KINDS = ("energy", "flops", "dollars")
FLOAT_BYTES = 4.0


def meter() -> ipw.Meter:
    """A counter of this machine where it has one, else the law of its utilisation."""
    here = {name: made for name, made in ipw.available_meters().items() if name != "codecarbon"}
    return here.get("rapl") or ipw.modelled(THIS_MACHINE, name=METER)


@functools.cache
def program(size: str) -> tuple[Any, Any]:
    """The network of a size, and weights that do not matter for time."""
    params = jax.tree.map(jnp.asarray, sizes.started(sizes.SIZES[size], (0, 0)))
    return sizes.scores, params


def measured(seconds: float, queries: int, by: ipw.Meter) -> dict[str, np.ndarray]:
    """Latencies `[6, Q]`, watts and FLOPs `[6]` of single images here, and a call's fixed latency."""
    image = jnp.zeros(64)
    found = [ipw.metered(*program(size), image, meter=by, seconds=seconds) for size in sizes.SIZES]
    nothing = ipw.metered(lambda x: x + 1.0, image, meter=by, seconds=seconds)
    calls = [np.resize(run.latency, queries) for run in found]
    return {
        "latency": np.stack(calls),
        "power": np.array([run.power for run in found]),
        "flops": np.array([run.flops for run in found]),
        "fixed": np.array(np.median(nothing.latency)),
    }


def costs_on(parameters: Any, fixed: Any) -> tuple[Any, Any]:
    """Latency s and power W of an image on `DEVICES`, `[..., 3]`: a fixed cost and a roofline."""
    counts: Any = np.asarray(parameters, float)
    network = inference.network(counts, 0.0, parameter_bytes=FLOAT_BYTES)
    network = jax.tree.map(lambda leaf: jnp.asarray(leaf)[..., None], network)
    busy = inference.roofline_costs(network, DEVICES).decode(jnp.ones(()), jnp.zeros(()))
    latency = fixed + busy
    return np.asarray(latency), np.asarray(inference.power(DEVICES, busy / latency))


def table(right: Any, here: dict[str, np.ndarray]) -> ipw.Measurements:
    """Measurements of the 18 models on the four kinds of hardware."""
    queries, each = right.shape[1], len(sizes.GENERATIONS)
    counts = [sizes.parameters(hidden) for hidden in sizes.SIZES.values()]
    latency, power = costs_on(counts, here["fixed"])
    own = here["latency"][:, None], np.broadcast_to(here["power"][:, None, None], (6, 1, queries))
    whole: Any = [
        np.concatenate([mine, np.repeat(law[..., None], queries, -1)], 1).repeat(each, 0)
        for mine, law in zip(own, (latency, power), strict=True)
    ]
    return ipw.measurements(right, whole[1], whole[0])


def costs(measured: ipw.Measurements, here: dict[str, np.ndarray], at: int) -> tuple[Any, Any]:
    """Energy, FLOPs and dollars of each local model on the hardware `at`, and of the ensemble."""
    models, _, queries = measured.power.shape
    price = (THIS_MACHINE.price, *np.asarray(DEVICES.price))[at]
    flops = here["flops"].repeat(len(sizes.GENERATIONS))[:, None]
    local = {
        "energy": measured.energy[:, at],
        "flops": np.broadcast_to(flops, (models, queries)),
        "dollars": measured.latency[:, at] * price / 3600,
    }
    largest = sizes.MEMBERS * sizes.parameters(sizes.SIZES["472k"])
    latency, power = costs_on(largest, here["fixed"])
    values = (
        latency[-1] * power[-1],
        sizes.MEMBERS * here["flops"][-1],
        latency[-1] * np.asarray(DEVICES.price)[-1] / 3600,
    )
    return local, {kind: np.full(queries, value) for kind, value in zip(KINDS, values, strict=True)}


def streamed(size: str, by: ipw.Meter, queries: int, seed: int) -> dict[str, np.ndarray]:
    """Queries of 100 to 1,000 images each, one image at a time, sampled and profiled as a stream."""
    function, params = program(size)
    image, apply = jnp.zeros(64), jax.jit(function)
    jax.block_until_ready(apply(params, image))
    counts = np.random.default_rng(seed).integers(100, 1000, queries)

    def work() -> list[tuple[float, float]]:
        spans = []
        for count in counts:
            began = time.perf_counter()
            for _ in range(count):
                jax.block_until_ready(apply(params, image))
            spans.append((began, time.perf_counter()))
        return spans

    seen = ipw.recorded(by, work, every=0.005)
    start, end = np.array(seen.returned).T
    source = ipw.telemetry(
        seen.time,
        seen.power,
        start,
        end,
        counter=seen.counter,
        input_tokens=counts.astype(float),
        output_tokens=np.zeros(queries),
    )
    key = jax.random.key(seed)
    algorithm = ipw.streaming_profiler(buffer=600, energy="trapezoid")
    profile = jax.jit(functools.partial(dx.rollout, algorithm, rounds=source.rows))
    state, metrics = profile(algorithm.init(key), source, key)
    whole = ipw.summary(state.clients)
    ended = np.asarray(source.table.ended)[:, 0]
    counted = np.asarray(metrics["energy_counter"])[ended, 0]
    line = whole.lines["energy"]
    return {
        "samples": np.array(seen.time.size),
        "counted": np.array(np.nansum(counted)),
        "missing": np.array(np.isnan(counted).sum()),
        "total": np.asarray(whole.energy),
        "first": np.array(np.nan_to_num(counted[0])),
        "slope": np.asarray(line.slope),
        "r2": np.asarray(line.r2),
        "power": np.asarray(whole.mean["power"]),
    }
