"""Agents that delegate tasks: what discovery, polling and old cards cost, and runs over MCP and A2A.

A survey compared four protocols in words; these are counts of a model with its patterns of messages,
no benchmark of implementations.
"""

import asyncio
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dflax as dx
from dflax import p2p, protocols
from experiments.tools.command import main
from experiments.tools.figures import figure
from experiments.tools.finished import Stage, in_memory
from experiments.tools.report import Report
from experiments.tools.study import Input, Part, Picture, Study, Summary

DISCOVERIES = {
    "configured (MCP)": p2p.configured(),
    "registry (ACP)": p2p.registry(),
    "crawl of cards (A2A)": p2p.crawl(),
    "distributed index (ANP)": p2p.distributed_index(),
}
# Nothing goes wrong and no agent is busy: what the closed forms assume.
IDEAL: dict[str, Any] = {"share": 1.0, "input_chance": 0.0, "failure": 0.0}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings.

    Attributes:
      seeds: of every cell.
      seed: of the first.
      tasks: of every cell.
      sizes: agents, for discovery; ten of them have the skill.
      periods: of polling.
      lifetimes: of a card.
      downtime: share of the time that the registry is down.
      stale_cost: of a use of an old card, in messages.
      rounds: of FedAvg over the protocols; 0 for none.
    """

    seeds: int = 4
    seed: int = 900
    tasks: int = 5000
    sizes: tuple[int, ...] = (16, 64, 256, 1024)
    periods: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    lifetimes: tuple[float, ...] = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
    downtime: float = 0.2
    stale_cost: float = 4.0
    rounds: int = 5


def discovery(config: Config, stage: Stage = in_memory) -> Summary:
    """Messages of a search by the number of agents, and who finds nobody while the registry is down."""
    report = Report()
    found: dict[str, dict[str, np.ndarray]] = {}
    for name in DISCOVERIES:
        found[name] = stage(name, lambda n=name: _discovered(config, n))
        for place, size in enumerate(config.sizes):
            report.row(
                "messages of a search; ten agents have the skill",
                f"{name}, {size} agents",
                None,
                messages=found[name]["messages"][:, place],
                std=found[name]["messages"][:, place].std(),
                nobody=found[name]["nobody"][:, place],
            )
    crawl, index = (
        found[name]["messages"] for name in ("crawl of cards (A2A)", "distributed index (ANP)")
    )
    expected = 2 * np.array(config.sizes) / 11
    report.claim(
        "a crawl takes 2 n / 11 messages within 3 % (mean)",
        np.all(np.abs(crawl.mean(0) / expected - 1) < 0.03),
        crawl.mean(0).round(1).tolist(),
        expected.round(1).tolist(),
    )
    report.claim(
        f"a crawl takes more than 5 times the index's messages at {config.sizes[-1]} agents (each seed)",
        np.all(crawl[:, -1] > 5 * index[:, -1]),
        (crawl[:, -1] / index[:, -1]).round(1).tolist(),
        5,
    )
    nobody = {name: own["nobody"] for name, own in found.items()}
    report.claim(
        "while the registry is down, and only through it, nobody is found",
        abs(nobody["registry (ACP)"].mean() - config.downtime) < 0.02
        and all(not own.any() for name, own in nobody.items() if name != "registry (ACP)"),
        float(nobody["registry (ACP)"].mean().round(3)),
        config.downtime,
    )
    return report.summary({"delegation": _figure(config, found)})


def results(config: Config, stage: Stage = in_memory) -> Summary:
    """Delay and messages of a result by the way in which it comes."""
    report = Report()
    ways = {f"polling every {period:g}": p2p.polling(period) for period in config.periods}
    ways |= {"stream of 5 events": p2p.stream(5), "push, 5 % lost": p2p.push(0.05)}
    found = {name: stage(name, lambda w=way: _learnt(config, w)) for name, way in ways.items()}
    for name, own in found.items():
        report.row(
            "a result of work that takes 2 on average; latency .05",
            name,
            None,
            delay=own["delay"],
            std=own["delay"].std(),
            messages=own["results"],
        )
    periods = np.array(config.periods)
    # Work begins a latency after the submission, from which polls are counted.
    polls = 1 + np.exp(0.5 * (0.05 - periods)) / (1 - np.exp(-0.5 * periods))
    delays = np.array([found[f"polling every {p:g}"]["delay"].mean() for p in periods])
    counts = np.array([found[f"polling every {p:g}"]["results"].mean() / 2 for p in periods])
    report.claim(
        "polling: messages and delay follow their closed forms within 3 %",
        np.all(np.abs(counts / polls - 1) < 0.03)
        and np.all(np.abs(delays / (periods * polls - 2.05 + 0.1) - 1) < 0.03),
        delays.round(3).tolist(),
        (periods * polls - 2.05 + 0.1).round(3).tolist(),
    )
    slow, quick = found["polling every 1"]["delay"], found["stream of 5 events"]["delay"]
    report.claim(
        "a stream tells sooner than a poll every 1 (each seed)",
        np.all(quick < slow),
        quick.round(3).tolist(),
        slow.round(3).tolist(),
    )
    return report.summary({})


def cards(config: Config, stage: Stage = in_memory) -> Summary:
    """Old cards against messages for new ones, by how long a card is trusted."""
    report = Report()
    found = {
        lifetime: stage(f"lifetime {lifetime:g}", lambda t=lifetime: _aged(config, t))
        for lifetime in config.lifetimes
    }
    stale = np.array([own["stale"] for own in found.values()])
    again = np.array([own["refetched"] for own in found.values()])
    cost = 2 * again + config.stale_cost * stale
    for place, lifetime in enumerate(config.lifetimes):
        report.row(
            "cards: 2 uses and .1 changes in a unit of time",
            f"lifetime {lifetime:g}",
            None,
            stale=stale[place],
            refetched=again[place],
            cost=cost[place],
        )
    times = np.array(config.lifetimes)
    expected = 2.0 * (times - (1 - np.exp(-0.1 * times)) / 0.1) / (1 + 2.0 * times)
    report.claim(
        "the stale share and the share fetched anew follow their closed forms within .02",
        np.all(np.abs(stale.mean(1) - expected) < 0.02)
        and np.all(np.abs(again.mean(1) - 1 / (1 + 2 * times)) < 0.02),
        stale.mean(1).round(3).tolist(),
        expected.round(3).tolist(),
    )
    best = cost.mean(1).argmin()
    report.claim(
        f"where an old card costs {config.stale_cost:g} messages the best lifetime lies within",
        0 < best < len(times) - 1,
        float(times[best]),
        [float(times[0]), float(times[-1])],
    )
    return report.summary({})


def served(config: Config, stage: Stage = in_memory) -> Summary:
    """FedAvg on digits by a call, by an MCP client and by an A2A client."""
    report = Report()
    run: dict[str, Any] = {"seed": config.seed, "rounds": config.rounds}
    found = {
        "direct call": stage("direct call", lambda: protocols.run_experiment("fedavg", **run)),
        "MCP": stage("MCP", lambda: asyncio.run(_over_mcp(run))),
        "A2A": stage("A2A", lambda: asyncio.run(_over_a2a(run))),
    }
    for name, own in found.items():
        report.row(
            f"FedAvg on digits, {config.rounds} rounds",
            name,
            None,
            right=own["accuracy"],
            loss=own["loss"],
        )
    report.claim(
        "an MCP client and an A2A client get the numbers of the direct call",
        all(
            np.isclose(own[name], found["direct call"][name], rtol=1e-7, atol=0)
            for own in found.values()
            for name in own
        ),
        [float(own["accuracy"]) for own in found.values()],
        float(found["direct call"]["accuracy"]),
    )
    return report.summary({})


def _discovered(config: Config, name: str) -> dict[str, Any]:
    """`[seeds, sizes]` messages of a search, and how often nobody was found."""
    from dflax.p2p.delegation.discovery import Asked

    find = DISCOVERIES[name]
    messages, nobody = [], []
    for size in config.sizes:

        def one(key: Any, size: int = size) -> Any:
            searching, failing = jax.random.split(key)
            up = jax.random.uniform(failing) >= config.downtime
            met = jnp.zeros(size, bool)
            found = find(Asked(jnp.arange(size) < 10, jnp.int32(size - 1), met, up, searching))
            return found.messages, ~found.some

        keys = jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds))
        many = jax.vmap(lambda key: jax.random.split(key, config.tasks))(keys)
        sent, missed = jax.jit(jax.vmap(jax.vmap(one)))(many)
        messages.append(sent.mean(1))
        nobody.append(missed.mean(1))
    return {"messages": np.stack(messages, 1), "nobody": np.stack(nobody, 1)}


def _learnt(config: Config, way: Any) -> dict[str, Any]:
    """`[seeds]` means over tasks that find an idle worker."""
    algorithm = p2p.delegation(p2p.registry(), way, change_rate=0.0, **IDEAL)
    return _means(config, algorithm, p2p.task_stream(100, 1, rate=1e-4), (100, 1))


def _aged(config: Config, lifetime: float) -> dict[str, Any]:
    algorithm = p2p.delegation(
        p2p.registry(), p2p.stream(), change_rate=0.1, lifetime=lifetime, **IDEAL
    )
    return _means(config, algorithm, p2p.task_stream(4, 1, rate=2.0, speed=1e6), (4, 1))


def _means(config: Config, algorithm: Any, source: Any, sizes: tuple[int, int]) -> dict[str, Any]:
    @jax.jit
    @jax.vmap
    def run(key: Any) -> Any:
        _, metrics = dx.rollout(algorithm, algorithm.init(key, sizes), source, key, config.tasks)
        return {name: jnp.nanmean(value.astype(jnp.float32)) for name, value in metrics.items()}

    return run(jax.vmap(jax.random.key)(config.seed + jnp.arange(config.seeds)))


async def _over_mcp(run: dict[str, Any]) -> dict[str, float]:
    from mcp import Client

    from dflax.protocols.mcp_server import mcp_server

    async with Client(mcp_server()) as client:
        found = await client.call_tool("run_experiment", {"name": "fedavg", **run})
        return found.structured_content["result"]


async def _over_a2a(run: dict[str, Any]) -> dict[str, float]:
    import httpx
    from a2a import helpers, types
    from a2a.client import A2ACardResolver, ClientConfig, ClientFactory

    from dflax.protocols.a2a_agent import a2a_application

    transport = httpx.ASGITransport(a2a_application("http://here/"))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as http:
        card = await A2ACardResolver(http, "http://here").get_agent_card()
        client = ClientFactory(ClientConfig(httpx_client=http)).create(card)
        part = helpers.new_data_part({"algorithm": "fedavg", **run})
        message = types.Message(role=types.Role.ROLE_USER, message_id="1", parts=[part])
        events = [
            event async for event in client.send_message(types.SendMessageRequest(message=message))
        ]
    (artifact,) = [e.artifact_update.artifact for e in events if e.HasField("artifact_update")]
    (found,) = helpers.get_data_parts(artifact.parts)
    return {name: float(value) for name, value in dict(found).items()}


def _figure(config: Config, found: dict[str, dict[str, np.ndarray]]) -> Any:
    with figure(6.4, 4.0) as (drawn, axes):
        for place, (name, own) in enumerate(found.items()):
            mean = own["messages"].mean(0)
            axes.plot(config.sizes, mean, ("s-", "o--", "^:", "D-.")[place], label=name)
        axes.set(
            xscale="log",
            yscale="log",
            xticks=config.sizes,
            xticklabels=[str(size) for size in config.sizes],
            xlabel="agents, ten of which have the skill",
            ylabel="messages of the first search",
            title=f"a model of messages; means of {config.seeds} seeds, {config.tasks} searches each",
        )
        axes.minorticks_off()
        axes.legend()
    return drawn


def _sdk(config: Any) -> Any:
    import a2a
    import mcp

    return a2a, mcp


SDKS = Input("mcp and a2a-sdk (extra protocols)", _sdk)

STUDY = Study(
    Config,
    (
        Part("discovery", discovery, needs=()),
        Part("results", results, needs=()),
        Part("cards", cards, needs=()),
        Part("served", served, needs=(SDKS,), wanted=lambda config: config.rounds > 0),
    ),
    seconds=55,
    quick=Config(seeds=2, tasks=500, sizes=(16, 256), periods=(1.0,), lifetimes=(0.0, 5.0, 20.0)),
    pictures=(
        Picture(
            name="delegation",
            file="delegation.png",
            claim="Reading cards one by one grows with the agents; registries and indices do not.",
            data="a model of four protocols' messages, {config.tasks:,} searches",
            bands="means of {config.seeds} seeds, no bands",
            headed=False,
        ),
    ),
)


if __name__ == "__main__":
    main(STUDY, __file__)
