"""The right calls of all packages in one table."""

from typing import Any

from doors import (
    asynchronous,
    data,
    decentralized,
    heavy_hitters,
    privacy,
    robots,
    running,
    server,
    topology,
    verified,
)

CALLS: dict[str, dict[str, Any]] = {
    **asynchronous.CALLS,
    **topology.CALLS,
    **data.CALLS,
    **server.CALLS,
    **decentralized.CALLS,
    **heavy_hitters.CALLS,
    **privacy.CALLS,
    **robots.CALLS,
    **running.CALLS,
    **verified.CALLS,
}
