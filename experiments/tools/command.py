"""The command line of a study: what is looked for, run, saved part by part, and told at the end."""

import argparse
import dataclasses
import os
import pathlib
import sys
import time
from typing import Any

import jax

from experiments.tools import compiling, figures, results
from experiments.tools.finished import Kept
from experiments.tools.study import Claim, Part, Study, Summary, lasting, together

FLAGS = (
    ("--plan", "say what would run and what is missing, and end"),
    ("--quick", "start from small settings, into results/quick/; claims are not judged"),
)


def main(study: Study, file: str) -> None:
    """Runs a study from the command line and ends the process: status 1 when a claim fails.

    A claim that was not run, since an input is missing, does not fail.

    Args:
      study: the study.
      file: its `__file__`, which names it.
    """
    import tyro

    name = pathlib.Path(file).stem
    flags, rest = _flags(sys.argv[1:])
    config: Any = tyro.cli(
        study.config,
        args=rest,
        default=study.quick if flags.quick else study.config(),
        prog=f"python -m experiments.{name}",
        description="\n".join(
            (study.config.__doc__ or "", *(f"{flag}: {what}." for flag, what in FLAGS))
        ),
    )
    folder = results.RESULTS / "quick" / name if flags.quick else results.RESULTS / name
    say(f"{name} {'takes' if flags.plan else 'begins, and takes'} {expected(study, config)}")
    if flags.plan:
        plan(study, name, config)
        sys.exit(0)
    remember_compilations()
    if flags.quick:
        # A look compiles each program for one short run.
        os.environ["XLA_FLAGS"] = compiling.quick_flags()
    began = time.perf_counter()
    summary = run(study, folder, config, judged=not flags.quick)
    results.show(folder, summary, time.perf_counter() - began, time.process_time())
    sys.exit(1 if any(claim.fails for claim in summary.claims) else 0)


def expected(study: Study, config: Any) -> str:
    """How long a run with these settings takes, in words, as far as that was measured."""
    if config == study.quick:
        return "less than a minute of a CPU core"
    if study.seconds is None:
        return "some minutes"
    others = "" if config == study.config() else " with the default settings, which these are not"
    return f"about {lasting(study.seconds)} of a CPU core{others}"


def _flags(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag, _ in FLAGS:
        parser.add_argument(flag, action="store_true")
    return parser.parse_known_args(arguments)


def plan(study: Study, name: str, config: Any) -> list[tuple[Part, str]]:
    """Looks for all inputs, and says what of the study will run.

    Returns:
      The wanted parts, each with why it cannot be run, or "".
    """
    wanted = [part for part in study.parts if part.wanted(config)]
    say(f"{name}: {', '.join(part.name for part in wanted)}")
    missing = study.missing(config)
    for name_of_input, why in missing.items():
        say(f"  {name_of_input} is not here. {why}")
    planned = []
    for part in wanted:
        absent = [need.name for need in part.needs if need.name in missing]
        planned.append((part, f"{' and '.join(absent)} is not here" if absent else ""))
        if absent:
            say(f"  {part.name} is left out: {planned[-1][1]}")
    return planned


def run(study: Study, folder: pathlib.Path, config: Any, *, judged: bool = True) -> Summary:
    """Runs all parts whose inputs are here; after each of them everything found so far is saved.

    Args:
      study: the study.
      folder: where its results go; its name is the study's.
      config: the settings.
      judged: whether claims are judged; else they count as not run, for settings they are not about.

    Returns:
      The summary of all parts.
    """
    planned = plan(study, folder.name, config)
    kept = Kept(folder, config, say)
    found: dict[str, Summary] = {}
    for place, (part, absent) in enumerate(planned):
        if absent:
            found[part.name] = part.not_run(config, absent)
        else:
            found[part.name] = _run_part(study, part, folder, config, kept, judged)
        later = {
            other.name: other.not_run(config, why or "the study has not come so far")
            for other, why in planned[place + 1 :]
        }
        results.save(folder, config, together(found | later))
    kept.forget()
    return together(found)


def _run_part(
    study: Study, part: Part, folder: pathlib.Path, config: Any, kept: Kept, judged: bool
) -> Summary:
    """What a part finds, or what a run that was killed later on has left of it."""
    before = kept.text(part.name)
    if before is not None and all((folder / f"{stem}.png").exists() for stem in before["figures"]):
        say(f"{folder.name}, {part.name}: kept from before")
        return Summary(
            before["methods"],
            [Claim(**claim) for claim in before["claims"]],
            {stem: folder / f"{stem}.png" for stem in before["figures"]},
            before["tables"],
        )
    say(f"{folder.name}, {part.name}: begins")
    summary = part.run(config, kept)
    if not judged:
        why = "not judged with quick settings"
        claims = [dataclasses.replace(c, holds=None, reference=why) for c in summary.claims]
        summary = dataclasses.replace(summary, claims=claims)
    for picture in study.pictures:
        figure = summary.figures.get(picture.name)
        if figure is not None and picture.headed:
            figures.head(figure, picture.heading(config))
    for stem, figure in summary.figures.items():
        for fault in figures.lacks(figure):
            say(f"  figure {stem}, {fault}")
    summary = dataclasses.replace(summary, figures=results.draw(folder, summary))
    content = dataclasses.asdict(summary) | {"figures": list(summary.figures)}
    kept.keep_text(part.name, results.plain(content))
    return summary


def say(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def remember_compilations() -> None:
    """Keeps compiled programs on disk, so that a second run starts at once.

    JAX_COMPILATION_CACHE_DIR says where, else it is `dflax/jax` in the user's cache.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(home / "dflax" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
