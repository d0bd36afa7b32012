"""Other packages doing the same work, each in an environment of its own under .venv-peers/."""

from benchmarks.peers.environment import ENVIRONMENTS, PEERS, install, run
