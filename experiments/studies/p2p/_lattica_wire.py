"""A model that goes from one libp2p peer to another, and a document that says what it is."""

import time
from typing import Any

import jax
import numpy as np

import dflax as dx
from dflax import p2p
from experiments.tools.study import Input


def _libp2p(config: Any) -> Any:
    import libp2p

    return libp2p


def _pycrdt(config: Any) -> Any:
    import pycrdt

    return pycrdt


LIBP2P = Input("py-libp2p (extra p2p)", _libp2p)
PYCRDT = Input("pycrdt (extra p2p)", _pycrdt)


def corrupted(model: p2p.ModelBlocks) -> p2p.ModelBlocks:
    """All blocks but the manifest with their first byte changed, under the ids of the right ones."""
    return model._replace(
        blocks={
            name: block if name == model.content_id else bytes([block[0] ^ 1]) + block[1:]
            for name, block in model.blocks.items()
        }
    )


def over_libp2p(seed: int) -> dict[str, np.ndarray]:
    """Sends a perceptron of 2 MB from a peer on this machine, past another one that serves rubbish."""
    import trio

    model = dx.models.MLP((512,), classes=10)
    params = model.init(jax.random.key(seed), np.zeros((1, 1024), np.float32))["params"]
    sent = p2p.model_blocks(params)

    async def meet() -> p2p.Fetched:
        async with p2p.serving(corrupted(sent)) as wrong, p2p.serving(sent) as right:
            return await p2p.fetched(sent.content_id, [wrong, right])

    began = time.perf_counter()
    came = trio.run(meet)
    took = time.perf_counter() - began
    # Jointly described: one peer knows the model, the other how long it is to train.
    described = documents(sent.content_id)
    equal = all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(came.params), jax.tree.leaves(params), strict=True)
    )
    return {
        "equal": np.array(equal and described),
        "blocks": np.array(len(sent.blocks)),
        "dropped": np.array(came.dropped),
        "megabytes": np.array(came.received / 1e6),
        "seconds": np.array(took),
    }


def documents(content: str) -> bool:
    """Whether two documents that were written at once agree after the updates, one of them twice."""
    import pycrdt

    peers: list[Any] = [pycrdt.Doc(), pycrdt.Doc()]
    runs = [one.get("run", type=pycrdt.Map) for one in peers]
    runs[0]["model"], runs[0]["seed"] = content, 1
    runs[1]["rounds"], runs[1]["seed"] = 30, 2
    states = [one.get_state() for one in peers]
    for place in (0, 1):
        update = peers[1 - place].get_update(states[place])
        for _ in range(2 - place):
            peers[place].apply_update(update)
    first, second = (one.to_py() for one in runs)
    return first == second and first["model"] == content and first["rounds"] == 30
