"""Machines by name, and what is said where there is no such machine or no compiler for it."""

import os
import sys

import pytest

import dflax as dx
from dflax.clients import platform
from dflax.mesh import machines
from dflax.mesh.planned import without_noise


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("v5e:16x16", (16, 16)),
        ("v4:4x4x4", (4, 4, 4)),
        ("v5p:2x2x1", (2, 2, 1)),
        ("v6e:2x4", (2, 4)),
        ("8xH100", (1, 8)),
        ("1xA100-40GB", (1, 1)),
        ("24xH200", (3, 8)),
    ],
)
def test_names_of_machines_are_read(name, sides):
    found = machines.machine(name)
    assert (found.sides, found.name) == (sides, name)
    assert found.chip in (*machines.TPUS.values(), *machines.GPUS.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:3x5", "name must be a slice of v5e: 1x1, .* got 'v5e:3x5'"),
        ("v5e:32x32", "16x16, got 'v5e:32x32'"),
        ("v4:4x4", "name must be a slice of v4, three sides"),
        ("v4:4x4x6", "multiples of 4"),
        ("v5p:32x32x32", "at most 8960 chips"),
        ("9xH100", "of 1 to 8 GPUs, or of a multiple of 8, got '9xH100'"),
        ("0xH100", "of 1 to 8 GPUs"),
        ("8xH99", "Known are TPUs .*v5e.* and GPUs .*H100"),
        ("v99:2x2", "got 'v99:2x2'. Known are"),
        ("H100", "Known are"),
        ("", "Known are"),
    ],
)
def test_machines_that_do_not_exist_are_refused_with_those_that_do(name, message):
    with pytest.raises(ValueError, match=message):
        dx.mesh.planned(name)


@pytest.mark.parametrize(
    ("name", "model", "devices"), [("v5e:1x1", 2, 1), ("v5e:2x4", 16, 8), ("4xH100", 8, 4)]
)
def test_more_devices_to_a_model_than_there_are_is_refused(name, model, devices):
    with pytest.raises(ValueError, match=rf"model must be an integer in \[1, {devices}\]"):
        dx.mesh.planned(name, model=model)
    if devices > 1:
        with pytest.raises(ValueError, match="model must divide the number of devices"):
            dx.mesh.planned(name, model=3)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("v5e:2x4", "libtpu", "plan-tpu"), ("8xH100", "jax_plugins", "plan-gpu")],
)
def test_a_missing_compiler_names_its_extra(name, module, extra, monkeypatch):
    find = dx.mesh.planned.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: None if n == module else find(n))
    dx.mesh.planned.__globals__["_devices"].cache_clear()
    with pytest.raises(ImportError, match=rf"pip install 'dflax\[{extra}\]'"):
        dx.mesh.planned(name)


def test_a_gpu_is_described_to_its_compiler():
    text = machines.target(machines.GPUS["H100"])
    assert "core_count: 132" in text
    assert "major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES" in text
    assert text.count("{") == text.count("}")


def test_the_share_of_a_gpu_that_jax_takes_is_what_programs_have(monkeypatch):
    class Device:
        device_kind = machines.GPUS["H100"].kind

        def memory_stats(self):
            raise RuntimeError

    assert machines.memory_of(Device()).usable == int(0.75 * machines.GPUS["H100"].memory)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
    assert machines.memory_of(Device()).usable == int(0.9 * machines.GPUS["H100"].memory)


def test_the_platform_is_this_machines_where_no_mesh_says_another():
    assert platform() == "cpu"


def fail_with_a_clue():
    with without_noise():
        os.write(2, b"a clue")
        raise ValueError("real")


def test_noise_is_thrown_away_and_kept_for_errors(capfd):
    with without_noise():
        os.write(2, b"noise")
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="real"):
        fail_with_a_clue()
    sys.stderr.flush()
    assert "a clue" in capfd.readouterr().err
