"""Experiments as tasks of an Agent-to-Agent protocol agent, with the official package."""

import asyncio
import functools
import threading
from typing import Any

from dflax import validation
from dflax.protocols.experiments import CancelledError, algorithms, run_experiment


def agent_card(url: str) -> Any:
    """The card that says what the agent can do: a skill for each registered algorithm.

    Args:
      url: where the agent is served, beginning with "http://" or "https://".

    Raises:
      TypeError, ValueError: naming `url`.
      ImportError: the extra `protocols` is missing.
    """
    validation.text("url", url)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must begin with http:// or https://, got {validation.shown(url)}.")
    types = _package()[0]
    return types.AgentCard(
        name="dflax",
        description="Runs registered federated and decentralised algorithms on digits.",
        version="1",
        default_input_modes=["application/json"],
        default_output_modes=["application/json"],
        capabilities=types.AgentCapabilities(streaming=True),
        supported_interfaces=[
            types.AgentInterface(url=url, protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        skills=[
            types.AgentSkill(id=name, name=name, description=text, tags=["federated learning"])
            for name, text in algorithms().items()
        ],
    )


def a2a_application(url: str = "http://127.0.0.1:9999/") -> Any:
    """A web application that serves the agent and its card.

    A task is a message with one data part, `{"algorithm": ..., "config": {...}, "seed": ..., "rounds":
    ...}`, of which all but the algorithm may be left out. The task is working while it runs, with its
    progress as status messages; its result is an artifact; a bad request is rejected in words; a task
    that is cancelled stops within a few rounds.

    Args:
      url: see `agent_card`; served on the loopback by default.

    Returns:
      A Starlette application.

    Raises:
      TypeError, ValueError: naming `url`.
      ImportError: the extra `protocols` is missing.
    """
    card = agent_card(url)
    _, helpers, parts = _package()
    from starlette.applications import Starlette

    tasks, running = parts["tasks"], {}

    class Executor(parts["AgentExecutor"]):
        async def execute(self, context: Any, event_queue: Any) -> None:
            await event_queue.enqueue_event(
                context.current_task or helpers.new_task_from_user_message(context.message)
            )
            updater = tasks.TaskUpdater(event_queue, context.task_id, context.context_id)

            def words(text: str) -> Any:
                return updater.new_agent_message([helpers.new_text_part(text)])

            try:
                call = _request(helpers.get_data_parts(context.message.parts))
            except ValueError as error:
                await updater.reject(words(str(error)))
                return
            await updater.start_work()
            loop, cancelled = asyncio.get_running_loop(), threading.Event()
            running[context.task_id] = cancelled

            def tell(done: int, whole: int, accuracy: float) -> None:
                text = f"{done} of {whole} rounds, accuracy {accuracy:.3f}"
                asyncio.run_coroutine_threadsafe(updater.start_work(words(text)), loop).result()

            call = functools.partial(call, progress=tell, cancelled=cancelled)
            try:
                found = await asyncio.to_thread(call)
            except CancelledError:
                return
            except ValueError as error:
                await updater.reject(words(str(error)))
                return
            finally:
                running.pop(context.task_id, None)
            await updater.add_artifact([helpers.new_data_part(found)], name="result")
            await updater.complete()

        async def cancel(self, context: Any, event_queue: Any) -> None:
            if context.task_id in running:
                running[context.task_id].set()
            await tasks.TaskUpdater(event_queue, context.task_id, context.context_id).cancel()

    handler = parts["DefaultRequestHandler"](
        agent_executor=Executor(), task_store=tasks.InMemoryTaskStore(), agent_card=card
    )
    routes = parts["routes"]
    return Starlette(
        routes=[
            *routes.create_agent_card_routes(card),
            *routes.create_jsonrpc_routes(handler, "/"),
        ]
    )


def _request(data: list[Any]) -> Any:
    """The run that a task's data ask for, its names checked; its values are checked by the run."""
    if len(data) != 1 or not isinstance(data[0], dict):
        raise ValueError(
            f"the message must have one data part, a dictionary, got {len(data)} parts."
        )
    asked = dict(data[0])
    unknown = sorted(
        str(name)[:40] for name in set(asked) - {"algorithm", "config", "seed", "rounds"}
    )
    if unknown or "algorithm" not in asked:
        raise ValueError(
            f"the data must name algorithm, and may name config, seed and rounds; got {unknown[:5]}."
        )
    algorithm = asked.pop("algorithm")
    return functools.partial(run_experiment, algorithm, asked.pop("config", None), **asked)


def _package() -> tuple[Any, Any, dict[str, Any]]:
    try:
        from a2a import helpers, types
        from a2a.server import routes, tasks
        from a2a.server.agent_execution import AgentExecutor
        from a2a.server.request_handlers import DefaultRequestHandler
    except ImportError as error:
        raise ImportError(
            f"an A2A agent needs the package a2a-sdk, and {error.name} is missing: "
            "pip install 'dflax[protocols]'"
        ) from error
    parts = {
        "AgentExecutor": AgentExecutor,
        "DefaultRequestHandler": DefaultRequestHandler,
        "routes": routes,
        "tasks": tasks,
    }
    return types, helpers, parts
