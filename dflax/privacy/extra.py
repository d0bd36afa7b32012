"""Packages of the extra "privacy", imported where they are used."""

import importlib
from typing import Any


def imported(module: str) -> Any:
    """A module of `dp_accounting` or `jax_privacy`.

    Raises:
      ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("dp_accounting", "jax_privacy"):
            raise
        raise ImportError(
            f"this needs {module.split('.')[0].replace('_', '-')}: pip install 'dflax[privacy]'."
        ) from error
