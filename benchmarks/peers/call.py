"""Runs in a peer's environment: calls one script's `measure` and prints what it returns as JSON.

`python -m benchmarks.peers.call PATH DISTRIBUTION`, called by `benchmarks.peers.run`, which writes the
options as JSON to its standard input: an argument may be 128 KB at most.
"""

import importlib.metadata
import json
import runpy
import sys

if __name__ == "__main__":
    path, distribution = sys.argv[1:]
    version = importlib.metadata.version(distribution)
    measured = runpy.run_path(path)["measure"](**json.load(sys.stdin))
    print(json.dumps({"version": version.partition("+")[0], "measured": measured}))
