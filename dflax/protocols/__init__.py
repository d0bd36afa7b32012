"""Experiments for other programs: an MCP server, an A2A agent, descriptions for ACP and ANP."""

from dflax.protocols.comparison import comparison
from dflax.protocols.descriptions import acp_manifest, anp_description
from dflax.protocols.experiments import (
    CancelledError,
    algorithms,
    described,
    run_experiment,
)

__all__ = [
    "CancelledError",
    "acp_manifest",
    "algorithms",
    "anp_description",
    "comparison",
    "described",
    "run_experiment",
]


def __dir__() -> list[str]:
    return __all__
