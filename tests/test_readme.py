"""The README's programs run as they stand there, in order, and do what the text around them says."""

import ast
import contextlib
import pathlib
import re

import numpy as np
import pytest

README = pathlib.Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def programs():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_readmes_programs_run_and_learn(programs, tmp_path):
    names = {}
    exec(compile(programs[0], "README.md", "exec"), names)
    assert names["history"].evaluated.tolist() == [10, 20, 30, 40]
    assert names["history"].evaluations["accuracy"][-1] > 0.8
    exec(compile(programs[1], "README.md", "exec"), names)
    assert names["history"].evaluations["accuracy"][-1] > 0.85
    state = names["state"]
    assert state.round == 60
    runs_on_a_mesh_and_in_a_sweep(names)
    exec(compile(programs[2], "README.md", "exec"), names)
    rows = names["swept"].table()
    assert [round(row["rate"], 2) for row in rows] == [0.03, 0.1, 0.3]
    assert rows[2]["mean accuracy"] > rows[0]["mean accuracy"] > 0.3
    with contextlib.chdir(tmp_path):
        exec(compile(programs[3], "README.md", "exec"), names)
        assert names["cost"].seconds > 0
        assert names["path"].stat().st_size > 1000
    # SCAFFOLD's invariant: the server's control is the mean of the clients' controls.
    for control, own in zip(
        names["jax"].tree.leaves(state.server.control),
        names["jax"].tree.leaves(state.clients),
        strict=True,
    ):
        np.testing.assert_allclose(control, np.asarray(own).mean(0), atol=1e-5)


def runs_on_a_mesh_and_in_a_sweep(names):
    dx, key, some = names["dx"], names["key"], names["some"]

    def start(algorithm, key):
        return algorithm.init(key, names["params"])

    algorithm = names["algorithm"]
    own = names["jax"].random.fold_in(key, 0)
    alone, _ = dx.run(algorithm, start(algorithm, own), some, rounds=3, key=own)
    mesh = dx.client_mesh()
    dealt, _ = dx.run(algorithm, start(algorithm, own), some, rounds=3, key=own, mesh=mesh)
    swept = dx.sweep(
        lambda rate: names["scaffold"](names["loss"], rate, clients=20),
        start,
        some,
        grid={"rate": [0.05, 0.1]},
        key=key,
        rounds=3,
    )
    leaves = names["jax"].tree.leaves
    for ours, there, element in zip(
        leaves(alone.server), leaves(dealt.server), leaves(swept.states.server), strict=True
    ):
        np.testing.assert_allclose(there, ours, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(element[1, 0], ours, rtol=1e-4, atol=1e-5)


def test_an_algorithm_takes_under_thirty_lines(programs):
    (function,) = [
        node
        for node in ast.parse(programs[1]).body
        if isinstance(node, ast.FunctionDef) and node.name == "scaffold"
    ]
    source = "\n".join(programs[1].splitlines()[function.lineno - 1 : function.end_lineno])
    assert len([line for line in source.splitlines() if line.strip()]) < 30
