"""The study of SPES: its languages are what they say, its program counts bytes, its claims can fail."""

import numpy as np
import pytest

from experiments.studies.experts import spes
from experiments.studies.experts._spes_costs import factor_of, node_program
from experiments.tasks.languages import markov_sources, python_reference
from experiments.tools.report import Report


def test_sequences_follow_their_sources_and_the_floor_is_their_entropy():
    language = markov_sources(3, sources=1, vocabulary=8, length=16, train=512, test=512)
    inputs, labels = (np.asarray(a) for a in (language.train.inputs, language.train.labels))
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    counts = np.zeros((8, 8))
    np.add.at(counts, (inputs.ravel(), labels.ravel()), 1)
    chain = (counts + 1e-9) / counts.sum(1, keepdims=True)
    entropy = -(chain * np.log(chain)).sum(1)
    assert language.floor == pytest.approx(
        entropy[np.asarray(language.test.inputs)].mean(), abs=0.02
    )
    # All but 5 % goes to four successors.
    assert np.sort(chain, 1)[:, -4:].sum(1).mean() == pytest.approx(0.975, abs=0.01)


def test_the_text_is_pythons_own_and_its_parts_share_no_paragraph():
    one = python_reference(0, length=32, test=64)
    assert one.test.inputs.shape == (64, 32)
    assert len(one.train.labels) > 5000
    text = "".join(map(chr, np.asarray(one.train.inputs).ravel()))
    assert "statement" in text
    train = {bytes(row.astype(np.uint8)) for row in np.asarray(one.train.inputs)}
    test = {bytes(row.astype(np.uint8)) for row in np.asarray(one.test.inputs)}
    # Rules of tables and blank ends of lines.
    assert all(len(set(row)) < 16 for row in train & test)


@pytest.mark.slow
def test_a_small_run_has_the_factor_in_its_bytes():
    config = spes.Config(width=8, length=8, batch_size=2, local_steps=2, rounds=2, seeds=1)
    languages = [markov_sources(0, vocabulary=16, length=8, train=64, test=16)]
    found = {}
    for names in (spes.FAMILY, (spes.DILOCO,), (spes.RING,)):
        found |= spes.run(config, names, languages, [0], 2)
    assert all(values["loss"].shape == (1, 2) for values in found.values())
    net = spes.network(config, 16)
    import jax

    params = jax.eval_shape(net.init, jax.random.key(0), languages[0].train.inputs[:1])["params"]
    factor = factor_of(params, config.experts, config.nodes)
    up = found[spes.SPES]["bytes_sent"] / found[spes.DILOCO]["bytes_sent"]
    np.testing.assert_allclose(up, factor, rtol=1e-6)


@pytest.mark.slow
def test_a_nodes_program_holds_the_moments_of_what_it_trains():
    held = node_program(4, 4, 2)
    assert held["moments"] == pytest.approx(2 * held["trained"], rel=1e-3)
    assert held["results"] == pytest.approx(3 * held["trained"], rel=1e-3)


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_follow_from_the_numbers(good):
    last = {
        spes.CENTRAL: 1.0,
        spes.DILOCO: 1.03 if good else 1.02,
        spes.SPES: 1.05 if good else 1.06,
        spes.NESTEROV: 1.04 if good else 1.07,
        spes.DENSE: 1.06 if good else 0.9,
    }
    found = {name: {"loss": np.array([[2.0, value]] * 2)} for name, value in last.items()}
    report = Report()
    spes.compare(report, "here", found)
    assert [claim.holds for claim in report.claims] == [good] * 4
    report = Report()
    worse = {spes.CENTRAL: 1.0, spes.DILOCO: 1.02, spes.SPES: 1.03 if good else 1.06}
    found = {name: {"loss": np.array([[2.0, value]] * 2)} for name, value in worse.items()}
    spes.claims_of_more(report, found)
    assert [claim.holds for claim in report.claims] == [good] * 2


@pytest.mark.parametrize("good", [True, False])
def test_the_claims_of_merging_follow_from_the_numbers(good):
    config = spes.Config(rounds=4, merge_every=1, merge_until=3.0)
    worse = np.array([[0.005], [-0.005], [0.0]]) if good else np.array([[0.1], [0.11], [0.1]])
    flat = np.ones((3, 4))
    likeness = np.array([0.1, 0.3, 0.2, 0.15] if good else [0.1, 0.1, 0.1, 0.1])
    found = {
        spes.SPES: {"loss": flat + worse, "expert_cosine": flat * likeness},
        spes.UNMERGED: {"loss": flat, "expert_cosine": flat * 0.1 if good else flat * 0.2},
    }
    report = Report()
    spes.merging_claims(config, report, found)
    assert [claim.holds for claim in report.claims] == [good] * 3
