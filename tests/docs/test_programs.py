"""Programs of the pages do what the text around them says."""

import ast
import contextlib
import functools
import pathlib
import re

import numpy as np
import pytest

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def programs(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def after(page, count=None):
    """What is defined after the page's first programs."""
    names = {}
    for program in programs(page)[:count]:
        exec(compile(program, page, "exec"), names)
    return names


@functools.cache
def own_algorithms():
    return after("add-an-algorithm.md")


def assert_same_rounds(names, ours, theirs):
    dx, key = names["dx"], names["key"]
    states = [
        dx.run(
            algorithm, algorithm.init(key, names["params"]), names["federation"], rounds=3, key=key
        )
        for algorithm in (ours, theirs)
    ]
    for one, other in zip(*(names["jax"].tree.leaves(state) for state, _ in states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fedprox_of_the_page_is_that_of_the_library():
    names = own_algorithms()
    dx, loss, sgd = names["dx"], names["loss"], names["optax"].sgd(0.1)
    assert_same_rounds(
        names, names["fedprox"](loss, sgd, 0.1), dx.server.fedprox(loss, sgd, pull=0.1)
    )


@pytest.mark.slow
def test_exact_diffusion_of_the_page_is_the_recipe():
    names = own_algorithms()
    dx, loss, sgd = names["dx"], names["loss"], names["optax"].sgd(0.1)
    ours = names["exact_diffusion"](loss, sgd, names["mixer"])
    assert_same_rounds(names, ours, dx.recipes.exact_diffusion(loss, sgd, names["mixer"]))


@pytest.mark.slow
def test_scaffold_of_the_page_learns_runs_on_a_mesh_and_in_a_sweep():
    names = own_algorithms()
    assert names["history"].evaluations["accuracy"][-1] > 0.85
    state = names["state"]
    assert state.round == 60
    runs_on_a_mesh_and_in_a_sweep(names)
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


def test_an_algorithm_takes_under_thirty_lines():
    functions = [
        (node, program)
        for program in programs("add-an-algorithm.md")
        for node in ast.parse(program).body
        if isinstance(node, ast.FunctionDef)
    ]
    assert [node.name for node, _ in functions] == ["fedprox", "exact_diffusion", "scaffold"]
    for (node, program), most in zip(functions, (15, 15, 30), strict=True):
        lines = program.splitlines()[node.lineno - 1 : node.end_lineno]
        assert len([line for line in lines if line.strip()]) < most


@pytest.mark.slow
def test_the_sweep_of_the_page_ranks_its_rates():
    rows = after("runs.md")["swept"].table()
    assert [round(row["rate"], 2) for row in rows] == [0.03, 0.1, 0.3]
    assert rows[2]["mean accuracy"] > rows[0]["mean accuracy"] > 0.3


@pytest.mark.slow
def test_the_profile_of_the_page_measures_and_traces(tmp_path):
    with contextlib.chdir(tmp_path):
        names = after("performance.md")
        assert names["cost"].seconds > 0
        assert names["path"].stat().st_size > 1000


@pytest.mark.slow
def test_the_first_run_learns_with_and_without_a_server():
    first, second = after("index.md", 1)["history"], after("index.md")["history"]
    assert first.evaluated.tolist() == [10, 20, 30, 40]
    assert first.evaluations["accuracy"][-1] > 0.8
    assert second.evaluations["accuracy"][-1] > 0.8


def test_the_words_mean_what_the_page_says():
    names = after("concepts.md")
    jax = names["jax"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(names["state"].clients)} >= {8}
    round = names["round"]
    assert round.cohort.shape == round.weights.shape == (4,)
    assert round.assignments.minibatches.shape == (4, 5, 16)
    assert names["agents"].draw(names["key"], 0).cohort.shape == (2,)
    assert names["row"]["client"] == 2
    # A tenth of the numbers travels, each with its place.
    sent = names["history"].metrics["bytes_sent"]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(names["params"]))
    assert 0 < sent.max() < 4 * 4 * numbers
