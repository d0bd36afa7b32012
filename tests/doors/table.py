"""The right calls of all packages in one table."""

from typing import Any

from doors import (
    asynchronous,
    data,
    decentralized,
    gaussian_processes,
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
    **gaussian_processes.CALLS,
    **robots.CALLS,
    **running.CALLS,
    **verified.CALLS,
}
