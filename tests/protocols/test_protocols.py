"""Experiments over protocols: the same numbers, progress, cancelling, and nothing unregistered."""

import asyncio
import json
import os
import sys
import threading

import pytest

from dflax import protocols
from dflax.protocols.experiments import BOUNDS, bounded, checked, registered
from dflax.protocols.experiments import Settings as Allowed

RUN = {"seed": 3, "rounds": 7}
SMALL = {"clients": 3, "local_steps": 1}


@pytest.fixture(scope="module")
def direct():
    return protocols.run_experiment("fedavg", SMALL, **RUN)


def test_every_setting_has_bounds_and_names_are_few():
    assert set(Allowed().__dict__) <= set(BOUNDS)
    assert set(protocols.algorithms()) == {"fedavg", "fedprox", "scaffold", "dfedavg"}
    about = protocols.described("fedavg")
    assert about["settings"]["clients"] == {"default": 10, "least": 2, "most": 100}


@pytest.mark.parametrize(
    "config", [["clients"], {"path": "x"}, {"clients": "3"}, {"clients": True}]
)
def test_what_is_no_configuration_is_refused(config):
    with pytest.raises(ValueError, match=r"config must|clients must"):
        checked(config)


@pytest.mark.parametrize("value", [1e30, float("nan"), -1, 2.5, None, 10**400])
def test_numbers_out_of_bounds_are_refused(value):
    with pytest.raises(ValueError, match="clients must be a whole number"):
        bounded("clients", value)


@pytest.mark.parametrize("name", ["os.system", None, 3, "fedavg; rm", ["fedavg"]])
def test_nothing_but_registered_names_is_run(name):
    with pytest.raises(ValueError, match="algorithm must be one of"):
        registered(name)
    with pytest.raises(ValueError, match="algorithm must be one of"):
        protocols.run_experiment(name)


@pytest.mark.slow
def test_a_run_tells_its_progress_and_can_be_called_off(direct):
    told, stop = [], threading.Event()

    def tell(done, whole, accuracy):
        told.append((done, whole))
        stop.set()

    with pytest.raises(protocols.CancelledError, match="after 5 of 7 rounds"):
        protocols.run_experiment("fedavg", SMALL, progress=tell, cancelled=stop, **RUN)
    assert told == [(5, 7)]
    assert direct["rounds"] == 7.0
    assert 0.1 < direct["accuracy"] <= 1.0


def test_the_comparison_is_data():
    table = protocols.comparison()
    assert list(table) == ["MCP", "ACP", "A2A", "ANP"]
    assert len({frozenset(row) for row in table.values()}) == 1
    assert [row["stage"] for row in table.values()] == [1, 2, 3, 4]


def test_descriptions_name_every_algorithm():
    for found in (protocols.acp_manifest(), protocols.anp_description("https://a.example/")):
        text = json.dumps(found)
        assert all(name in text for name in protocols.algorithms())
    with pytest.raises(ValueError, match="url must begin"):
        protocols.anp_description("ftp://a.example")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedprox", "scaffold", "dfedavg"])
def test_all_registered_algorithms_run(name):
    assert protocols.run_experiment(name, rounds=20)["accuracy"] > 0.6


