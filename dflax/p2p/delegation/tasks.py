"""Tasks as a stream of rounds."""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int, Key

from dflax import validation

Real = float | Float[Array, ""]


class Task(NamedTuple):
    """One task, the round of `delegation`.

    Attributes:
      gap: `[]` time since the task before it.
      owner: `[]` int32, the agent that has it done.
      skill: `[]` int32, what it takes.
      duration: `[]` of the work itself.
      key: typed, for what is random beside.
    """

    gap: Float[Array, ""]
    owner: Int[Array, ""]
    skill: Int[Array, ""]
    duration: Float[Array, ""]
    key: Key[Array, ""]


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class TaskStream:
    """A source of `Task`s, from `task_stream`."""

    agents: int
    skills: int
    rate: Real
    speed: Real

    def draw(self, key: Key[Array, ""], index: Int[Array, ""]) -> Task:
        """Task number `index`."""
        when, who, what, how_long, rest = jax.random.split(jax.random.fold_in(key, index), 5)
        return Task(
            jax.random.exponential(when) / (self.agents * self.rate),
            jax.random.randint(who, (), 0, self.agents),
            jax.random.randint(what, (), 0, self.skills),
            jax.random.exponential(how_long) / self.speed,
            rest,
        )

    def tree_flatten_with_keys(self) -> tuple:
        """The rates as children."""
        names = ("rate", "speed")
        children = tuple((jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in names)
        return children, (self.agents, self.skills)

    @classmethod
    def tree_unflatten(cls, static: tuple, children: tuple) -> "TaskStream":
        """Rebuilds the source without checking again."""
        stream = object.__new__(cls)
        for name, value in zip(
            ("agents", "skills", "rate", "speed"), (*static, *children), strict=True
        ):
            object.__setattr__(stream, name, value)
        return stream


def task_stream(agents: int, skills: int, *, rate: Real = 2.0, speed: Real = 0.5) -> TaskStream:
    """Tasks that arrive as a Poisson process, of even owners and skills.

    Args:
      agents: n >= 2.
      skills: q >= 1.
      rate: tasks of an agent in a unit of time, > 0; traceable.
      speed: mu > 0, durations are exponential of mean 1 / mu; traceable.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.integer("agents", agents, low=2)
    validation.integer("skills", skills, low=1)
    validation.real("rate", rate, low=0.0, low_open=True, scalar=True)
    validation.real("speed", speed, low=0.0, low_open=True, scalar=True)
    return TaskStream(agents, skills, rate, speed)
