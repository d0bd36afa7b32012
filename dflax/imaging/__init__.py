"""Near-field imaging from few measurements, with priors of magnitudes: PnP-ADMM and its baselines."""

from dflax.imaging.data_step import Basis
from dflax.imaging.denoiser import NETWORK, noise_removed
from dflax.imaging.forward import Operator, dense, low_memory, noisy
from dflax.imaging.geometry import Geometry, crossed_diagonals, geometry
from dflax.imaging.migration import back_projection, kirchhoff
from dflax.imaging.pnp_admm import Instrument, Scenes, magnitudes, normalised, pnp_admm
from dflax.imaging.priors import Prior, learned, of_magnitude, small_variation, sparse, zero_phase
from dflax.imaging.quality import psnr
from dflax.imaging.receivers import (
    Copy,
    Parts,
    Received,
    first_scenes,
    pnp_consensus,
    received,
    receiving,
    shared_scenes,
)

__all__ = [
    "NETWORK",
    "Basis",
    "Copy",
    "Geometry",
    "Instrument",
    "Operator",
    "Parts",
    "Prior",
    "Received",
    "Scenes",
    "back_projection",
    "crossed_diagonals",
    "dense",
    "first_scenes",
    "geometry",
    "kirchhoff",
    "learned",
    "low_memory",
    "magnitudes",
    "noise_removed",
    "noisy",
    "normalised",
    "of_magnitude",
    "pnp_admm",
    "pnp_consensus",
    "psnr",
    "received",
    "receiving",
    "shared_scenes",
    "small_variation",
    "sparse",
    "zero_phase",
]


def __dir__() -> list[str]:
    return __all__
