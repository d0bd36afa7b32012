"""Decentralized diffusion: a step of training, and of sampling under its rules, against one model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import dflax as dx
from benchmarks.ceilings import arithmetic_ms
from benchmarks.measure import Row, alternately
from dflax import experts as ex
from dflax import generative as gen
from dflax.programs.arithmetic import operations

EXPERTS, BLOCK = 8, 16
MODEL = dx.models.TimeMLP(256)
ROUTER = dx.models.TimeMLP(64, outputs=EXPERTS)
KEY = jax.random.key(0)


def rows(quick: bool) -> list[Row]:
    """Perceptrons of 64 inputs and three layers of 256, eight experts."""
    return [*sampling(512 if quick else 2048), *training(20 if quick else 200)]


def _params(model: Any, copies: int = 0) -> Any:
    seen = gen.Noised(jnp.zeros((1, 64)), jnp.ones(1))
    if not copies:
        return jax.jit(model.init)(KEY, seen)["params"]
    return jax.jit(jax.vmap(lambda key: model.init(key, seen)["params"]))(
        jax.random.split(KEY, copies)
    )


def sampling(samples: int) -> list[Row]:
    """A velocity of so many samples; the peer is one expert on all of them.

    The limit is the arithmetic of the experts that a sample needs, and of the router where it is asked.
    """
    params, router = _params(MODEL, EXPERTS), _params(ROUTER)
    seen = gen.Noised(jax.random.normal(KEY, (samples, 64)), jnp.full(samples, 0.3))

    def asked(rule: ex.Rule, block: int | None) -> Callable[..., Any]:
        def velocity(params: Any, router: Any, seen: gen.Noised) -> jax.Array:
            told = gen.field(ROUTER, router)
            return ex.ensemble(MODEL, params, told, rule, block=block)(seen, KEY)

        return velocity

    works = {
        "one expert": lambda params, router, seen: MODEL.apply(
            {"params": jax.tree.map(lambda leaf: leaf[0], params)}, seen
        ),
        "top-1, each sample at its expert": asked(ex.top(1), BLOCK),
        "top-2, each sample at its experts": asked(ex.top(2), BLOCK),
        "top-1, all experts asked": asked(ex.top(1), None),
    }
    compiled = {name: jax.jit(work) for name, work in works.items()}
    times = alternately(
        *(lambda work=work: work(params, router, seen) for work in compiled.values())
    )
    alone = times[0]
    each = operations(jax.make_jaxpr(works["one expert"])(params, router, seen))
    routed = operations(jax.make_jaxpr(gen.field(ROUTER, router))(seen, KEY))
    needed = (each, each + routed, 2 * each + routed, each + routed)
    return [
        Row(
            f"a velocity of {samples} samples, 8 experts: {name}",
            took,
            peer="one expert",
            peer_ms=alone,
            limit_ms=arithmetic_ms(least),
            flops=operations(jax.make_jaxpr(works[name])(params, router, seen)),
        )
        for name, took, least in zip(compiled, times, needed, strict=True)
    ]


def training(steps: int) -> list[Row]:
    """Steps of eight experts of 32 examples each; the peer is one model on 256.

    The limit is the arithmetic of a gradient on 256 examples.
    """
    data = dx.data.Dataset(
        jax.random.normal(KEY, (4096, 64)), jnp.zeros(4096, jnp.int32), name="vectors"
    )
    loss, start = gen.denoising(MODEL, gen.rectified()), _params(MODEL)
    works = []
    for experts in (EXPERTS, 1):
        algorithm = ex.ddm(loss, optax.adam(1e-3), experts)
        source = ex.apart(data, np.arange(4096) % experts, batch_size=256)
        state = algorithm.init(KEY, start)

        def run(state: Any, source: Any, algorithm: dx.Algorithm = algorithm) -> Any:
            return dx.rollout(algorithm, state, source, KEY, steps)

        program = jax.jit(run).lower(state, source).compile()
        works.append(lambda program=program, state=state, source=source: program(state, source))
    ours, theirs = (took / steps for took in alternately(*works, repeats=3))
    batch = dx.data.Batch(data.inputs[:256], data.labels[:256])
    flops = operations(jax.make_jaxpr(jax.grad(loss, has_aux=True))(start, batch, KEY))
    name = "a step of 8 experts of 32 examples each, Adam and averages"
    peer = "one model of 256 examples"
    return [Row(name, ours, peer, theirs, arithmetic_ms(flops), flops=flops)]
