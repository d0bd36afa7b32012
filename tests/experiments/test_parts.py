"""What studies make of their stages: tables, claims and figures, from numbers that took no training."""

import matplotlib as mpl
import numpy as np
import pytest

import dflax as dx
from experiments.studies.decentralized import decentralized_comparison as comparison
from experiments.studies.decentralized import (
    dfedadmm,
    dfedsam,
    dimat,
    single_merging,
    variance_corrected,
)
from experiments.studies.introduction import learning_rate, reference
from experiments.studies.private import dp_brem
from experiments.studies.robust import flag, monna
from experiments.studies.server import (
    compression,
    fedamd,
    fedspeed,
    momentum_fl,
    server_comparison,
)
from experiments.tools import figures, results

mpl.use("Agg")
import matplotlib.pyplot as plt


def drawn(*shape):
    """Numbers that could be accuracies."""
    return np.random.default_rng(0).uniform(0.3, 0.9, shape)


def named(names, *shape):
    return {name: drawn(*shape) for name in names}


def paired(values, seeds, rounds, tail):
    curves = named(("mean model", "distance", "megabytes"), values, seeds, rounds)
    return curves | {"local curve": drawn(values, seeds, tail), "local": drawn(values, seeds)}


def pretrained_or_merged(problems):
    def stage(name, compute):
        count = 1 if "few" in name else problems
        if name.startswith("pre-training"):
            return {"w": drawn(problems, 5, 3)}, drawn(problems)
        return named(dimat.MEASURED, count, 2)

    return stage


def of_momentum(name, compute):
    if name.startswith("bias of"):
        return drawn(1)
    if "on digits" in name:
        return drawn(5, 2, 30)
    few = "2 of 6" in name or name == "noise floor of SCAFFOLD-M-VR"
    return drawn(2 if few else 4, 1)


def of_fedamd(name, compute):
    swept = {"linear, FedAMD": 5, "perceptron, FedAMD": 3}
    return drawn(*([swept[name]] if name in swept else []), 2, 1, 200)


def accuracies_of_both(name, compute):
    methods = ("FedAvg", "DFedAvg, exponential")
    return {implementation: named(methods) for implementation in ("dflax", "NumPy")}


def pictures():
    """In place of the images: noise of their size, with as many classes."""
    generator = np.random.default_rng(1)
    parts = [
        (generator.integers(0, 256, (count, 28, 28, 1)).astype(np.uint8), np.arange(count) % 10)
        for count in (6000, 1000)
    ]
    return dx.data.from_arrays(
        *parts[0], test=parts[1], classes=10, scale=1 / 255, name="fashion-mnist"
    )


