"""What studies need from outside; a study names its inputs, and they are looked for before it runs."""

from collections.abc import Callable
from typing import Any

import dflax as dx
from experiments.tools.study import Input


def images_or_digits(name: str) -> dx.data.Split:
    """The data set of that name; "auto" is Fashion-MNIST where its files are found, else digits."""
    if name == "auto":
        try:
            return dx.data.fashion_mnist()
        except FileNotFoundError:
            return dx.data.digits()
    sources: dict[str, Callable[[], dx.data.Split]] = {
        "fashion_mnist": dx.data.fashion_mnist,
        "digits": dx.data.digits,
    }
    if name not in sources:
        raise ValueError(f"data must be auto, {' or '.join(sources)}, got {name!r}.")
    return sources[name]()


def _regression(config: Any) -> Any:
    from sklearn.datasets import make_regression

    return make_regression


def _named(config: Any) -> dx.data.Split:
    return images_or_digits(config.data)


DIGITS = Input("scikit-learn's digits", lambda config: dx.data.digits())
FASHION_MNIST = Input("Fashion-MNIST", lambda config: dx.data.fashion_mnist())
REGRESSION = Input("scikit-learn's regressions", _regression)
IMAGES = Input("the images of --data", _named)
