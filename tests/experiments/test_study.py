import dataclasses
import importlib
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from experiments import __main__ as command
from experiments import quickstart, study
from experiments.study import Claim, Summary


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a study that holds or not as it is told.

    Attributes:
      rounds: a count.
      bar: what 0.5 is compared with.
    """

    rounds: int = 7
    bar: float = 0.4


def compare(config):
    with study.figure() as (drawn, axes):
        axes.plot([0, config.rounds], [0.0, 0.5])
    claims = [
        Claim("a count is positive", config.rounds > 0, config.rounds, "> 0"),
        Claim("half passes the bar", np.float32(0.5) > config.bar, np.float32(0.5), config.bar),
    ]
    return Summary({"ours": {"accuracy": np.float32(0.5)}}, claims, {"curve": drawn})


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Results go to a folder of the test's own, and compiled programs where they went before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "remember_compilations", lambda: None)
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    plt.close("all")


def run_main(monkeypatch, *arguments, name="compare"):
    """The exit status of a study's command line."""
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    with pytest.raises(SystemExit) as ended:
        study.main(compare, Config, f"/somewhere/{name}.py")
    return ended.value.code


def read(folder):
    return json.loads((folder / "summary.json").read_text())


def test_the_summary_has_exactly_the_promised_structure(workplace, monkeypatch):
    run_main(monkeypatch, "--rounds", "3")
    assert read(workplace / "results" / "compare") == {
        "experiment": "compare",
        "config": {"rounds": 3, "bar": 0.4},
        "methods": {"ours": {"accuracy": 0.5}},
        "claims": [
            {"claim": "a count is positive", "holds": True, "ours": 3, "reference": "> 0"},
            {"claim": "half passes the bar", "holds": True, "ours": 0.5, "reference": 0.4},
        ],
    }


def test_figures_lie_beside_the_summary_and_nothing_else_does(workplace, monkeypatch):
    run_main(monkeypatch)
    folder = workplace / "results" / "compare"
    assert sorted(file.name for file in folder.iterdir()) == ["curve.png", "summary.json"]
    picture = plt.imread(folder / "curve.png")
    assert picture.std() > 0
    assert [file.name for file in workplace.iterdir()] == ["results"]


@pytest.mark.parametrize(("bar", "status"), [("0.4", 0), ("0.6", 1)])
def test_the_exit_status_tells_whether_all_claims_hold(monkeypatch, capsys, bar, status):
    assert run_main(monkeypatch, "--bar", bar) == status
    shown = capsys.readouterr().out
    verdicts = [line for line in shown.splitlines() if "half passes the bar" in line]
    assert len(verdicts) == 1
    assert ("NO" in verdicts[0]) == (status == 1)
    assert ("yes" in verdicts[0]) == (status == 0)


def test_a_failed_claim_is_saved_all_the_same(workplace, monkeypatch):
    run_main(monkeypatch, "--bar", "0.6")
    holds = [claim["holds"] for claim in read(workplace / "results" / "compare")["claims"]]
    assert holds == [True, False]


def test_a_study_without_claims_succeeds(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit) as ended:
        study.main(lambda config: Summary({"ours": {"x": 1.0}}), Config, "bare.py")
    assert ended.value.code == 0


def test_a_wrong_option_ends_before_anything_runs(workplace, monkeypatch, capsys):
    assert run_main(monkeypatch, "--rounds", "many") not in (0, None)
    assert "--rounds" in "".join(capsys.readouterr())
    assert not (workplace / "results").exists()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.25), 0.25),
        (np.float64(0.25), 0.25),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (jnp.float32(0.25), 0.25),
        (np.array([1, 2]), [1, 2]),
        ([np.float32(0.5), (np.int64(2), "text")], [0.5, [2, "text"]]),
        (None, None),
    ],
)
def test_numbers_are_saved_as_plain_json(value, plain):
    folder = study.save("numbers", Config(), Summary({}, [Claim("is plain", True, value, value)]))
    (claim,) = read(folder)["claims"]
    assert claim["ours"] == plain
    assert claim["reference"] == plain
    # 1 == True == 1.0 in Python, but not in JSON.
    assert type(claim["ours"]) is type(plain)


def test_a_later_run_replaces_the_summary():
    folder = study.save("twice", Config(rounds=1), Summary({"ours": {"x": 1.0}}))
    assert study.save("twice", Config(rounds=2), Summary({})) == folder
    assert read(folder)["config"]["rounds"] == 2
    assert read(folder)["methods"] == {}


def test_an_unserialisable_summary_leaves_the_old_one():
    folder = study.save("whole", Config(), Summary({"ours": {"x": 1.0}}))
    with pytest.raises(TypeError, match="a summary holds numbers, text, lists and dicts"):
        study.save("whole", Config(), Summary({"ours": {"x": object()}}))
    assert read(folder)["methods"] == {"ours": {"x": 1.0}}


def test_the_table_has_a_column_for_every_metric_of_any_method(capsys):
    rows = {"ours": {"accuracy": np.float32(0.123456)}, "theirs": {"bytes": 7}}
    study.show("columns", Summary(rows), 61.4)
    shown = capsys.readouterr().out
    header = next(line for line in shown.splitlines() if "method" in line)
    assert header.index("accuracy") < header.index("bytes")
    assert "0.1235" in next(line for line in shown.splitlines() if "ours" in line)
    assert "7" in next(line for line in shown.splitlines() if "theirs" in line)
    assert "61 s" in shown
    assert "results/columns" in shown


