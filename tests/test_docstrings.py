"""The examples in docstrings run, and come out as they say."""

import doctest
import inspect
import re

import pytest
from test_public_names import MODULES

PARSER = doctest.DocTestParser()
SECTION = re.compile(r"^Examples:\n(?P<body>(?:(?:  .*)?\n)*)", re.MULTILINE)
# Those that compile whole rounds or large rules, or read images: each above 0.4 CPU seconds.
SLOW = {
    "dx.Federation",
    "dx.aggregation.geometric_median",
    "dx.aggregation.krum",
    "dx.aggregation.median",
    "dx.aggregation.multi_krum",
    "dx.channel.chain",
    "dx.channel.qsgd",
    "dx.data.digits",
    "dx.decentralized.adapt_then_combine",
    "dx.decentralized.dfedavg",
    "dx.decentralized.dpsgd",
    "dx.decentralized.dsgt",
    "dx.evaluation.client_models",
    "dx.local.solver",
    "dx.losses.language_modelling",
    "dx.matching.assign",
    "dx.models.MLP",
    "dx.models.lora",
    "dx.models.variables",
    "dx.privacy.clipped_per_example",
    "dx.privacy.epsilon",
    "dx.privacy.noise_for",
    "dx.privacy.private_mean",
    "dx.profile.round",
    "dx.rl.ppo",
    "dx.rollout",
    "dx.run",
    "dx.server.fedadam",
    "dx.server.fedavg",
    "dx.server.feddyn",
    "dx.server.fedprox",
    "dx.server.scaffold",
    "dx.server.with_server",
    "dx.sweep",
}


def documented():
    """The docstring of every public function and class, by the name that a user writes."""
    found = {}
    for module in MODULES:
        where = module.__name__.replace("dflax.running", "dx").replace("dflax", "dx")
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and not any(value is known for known in found.values()):
                found[f"{where}.{name}"] = value
    return {path: inspect.getdoc(value) or "" for path, value in found.items()}


DOCUMENTED = documented()
EXAMPLES = {path: text for path, text in DOCUMENTED.items() if ">>>" in text}


def run(text, path):
    """What a reader would not find as it is written, in doctest's words; and how many lines ran."""
    test = PARSER.get_doctest(text, {}, path, path, 0)
    said: list[str] = []
    failed, tried = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert bool(failed) == bool(said)
    return "".join(said), tried


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path in SLOW else ()) for path in EXAMPLES],
)
def test_examples_come_out_as_they_say(path):
    said, tried = run(EXAMPLES[path] + "\n", path)
    assert not said, said
    assert tried >= 2


def test_the_most_used_functions_have_an_example():
    assert len(EXAMPLES) >= 60, f"{len(EXAMPLES)} functions have an example."
    assert set(EXAMPLES) >= SLOW, f"{SLOW - set(EXAMPLES)} have none any more."


def test_examples_are_short_and_stand_in_a_section_of_their_own():
    for path, text in EXAMPLES.items():
        (section,) = SECTION.findall(text + "\n")
        assert section.count(">>>") == text.count(">>>"), path
        lines = [line for line in section.splitlines() if line.strip()]
        assert 2 <= len(lines) <= 10, f"{path}: {len(lines)} lines"


def test_a_wrong_example_is_told():
    text = "Doubles.\n\nExamples:\n  >>> 1 + 1\n  3\n"
    said, tried = run(text, "doubles")
    assert tried == 1
    assert "Expected:\n    3\nGot:\n    2" in said
