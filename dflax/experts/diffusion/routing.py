"""The router's loss: which cluster does a noised example come from?"""

from typing import Any

import jax
from jaxtyping import Array, Float, Key

from dflax import losses, validation
from dflax.algorithm import Metrics, Params
from dflax.data.dataset import Batch
from dflax.generative.denoising import noising
from dflax.generative.path import Path, check_path
from dflax.generative.times import Times, uniform
from dflax.local.oracle import Loss
from dflax.models.apply import Model, as_apply


def routing(model: Model, path: Path, *, times: Times | None = None) -> Loss:
    """Cross-entropy of a router g on noised examples, labelled by their clusters.

        loss = mean over examples of - log softmax(g(x_t, t))_c(x_0)

    Its optimum is P(c | x_t), cluster sizes included, if examples come from the whole data. Of a router
    that saw clusters equally often take `dflax.losses.adjusted(g, sizes)`. As a loss like any other it
    goes into any algorithm: `server.fedavg` trains the router at clients that keep their data.

    Args:
      model: see `dflax.models.as_apply`; its inputs are a `dflax.models.Noised`, its outputs `[B, K]`.
      path: that of the experts.
      times: law of t; default uniform on [0, 1].

    Returns:
      A loss with the metrics "loss" and "accuracy"; the labels of its minibatches are cluster numbers in
      [0, K). Without a key every minibatch is noised by the same draws.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    apply = as_apply(model)
    check_path(path)
    times = uniform() if times is None else times
    validation.function("times", times, "It gets a key and a number.", takes=2)

    def forward(params: Params, data: Array, key: Key[Array, ""] | None) -> tuple[Any, Any]:
        if key is None:
            draw_key, model_key = jax.random.key(0), None
        else:
            draw_key, model_key = jax.random.split(key)
        return apply.forward(params, noising(draw_key, path, times, data)[0], model_key)

    told = losses.classification(apply._replace(forward=forward))

    def loss(
        params: Params, batch: Batch, key: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        return told(params, batch, key)

    return loss
