"""Studies: one file each, a typed configuration, runs, claims computed from what ran, and figures.

`studies/FAMILY/NAME.py` is a study, `tasks/` is what studies train on, `tools/` is what they share.
"""

import pathlib

# A study runs by its name alone, `python -m experiments.NAME`, whatever its family.
__path__ += [str(folder) for folder in sorted(pathlib.Path(__file__).parent.glob("studies/[!_]*/"))]
