"""How long clients work: fixed times, random ones, and traces that were measured."""

import csv
import pathlib

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.data.dataset import AnyArray

Durations = Float[AnyArray, " n"] | Float[AnyArray, "n r"]


def hardware(clients: int, spread: float) -> Float[np.ndarray, " n"]:
    """Fixed times from slow to fast: `T_i = 1 - X / 100 * i / (n - 1)` seconds for a piece of work.

    Args:
      clients: n >= 1.
      spread: X in [0, 100), how many percent faster than client 0 the last client is.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Fraboni et al., arXiv 2206.10189, scenario `F-X`.
    """
    validation.integer("clients", clients, low=1)
    validation.real("spread", spread, low=0.0, high=100.0, high_open=True, scalar=True)
    return 1.0 - spread / 100.0 * np.arange(clients) / max(1, clients - 1)


def exponential(
    clients: int, mean: float = 1.0, *, least: float = 0.0, pieces: int | None = None, seed: int
) -> Float[np.ndarray, "..."]:
    """`least + Exp(mean)` seconds, drawn once for each client or for each of its pieces of work.

    Args:
      clients: n >= 1.
      mean: > 0.
      least: >= 0, added to each.
      pieces: r; piece k of a client's work takes its time k mod r. None: one time for all of them.
      seed: of NumPy's generator.

    Returns:
      `[n]`, or `[n, r]`.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("mean", mean, low=0.0, low_open=True, scalar=True)
    validation.real("least", least, low=0.0, scalar=True)
    shape = _shape(clients, pieces)
    validation.seed("seed", seed)
    return least + np.random.default_rng(seed).exponential(mean, shape)


def log_normal(
    clients: int, median: float = 1.0, sigma: float = 0.5, *, pieces: int | None = None, seed: int
) -> Float[np.ndarray, "..."]:
    """`median exp(sigma N(0, 1))` seconds, as `exponential`.

    Args:
      clients: n >= 1.
      median: > 0.
      sigma: >= 0.
      pieces: see `exponential`.
      seed: of NumPy's generator.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.real("median", median, low=0.0, low_open=True, scalar=True)
    validation.real("sigma", sigma, low=0.0, scalar=True)
    shape = _shape(clients, pieces)
    validation.seed("seed", seed)
    return median * np.exp(sigma * np.random.default_rng(seed).normal(size=shape))


def from_csv(path: str | pathlib.Path) -> Float[np.ndarray, "n r"]:
    """Measured times from a file with the columns `client` and `seconds`, a line for each piece of work.

    A client's lines are its pieces in their order. Clients with fewer lines than others start anew.

    Args:
      path: of the file; clients are numbered from 0 and each has at least one line.

    Returns:
      `[n, r]`, r the largest number of lines of a client.

    Raises:
      TypeError, ValueError: a file without these columns, lines that are no times > 0, a client
        without any, each with the line or the number.
      FileNotFoundError: no file there.
    """
    validation.path("path", path)
    times: dict[int, list[float]] = {}
    with pathlib.Path(path).open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"client", "seconds"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"path must be a file with the columns client and seconds, got {reader.fieldnames}."
            )
        for line, row in enumerate(reader, start=2):
            try:
                client, seconds = int(row["client"]), float(row["seconds"])
            except (TypeError, ValueError):
                client, seconds = -1, -1.0
            if client < 0 or not 0.0 < seconds < np.inf:
                raise ValueError(
                    f"line {line} of path must be a client >= 0 and seconds > 0, got {row}."
                )
            times.setdefault(client, []).append(seconds)
    missing = sorted(set(range(max(times, default=0) + 1)) - set(times))
    if missing:
        raise ValueError(f"path must have a line for every client, got none for {missing[:5]}.")
    most = max(map(len, times.values()))
    return np.array([np.resize(times[client], most) for client in range(len(times))])


def require_durations(name: str, durations: Durations) -> Float[np.ndarray, "n r"]:
    """As `[n, r]`, r pieces of work after which a client's times repeat; refused unless positive."""
    validation.real(name, durations, low=0.0, low_open=True)
    times = np.asarray(durations, np.float64)
    if times.ndim not in (1, 2) or not times.size:
        raise ValueError(
            f"{name} must have shape (n,) or (n, r), seconds of each client and piece of work, got "
            f"{times.shape}."
        )
    return times.reshape(len(times), -1)


def _shape(clients: int, pieces: int | None) -> tuple[int, ...]:
    validation.integer("clients", clients, low=1)
    if pieces is None:
        return (clients,)
    validation.integer("pieces", pieces, low=1)
    return clients, pieces
