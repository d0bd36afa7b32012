"""The page on privacy runs as it stands there."""

import pathlib
import re
import warnings

import jax
import optax
import pytest

import dflax as dx

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "privacy.md"


@pytest.mark.slow
def test_the_pages_program_ends_where_its_budget_does(tmp_path, monkeypatch):
    pytest.importorskip("dp_accounting")
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    split = dx.data.digits()
    model = dx.models.MLP((), 10)
    names = {
        "dx": dx,
        "optax": optax,
        "split": split,
        "loss": dx.losses.classification(model),
        "key": jax.random.key(0),
        "params": model.init(jax.random.key(1), split.example),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile(program, str(PAGE), "exec"), names)
    assert any(issubclass(one.category, dx.interrupt.LimitReached) for one in caught)
    assert 190 <= len(names["history"].rounds) <= 210
    assert 3.9 < names["spent"][-1] <= 4.0