@pytest.mark.slow
def test_an_mcp_client_gets_the_same_numbers(direct):
    pytest.importorskip("mcp")
    import anyio
    from mcp import Client

    from dflax.protocols.mcp_server import mcp_server

    async def talk():
        told = []

        async def progress(done, whole, message):
            told.append((done, whole))

        async with Client(mcp_server()) as client:
            call = {"name": "fedavg", "config": SMALL, **RUN}
            tools = {tool.name for tool in (await client.list_tools()).tools}
            ran = await client.call_tool("run_experiment", call, progress_callback=progress)
            again = await client.call_tool("get_result", {"id": ran.structured_content["id"]})
            errors = [
                await client.call_tool("run_experiment", wrong)
                for wrong in (
                    {"name": "os.system"},
                    {"name": "fedavg", "config": {"clients": 10**9}},
                    {"name": "fedavg", "config": {"path": "/"}},
                    {"name": "fedavg", "rounds": "many"},
                    {"name": "fedavg", "rounds": 10**9},
                )
            ]
            before = len(told)
            with anyio.move_on_after(4) as scope:
                long = {"name": "fedavg", "config": {"local_steps": 50}, "rounds": 500}
                await client.call_tool("run_experiment", long, progress_callback=progress)
            still = await client.call_tool("list_algorithms", {})
            return tools, ran, again, errors, told[:before], scope.cancelled_caught, still

    tools, ran, again, errors, told, cancelled, still = anyio.run(talk)
    assert tools >= {
        "list_algorithms",
        "describe_algorithm",
        "run_experiment",
        "compare",
        "get_result",
    }
    assert ran.structured_content["result"] == direct
    assert again.structured_content == direct
    assert told == [(5.0, 7.0), (7.0, 7.0)]
    assert all(error.is_error for error in errors)
    assert "algorithm must be one of" in errors[0].content[0].text
    assert "clients must be" in errors[1].content[0].text
    assert cancelled
    assert still.structured_content == protocols.algorithms()


@pytest.mark.slow
def test_an_a2a_client_gets_the_same_numbers(direct):
    pytest.importorskip("a2a")
    httpx = pytest.importorskip("httpx")
    from a2a import helpers, types
    from a2a.client import A2ACardResolver, ClientConfig, ClientFactory

    from dflax.protocols.a2a_agent import a2a_application, agent_card

    async def talk():
        transport = httpx.ASGITransport(a2a_application("http://here/"))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
            card = await A2ACardResolver(http, "http://here").get_agent_card()
            client = ClientFactory(ClientConfig(httpx_client=http)).create(card)

            async def send(data):
                message = types.Message(
                    role=types.Role.ROLE_USER, message_id="1", parts=[helpers.new_data_part(data)]
                )
                request = types.SendMessageRequest(message=message)
                return [event async for event in client.send_message(request)]

            ran = await send({"algorithm": "fedavg", "config": SMALL, **RUN})
            refused = [
                await send(wrong)
                for wrong in (
                    {"algorithm": "os.system"},
                    {"algorithm": "fedavg", "config": {"clients": 1e9}},
                    {"algorithm": "fedavg", "code": "1"},
                    {"config": {}},
                )
            ]
            message = types.Message(
                role=types.Role.ROLE_USER,
                message_id="2",
                parts=[
                    helpers.new_data_part(
                        {"algorithm": "fedavg", "config": {"local_steps": 50}, "rounds": 500}
                    )
                ],
            )
            at_once = types.SendMessageConfiguration(return_immediately=True)
            asked = types.SendMessageRequest(message=message, configuration=at_once)
            quiet = ClientFactory(ClientConfig(httpx_client=http, streaming=False)).create(card)
            (event,) = [event async for event in quiet.send_message(asked)]
            await asyncio.sleep(2.0)
            stopped = await quiet.cancel_task(types.CancelTaskRequest(id=event.task.id))
            return card, ran, refused, stopped

    card, ran, refused, stopped = asyncio.run(talk())
    assert card == agent_card("http://here/")
    artifacts = [
        event.artifact_update.artifact for event in ran if event.HasField("artifact_update")
    ]
    (found,) = helpers.get_data_parts(artifacts[0].parts)
    assert dict(found) == pytest.approx(direct)
    last = ran[-1].status_update.status.state
    assert last == types.TaskState.TASK_STATE_COMPLETED
    for events in refused:
        assert events[-1].status_update.status.state == types.TaskState.TASK_STATE_REJECTED
    assert stopped.status.state == types.TaskState.TASK_STATE_CANCELED


@pytest.mark.slow
def test_the_command_serves_on_stdio():
    pytest.importorskip("mcp")
    import anyio
    from mcp import Client, StdioServerParameters

    served = StdioServerParameters(
        command=sys.executable,
        args=["-m", "dflax.protocols", "mcp"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )

    async def talk():
        async with Client(served) as client:
            return await client.call_tool("list_algorithms", {})

    assert anyio.run(talk).structured_content == protocols.algorithms()
