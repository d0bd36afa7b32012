"""Meters on made-up counters and clocks, and those that this machine has."""

import itertools
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

from dflax import inference
from dflax.inference import efficiency as ipw

LAPTOP = inference.accelerator(1e12, 1e11, 1e10, idle_watts=5.0, peak_watts=25.0)


def clock(*times):
    return iter(times).__next__


def zone(folder, place, name, counter, largest=1_000_000):
    one = folder / f"intel-rapl:{place}"
    one.mkdir()
    (one / "name").write_text(f"{name}\n")
    (one / "energy_uj").write_text(f"{counter}\n")
    (one / "max_energy_range_uj").write_text(f"{largest}\n")
    return one / "energy_uj"


def test_counters_wrap_at_their_range_once():
    assert ipw.wrapped(10, 25, 100) == 15
    assert ipw.wrapped(90, 5, 100) == 15
    with pytest.raises(ValueError, match="now must be an integer in"):
        ipw.wrapped(0, 101, 100)


def test_rapl_adds_up_packages_through_many_ranges(tmp_path):
    first = zone(tmp_path, "0", "package-0", 900_000)
    second = zone(tmp_path, "1", "package-1", 0)
    inner = zone(tmp_path, "0:0", "dram", 7)
    meter = ipw.rapl(folder=tmp_path, clock=clock(1.0, 3.0, 5.0))
    mark = meter.begin()
    first.write_text("100000")
    second.write_text("50000")
    inner.write_text("900000")
    found = meter.since(mark)
    assert found == ipw.Energy(pytest.approx(0.25), 2.0, "rapl:package")
    assert found.watts == pytest.approx(0.125)
    first.write_text("50000")
    assert meter.since(mark).joules == pytest.approx(0.25 + 0.95)
    both = ipw.rapl(folder=tmp_path, domains=("package", "dram"))
    assert both.name == "rapl:package+dram"


def test_rapl_says_what_is_missing(tmp_path):
    with pytest.raises(ipw.MeterError, match="rapl: no counter of package in"):
        ipw.rapl(folder=tmp_path)
    zone(tmp_path, "0", "package-0", 5).write_text("none")
    with pytest.raises(ipw.MeterError, match=r"rapl: .*energy_uj cannot be read"):
        ipw.rapl(folder=tmp_path)


class GpuError(Exception):
    """As pynvml's."""


def gpu(*counts, name=b"GPU"):
    counts = iter((0, *counts))
    return types.SimpleNamespace(
        NVMLError=GpuError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda device: device,
        nvmlDeviceGetName=lambda handle: name,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counts),
    )


def test_nvml_counts_millijoules_and_a_new_driver_is_missing():
    meter = ipw.nvml(library=gpu(1000, 3500, 200), clock=clock(0.0, 2.0, 3.0))
    mark = meter.begin()
    assert meter.since(mark) == ipw.Energy(2.5, 2.0, "nvml:GPU")
    assert math.isnan(meter.since(mark).joules)


def test_nvml_without_a_gpu_is_a_meters_error():
    library = gpu()

    def absent(device):
        raise GpuError("not found")

    library.nvmlDeviceGetHandleByIndex = absent
    with pytest.raises(ipw.MeterError, match="nvml: GPU 0 cannot be read: not found"):
        ipw.nvml(library=library)


def test_a_modelled_meter_is_the_law_of_utilisation():
    meter = ipw.modelled(LAPTOP, cores=2, clock=clock(0, 10, 20), busy=clock(1, 6, 61))
    mark = meter.begin()
    assert meter.since(mark) == ipw.Energy(pytest.approx((5 + 20 * 5 / 20) * 10), 10, "modelled")
    assert meter.since(mark).joules == pytest.approx(25 * 20)
    with pytest.raises(ValueError, match=r"accelerator\.peak_watts must be"):
        ipw.modelled(LAPTOP._replace(peak_watts=1.0))


def tracker(energies):
    """A codecarbon of made-up numbers."""

    class Offline:
        _hardware = ("CPU",)

        def __init__(self, **options):
            assert options["save_to_file"] is False

        def start_task(self, name):
            self.name = name

        def stop_task(self, name):
            assert name == self.name
            return types.SimpleNamespace(duration=2.0, **energies)

    return types.SimpleNamespace(OfflineEmissionsTracker=Offline)


def test_codecarbon_is_read_in_joules_once_a_mark():
    library = tracker({"cpu_energy": 1e-6, "ram_energy": 2e-6, "gpu_energy": 0.0})
    meter = ipw.codecarbon(parts=("cpu", "ram"), library=library)
    mark = meter.begin()
    with pytest.raises(RuntimeError, match="one mark at a time"):
        meter.begin()
    found = meter.since(mark)
    assert found == ipw.Energy(pytest.approx(10.8), 2.0, "codecarbon:cpu+ram (CPU)")
    with pytest.raises(RuntimeError, match="tells of a mark once"):
        meter.since(mark)


@pytest.mark.slow
def test_codecarbon_itself_tells_some_energy():
    pytest.importorskip("codecarbon", reason="codecarbon is not installed")
    meter = ipw.codecarbon()
    run = ipw.metered(lambda x: x @ x, jnp.ones((500, 500)), meter=meter, seconds=3.0)
    assert 0 < run.power < 1000
    assert run.meter.startswith("codecarbon:cpu")


@pytest.mark.slow
def test_every_meter_is_either_here_or_has_a_reason():
    here, absent = ipw.available_meters(), ipw.absent_meters()
    assert set(here) | set(absent) == {"rapl", "nvml", "codecarbon"}
    assert not set(here) & set(absent)
    assert all(reason.startswith(f"{name}: ") for name, reason in absent.items())
    assert all(isinstance(meter, ipw.Meter) for meter in here.values())


def ticking():
    """A meter that counts how often it is asked."""
    asked = itertools.count(1)
    return ipw.Meter("ticks", lambda: None, lambda mark: ipw.Energy(next(asked), 2.0, "ticks"))


def test_a_program_under_a_meter_has_latency_energy_arithmetic_and_the_meters_name():
    matrices = jnp.ones((4, 8)), jnp.ones((8, 2))
    run = ipw.metered(jnp.matmul, *matrices, meter=ticking(), seconds=0.01)
    calls = run.latency.size
    assert calls >= 1
    assert np.all(run.latency > 0)
    assert run.energy == pytest.approx(1 / calls)
    assert (run.power, run.flops, run.meter) == (0.5, 2 * 4 * 8 * 2, "ticks")


def test_a_recording_samples_from_before_the_work_until_after_it():
    found = ipw.recorded(ticking(), lambda: "done", every=0.001)
    assert (found.returned, found.meter) == ("done", "ticks")
    assert found.counter.tolist() == list(range(1, found.counter.size + 1))
    assert found.counter.size >= 2
    assert np.all(np.diff(found.time) > 0)
    np.testing.assert_allclose(found.power[1:] * np.diff(found.time), 1.0)
    with pytest.raises(ZeroDivisionError):
        ipw.recorded(ticking(), lambda: 1 / 0)
    with pytest.raises(TypeError, match="meter must be of type Meter"):
        ipw.recorded("rapl", lambda: None)
