"""A round of 8 clients, 2 local steps of 8 images 32x32x3: ResNet-18 with group normalisation."""

import dflax as dx
from benchmarks import images, peers
from benchmarks.measure import Row
from benchmarks.tasks import RESNET

SHAPE = (32, 32, 3)


def rows(quick: bool) -> list[Row]:
    """Our round beside a plain PyTorch loop."""
    module = dx.models.ResNet18(RESNET.classes)
    flops = images.round_flops(module, RESNET, SHAPE)
    own = images.row(
        "ResNet-18 round, 8 clients, 2 local steps", module, RESNET, SHAPE, flops, repeats=3
    )
    if quick:
        return [own]
    return own.beside(
        images.products(module, RESNET, SHAPE),
        peers.run("torch", "images_torch", task=RESNET, network="resnet", rounds=1),
    )
