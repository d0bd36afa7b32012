"""The right calls of all packages in one table."""

from typing import Any

from doors import (
    asynchronous,
    data,
    ddm,
    decentralized,
    experts,
    gaussian_processes,
    generative,
    heavy_hitters,
    imaging,
    pdppo,
    privacy,
    rl,
    robots,
    robust_privacy,
    running,
    server,
    sparse_coding,
    topology,
    verified,
)

CALLS: dict[str, dict[str, Any]] = {
    **asynchronous.CALLS,
    **data.CALLS,
    **ddm.CALLS,
    **decentralized.CALLS,
    **experts.CALLS,
    **gaussian_processes.CALLS,
    **generative.CALLS,
    **heavy_hitters.CALLS,
    **imaging.CALLS,
    **pdppo.CALLS,
    **privacy.CALLS,
    **rl.CALLS,
    **robots.CALLS,
    **robust_privacy.CALLS,
    **running.CALLS,
    **server.CALLS,
    **sparse_coding.CALLS,
    **topology.CALLS,
    **verified.CALLS,
}
