"""AirLLM: ranks of adapters that are sent over the air, chosen by PPO and a diffusion model."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from dflax import validation
from dflax.aggregation.aggregator import Aggregator
from dflax.algorithm import Algorithm, Metrics, Params
from dflax.channel.channel import Channel
from dflax.clients import select
from dflax.data.dataset import Dataset
from dflax.population import Assignment
from dflax.replay import Ring, pushed, ring
from dflax.rl.airllm.coarse import Episode, Lesson, acted, learned
from dflax.rl.airllm.decoders import RankDecoder, Tried, diffusion_decoder
from dflax.rl.airllm.environment import Environment, Outcome, Surroundings
from dflax.rl.airllm.episodes import environment_of, episode_of, minibatches, started
from dflax.rl.airllm.link import RadioLink
from dflax.rl.airllm.networks import CoarsePolicy
from dflax.rl.airllm.task import AdapterTask
from dflax.server.framework.protocol import Received, Report, Server
from dflax.server.framework.with_server import with_server


class Agent(NamedTuple):
    """What an agent remembers from episode to episode.

    Attributes:
      surroundings: its own task and link.
      policy: state of the policy's optimiser.
      decoder: what the decoder learns with.
      replay: a ring of `Tried`; () where the decoder learns nothing.
    """

    surroundings: Surroundings
    policy: PyTree[Array]
    decoder: PyTree[Array]
    replay: Ring | tuple[()]


def airllm(
    task: AdapterTask,
    link: RadioLink,
    *,
    decoder: RankDecoder | None = None,
    low: int = 1,
    high: int | None = None,
    horizon: int = 15,
    price: float | Array = 0.1,
    penalty: float | Array = 10.0,
    discount: float | Array = 0.95,
    decay: float | Array = 0.95,
    clip: float | Array = 0.2,
    epochs: int = 4,
    value_weight: float | Array = 0.5,
    entropy_weight: float | Array = 0.01,
    optimizer: optax.GradientTransformation | None = None,
    hidden: int = 256,
    agents: int = 1,
    aggregator: Aggregator | None = None,
    channel: Channel | None = None,
    at_once: int | None = None,
) -> Algorithm:
    """AirLLM: which rank each adapter has in each transmission, so that it fits and fine-tuning gains.

    A round is an episode of H transmissions of every agent, from the common policy and decoder:

        raw ~ N(mean(o), sigma^2),  z = tanh(raw),  x ~ decoder(z),  r = decode_ranks(x)
        a step of fine-tuning if cost(r) = n(r) bits / (C tau) <= 1, else nothing is sent
        reward = - loss - lambda cost,  or  - kappa cost - lambda cost
        E steps of PPO on (o, raw, reward);  U steps of the decoder on (z, x, reward) of the replay
        policy, decoder = mean over agents of what each made of them

    The decoder is part of PPO's environment. Agents have a task, data and conditions of their own; with
    one agent this is the paper's method. An episode with a reward that is no number is dropped: the
    agent stays as it was.

    Without data the source of rounds is `dflax.Population(agents)`. With data it is a
    `dflax.Federation` of `agents` clients with `local_steps=horizon`: transmission i trains on
    minibatch i. What the policy sees of the data at the start is minibatch 0.

    Args:
      task: what is fine-tuned: `adapter_tuning`, or `separable` in its place.
      link: over which it is sent, see `radio_link`.
      decoder: default `diffusion_decoder()`; `linear_decoder()`, or `identity_decoder()` for PPO alone.
      low: smallest rank, >= 0.
      high: largest rank, in (low, R]; None for the adapters' R.
      horizon: H >= 1.
      price: lambda >= 0 of the cost; traceable.
      penalty: kappa >= 0 of ranks that do not fit; traceable.
      discount: gamma in [0, 1]; traceable. The next conditions do not depend on the ranks, so that 0
        leaves out nothing but noise where the task changes slowly.
      decay: lambda of the advantages in [0, 1]; traceable.
      clip: > 0, of the ratios; traceable.
      epochs: E >= 1.
      value_weight: c_v >= 0; traceable.
      entropy_weight: c_e >= 0; traceable.
      optimizer: of the policy; default Adam at 1e-4 after a clip of the gradient's norm to 1.
      hidden: width of the policy's layers.
      agents: n >= 1.
      aggregator: of the agents' changes; default the mean.
      channel: between agents and server, of the policies; default perfect.
      at_once: see `dflax.map_clients`.

    Returns:
      An `Algorithm` with `init(key, params)`, params those of the frozen model, () without one.
      `state.server.params` has "policy" and "decoder", `state.server.memory` the frozen model,
      `state.clients.memory` the agents, and `tuned_models(task, state)` their models. Metrics, means
      over the episode and the agents: `reward`, `task_loss`, `cost`, `transmitted` (parameters that
      were sent), `violations` (share of steps whose ranks did not fit), `unreachable` (share in which
      none would have), `steps_under`, `reward_under`, `transmitted_under`, `violations_under` (sums by
      the link's conditions), `policy_loss`, `value_loss`, `entropy`, `clip_fraction`, `denoising_loss`
      (NaN before the warm-up), `episodes_dropped`.

    Raises:
      TypeError, ValueError: naming the argument; bandwidths over which not even the smallest ranks can
        be sent, whatever the ratio.

    References:
      Yang et al., AirLLM: Diffusion Policy-based Adaptive LoRA for Remote Fine-Tuning of LLM over the
      Air, arXiv 2507.11515.
    """
    environment = environment_of(task, link, low, high, price, penalty)
    made = _checked_decoder(decoder)
    lesson = Lesson(discount, decay, clip, value_weight, entropy_weight, epochs)
    _check(lesson, horizon, hidden, agents)
    descent = _descent(optimizer)
    matrices = environment.matrices
    policy = CoarsePolicy(made.coarse(matrices), hidden)

    def first_policies(key: Key[Array, ""]) -> Params:
        policy_key, decoder_key = jax.random.split(key)
        observed = jnp.zeros(4 + matrices)
        return {
            "policy": policy.init(policy_key, observed)["params"],
            "decoder": made.init(decoder_key, matrices),
        }

    def start(key: Key[Array, ""], policies: Params, base: Params) -> tuple[Params, Agent]:
        row = Tried(jnp.zeros(policy.actions), jnp.zeros(matrices), jnp.zeros(()))

        def one(key: Key[Array, ""]) -> Agent:
            return Agent(
                environment.start(key, base),
                descent.init(policies["policy"]),
                made.begin(policies["decoder"]),
                ring(made.capacity, row) if made.capacity else (),
            )

        return base, jax.vmap(one)(jax.random.split(key, agents))

    def choose(policies: Params, state: Surroundings, key: Key[Array, ""]) -> tuple[Array, Any]:
        act_key, decode_key = jax.random.split(key)
        observed = environment.observed(state)
        raw, log_prob, value = acted(policy, policies["policy"], observed, act_key)
        z = jnp.tanh(raw)
        x = made.decode(policies["decoder"], z, matrices, decode_key)
        return environment.decoded(x), (observed, raw, log_prob, value)

    def work(
        assignment: Assignment, own: Agent, server: Server, data: Dataset, index: Int[Array, ""]
    ) -> Report:
        policies = server.params
        play_key, learn_key = jax.random.split(assignment.key)
        surroundings, outcomes, (ranks, seen) = episode_of(
            environment,
            lambda state, key: choose(policies, state, key),
            own.surroundings,
            server.memory,
            minibatches(task, assignment, data, horizon),
            play_key,
            horizon,
        )
        observed, raw, log_prob, value = seen
        episode = Episode(observed, raw, log_prob, value, outcomes.reward)
        agent, after, metrics = lessons(own, policies, episode, ranks, learn_key)
        return _report(
            environment,
            outcomes,
            own,
            agent._replace(surroundings=surroundings),
            policies,
            after,
            metrics,
        )

    def lessons(
        own: Agent, policies: Params, episode: Episode, ranks: Array, key: Key[Array, ""]
    ) -> tuple[Agent, Params, Metrics]:
        tried = Tried(jnp.tanh(episode.raw), environment.encoded(ranks), episode.reward)
        replay = pushed(own.replay, tried) if isinstance(own.replay, Ring) else ()
        coarse, moments, metrics = learned(
            policy, lesson, descent, policies["policy"], own.policy, episode
        )
        fine, memory, more = made.learn(policies["decoder"], own.decoder, replay, key)
        agent = Agent(own.surroundings, moments, memory, replay)
        return agent, {"policy": coarse, "decoder": fine}, metrics | more

    def update(server: Server, received: Received) -> tuple[Params, Any, Metrics]:
        after = jax.tree.map(jnp.add, server.params, received.message)
        return after, server.memory, {}

    inner = with_server(
        start,
        work,
        update,
        aggregator=aggregator,
        channel=channel,
        clients=agents,
        at_once=at_once,
    )

    def init(key: Key[Array, ""], params: Params = ()) -> Any:
        return started(inner, first_policies, key, params)

    return Algorithm(init, inner.step)


def _report(
    environment: Environment,
    outcomes: Outcome,
    own: Agent,
    agent: Agent,
    policies: Params,
    after: Params,
    metrics: Metrics,
) -> Report:
    """The change of the policies, and the agent; nothing of an episode whose rewards are no numbers."""
    good = jnp.all(jnp.isfinite(outcomes.reward))
    change = jax.tree.map(jnp.subtract, after, policies)
    return Report(
        message=select(good, change, jax.tree.map(jnp.zeros_like, change)),
        memory=select(good, agent, own),
        metrics=environment.measured(outcomes) | metrics,
        totals={"episodes_dropped": 1.0 - good.astype(float)},
        measured=good,
    )


def _descent(optimizer: optax.GradientTransformation | None) -> optax.GradientTransformation:
    if optimizer is None:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-4))
    validation.instance("optimizer", optimizer, optax.GradientTransformation, "An optax one.")
    return optimizer


def _checked_decoder(decoder: RankDecoder | None) -> RankDecoder:
    if decoder is None:
        return diffusion_decoder()
    validation.instance(
        "decoder", decoder, RankDecoder, "For example dflax.rl.diffusion_decoder()."
    )
    return decoder


def _check(lesson: Lesson, horizon: int, hidden: int, agents: int) -> None:
    validation.integer("horizon", horizon, low=1)
    validation.integer("epochs", lesson.epochs, low=1)
    validation.integer("hidden", hidden, low=1)
    validation.integer("agents", agents, low=1)
    validation.probability("discount", lesson.discount)
    validation.probability("decay", lesson.decay)
    validation.real("clip", lesson.clip, low=0.0, low_open=True, scalar=True)
    validation.real("value_weight", lesson.value_weight, low=0.0, scalar=True)
    validation.real("entropy_weight", lesson.entropy_weight, low=0.0, scalar=True)
