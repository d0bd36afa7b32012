"""Where antennas and voxels are, and at which frequencies is measured."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.data.dataset import AnyArray

LIGHT = 299_792_458.0
LEAST = 1e-9


class Geometry(NamedTuple):
    """A multistatic array in front of a box of voxels; make one with `geometry`.

    Attributes:
      transmitters: `[T, 3]`, in metres.
      receivers: `[R, 3]`, in metres.
      frequencies: `[F]`, in hertz.
      axes: `[X]`, `[Y]` and `[Z]`, the voxels' coordinates along each axis, in metres.
    """

    transmitters: Float[Array, "T 3"]
    receivers: Float[Array, "R 3"]
    frequencies: Float[Array, " F"]
    axes: tuple[Float[Array, " X"], Float[Array, " Y"], Float[Array, " Z"]]

    @property
    def measured(self) -> tuple[int, int, int]:
        """(F, T, R)."""
        return len(self.frequencies), len(self.transmitters), len(self.receivers)

    @property
    def voxels(self) -> tuple[int, int, int]:
        """(X, Y, Z)."""
        x, y, z = map(len, self.axes)
        return x, y, z


def geometry(
    transmitters: Float[AnyArray, "T 3"],
    receivers: Float[AnyArray, "R 3"],
    frequencies: Float[AnyArray, " F"],
    axes: tuple[Float[AnyArray, " X"], Float[AnyArray, " Y"], Float[AnyArray, " Z"]],
) -> Geometry:
    """A `Geometry` of antennas anywhere and a box of voxels.

    Args:
      transmitters: `[T, 3]`, T >= 1, in metres.
      receivers: `[R, 3]`, R >= 1, in metres.
      frequencies: `[F]`, F >= 1, > 0, in hertz.
      axes: three arrays of coordinates, in metres.

    Raises:
      TypeError, ValueError: naming the argument; no measurement, or an antenna on a voxel.
    """
    fix = "Without it nothing is measured."
    places = {
        name: np.asarray(
            validation.array(name, given, kind="real", shape=("n", 3), fix=fix), np.float64
        )
        for name, given in (("transmitters", transmitters), ("receivers", receivers))
    }
    validation.array("frequencies", frequencies, kind="real", shape=("F",), fix=fix)
    validation.real("frequencies", frequencies, low=0.0, low_open=True)
    sides = validation.sequence("axes", axes, "three arrays of coordinates", least=3)
    if len(sides) != 3:
        raise ValueError(f"axes must be three arrays of coordinates, got {len(sides)}.")
    x, y, z = (
        np.asarray(validation.array("axes", side, kind="real", shape=("n",)), np.float64)
        for side in sides
    )
    corners = np.stack(np.meshgrid(x, y, z, indexing="ij"), -1).reshape(-1, 3)
    for name, antennas in places.items():
        for antenna in antennas:
            if np.square(corners - antenna).sum(-1).min() < LEAST**2:
                raise ValueError(
                    f"{name} must lie on no voxel, where the field is infinite, got one at "
                    f"{antenna.tolist()}. Move the box of voxels away from the antennas."
                )
    kind = jnp.result_type(float)
    return Geometry(
        jnp.asarray(places["transmitters"], kind),
        jnp.asarray(places["receivers"], kind),
        jnp.asarray(frequencies, kind),
        (jnp.asarray(x, kind), jnp.asarray(y, kind), jnp.asarray(z, kind)),
    )


def crossed_diagonals(
    voxels: tuple[int, int, int] = (25, 25, 49),
    *,
    transmitters: int = 12,
    receivers: int = 13,
    frequencies: int = 20,
) -> Geometry:
    """The paper's simulated system: antennas on the two diagonals of a square of 30 cm, 4 to 16 GHz.

    Receivers lie evenly from (-.15, -.15, 0) to (.15, .15, 0) m, transmitters on the other diagonal,
    voxels evenly in [-.15, .15] m along x and y and in [.35, .65] m along z.

    Args:
      voxels: X, Y, Z.
      transmitters: T.
      receivers: R.
      frequencies: F.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    sides = validation.sequence("voxels", voxels, "three counts", least=3)
    if len(sides) != 3:
        raise ValueError(f"voxels must be three counts, got {len(sides)}.")
    for side in sides:
        validation.integer("voxels", side, low=1)
    for name, count in (
        ("transmitters", transmitters),
        ("receivers", receivers),
        ("frequencies", frequencies),
    ):
        validation.integer(name, count, low=1, fix="Without it nothing is measured.")
    half = 0.15

    def diagonal(count: int, turn: float) -> np.ndarray:
        along = np.linspace(-half, half, count)
        return np.stack([along, turn * along, 0 * along], -1)

    return geometry(
        diagonal(transmitters, -1.0),
        diagonal(receivers, 1.0),
        np.linspace(4e9, 16e9, frequencies),
        (
            np.linspace(-half, half, sides[0]),
            np.linspace(-half, half, sides[1]),
            np.linspace(0.35, 0.65, sides[2]),
        ),
    )


def distances(
    antennas: Float[Array, "n 3"], axes: tuple[Array, Array, Array]
) -> Float[Array, "n X Y Z"]:
    """From each antenna to each voxel, in metres."""
    x, y, z = (jnp.square(side - antennas[:, axis, None]) for axis, side in enumerate(axes))
    return jnp.sqrt(x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :])