def robust_runs(name, compute):
    """In place of one program's lanes: 4 attacks or none, of as many values as the method has."""
    values = {"NNA": 3, "CWTM": 2, "SCC": 2}.get(name.split()[0], 1)
    lanes = 4 if "far" in name else values * (4 if "under" in name else 1)
    rounds = 70 if name.startswith("LEARN") else 50
    curves = {key: drawn(lanes, rounds // 10) for key in ("accuracy", "worst", "apart")}
    return curves | {"used": drawn(lanes, rounds)}


def among_faulty(name, compute):
    looks = 5 if name.startswith("MoNNA") else 28
    return {"accuracy": 0.5 + drawn(1 if name.endswith("f = 0") else 4, 1, looks)}


def on_pictures(name, compute):
    lanes = (2 if name.startswith("NNA") else 1) * (4 if "under" in name else 1)
    return named(("accuracy", "worst", "apart"), lanes, 1) | {"used": drawn(lanes, 20)}


def private_runs(name, compute):
    """Lanes of the quick settings: five attacks, or two where fewer are looked at."""
    return drawn(2 if "pixels" in name or "more noise" in name else 5, 5)


STAGES = {
    (dp_brem, 0): private_runs,
    (dp_brem, 1): lambda name, compute: {"gap": drawn(2, 50), "bytes": drawn(2, 50)},
    (dp_brem, 3): lambda name, compute: drawn(10),
    (server_comparison, 0): lambda name, compute: drawn(2, 1, 1, 6),
    (fedspeed, 0): lambda name, compute: drawn(2, 2, 100) if "averages" in name else drawn(2, 320),
    (fedspeed, 1): lambda name, compute: drawn(1, 1, 1, 3),
    (comparison, 0): lambda name, compute: drawn(4, name.count(", "), 3, 1, 2),
    (dfedadmm, 0): lambda name, compute: paired(4, 2, 30, 5),
    (dfedadmm, 1): lambda name, compute: paired(4, 2, 4, 2),
    (dfedsam, 0): lambda name, compute: paired(4, 1, 5, 5),
    (dimat, 0): pretrained_or_merged(2),
    (dimat, 1): pretrained_or_merged(1),
    (single_merging, 0): lambda name, compute: named(
        (*single_merging.FAMILIAR, "megabytes"), 1, 10
    ),
    (single_merging, 1): lambda name, compute: named((*single_merging.FAMILIAR, "megabytes"), 1, 4),
    (variance_corrected, 0): lambda name, compute: named(("accuracy", "ratio", "megabytes"), 1, 4),
    (compression, 0): lambda name, compute: named(("accuracy", "sent"), 2, 2),
    (learning_rate, 0): lambda name, compute: (
        {"accuracy": drawn(4, 2)} | named(("difference", "seconds", "compile s"))
    ),
    (reference, 0): accuracies_of_both,
    (fedamd, 0): of_fedamd,
    (flag, 0): lambda name, compute: {"accuracy": drawn(4, 1, 5), "explained": drawn(4, 1, 2)},
    (flag, 1): lambda name, compute: drawn(1, 1),
    (momentum_fl, 0): of_momentum,
    (monna, 0): robust_runs,
    (monna, 1): among_faulty,
    (monna, 2): lambda name, compute: drawn(2, 3),
    (monna, 3): on_pictures,
    (momentum_fl, 1): of_momentum,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    ("module", "place"), STAGES, ids=[f"{m.__name__.rpartition('.')[2]}-{p}" for m, p in STAGES]
)
def test_tables_claims_and_figures_follow_from_the_stages(module, place, tmp_path, monkeypatch):
    monkeypatch.setattr(dx.data, "fashion_mnist", pictures)
    study = module.STUDY
    part = study.parts[place]
    summary = part.run(study.quick, STAGES[module, place])
    assert summary.methods
    stated = part.states(study.quick)
    if stated:
        assert [claim.claim for claim in summary.claims] == stated
    results.save(tmp_path, study.quick, summary)
    for stem, figure in summary.figures.items():
        assert figures.lacks(figure) == []
        assert (tmp_path / f"{stem}.png").stat().st_size > 1000
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("module", [server_comparison, comparison])
def test_rates_that_few_seeds_choose(module, monkeypatch):
    monkeypatch.setattr(dx.data, "fashion_mnist", pictures)
    of_server = module is server_comparison
    rates = module.SETTINGS["large"].rates
    asked = []

    def stage(name, compute):
        asked.append(name)
        best = np.full(len(rates), 0.2)
        best[-1 if name.startswith(("DSGT", "FedDyn")) else 1] = 0.8
        if of_server:
            # One seed at every rate, two at the one that it chose.
            if name.endswith("more seeds"):
                return np.full((1, 1, 2, 6), 0.5)
            return np.broadcast_to(best[None, :, None, None], (1, len(rates), 1, 6))
        if name.endswith("its rate"):
            return np.broadcast_to(best[None, None, :, None, None], (4, 1, len(rates), 1, 2))
        return np.full((4, name.count(", "), 1, 3, 2), 0.5)

    given = {"network": "large", "rounds": 6, "target": 0.55, "tuned_by": 1}
    given |= {"one_skew": True} if of_server else {"every": 3}
    config = module.Config(**given)
    summary = module.every_method(config, stage)
    seen = {
        name.split(",")[0]: value
        for name, row in summary.methods.items()
        for key, value in row.items()
        if key.startswith("rate")
    }
    assert len(seen) == (21 if of_server else 14)
    for name, rate in seen.items():
        assert rate == (rates[-1] if name in ("DSGT", "FedDyn") else rates[1])
    if of_server:
        # The seed that chose counts as the other two do.
        assert summary.methods["FedAvg"]["final, shards 2"] == "0.600 ± 0.141"
        assert summary.methods["FedAvg"]["rounds to 0.55, shards 2"] == "1 of 3 did"
    assert [claim.claim for claim in summary.claims] == module.statements(config)
    later = ["more seeds" in name if of_server else "its rate" not in name for name in asked]
    assert later == [False, True] * (len(asked) // 2)
    (shown,) = summary.figures.values()
    assert figures.lacks(shown) == []
    plt.close("all")
