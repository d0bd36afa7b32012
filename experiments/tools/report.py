"""Rows in several tables, and claims, as the parts of a study add to them."""

from typing import Any

import numpy as np

import dflax as dx
from experiments.tools.study import Claim, Summary


class Report:
    """What the parts of a study add to: rows in named tables, and claims.

    Attributes:
      rows: columns of each method.
      tables: titles, and the methods under each.
      claims: in the order in which they were made.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.tables: dict[str, list[str]] = {}
        self.claims: list[Claim] = []

    def row(self, table: str, name: str, accuracy: np.ndarray | None, **columns: Any) -> None:
        """A row, with the last accuracies' mean and spread over seeds, then means of the columns."""
        last = {}
        if accuracy is not None:
            last = {"accuracy": float(accuracy.mean()), "std": float(accuracy.std())}
        others = {key.replace("_", " "): float(np.mean(value)) for key, value in columns.items()}
        own = dx.disjoint(accuracy=last, columns=others)
        if name in self.rows:
            raise ValueError(f"a row must have a name of its own, got {name!r} twice.")
        self.rows[name] = own
        self.tables.setdefault(table, []).append(name)

    def claim(self, claim: str, holds: Any, ours: Any, reference: Any) -> None:
        """A claim."""
        self.claims.append(Claim(claim, bool(holds), ours, reference))

    def summary(self, figures: dict[str, Any]) -> Summary:
        """All of it."""
        return Summary(self.rows, self.claims, figures, self.tables)
