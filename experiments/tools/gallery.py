"""The page of all figures: claim, picture, command, run time, data, what bands and bars are.

`python -m experiments.tools.gallery` writes it to `docs/gallery/figures.md` from what the studies say;
`python -m experiments.tools.gallery NAME` first takes over the figures of a study that has been run.
"""

import importlib
import pathlib
import shutil
import sys
from typing import Any

from experiments.__main__ import studies
from experiments.tools import results
from experiments.tools.study import Picture, Study, lasting

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = DOCS / "gallery" / "figures.md"
FIGURES = DOCS / "figures"
HEAD = """# Figures

Every figure here was drawn by a study of this repository. Under each stands what it shows, the data set
or problem, what its bands, bars and marks are, and the command that draws it again, with the time that
the whole study takes on one CPU core. The command also prints the study's claims, and ends with status
1 if one does not hold. Many claims are of small problems and few seeds; a study says in its first lines
what else came out.

A figure is renewed by its command and `python -m experiments.tools.gallery NAME`, which takes the
figures of the study NAME over from `results/NAME/` and writes this page.
"""


def kept() -> list[str]:
    """The names of all drawn figures of the documentation."""
    return sorted(path.name for path in FIGURES.iterdir() if path.suffix in (".png", ".gif"))


def every_study() -> dict[str, tuple[str, Study]]:
    """Family and study by name."""
    found = {}
    for family, known in studies().items():
        for name in known:
            module = importlib.import_module(f"experiments.studies.{family}.{name}")
            found[name] = family, module.STUDY
    return found


def page(known: dict[str, tuple[str, Study]]) -> str:
    """The page of these studies, families in the order in which they come."""
    lines = [HEAD]
    last = ""
    for name, (family, study) in known.items():
        shown = [picture for picture in study.pictures if picture.file]
        if shown and family != last:
            lines.append(
                f"## {family.capitalize() if family != 'rl' else 'Reinforcement learning'}\n"
            )
            last = family
        lines += [entry(name, study, picture) for picture in shown]
    return "\n".join(lines)


def entry(name: str, study: Study, picture: Picture) -> str:
    """What stands of one figure."""
    import tyro

    config: Any = tyro.cli(study.config, args=picture.flags.split())
    command = " ".join(filter(None, (f"python -m experiments.{name}", picture.flags)))
    takes = "some minutes" if study.seconds is None else f"about {lasting(study.seconds)}"
    if picture.flags:
        takes = f"{takes} without the flag, longer with it"

    def said(text: str) -> str:
        return text.format(config=config)

    return (
        f"### {picture.file.rsplit('.', 1)[0]}{' (film)' if picture.file.endswith('.gif') else ''}\n\n"
        f"{said(picture.claim)}\n\n"
        f"![{name}: {said(picture.data)}](../figures/{picture.file})\n\n"
        f"- **Data:** {said(picture.data)}.\n"
        f"- **Bands and bars:** {said(picture.bands)}.\n"
        f"- **Command:** `{command}`\n"
        f"- **Run time:** {takes}.\n"
    )


def take_over(name: str, study: Study, folder: pathlib.Path) -> list[str]:
    """Copies the kept figures of a study that was run to the documentation; returns their names."""
    taken = []
    for picture in study.pictures:
        drawn = folder / f"{picture.name}.png"
        if picture.file and drawn.exists():
            shutil.copyfile(drawn, FIGURES / picture.file)
            taken.append(picture.file)
    if not taken:
        raise FileNotFoundError(
            f"{folder} holds no figure of {name}; run `python -m experiments.{name}` first."
        )
    return taken


def main(arguments: list[str]) -> Any:
    """The command line."""
    known = every_study()
    for name in arguments:
        if name not in known:
            sys.exit(f"{name!r} is no study; `python -m experiments` lists them.")
        print(*take_over(name, known[name][1], results.RESULTS / name), sep="\n", flush=True)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(known))


if __name__ == "__main__":
    main(sys.argv[1:])
