"""Digits of which every client holds two halves, and what is measured of all of them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import dflax as dx
from dflax import evaluation

CLIENTS = 10


@functools.cache
def halves() -> tuple[dx.Federation, Any]:
    """Client i holds the first half of digit i and the second of digit i + 1; and the model's loss."""
    data = dx.data.digits()
    labels = np.asarray(data.labels)
    cut = [np.array_split(np.flatnonzero(labels == c), 2) for c in range(CLIENTS)]
    size = min(len(first) + len(cut[(c + 1) % CLIENTS][1]) for c, (first, _) in enumerate(cut))
    owned = [np.r_[cut[i][0], cut[(i + 1) % CLIENTS][1]][:size] for i in range(CLIENTS)]
    model = dx.models.MLP((), classes=10)
    federation = dx.Federation(
        data, dx.data.from_indices(owned), local_steps=5, batch_size=16, replacement=True
    )
    return federation, dx.losses.classification(model.apply)


def pooled(measures: Any, params: Any, source: dx.Federation, own: Any) -> dict[str, Any]:
    """Loss and squared gradient on all training data, and accuracy on digits 0, 1 and 2."""
    everything, rare = measures
    loss, slope = jax.value_and_grad(lambda p: everything(p)["loss"])(params)
    square = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(slope))
    return {"loss": loss, "gradient": square, "rare": rare(params)["accuracy"]}


def measured(loss: Any) -> Any:
    """What `pooled` measures, of the digits."""
    data = dx.data.digits()
    federation, _ = halves()
    dealt = jnp.asarray(np.concatenate(federation.partition.as_lists()))
    rare = jnp.flatnonzero(jnp.asarray(data.test.labels) < 3)
    return Partial(
        pooled,
        (
            evaluation.on(loss, _some(data.train, dealt), batch_size=len(dealt)),
            evaluation.on(loss, _some(data.test, rare)),
        ),
    )


def _some(data: dx.data.Dataset, rows: jax.Array) -> dx.data.Dataset:
    return dataclasses.replace(data, inputs=data.inputs[rows], labels=data.labels[rows])


def zeros(key: jax.Array) -> dict[str, Any]:
    """Softmax regression at the start."""
    return {"Dense_0": {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}}
