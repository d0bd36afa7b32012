"""What `import dflax` loads: nothing that only some of its functions need."""

import json
import subprocess
import sys

# Each costs tenths of a second or more, so the function that needs it imports it.
HEAVY = {
    "matplotlib",
    "networkx",
    "orbax",
    "rich",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboardX",
}
PROGRAM = """
import json, sys
import flax, jax, optax
before = set(sys.modules)
import dflax
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_importing_dflax_loads_no_library_that_only_some_functions_need():
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    loaded = {name.partition(".")[0] for name in json.loads(printed)}
    assert "dflax" in loaded
    assert not loaded & HEAVY
