"""Meshes of machines that are not here, for which programs can be compiled and never run."""

import contextlib
import functools
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from dflax.mesh.layout import client_mesh
from dflax.mesh.machines import Gpu, Machine, Tpu, machine, target

# What libtpu asks a Cloud TPU's metadata server for; away from there it would wait and complain.
AWAY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# The plugin refuses to be loaded where there is no driver, though only running needs one.
WITHOUT_DRIVER = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
PLUGINS = ("xla_cuda13", "xla_cuda12")


def planned(name: str, *, model: int = 1) -> Mesh:
    """A mesh of a machine that is not here, to compile for: `dflax.profile.round(..., mesh=...)`.

    Programs for it are compiled by the machine's own compiler, which comes with a package from PyPI; no
    accelerator and no driver is needed. They cannot be run here.

    Args:
      name: TPUs by generation and the sides of the slice, "v4:4x4x4", "v5e:16x16", "v5p:2x2x1",
        "v6e:2x4"; or GPUs by number and kind, "8xH100", "16xH200", "1xA100": up to 8 are one host, more
        are hosts of 8.
      model: devices that share each model, as for `client_mesh`.

    Returns:
      A mesh with the axis "clients" and, if `model` > 1, the axis "model".

    Raises:
      TypeError, ValueError: no such machine, with the list of those that there are, or a `model` that
        does not divide its devices.
      ImportError: the compiler is not installed; it names the extra.
    """
    return client_mesh(_devices(machine(name)), model=model)


@functools.lru_cache
def _devices(wanted: Machine) -> Sequence[jax.Device]:
    if isinstance(wanted.chip, Gpu):
        return _gpus(wanted, wanted.chip)
    return _tpus(wanted, wanted.chip)


def _tpus(wanted: Machine, tpu: Tpu) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError(
            f"planned({wanted.name!r}) needs libtpu, the compiler for TPUs: "
            "pip install 'dflax[plan-tpu]'."
        )
    # One chip is a host of its own.
    host = {"chips_per_host_bounds": (1, 1, 1)} if max(wanted.sides) == 1 else {}
    chip = {"chip_config_name": tpu.chip} if tpu.chip else {}
    settings = AWAY | {"TPU_ACCELERATOR_TYPE": tpu.accelerator}
    with without_noise():
        # What this machine has is found first, and what is said about it goes the same way.
        jax.devices()
        with _environment(settings, without=("XLA_FLAGS",)):
            devices = topologies.get_topology_desc(
                platform="tpu", topology_name=wanted.name, **host, **chip
            ).devices
            if not _compile_something.cache_info().currsize:
                _compile_something(devices[0])
            return devices


@functools.cache
def _compile_something(device: jax.Device) -> None:
    """A first program for a TPU, at which libtpu reads its flags.

    It reads XLA_FLAGS, too, and ends the process at one it does not know, such as those for CPUs.
    """
    place = SingleDeviceSharding(device)
    jax.jit(jnp.negative).lower(jax.ShapeDtypeStruct((), jnp.float32, sharding=place)).compile()


def _gpus(wanted: Machine, gpu: Gpu) -> Sequence[jax.Device]:
    some = importlib.util.find_spec("jax_plugins") is not None
    plugins = [name for name in PLUGINS if some and importlib.util.find_spec(f"jax_plugins.{name}")]
    if not plugins:
        raise ImportError(
            f"planned({wanted.name!r}) needs jax's CUDA plugin and NVIDIA's compiler: "
            "pip install 'dflax[plan-gpu]'."
        )
    hosts, each = wanted.sides

    def described() -> Sequence[jax.Device]:
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=wanted.name,
            target_config=target(gpu),
            topology=f"1x{hosts}x{each}",
        ).devices

    with _environment(WITHOUT_DRIVER), without_noise():
        # What this machine has is found first: a plugin loaded for compiling brings it no device.
        jax.devices()
        try:
            return described()
        except NotImplementedError:
            # JAX looked for a driver when it started, found none, and left the plugin out.
            importlib.import_module(f"jax_plugins.{plugins[0]}").initialize()
            return described()


@contextlib.contextmanager
def _environment(settings: dict[str, str], without: Sequence[str] = ()) -> Iterator[None]:
    """With these variables where they are not set yet, without others; afterwards as it was."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    removed = {name: os.environ.pop(name) for name in without if name in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
        os.environ.update(removed)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """What native libraries write to standard error is thrown away, unless an error comes out.

    So is JAX's warning that what it kept of a compiled program cannot be read without the device.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Error reading persistent compilation cache")
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(kept, 2)
            written.seek(0)
            sys.stderr.write(written.read().decode(errors="replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
