"""The right calls of all packages in one table."""

from typing import Any

from doors import (
    asynchronous,
    data,
    decentralized,
    robots,
    running,
    server,
    sparse_coding,
    topology,
)

CALLS: dict[str, dict[str, Any]] = {
    **asynchronous.CALLS,
    **topology.CALLS,
    **data.CALLS,
    **server.CALLS,
    **sparse_coding.CALLS,
    **decentralized.CALLS,
    **robots.CALLS,
    **running.CALLS,
}
