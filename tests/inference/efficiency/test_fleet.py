"""The fleet's rooflines against plain sums, and the item-response model."""

import jax
import numpy as np
import pytest

from dflax import inference
from dflax.inference import efficiency as ipw

PARAMETERS = np.array([1e9, 8e9, 70e9])
LOCAL_AND_CLOUD = inference.accelerator(
    np.array([30e12, 1000e12]),
    np.array([0.4e12, 8e12]),
    np.array([64e9, 192e9]),
    price=np.array([0.1, 4.0]),
    idle_watts=np.array([8.0, 150.0]),
    peak_watts=np.array([60.0, 1000.0]),
)
NETWORKS = inference.network(PARAMETERS, 1e5, parameter_bytes=2.0)
GIVEN, MADE = np.array([100, 2000]), np.array([50, 7])
ACCURACY = np.array([[0, 1], [1, 1], [1, 1]])

simulated = jax.jit(lambda: ipw.fleet(NETWORKS, LOCAL_AND_CLOUD, ACCURACY, GIVEN, MADE))


def test_times_and_energies_are_those_of_token_by_token_sums():
    found = simulated()
    for m, p in enumerate(PARAMETERS):
        for h in range(2):
            device = jax.tree.map(lambda leaf, h=h: np.broadcast_to(leaf, 2)[h], LOCAL_AND_CLOUD)
            F, W = 0.45 * device.flops, 0.7 * device.bandwidth
            spread = device.peak_watts - device.idle_watts
            for q in range(2):
                prefill = max(2 * p * GIVEN[q] / F, 2 * p / W)
                steps = [
                    max(2 * p / F, 2 * p / W) + 1e5 * (GIVEN[q] + i) / W for i in range(MADE[q])
                ]
                busy = max(2 * p * GIVEN[q] / device.flops, 2 * p / device.bandwidth) / prefill
                energy = prefill * (device.idle_watts + spread * busy)
                mean = np.mean(steps)
                busy = max(2 * p / device.flops, 2 * p / device.bandwidth) / mean
                energy += sum(steps) * (device.idle_watts + spread * busy)
                latency = prefill + sum(steps)
                at = m, h, q
                np.testing.assert_allclose(found.measured.latency[at], latency, rtol=1e-4)
                np.testing.assert_allclose(found.measured.energy[at], energy, rtol=1e-4)
                np.testing.assert_allclose(
                    found.dollars[at], latency * device.price / 3600, rtol=1e-4
                )
    np.testing.assert_allclose(found.flops, 2 * PARAMETERS[:, None] * (GIVEN + MADE), rtol=1e-6)


def test_a_model_that_does_not_fit_is_not_present():
    found = simulated().measured
    assert found.present[:, :, 0].tolist() == [[True, True], [True, True], [False, True]]
    assert np.isnan(ipw.efficiency(found).apw).sum() == 1


def test_watts_favour_the_slow_and_small_and_joules_the_fast():
    table = ipw.efficiency(simulated().measured)
    local, cloud = table.apw[:2].T, table.apj[:2].T
    assert np.all(local[0] > 10 * local[1])
    assert np.all(cloud[0] < cloud[1])


def test_bad_fleets_are_refused_by_name():
    with pytest.raises(ValueError, match="networks must have numbers that are one for all or one"):
        ipw.fleet(NETWORKS, LOCAL_AND_CLOUD, ACCURACY[:2], GIVEN, MADE)
    with pytest.raises(ValueError, match="input_tokens must be finite numbers"):
        ipw.fleet(NETWORKS, LOCAL_AND_CLOUD, ACCURACY, GIVEN * 0, MADE)
    nothing = LOCAL_AND_CLOUD._replace(peak_watts=0.0)
    with pytest.raises(ValueError, match="accelerators"):
        ipw.fleet(NETWORKS, nothing, ACCURACY, GIVEN, MADE)
