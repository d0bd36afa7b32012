"""Experiments as tools of a Model Context Protocol server, with the official package."""

import functools
import threading
import uuid
from collections import OrderedDict
from typing import Any

from dflax.protocols.experiments import algorithms, described, run_experiment

# Results that a server keeps; the oldest goes.
KEPT = 256


def mcp_server() -> Any:
    """A server whose tools list, describe, run and compare registered algorithms.

    Tools: `list_algorithms`, `describe_algorithm`, `run_experiment`, `compare`, `get_result`. Resources:
    `dflax://algorithms`, `dflax://results/{id}`. Prompt: `design_comparison`. A run tells its progress
    after every few rounds and ends soon after its request is called off. Nothing but registered names
    and checked numbers reaches the runner; a bad request is an error of that request.

    Returns:
      An `MCPServer`; `server.run("stdio")` serves it.

    Raises:
      ImportError: the extra `protocols` is missing.
    """
    try:
        from anyio import from_thread, get_cancelled_exc_class, to_thread
        from mcp.server import MCPServer
        from mcp.server.mcpserver import Context
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError as error:
        raise ImportError(
            f"an MCP server needs the package mcp, and {error.name} is missing: "
            "pip install 'dflax[protocols]'"
        ) from error

    server = MCPServer(
        "dflax", instructions="Runs federated and decentralised algorithms on small digits."
    )
    results: OrderedDict[str, dict[str, float]] = OrderedDict()

    async def ran(
        context: Any, algorithm: str, config: dict[str, Any] | None, seed: int, rounds: int
    ) -> dict[str, float]:
        cancelled = threading.Event()

        def tell(done: int, whole: int, accuracy: float) -> None:
            message = f"{algorithm}: accuracy {accuracy:.3f}"
            from_thread.run(context.report_progress, float(done), float(whole), message)

        call = functools.partial(
            run_experiment,
            algorithm,
            config,
            seed=seed,
            rounds=rounds,
            progress=tell,
            cancelled=cancelled,
        )
        try:
            return await to_thread.run_sync(call, abandon_on_cancel=True)
        except get_cancelled_exc_class():
            cancelled.set()
            raise
        except ValueError as error:
            # What this error says reaches the client; other exceptions are crashes to the package.
            raise ToolError(str(error)) from None

    def kept(found: dict[str, float]) -> str:
        name = uuid.uuid4().hex
        results[name] = found
        while len(results) > KEPT:
            results.popitem(last=False)
        return name

    def result(name: str) -> dict[str, float]:
        if name not in results:
            raise ValueError(f"id must be of a result of this server, got {name[:40]!r}.")
        return results[name]

    def told(call: Any, name: str) -> Any:
        try:
            return call(name)
        except ValueError as error:
            raise ToolError(str(error)) from None

    @server.tool()
    def list_algorithms() -> dict[str, str]:
        """The registered algorithms, each with a sentence."""
        return algorithms()

    @server.tool()
    def describe_algorithm(name: str) -> dict[str, Any]:
        """An algorithm's description, and its settings with defaults and bounds."""
        return told(described, name)

    @server.tool(name="run_experiment")
    async def run(
        name: str,
        context: Context,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        rounds: int = 20,
    ) -> dict[str, Any]:
        """Runs a registered algorithm on digits; accuracy and loss on held-out digits, and an id."""
        found = await ran(context, name, config, seed, rounds)
        return {"id": kept(found), "result": found}

    @server.tool()
    async def compare(
        names: list[str],
        context: Context,
        config: dict[str, Any] | None = None,
        seed: int = 0,
        rounds: int = 20,
    ) -> dict[str, dict[str, float]]:
        """Runs several registered algorithms, at most 8, with the same settings, one after another."""
        if not 1 <= len(names) <= 8:
            raise ToolError(f"names must be 1 to 8 algorithms, got {len(names)}.")
        for name in names:
            told(described, name)
        return {name: await ran(context, name, config, seed, rounds) for name in names}

    @server.tool()
    def get_result(id: str) -> dict[str, float]:
        """The result of an earlier run."""
        return told(result, id)

    @server.resource("dflax://algorithms")
    def all_algorithms() -> dict[str, str]:
        """The registered algorithms, each with a sentence."""
        return algorithms()

    @server.resource("dflax://results/{id}")
    def one_result(id: str) -> dict[str, float]:
        """The result of an earlier run."""
        return result(id)

    @server.prompt()
    def design_comparison(question: str) -> str:
        """Asks for a comparison of registered algorithms that answers a question."""
        return (
            f"Design a comparison that answers: {question[:500]}\nList the algorithms, describe those "
            "that bear on it, choose settings within their bounds, compare them with at least three "
            "seeds, and report means and spreads."
        )

    return server
