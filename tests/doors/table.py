"""The right calls of all packages in one table."""

from typing import Any

from doors import (
    asynchronous,
    data,
    decentralized,
    privacy,
    robots,
    robust_privacy,
    running,
    server,
    topology,
)

CALLS: dict[str, dict[str, Any]] = {
    **asynchronous.CALLS,
    **topology.CALLS,
    **data.CALLS,
    **server.CALLS,
    **decentralized.CALLS,
    **privacy.CALLS,
    **robots.CALLS,
    **robust_privacy.CALLS,
    **running.CALLS,
}
