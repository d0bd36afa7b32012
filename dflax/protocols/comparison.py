"""The comparison of four protocols for agents, as data."""

import json
import pathlib
from typing import Any


def comparison() -> dict[str, dict[str, Any]]:
    """By protocol: purpose, shape, wire, discovery, unit, states, identity, session, stage, here.

    `stage` is the survey's order of adoption, `here` what dflax offers. The package versions with which
    this was checked stand in the file itself.

    References:
      Ehtesham et al., A survey of agent interoperability protocols, arXiv 2505.02279.
    """
    text = pathlib.Path(__file__).with_name("comparison.json").read_text(encoding="utf-8")
    return json.loads(text)["protocols"]
