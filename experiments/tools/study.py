"""What a study is: its settings, its parts, what they need, and what they find."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import dflax as dx
from experiments.tools.finished import Stage


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement about what ran.

    Attributes:
      claim: the statement, in words.
      holds: whether the numbers bear it out; computed, never typed in. None: it was not run.
      ours: the number or numbers it rests on.
      reference: what they are compared with; of a claim that was not run, why it was not.
    """

    claim: str
    holds: bool | None
    ours: Any
    reference: Any

    @property
    def fails(self) -> bool:
        """Whether it ran and the numbers speak against it."""
        return self.holds is not None and not self.holds


@dataclasses.dataclass
class Summary:
    """What a study found, or a part of it.

    Attributes:
      methods: for each method its metrics, plain numbers.
      claims: what follows from them.
      figures: by file name, without ending: matplotlib figures, or paths of drawn ones.
      tables: titles, and the methods that stand under each; none: all of them in one table.
    """

    methods: dict[str, dict[str, Any]]
    claims: list[Claim] = dataclasses.field(default_factory=list)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    tables: dict[str, list[str]] = dataclasses.field(default_factory=dict)


class Input(NamedTuple):
    """Something from outside that a part needs, such as the files of a data set.

    Attributes:
      name: in words.
      look: `config -> anything`; raises FileNotFoundError or ImportError where it is missing. A
        download counts as looking.
    """

    name: str
    look: Callable[[Any], Any]


def always(config: Any) -> bool:
    """The part is run whatever the settings."""
    return True


def says_nothing(config: Any) -> list[str]:
    """The part makes no claim that would be missed."""
    return []


class Part(NamedTuple):
    """A part of a study, which is run, saved and left out as a whole.

    Attributes:
      name: within the study.
      run: `(config, stage) -> Summary`; long computations go through `stage(name, compute)`, which says
        a line and keeps their arrays until the study ends.
      needs: its inputs.
      states: `config -> ` the statements of its claims, to be told where an input is missing.
      wanted: `config -> ` whether the settings ask for it.
    """

    name: str
    run: Callable[[Any, Stage], Summary]
    needs: tuple[Input, ...]
    states: Callable[[Any], list[str]] = says_nothing
    wanted: Callable[[Any], bool] = always

    def not_run(self, config: Any, why: str) -> Summary:
        """What is said of it when it was not run: its claims, or the part itself."""
        stated = self.states(config) or [f"the part {self.name}"]
        return Summary({}, [Claim(text, None, None, f"not run: {why}") for text in stated])


class Picture(NamedTuple):
    """What a figure of a study is, for whoever sees the figure alone.

    Texts may name settings, `{config.seeds}`.

    Attributes:
      name: among the study's figures.
      file: in `docs/figures/`; "" if it is not kept there.
      claim: what it shows.
      data: on which data set or problem.
      bands: what its bands and bars are, or its marks.
      flags: the command line that draws it, where that is not the study's name alone.
      headed: whether data and bands are written above the figure; False where it says both itself.
    """

    name: str
    file: str
    claim: str
    data: str
    bands: str
    flags: str = ""
    headed: bool = True

    def heading(self, config: Any) -> str:
        """The line above the figure."""
        line = f"{self.data}; {self.bands}".format(config=config)
        return line.replace(" of 1 seeds", " of one seed")


class Study(NamedTuple):
    """A study.

    Attributes:
      config: its dataclass; the command line is made from it.
      parts: in the order in which they are run.
      quick: settings with which it ends within a minute; its claims are not about them.
      seconds: of one CPU core that it took with the settings of `config()`, compiling included; None:
        some minutes, which nobody has counted.
      pictures: of its figures.
    """

    config: type
    parts: tuple[Part, ...]
    quick: Any
    seconds: int | None = None
    pictures: tuple[Picture, ...] = ()

    def missing(self, config: Any) -> dict[str, str]:
        """The inputs of its wanted parts that are not here, each with what the search for it said."""
        absent: dict[str, str] = {}
        seen: set[str] = set()
        for part in self.parts:
            for need in part.needs if part.wanted(config) else ():
                if need.name in seen:
                    continue
                seen.add(need.name)
                try:
                    need.look(config)
                except (FileNotFoundError, ImportError) as error:
                    absent[need.name] = str(error)
        return absent


def lasting(seconds: float) -> str:
    """A duration in words, as exactly as it can be foretold."""
    if seconds < 90:
        return f"{max(10 * round(seconds / 10), 10)} s"
    return f"{round(seconds / 60)} min"


def together(parts: dict[str, Summary]) -> Summary:
    """Several parts as one summary; refuses rows, tables and figures of one name.

    Args:
      parts: what each part found, by its name.
    """
    titled = {
        name: summary.tables or ({name: list(summary.methods)} if summary.methods else {})
        for name, summary in parts.items()
    }
    return Summary(
        dx.disjoint(**{name: summary.methods for name, summary in parts.items()}),
        [claim for summary in parts.values() for claim in summary.claims],
        dx.disjoint(**{name: summary.figures for name, summary in parts.items()}),
        dx.disjoint(**titled),
    )
