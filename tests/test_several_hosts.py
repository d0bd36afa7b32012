import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import two_hosts

import dflax as dx
from dflax import export

HERE = pathlib.Path(__file__).parent
LONGEST = 180.0


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """The folder that two processes of four devices each have filled."""
    folder = tmp_path_factory.mktemp("hosts")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    port = str(free_port())
    logs = [folder / f"{process}.log" for process in range(2)]
    running = []
    try:
        for process, log in enumerate(logs):
            command = [sys.executable, HERE / "two_hosts.py", port, str(process), folder]
            with log.open("w") as output:
                running.append(
                    subprocess.Popen(
                        command, env=environment, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        deadline = time.monotonic() + LONGEST
        # When one has failed the other would wait for it until its own, longer, time-out.
        while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
            process.wait()
    codes = [process.returncode for process in running]
    told = "\n\n".join(log.read_text()[-3000:] for log in logs)
    assert codes == [0, 0], f"exit codes {codes} (-9: killed after {LONGEST} s)\n{told}"
    return folder


@pytest.fixture(scope="module")
def reports(hosts):
    return [json.loads((hosts / f"{process}.json").read_text()) for process in range(2)]


@pytest.fixture(scope="module")
def alone():
    """The same training in this process, without a mesh."""
    federation = two_hosts.federation()
    return {
        name: two_hosts.train(algorithm, federation)
        for name, algorithm in two_hosts.algorithms().items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("fedavg", "fedavg"),
        ("dfedavg", "dfedavg"),
        ("dealt", "dfedavg"),
        ("saved", "dfedavg"),
        ("stored", "dfedavg"),
    ],
)
def test_two_hosts_train_what_one_trains(hosts, alone, name, reference):
    state, history = alone[reference]
    expected = jax.tree.leaves((state, history.metrics, history.evaluations))
    assert len(expected) > 5
    for process in range(2):
        with np.load(hosts / f"{process}.npz") as stored:
            for number, leaf in enumerate(expected):
                found = stored[f"{name} {number}"]
                np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_sinks_of_the_first_process_alone_are_called(hosts):
    assert len((hosts / "dfedavg 0.jsonl").read_text().splitlines()) == two_hosts.ROUNDS
    assert not (hosts / "dfedavg 1.jsonl").exists()


@pytest.mark.slow
def test_a_folder_that_is_in_use_is_refused_on_all_hosts(hosts, reports):
    assert "is in use by process" in reports[0]["in_use"]
    assert "was refused by process 0" in reports[1]["in_use"]
    assert json.loads((hosts / "run" / "lock").read_text()).keys() == {"process", "host"}


@pytest.mark.slow
def test_two_processes_share_eight_devices(reports):
    assert [report["devices"] for report in reports] == [[2, 4, 8], [2, 4, 8]]


@pytest.mark.slow
def test_every_client_has_one_host(reports):
    assert [report["clients"] for report in reports] == [[0, 8], [8, 16]]
    assert [report["others"] for report in reports] == [list(range(8, 16)), list(range(8))]


@pytest.mark.slow
def test_a_host_reads_the_examples_of_its_own_clients_only(reports):
    owned = two_hosts.federation().partition.as_lists()
    for report in reports:
        mine = np.concatenate(owned[slice(*report["clients"])])
        assert report["rows_read"] == sorted(mine.tolist())
        assert len(mine) <= report["rows_held"] < sum(map(len, owned))


@pytest.mark.slow
def test_a_state_that_differs_between_hosts_is_refused_by_leaf(reports):
    for report in reports:
        assert "1 of 2 leaves differ: ['mine']" in report["refused"]


@pytest.mark.slow
def test_keys_and_numbers_are_placed_on_all_hosts(reports):
    for report in reports:
        assert report["placed"] == [False, False]
        assert report["key"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["models.safetensors", "models"])
def test_a_model_spread_over_hosts_is_exported_whole(hosts, alone, name):
    state, _ = alone["dfedavg"]
    params = export.load(hosts / name, like=state.clients.params)
    for leaf, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(state.clients.params), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("10.0.0.1:1234",), ValueError, "processes and process missing"),
        ((None, 2, 0), ValueError, "coordinator missing"),
        (("10.0.0.1", 2, 0), ValueError, 'coordinator must be "HOST:PORT"'),
        (("10.0.0.1:99999", 2, 0), ValueError, "port in"),
        (("10.0.0.1:1234", 0, 0), ValueError, "processes must be an integer >= 1, got 0"),
        (("10.0.0.1:1234", 2, 2), ValueError, r"process must be an integer in \[0, 1\], got 2"),
        (("10.0.0.1:1234", 2.0, 0), TypeError, "processes must be an integer"),
    ],
)
def test_a_wrong_start_is_refused_before_anything_connects(arguments, error, message):
    with pytest.raises(error, match=message):
        dx.mesh.start_hosts(*arguments)


def test_clients_of_hosts_are_dealt_like_the_client_axis():
    mesh = dx.client_mesh()
    assert dx.mesh.host_clients(9, mesh) == range(9)
    assert dx.mesh.host_clients(16, mesh, 0) == range(16)
    with pytest.raises(ValueError, match="process must have devices that follow each other"):
        dx.mesh.host_clients(9, mesh, 1)
    with pytest.raises(ValueError, match="clients must be an integer >= 1"):
        dx.mesh.host_clients(0, mesh)


def test_on_one_host_collect_and_place_are_numpy_and_device_put():
    mesh = dx.client_mesh()
    split = jax.NamedSharding(mesh, jax.P("clients"))
    values = np.arange(16.0, dtype=np.float32)
    placed = dx.mesh.place({"x": values}, split)
    assert placed["x"].sharding == split
    collected = dx.mesh.collect(placed)
    assert type(collected["x"]) is np.ndarray
    np.testing.assert_array_equal(collected["x"], values)


def test_a_source_already_laid_out_stays_where_it_is():
    mesh = dx.client_mesh()
    split = jax.device_put(np.arange(16.0), jax.NamedSharding(mesh, jax.P("clients")))
    source = dx.mesh.replicate_source({"dealt": split, "whole": np.arange(3.0)}, mesh)
    assert source["dealt"] is split
    assert source["whole"].sharding == jax.NamedSharding(mesh, jax.P())
