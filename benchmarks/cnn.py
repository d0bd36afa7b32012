"""A round of 16 clients, 5 local steps of 20 images 28x28: convolutions 32 and 64, a layer of 128."""

import jax
import optax
from flax import linen as nn

import dflax as dx
from benchmarks import images, peers, rounds
from benchmarks.measure import Row
from benchmarks.tasks import CNN

SHAPE = (28, 28, 1)


class Unmodified(nn.Module):
    """`dflax.models.CNN` as anybody would write it with flax alone."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits."""
        for width in (32, 64):
            x = nn.max_pool(nn.relu(nn.Conv(width, (3, 3))(x)), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(CNN.classes)(x)


def rows(quick: bool) -> list[Row]:
    """Our layers beside the peers; flax's own rewritten, and one local step of them as they are."""
    name = "CNN round, 16 clients, 5 local steps"
    repeats = 3 if quick else 9
    flops = images.round_flops(Unmodified(), CNN, SHAPE)
    own = [
        images.row(
            name, dx.models.CNN(CNN.classes), CNN, SHAPE, flops, repeats=repeats, devices=devices
        )
        for devices in rounds.meshes()
    ]
    fast = images.row(
        f"{name}, linen rewritten", Unmodified(), CNN, SHAPE, flops, rewritten=True, repeats=repeats
    )
    if quick:
        return [*own, fast]
    same = losses()
    beside = rounds.beside_each(
        own,
        images.products(dx.models.CNN(CNN.classes), CNN, SHAPE),
        peers.run("torch", "images_torch", task=CNN, network="cnn", rounds=1),
        peers.run("pfl", "images_pfl", task=CNN, network="cnn", rounds=2),
        *rounds.agreeing(
            same,
            peers.run("drjax", "rounds_drjax", task=CNN, network="cnn", rounds=1),
            peers.run("blazefl", "rounds_blazefl", task=CNN, network="cnn", rounds=1),
        ),
        rounds.of_flower(CNN, "cnn", 10, same),
    )
    once = CNN._replace(steps=1)
    plain = images.row(
        "CNN round, 16 clients, 1 local step, linen as it is",
        Unmodified(),
        once,
        SHAPE,
        flops / CNN.steps,
        repeats=1,
    )
    return [*beside, fast, plain]


def losses() -> list[float]:
    """Of rounds of the task without chance, which peers must have too."""
    whole = CNN.whole()
    module = dx.models.CNN(whole.classes)
    loss = dx.losses.classification(module)
    names = ("Conv_0", "Conv_1", "Dense_0", "Dense_1")
    params = {
        name: {"kernel": jax.numpy.asarray(weight), "bias": jax.numpy.asarray(bias)}
        for name, (weight, bias) in zip(names, whole.convolutional(), strict=True)
    }
    algorithm = dx.server.fedavg(loss, optax.sgd(whole.rate))
    return rounds.losses(algorithm, params, images.federation(whole, SHAPE), loss)
