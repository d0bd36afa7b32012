"""Runs in a peer's environment: calls one script's `measure` and prints what it returns as JSON.

`python -m benchmarks.peers.call PATH DISTRIBUTION OPTIONS`, called by `benchmarks.peers.run`.
"""

import importlib.metadata
import json
import runpy
import sys

if __name__ == "__main__":
    path, distribution, options = sys.argv[1:]
    version = importlib.metadata.version(distribution)
    measured = runpy.run_path(path)["measure"](**json.loads(options))
    print(json.dumps({"version": version.partition("+")[0], "measured": measured}))
