"""Runs in a peer's environment: calls one script's `measure` and prints what it returns as JSON.

`python -m benchmarks.peers.call PATH DISTRIBUTION`, called by `benchmarks.peers.run`, which writes the
options as JSON to its standard input: an argument may be 128 KB at most.

Processes that a peer leaves to themselves come to this one and are waited for, so that their time is
the peer's in `benchmarks.load`, and not that of other load.
"""

import ctypes
import importlib.metadata
import json
import os
import runpy
import sys
import time

# From <linux/prctl.h>: whoever loses its parent below this process becomes its child.
SUBREAPER = 36
PATIENCE = 10.0


def wait_for_orphans() -> None:
    """Until no child is left, or patience is."""
    last = time.monotonic() + PATIENCE
    while time.monotonic() < last:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not ended:
            time.sleep(0.02)


if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    path, distribution = sys.argv[1:]
    version = importlib.metadata.version(distribution)
    measured = runpy.run_path(path)["measure"](**json.load(sys.stdin))
    print(json.dumps({"version": version.partition("+")[0], "measured": measured}))
    if sys.platform == "linux":
        wait_for_orphans()
