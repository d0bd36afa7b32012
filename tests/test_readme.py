"""The README's programs run as they stand there, in order, and do what the text around them says."""

import pathlib
import re
import tomllib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = ROOT / "README.md"


@pytest.fixture(scope="module")
def programs():
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_readmes_programs_run_and_learn(programs):
    names = {}
    exec(compile(programs[0], "README.md", "exec"), names)
    assert names["history"].evaluated.tolist() == [10, 20, 30, 40]
    assert names["history"].evaluations["accuracy"][-1] > 0.8
    exec(compile(programs[1], "README.md", "exec"), names)
    assert names["history"].evaluations["accuracy"][-1] > 0.8
    # The own algorithm is the library's.
    dx, key = names["dx"], names["key"]
    theirs = dx.server.fedprox(names["loss"], names["optax"].sgd(0.1), pull=0.1)
    state, _ = dx.run(
        theirs, theirs.init(key, names["params"]), names["federation"], rounds=40, key=key
    )
    leaves = names["jax"].tree.leaves
    for one, other in zip(
        leaves(names["state"].server.params), leaves(state.server.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_readme_is_short_and_tells_where_the_rest_is():
    text = README.read_text()
    assert len(text.splitlines()) <= 120
    for page in ("which-method", "concepts", "add-an-algorithm", "runs", "performance", "faq"):
        assert f"](docs/{page}.md)" in text


def test_on_a_package_index_nothing_is_relative():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hook = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    before = after = README.read_text()
    for each in hook["substitutions"]:
        after = re.sub(each["pattern"], each["replacement"], after)
    targets = re.findall(r"\]\(([^)]+)\)", after)
    assert targets
    assert all(target.startswith("https://") for target in targets)
    pictures = re.findall(
        r"!\[[^\]]*\]\(https://raw.githubusercontent.com/\w+/\w+/main/([^)]+)\)", after
    )
    assert len(pictures) == before.count("![")
    assert all((ROOT / picture).is_file() for picture in pictures)
    code = r"```.*?```"
    assert re.findall(code, before, re.DOTALL) == re.findall(code, after, re.DOTALL)
