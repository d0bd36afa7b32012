"""What `import dflax` loads: nothing that only some of its functions need."""

import json
import subprocess
import sys

import pytest

import dflax as dx

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


def test_rooms_of_single_families_are_loaded_when_they_are_named():
    program = """
import json, sys
import dflax as dx
late = [name for name in dx._LATER if f"dflax.{name}" not in sys.modules]
reached = [name for name in dx._LATER if getattr(dx, name) is sys.modules[f"dflax.{name}"]]
print(json.dumps([sorted(dx._LATER), sorted(late), sorted(reached)]))
"""
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    rooms, late, reached = json.loads(printed)
    assert "rl" in rooms
    assert rooms == late == reached
    assert set(rooms) <= set(dx.__all__)


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match="'dflax' has no attribute 'servr'"):
        _ = dx.servr
