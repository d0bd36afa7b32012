"""Where peers are installed, and how one of their programs is run beside ours."""

import json
import pathlib
import subprocess
import sys
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPTS = pathlib.Path(__file__).parent
VENVS = ROOT / ".venv-peers"

# What goes into which environment: packages that agree on their dependencies share one.
ENVIRONMENTS = {
    "torch": ("torch==2.13.0", "pfl==0.6.0", "byzfl==0.0.11"),
    "fedjax": ("fedjax==0.0.17", "jax==0.10.2", "optax==0.2.8"),
    "flower": ("torch==2.13.0", "flwr[simulation]==1.41.0"),
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
    "flower": Peer("Flower", "flwr", "flower", optional=True),
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
      What `measure` returned, with the peer's title and version as "peer"; None, after a line on
      stderr that says why and what to do, where the peer is missing or its program fails.
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
    done = subprocess.run(
        [*command, distribution],
        input=json.dumps(options),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(
            f"{title} failed in {script}.py, its rows are left out:\n{done.stderr[-2000:]}",
            file=sys.stderr,
        )
        return None
    found = json.loads(done.stdout.splitlines()[-1])
    return found["measured"] | {"peer": f"{title} {found['version']}"}


def install(*peers: str) -> None:
    """Make the environments of some peers; of all but the optional ones when none is named."""
    chosen = peers or tuple(name for name, peer in PEERS.items() if not peer.optional)
    for environment in dict.fromkeys(PEERS[name].environment for name in chosen):
        folder = VENVS / environment
        if not (folder / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = ENVIRONMENTS[environment]
        print(f"installing {', '.join(packages)} into {folder} ...", flush=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", *packages], check=True)
        if environment in SOURCES:
            _clone(*SOURCES[environment], folder / "sources" / environment)


def _clone(address: str, commit: str, folder: pathlib.Path) -> None:
    """A repository at a commit."""
    if not folder.exists():
        subprocess.run(["git", "clone", "--quiet", address, str(folder)], check=True)
    subprocess.run(["git", "-C", str(folder), "checkout", "--quiet", commit], check=True)
