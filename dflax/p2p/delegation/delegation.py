"""A network of agents that delegate tasks to each other, one task a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dflax import validation
from dflax.algorithm import Algorithm, Metrics
from dflax.p2p.delegation.agents import Change, DelegationState, aged, carded, idle_agents
from dflax.p2p.delegation.discovery import EXCHANGE, Asked, Discovery, verify_discovery
from dflax.p2p.delegation.learning import Learning
from dflax.p2p.delegation.tasks import Task

Real = float | Float[Array, ""]


class _Tried(NamedTuple):
    """Attempts of one task so far."""

    done: Bool[Array, ""]
    worker: Int[Array, ""]
    found: Bool[Array, ""]
    stale: Bool[Array, ""]
    rejected: Int[Array, ""]
    discovery: Float[Array, ""]
    cards: Float[Array, ""]
    submissions: Float[Array, ""]
    state: DelegationState


def delegation(
    discovery: Discovery,
    learning: Learning,
    *,
    share: Real = 0.05,
    change_rate: Real = 0.1,
    lifetime: Real = 5.0,
    latency: Real = 0.05,
    input_chance: Real = 0.1,
    failure: Real = 0.02,
    retries: int = 3,
    downtime: Real = 0.0,
    outage: Real = 20.0,
) -> Algorithm:
    """Tasks that agents have done by others, counted in messages and in time.

    A task: its owner takes the card that it keeps for the skill if that is younger than `lifetime`;
    else it reads the card anew (2 messages), or, if it has none or the skill is gone from it, finds a
    worker by `discovery`. It submits (2 messages). A worker without the skill rejects, and the owner
    finds another; one that fails gets the task again; both at most `retries` times. The work begins
    when the worker is free, and may ask for input once, for a round trip more. The result comes by
    `learning`.

    Args:
      discovery: `configured`, `registry`, `crawl`, `distributed_index` or `flooding`.
      learning: `reply`, `polling`, `stream` or `push`.
      share: f in (0, 1], of agents that have a skill; traceable.
      change_rate: lambda >= 0, changes of an agent's skills in a unit of time; traceable.
      lifetime: of a card, >= 0; traceable.
      latency: l >= 0, of a message; traceable.
      input_chance: p_in in [0, 1]; traceable.
      failure: p_fail in [0, 1); traceable.
      retries: r_max >= 0.
      downtime: share of the time that the registry is down, in [0, 1); traceable.
      outage: mean length of a time that it is down, > 0; traceable.

    Returns:
      An `Algorithm`; `init(key, (n, q))`; a round is a `Task`. Metrics: `messages`, `discovery`,
      `cards`, `submissions`, `results` (messages of each kind), `delay` (end of the work to the owner's
      knowing), `time` (submission to the end), `stale` (whether the card was of an old version),
      `refetched`, `rejected`, `undiscovered`, `failed`.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Ehtesham et al., A survey of agent interoperability protocols, arXiv 2505.02279; it has no
      numbers, the model is ours.
    """
    verify_discovery("discovery", discovery)
    validation.function("learning", learning, "dflax.p2p.polling makes one.", takes=3)
    validation.probability("share", share, low_open=True)
    for name, value in (("change_rate", change_rate), ("lifetime", lifetime), ("latency", latency)):
        validation.real(name, value, low=0.0, scalar=True)
    validation.probability("input_chance", input_chance)
    validation.probability("failure", failure, high_open=True)
    validation.integer("retries", retries, low=0)
    validation.probability("downtime", downtime, high_open=True)
    validation.real("outage", outage, low=0.0, low_open=True, scalar=True)

    change = Change(share, change_rate, downtime, outage)

    def init(key: Key[Array, ""], params: tuple[int, int]) -> DelegationState:
        agents, skills = params
        validation.integer("agents", agents, low=2)
        validation.integer("skills", skills, low=1)
        return idle_agents(key, agents, skills, share)

    def step(state: DelegationState, task: Task) -> tuple[DelegationState, Metrics]:
        changing, trying, asking, hearing = jax.random.split(task.key, 4)
        state = aged(state, task.gap, change, changing)
        owner, skill = task.owner, task.skill
        kept = state.worker[owner, skill]
        young = (kept >= 0) & (state.age[owner, skill] <= lifetime)
        stale = young & (state.seen[owner, skill] != state.version[jnp.maximum(kept, 0)])
        reread = (kept >= 0) & ~young
        fits = reread & state.skill[jnp.maximum(kept, 0), skill]
        nothing = jnp.zeros(())
        begin = _Tried(
            done=jnp.bool_(False),
            worker=kept,
            found=young | fits,
            stale=stale,
            rejected=jnp.int32(0),
            discovery=nothing,
            cards=jnp.where(reread, EXCHANGE, 0.0),
            submissions=nothing,
            state=carded(state, owner, skill, kept, fits),
        )

        tried = _tried(begin, task, discovery, failure, retries, trying)
        state, done = tried.state, tried.done
        worker = jnp.maximum(tried.worker, 0)
        starts = jnp.maximum(latency, state.busy[worker])
        asks = jax.random.uniform(asking) < input_chance
        ends = starts + task.duration + jnp.where(asks, 2 * latency, 0.0)
        heard = learning(ends, jnp.asarray(latency, jnp.float32), hearing)
        submissions = tried.submissions + jnp.where(done & asks, EXCHANGE, 0.0)
        results = jnp.where(done, heard.messages, 0.0)
        state = state._replace(
            busy=state.busy.at[worker].set(jnp.where(done, ends, state.busy[worker])),
            met=state.met.at[owner, worker].max(done),
        )
        return state, {
            "messages": tried.discovery + tried.cards + submissions + results,
            "discovery": tried.discovery,
            "cards": tried.cards,
            "submissions": submissions,
            "results": results,
            "delay": jnp.where(done, heard.delay, jnp.nan),
            "time": jnp.where(done, ends, jnp.nan),
            "stale": tried.stale,
            "refetched": ~young,
            "rejected": tried.rejected,
            "undiscovered": ~done & (tried.worker < 0),
            "failed": ~done | (done & heard.failed),
        }

    return Algorithm(init, step)


def _tried(
    begin: _Tried,
    task: Task,
    discovery: Discovery,
    failure: Real,
    retries: int,
    key: Key[Array, ""],
) -> _Tried:
    """A task after it was submitted until somebody does it, `retries` + 1 times at most."""
    finding, failing = jax.random.split(key)

    def attempt(number: Int[Array, ""], tried: _Tried) -> _Tried:
        found = _found(tried, task, discovery, jax.random.fold_in(finding, number))
        has = found.state.skill[jnp.maximum(found.worker, 0), task.skill]
        breaks = jax.random.uniform(jax.random.fold_in(failing, number)) < failure
        submits = ~tried.done & found.found
        accepted = submits & has
        return found._replace(
            done=tried.done | (accepted & ~breaks),
            # A rejection sends the owner to look anew; a failure to the same worker.
            found=found.found & (tried.done | has),
            rejected=found.rejected + (submits & ~has),
            submissions=found.submissions + jnp.where(submits, EXCHANGE, 0.0),
        )

    return jax.lax.fori_loop(0, retries + 1, attempt, begin)


def _found(tried: _Tried, task: Task, discovery: Discovery, key: Key[Array, ""]) -> _Tried:
    """A worker looked for, where there is none yet, and its card kept."""
    state, owner = tried.state, task.owner
    looks = ~tried.done & ~tried.found
    holders = state.skill[:, task.skill] & (jnp.arange(state.version.shape[0]) != owner)
    found = discovery(Asked(holders, owner, state.met[owner], state.registry, key))
    finds = looks & found.some
    return tried._replace(
        worker=jnp.where(looks, jnp.where(found.some, found.worker, -1), tried.worker),
        found=tried.found | finds,
        discovery=tried.discovery + jnp.where(looks, found.messages, 0.0),
        state=carded(state, owner, task.skill, found.worker, finds),
    )
