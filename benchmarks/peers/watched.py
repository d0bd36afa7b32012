"""A program and all processes below it: what they say, and the processor's time that they take."""

import os
import pathlib
import resource
import subprocess

# Seconds between two looks; each takes some 4 milliseconds.
PAUSE = 0.25
PROCESSES = pathlib.Path("/proc")

# Seconds of processes that ended and that nobody waited for, as Ray's: no `getrusage` tells them.
lost = 0.0


def communicate(command: list[str], text: str, folder: pathlib.Path) -> tuple[int, str, str]:
    """Run a program; its status, output and errors. What its processes took unseen adds to `lost`."""
    global lost
    before = _waited_for()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as program:
        seen: dict[int, float] = {program.pid: 0.0}
        given: str | None = text
        while True:
            try:
                out, err = program.communicate(given, timeout=PAUSE)
                break
            except subprocess.TimeoutExpired:
                given = None
                seen |= below(seen)
    lost += max(0.0, sum(seen.values()) - (_waited_for() - before))
    return program.returncode, out, err


def below(known: dict[int, float]) -> dict[int, float]:
    """Seconds that each living process of those known, or below one of them, took so far."""
    parents, seconds = {}, {}
    for folder in PROCESSES.glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        # After the name: state, parent, and at places 12 and 13 ticks in the program and in the kernel.
        parents[int(folder.name)] = int(words[1])
        ticks = int(words[11]) + int(words[12])
        seconds[int(folder.name)] = ticks / os.sysconf("SC_CLK_TCK")
    found = {}
    for process in seconds:
        ancestor = process
        while ancestor in parents and ancestor not in known:
            ancestor = parents[ancestor]
        if ancestor in known:
            found[process] = seconds[process]
    return found


def _waited_for() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