def test_the_look_of_figures_ends_with_the_figure():
    before = dict(plt.rcParams)
    with study.figure(3.0, 2.0) as (drawn, axes):
        assert tuple(drawn.get_size_inches()) == (3.0, 2.0)
        assert not axes.spines["top"].get_visible()
    after = dict(plt.rcParams)
    assert after == before


def test_several_axes_are_handed_on():
    with study.figure(ncols=2) as (_, axes):
        assert axes.shape == (2,)


def test_compiled_programs_go_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.undo()
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in settings]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    try:
        study.remember_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "dflax" / "jax")
    finally:
        for name, value in zip(settings, before, strict=True):
            jax.config.update(name, value)


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    command.main()


def test_the_command_lists_every_study_with_a_line(monkeypatch, capsys):
    run_command(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    for name in ("quickstart", "reference"):
        says = importlib.import_module(f"experiments.{name}").__doc__.splitlines()[0]
        (line,) = [line for line in lines if f"python -m experiments.{name} " in line]
        assert says in line
    assert not any("experiments.study" in line or "__main__" in line for line in lines)


def test_the_command_refuses_other_arguments(monkeypatch):
    with pytest.raises(SystemExit, match=r"usage: .*--all.*got quickstart"):
        run_command(monkeypatch, "quickstart")


def fake_processes(monkeypatch, **studies):
    """Each study is a function run in place of its process; it returns the exit status."""

    def run(arguments, **_):
        module = arguments[-1]
        status = studies[module.removeprefix("experiments.")]()
        return subprocess.CompletedProcess(arguments, status)

    monkeypatch.setattr(command, "studies", lambda: dict.fromkeys(studies, "line"))
    monkeypatch.setattr(command.subprocess, "run", run)


def saves(name, holds):
    def run():
        study.save(name, Config(), Summary({}, [Claim(f"{name} works", holds, 1.0, 2.0)]))
        return 0 if holds else 1

    return run


@pytest.mark.parametrize(("holds", "status"), [(True, 0), (False, 1)])
def test_all_studies_are_run_and_their_claims_tabulated(monkeypatch, capsys, holds, status):
    fake_processes(monkeypatch, first=saves("first", True), second=saves("second", holds))
    with pytest.raises(SystemExit) as ended:
        run_command(monkeypatch, "--all")
    assert ended.value.code == status
    lines = capsys.readouterr().out.splitlines()
    (first,) = [line for line in lines if "first works" in line]
    (second,) = [line for line in lines if "second works" in line]
    assert "yes" in first
    assert ("yes" if holds else "NO") in second


def test_a_study_that_dies_fails_also_when_an_old_summary_is_there(monkeypatch, capsys):
    saves("dead", True)()
    fake_processes(monkeypatch, dead=lambda: 3, alive=saves("alive", True))
    assert command.run_all(["dead", "alive"]) == 1
    shown = capsys.readouterr().out
    assert "dead works" not in shown
    assert "alive works" in shown
    (line,) = [line for line in shown.splitlines() if "runs to its end" in line]
    assert "NO" in line
    assert "status 3" in line


def test_the_quickstart_runs_four_methods_on_digits(workplace):
    config = quickstart.Config(
        data="digits", clients=8, cohort=4, rounds=4, local_steps=2, evaluations=2
    )
    summary = quickstart.study(config)
    assert list(summary.methods) == [
        "FedAvg, 4 a round",
        "DFedAvg, ring",
        "DFedAvg, exponential",
        "D-PSGD, exponential",
    ]
    for row in summary.methods.values():
        assert 0.0 < row["accuracy"] <= 1.0
        assert 0.0 < row["mean model"] <= 1.0
    # D-PSGD talks after every step, so the same number of local steps is more rounds.
    assert [row["rounds"] for row in summary.methods.values()] == [4, 4, 4, 8]
    for line in summary.figures["accuracy"].axes[0].lines:
        assert line.get_xdata().tolist() == [4, 8]
        assert np.isfinite(line.get_ydata()).all()
    assert len(summary.figures["accuracy"].axes[0].lines) == 4

    folder = study.save("quickstart", config, summary)
    assert folder.resolve() == workplace / "results" / "quickstart"
    assert sorted(file.name for file in folder.iterdir()) == [
        "accuracy.png",
        "partition.png",
        "summary.json",
    ]
    saved = read(folder)
    assert saved["config"]["clients"] == 8
    for name, row in summary.methods.items():
        assert saved["methods"][name] == pytest.approx(row)
    assert len(saved["claims"]) == len(summary.claims) > 0
    for claim in saved["claims"]:
        assert set(claim) == {"claim", "holds", "ours", "reference"}
        assert isinstance(claim["holds"], bool)


def test_the_quickstart_takes_digits_where_fashion_mnist_is_absent(monkeypatch):
    def absent():
        raise FileNotFoundError("no files")

    monkeypatch.setattr(quickstart.dx.data, "fashion_mnist", absent)
    assert quickstart.load("auto").name == "digits"
    with pytest.raises(FileNotFoundError):
        quickstart.load("fashion_mnist")
