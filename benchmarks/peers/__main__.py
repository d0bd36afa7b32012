"""`python -m benchmarks.peers install [NAME ...]`: environments for the packages we compare with."""

import argparse
import sys

from benchmarks.peers import PEERS, install


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("command", choices=["install"])
    named = f"of {', '.join(PEERS)}; default all but the optional ones"
    parser.add_argument("names", nargs="*", metavar="NAME", help=named)
    options = parser.parse_args()
    unknown = set(options.names) - set(PEERS)
    if unknown:
        parser.error(f"unknown NAME {sorted(unknown)}: choose from {', '.join(PEERS)}")
    if install(*options.names) and options.names:
        sys.exit(1)


if __name__ == "__main__":
    main()
