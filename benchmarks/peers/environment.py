"""Where peers are installed, and how one of their programs is run beside ours."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, NamedTuple

from benchmarks.peers import watched

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = pathlib.Path(__file__).parent
VENVS = ROOT / ".venv-peers"

# What goes into which environment: packages that agree on their dependencies share one.
ENVIRONMENTS = {
    "torch": ("torch==2.13.0", "pfl==0.6.0", "byzfl==0.0.11"),
    "fedjax": ("fedjax==0.0.17", "jax==0.10.2", "optax==0.2.8"),
    "drjax": ("drjax==0.2.1", "jax==0.10.2"),
    "blazefl": ("torch==2.13.0", "blazefl[contrib,reproducibility]==3.0.0"),
    "flower": ("torch==2.13.0", "flwr[simulation]==1.42.0"),
    "opacus": ("torch==2.13.0", "opacus>=1.5"),
    "flow": ("torch==2.13.0", "flow-matching==1.0.10", "torchcfm==1.0.7"),
    "gpytorch": ("torch==2.13.0", "gpytorch==1.15.2"),
    # Its scheduler alone is run, which needs NumPy.
    "appfl": ("--no-deps", "appfl==1.12.0", "numpy==2.2.6"),
    "ldp": (
        "pure-ldp==1.2.0",
        "multi-freq-ldpy==0.2.5",
        "scikit-learn==1.9.1",
        "statsmodels==0.15.0",
    ),
    "appfl_simulation": ("torch==2.13.0", "appfl==1.12.0"),
    # Its lookups are run over tables in memory.
    "kademlia": ("kademlia==2.2.3",),
    "meritrank": ("meritrank-python==0.2.10",),
    "osqp": ("osqp==1.1.3", "numpy==2.2.6", "scipy==1.15.3"),
    "purejaxrl": (
        "distrax==0.1.9",
        "flax==0.12.8",
        "gymnax==0.0.9",
        "jax==0.10.2",
        "optax==0.2.8",
    ),
    "vidur": ("vidur==0.0.26",),
    # Of 2019: it asks for the NumPy of its time, and an MPI.
    "prosper": (
        "numpy==1.23.5",
        "scipy==1.10.1",
        "tables==3.8.0",
        "mpi4py==4.1.2",
        "mpich==5.0.2",
        "six==1.17.0",
        "prosper @ git+https://github.com/ml-uol/prosper@0865c1d",
    ),
}

# Repositories that are no packages: cloned into the environment's folder "sources", at a commit.
SOURCES = {"purejaxrl": ("https://github.com/luchris429/purejaxrl", "31756b1")}

# The least Python 3 of what asks for a newer one than ours may be.
PYTHONS = {"blazefl": 14}


class Peer(NamedTuple):
    """Something that a user might pick instead.

    Attributes:
      title: its name in tables.
      distribution: the package whose version stands beside the title.
      environment: key of `ENVIRONMENTS`.
      optional: left out of an `install` that names nobody: large, and slow to measure.
    """

    title: str
    distribution: str
    environment: str
    optional: bool = False


PEERS = {
    "torch": Peer("PyTorch loop", "torch", "torch"),
    "pfl": Peer("pfl-research", "pfl", "torch"),
    "byzfl": Peer("ByzFL", "byzfl", "torch"),
    "fedjax": Peer("FedJAX", "fedjax", "fedjax"),
    "opacus": Peer("Opacus", "opacus", "opacus"),
    "appfl": Peer("APPFL", "appfl", "appfl"),
    "pure_ldp": Peer("pure-ldp", "pure-ldp", "ldp"),
    "appfl_simulation": Peer("APPFL's simulation", "appfl", "appfl_simulation", optional=True),
    "flow": Peer("torchcfm and flow-matching", "torchcfm", "flow"),
    "gpytorch": Peer("GPyTorch", "gpytorch", "gpytorch"),
    "kademlia": Peer("kademlia", "kademlia", "kademlia"),
    "meritrank": Peer("meritrank-python", "meritrank_python", "meritrank"),
    "osqp": Peer("OSQP", "osqp", "osqp"),
    "purejaxrl": Peer("PureJaxRL", "gymnax", "purejaxrl"),
    "vidur": Peer("Vidur", "vidur", "vidur"),
    "prosper": Peer("ProSper", "ProSper", "prosper", optional=True),
    "drjax": Peer("DrJAX", "drjax", "drjax"),
    "blazefl": Peer("BlazeFL", "blazefl", "blazefl", optional=True),
    "flower": Peer("Flower's simulation", "flwr", "flower", optional=True),
}


def run(peer: str, script: str, **options: Any) -> dict[str, Any] | None:
    """Run `measure(**options)` of benchmarks/peers/SCRIPT.py in the peer's environment.

    Nothing else of ours runs meanwhile, so the two times are of the same quiet machine.

    Args:
      peer: key of `PEERS`.
      script: name of the file, without ending. Its `measure` returns a dict of numbers, "ms" among
        them; it may import `benchmarks.tasks` and `benchmarks.peers.timing`, but nothing of dflax.
      **options: what JSON can hold.

    Returns:
      What `measure` returned, with the peer's title and version as "peer", and behind them what
      `measure` says of its "mode"; None, after a line on stderr that says why and what to do, where
      the peer is missing or its program fails.
    """
    title, distribution, environment, _ = PEERS[peer]
    python = VENVS / environment / "bin" / "python"
    if not python.exists():
        print(
            f"{title} is not installed, its rows are left out: "
            f"python -m benchmarks.peers install {peer}",
            file=sys.stderr,
        )
        return None
    # Python's own folder of a file called as a script would come first on the path, hence -m.
    command = [str(python), "-m", "benchmarks.peers.call", str(SCRIPTS / f"{script}.py")]
    status, out, err = watched.communicate([*command, distribution], json.dumps(options), ROOT)
    if status:
        print(
            f"{title} failed in {script}.py, its rows are left out:\n{err[-2000:]}",
            file=sys.stderr,
        )
        return None
    found = json.loads(out.splitlines()[-1])
    measured = found["measured"]
    mode = f", {measured['mode']}" if "mode" in measured else ""
    return measured | {"peer": f"{title} {found['version']}{mode}"}


def install(*peers: str) -> list[str]:
    """Make the environments of some peers; of all but the optional ones when none is named.

    Returns:
      The environments that were not made, as no Python that is new enough was found; each is named on
      stderr, with what to do.
    """
    chosen = peers or tuple(name for name, peer in PEERS.items() if not peer.optional)
    missing = []
    for environment in dict.fromkeys(PEERS[name].environment for name in chosen):
        folder = VENVS / environment
        if not (folder / "bin" / "python").exists():
            python = _python(PYTHONS.get(environment, 0))
            if python is None:
                missing.append(environment)
                print(
                    f"{environment} is not installed, it needs Python >= 3.{PYTHONS[environment]}: "
                    f"put a python3.{PYTHONS[environment]} on the path, or make one with pyenv",
                    file=sys.stderr,
                )
                continue
            subprocess.run([python, "-m", "venv", str(folder)], check=True)
        packages = ENVIRONMENTS[environment]
        print(f"installing {', '.join(packages)} into {folder} ...", flush=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *packages], check=True)
        if environment in SOURCES:
            _clone(*SOURCES[environment], folder / "sources" / environment)
    return missing


def _python(least: int) -> str | None:
    """This Python where it is a 3.`least` or newer, else the oldest such on the path or of pyenv."""
    if sys.version_info >= (3, least):
        return sys.executable
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    # Packages are built for a new Python long after it appears, so the oldest comes first.
    for minor in range(least, least + 4):
        for python in (
            shutil.which(f"python3.{minor}"),
            *map(str, sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python3"))),
        ):
            # A name on the path may be a shim of pyenv for a version that is not switched on.
            check = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, {minor}))"
            if (
                python
                and not subprocess.run([python, "-c", check], stderr=subprocess.DEVNULL).returncode
            ):
                return python
    return None


def _clone(address: str, commit: str, folder: pathlib.Path) -> None:
    """A repository at a commit."""
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", address, str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
