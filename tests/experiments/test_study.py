import dataclasses
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt

from experiments import __main__ as all_studies
from experiments.studies.introduction import quickstart
from experiments.tasks import inputs
from experiments.tools import command, figures, results
from experiments.tools.study import Claim, Input, Part, Picture, Study, Summary, together


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a study that holds or not as it is told.

    Attributes:
      rounds: a count.
      bar: what 0.5 is compared with.
    """

    rounds: int = 7
    bar: float = 0.4


def compare(config, stage):
    with figures.figure() as (drawn, axes):
        axes.plot([0, config.rounds], [0.0, 0.5])
    claims = [
        Claim("a count is positive", config.rounds > 0, config.rounds, "> 0"),
        Claim("half passes the bar", np.float32(0.5) > config.bar, np.float32(0.5), config.bar),
    ]
    return Summary({"ours": {"accuracy": np.float32(0.5)}}, claims, {"curve": drawn})


COMPARE = Study(Config, (Part("whole", compare, needs=()),), quick=Config(rounds=1))


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """Results go to a folder of the test's own, and compiled programs where they went before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "remember_compilations", lambda: None)
    # A quick run sets it, for its own process.
    monkeypatch.setenv("XLA_FLAGS", "--of_the_caller")
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    plt.close("all")


def run_main(monkeypatch, *arguments, name="compare"):
    """The exit status of a study's command line."""
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.main(COMPARE, f"/somewhere/{name}.py")
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
    bare = Part("bare", lambda config, stage: Summary({"ours": {"x": 1.0}}), needs=())
    with pytest.raises(SystemExit) as ended:
        command.main(Study(Config, (bare,), quick=Config()), "bare.py")
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
    folder = results.RESULTS / "numbers"
    results.save(folder, Config(), Summary({}, [Claim("is plain", True, value, value)]))
    (claim,) = read(folder)["claims"]
    assert claim["ours"] == plain
    assert claim["reference"] == plain
    # 1 == True == 1.0 in Python, but not in JSON.
    assert type(claim["ours"]) is type(plain)


def test_a_later_run_replaces_the_summary():
    folder = results.RESULTS / "twice"
    results.save(folder, Config(rounds=1), Summary({"ours": {"x": 1.0}}))
    results.save(folder, Config(rounds=2), Summary({}))
    assert read(folder)["config"]["rounds"] == 2
    assert read(folder)["methods"] == {}


def test_an_unserialisable_summary_leaves_the_old_one():
    folder = results.RESULTS / "whole"
    results.save(folder, Config(), Summary({"ours": {"x": 1.0}}))
    with pytest.raises(TypeError, match="a summary holds numbers, text, lists and dicts"):
        results.save(folder, Config(), Summary({"ours": {"x": object()}}))
    assert read(folder)["methods"] == {"ours": {"x": 1.0}}


def test_the_table_has_a_column_for_every_metric_of_any_method(capsys):
    rows = {"ours": {"accuracy": np.float32(0.123456)}, "theirs": {"bytes": 7}}
    results.show(results.RESULTS / "columns", Summary(rows), 61.4)
    shown = capsys.readouterr().out
    header = next(line for line in shown.splitlines() if "method" in line)
    assert header.index("accuracy") < header.index("bytes")
    assert "0.1235" in next(line for line in shown.splitlines() if "ours" in line)
    assert "7" in next(line for line in shown.splitlines() if "theirs" in line)
    assert "61 s" in shown
    assert "results/columns" in shown


def test_the_look_of_figures_ends_with_the_figure():
    before = dict(plt.rcParams)
    with figures.figure(3.0, 2.0) as (drawn, axes):
        assert tuple(drawn.get_size_inches()) == (3.0, 2.0)
        assert not axes.spines["top"].get_visible()
    after = dict(plt.rcParams)
    assert after == before


def test_several_axes_are_handed_on():
    with figures.figure(ncols=2) as (_, axes):
        assert axes.shape == (2,)


def test_compiled_programs_go_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.undo()
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in settings]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    try:
        command.remember_compilations()
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "dflax" / "jax")
    finally:
        for name, value in zip(settings, before, strict=True):
            jax.config.update(name, value)


def run_command(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["experiments", *arguments])
    all_studies.main()


def test_the_command_lists_every_study_with_a_line(monkeypatch, capsys):
    run_command(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    for name in ("quickstart", "reference"):
        module = importlib.import_module(f"experiments.studies.introduction.{name}")
        says = module.__doc__.splitlines()[0]
        (line,) = [line for line in lines if f"python -m experiments.{name} " in line]
        assert says in line
    assert not any("experiments.study" in line or "__main__" in line for line in lines)


def test_the_command_refuses_other_arguments(monkeypatch):
    with pytest.raises(SystemExit, match=r"usage: .*--all.*got quickstart"):
        run_command(monkeypatch, "quickstart")


def fake_processes(monkeypatch, **studies):
    """Each study is a function run in place of its process; it returns the exit status."""

    def run(arguments, **_):
        module = arguments[2]
        status = studies[module.removeprefix("experiments.")]()
        return subprocess.CompletedProcess(arguments, status)

    known = {"family": dict.fromkeys(studies, "line")}
    monkeypatch.setattr(all_studies, "studies", lambda: known)
    monkeypatch.setattr(all_studies.subprocess, "run", run)


def saves(name, holds):
    def run():
        summary = Summary({}, [Claim(f"{name} works", holds, 1.0, 2.0)])
        results.save(results.RESULTS / name, Config(), summary)
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
    times = lines[next(n for n, line in enumerate(lines) if "of a CPU core" in line) :]
    for name in ("first", "second"):
        assert any(re.search(rf"{name} +│ +\d+ +│ +\d+", line) for line in times)


def test_a_study_that_dies_fails_also_when_an_old_summary_is_there(monkeypatch, capsys):
    saves("dead", True)()
    fake_processes(monkeypatch, dead=lambda: 3, alive=saves("alive", True))
    assert all_studies.run_all(["dead", "alive"], []) == 1
    shown = capsys.readouterr().out
    assert "dead works" not in shown
    assert "alive works" in shown
    (line,) = [line for line in shown.splitlines() if "runs to its end" in line]
    assert "NO" in line
    assert "status 3" in line


@pytest.mark.slow
def test_the_quickstart_runs_four_methods_on_digits(workplace):
    config = quickstart.Config(
        data="digits", clients=8, cohort=4, rounds=4, local_steps=2, evaluations=2
    )
    summary = quickstart.four_methods(config)
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

    folder = results.RESULTS / "quickstart"
    results.save(folder, config, summary)
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

    monkeypatch.setattr(inputs.dx.data, "fashion_mnist", absent)
    assert inputs.images_or_digits("auto").name == "digits"
    with pytest.raises(FileNotFoundError):
        inputs.images_or_digits("fashion_mnist")
    with pytest.raises(ValueError, match=r"data must be auto, .* got 'nope'"):
        inputs.images_or_digits("nope")


# Studies in parts: what is missing, what was saved, what a killed run leaves.


class Parts:
    """A study of three parts, the second of which needs what may be missing."""

    def __init__(self, *, missing=True, broken=False):
        self.ran, self.missing, self.broken = [], missing, broken
        self.study = Study(
            Config,
            (
                Part("first", self.first, needs=(Input("numbers", lambda config: None),)),
                Part(
                    "second",
                    self.second,
                    needs=(Input("pictures", self.look),),
                    states=lambda config: [f"pictures tell, {config.rounds} rounds"],
                ),
                Part("third", self.third, needs=()),
                Part("unasked", self.third, needs=(), wanted=lambda config: config.rounds > 100),
            ),
            quick=Config(rounds=1),
        )

    def look(self, config):
        if self.missing:
            raise FileNotFoundError("pictures lie in no folder.")

    def first(self, config, stage):
        found = stage("count", lambda: np.float64(config.rounds))
        self.ran.append("first")
        with figures.figure() as (drawn, axes):
            axes.plot([0.0, found])
        claims = [Claim("first holds", True, np.inf, 0.0)]
        return Summary({"a": {"x": float(found)}}, claims, {"drawn": drawn}, {"table": ["a"]})

    def second(self, config, stage):
        self.ran.append("second")
        claim = Claim(f"pictures tell, {config.rounds} rounds", config.bar < 0.5, 1.0, 0.0)
        return Summary({"b": {"x": 2.0}}, [claim])

    def third(self, config, stage):
        stage("slow", lambda: np.array(self.ran.append("slow") is None))
        if self.broken:
            raise KeyboardInterrupt
        self.ran.append("third")
        return Summary({"c": {"x": 3.0}})

    def run(self, monkeypatch, *arguments):
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        with pytest.raises(SystemExit) as ended:
            command.main(self.study, "parts.py")
        return ended.value.code


def test_what_is_missing_is_left_out_and_its_claims_are_not_run(workplace, monkeypatch, capsys):
    parts = Parts()
    assert parts.run(monkeypatch) == 0
    assert parts.ran == ["first", "slow", "third"]
    saved = read(workplace / "results" / "parts")
    assert list(saved["methods"]) == ["a", "c"]
    first, left_out = saved["claims"]
    assert (first["claim"], first["holds"], first["ours"]) == ("first holds", True, None)
    assert left_out == {
        "claim": "pictures tell, 7 rounds",
        "holds": None,
        "ours": None,
        "reference": "not run: pictures is not here",
    }
    lines = capsys.readouterr().out.splitlines()
    # It is said before anything begins.
    told = lines.index("  second is left out: pictures is not here")
    assert told < lines.index("parts, first: begins")
    assert "  pictures is not here. pictures lie in no folder." in lines
    (row,) = [line for line in lines if "pictures tell" in line]
    assert "not run" in row


def test_where_nothing_is_missing_a_failed_claim_fails(monkeypatch):
    parts = Parts(missing=False)
    assert parts.run(monkeypatch, "--bar", "0.6") == 1
    assert parts.ran == ["first", "second", "slow", "third"]
    assert Parts(missing=False).run(monkeypatch) == 0


def test_a_killed_study_keeps_its_parts_and_goes_on_from_them(workplace, monkeypatch, capsys):
    killed = Parts(missing=False, broken=True)
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(KeyboardInterrupt):
        command.main(killed.study, "parts.py")
    folder = workplace / "results" / "parts"
    saved = read(folder)
    assert list(saved["methods"]) == ["a", "b"]
    (pending,) = [claim for claim in saved["claims"] if claim["holds"] is None]
    assert pending["claim"] == "the part third"
    assert pending["reference"] == "not run: the study has not come so far"
    assert (folder / "drawn.png").exists()

    again = Parts(missing=False)
    assert again.run(monkeypatch) == 0
    assert again.ran == ["third"]
    saved = read(folder)
    assert list(saved["methods"]) == ["a", "b", "c"]
    assert [claim["holds"] for claim in saved["claims"]] == [True, True]
    assert sorted(file.name for file in folder.iterdir()) == ["drawn.png", "summary.json"]
    assert "parts, first: kept from before" in capsys.readouterr().out
    anew = Parts(missing=False)
    anew.run(monkeypatch)
    assert anew.ran == ["first", "second", "slow", "third"]


def test_a_part_whose_figure_is_gone_runs_again(workplace, monkeypatch):
    killed = Parts(missing=False, broken=True)
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(KeyboardInterrupt):
        command.main(killed.study, "parts.py")
    (workplace / "results" / "parts" / "drawn.png").unlink()
    again = Parts(missing=False)
    again.run(monkeypatch)
    assert again.ran == ["first", "third"]


def test_a_plan_runs_nothing(workplace, monkeypatch, capsys):
    parts = Parts()
    assert parts.run(monkeypatch, "--plan") == 0
    assert parts.ran == []
    assert not (workplace / "results").exists()
    shown = capsys.readouterr().out
    assert "parts: first, second, third\n" in shown
    assert "second is left out" in shown


def test_quick_settings_judge_nothing_and_lie_apart(workplace, monkeypatch):
    parts = Parts(missing=False)
    assert parts.run(monkeypatch, "--quick", "--bar", "0.6") == 0
    saved = read(workplace / "results" / "quick" / "parts")
    assert saved["config"] == {"rounds": 1, "bar": 0.6}
    assert {claim["holds"] for claim in saved["claims"]} == {None}
    assert {claim["reference"] for claim in saved["claims"]} == {"not judged with quick settings"}
    assert not (workplace / "results" / "parts").exists()


def test_only_a_quick_look_compiles_quickly_and_a_callers_flags_come_last(workplace, monkeypatch):
    Parts(missing=False).run(monkeypatch)
    assert os.environ["XLA_FLAGS"] == "--of_the_caller"
    Parts(missing=False).run(monkeypatch, "--quick")
    first, *_, last = os.environ["XLA_FLAGS"].split()
    assert (first, last) == ("--xla_backend_optimization_level=0", "--of_the_caller")


def test_parts_with_one_name_for_two_things_are_refused():
    with pytest.raises(ValueError, match="got 'a' from both first and second"):
        together({"first": Summary({"a": {}}), "second": Summary({"a": {}})})


EVERY_STUDY = [
    f"experiments.studies.{family}.{name}"
    for family, known in all_studies.studies().items()
    for name in known
]


def absent_of(part, config):
    """The names of the libraries that a part needs and that are not here."""
    names = []
    for need in part.needs:
        try:
            need.look(config)
        except ImportError:
            names.append(need.name)
        except FileNotFoundError:
            continue
    return names


@pytest.mark.some(2)
@pytest.mark.parametrize("module", EVERY_STUDY)
def test_every_study_plans_without_data_and_tells_what_is_not_run(module, monkeypatch, capsys):
    def absent(*arguments, **options):
        raise FileNotFoundError("no files here.")

    monkeypatch.setattr(inputs.dx.data, "fashion_mnist", absent)
    study = importlib.import_module(module).STUDY
    left_out, pictures = False, False
    for config in (study.config(), study.quick):
        planned = command.plan(study, module, config)
        assert planned
        for part, why in planned:
            needs_pictures = inputs.FASHION_MNIST in part.needs
            # Parts may need libraries, too, which are here or not.
            assert bool(why) == (needs_pictures or bool(absent_of(part, config)))
            left_out, pictures = left_out or bool(why), pictures or needs_pictures
            if needs_pictures:
                (claim, *_) = part.not_run(config, why).claims
                assert (claim.holds, claim.reference) == (
                    None,
                    "not run: Fashion-MNIST is not here",
                )
    said = capsys.readouterr().out
    assert ("Fashion-MNIST is not here. no files here." in said) == pictures
    assert ("is left out" in said) == left_out


def test_a_study_that_needs_the_images_has_its_claims_listed(monkeypatch):
    stated = {}
    for module in EVERY_STUDY:
        study = importlib.import_module(module).STUDY
        stated[module.rpartition(".")[2]] = [
            text
            for part in study.parts
            if inputs.FASHION_MNIST in part.needs
            for text in part.states(study.config())
        ]
    assert {name: len(texts) for name, texts in stated.items() if texts} == {
        "bristle": 2,
        "ddm": 5,
        "decentralized_comparison": 15,
        "dfedadmm": 2,
        "dimat": 1,
        "dp_sgd": 2,
        "dp_brem": 3,
        "fedcompass": 5,
        "kafal": 5,
        "monna": 7,
        "server_comparison": 5,
        "single_merging": 2,
    }


def test_a_study_runs_by_its_name_alone():
    names = [module.rpartition(".")[2] for module in EVERY_STUDY]
    assert len(names) == len(set(names)) > 15
    for name in names:
        assert importlib.util.find_spec(f"experiments.{name}") is not None


def test_a_study_says_first_how_long_it_takes(monkeypatch, capsys):
    timed = COMPARE._replace(seconds=130)
    for arguments, words in (
        ([], "compare begins, and takes about 2 min of a CPU core"),
        (["--plan"], "compare takes about 2 min of a CPU core"),
        (["--quick"], "compare begins, and takes less than a minute of a CPU core"),
        (["--rounds", "3"], "core with the default settings, which these are not"),
    ):
        monkeypatch.setattr(sys, "argv", ["study", *arguments])
        with pytest.raises(SystemExit):
            command.main(timed, "compare.py")
        assert capsys.readouterr().out.splitlines()[0].endswith(words)


def test_a_begun_study_is_heard_of_through_a_pipe(monkeypatch):
    flushed = []
    monkeypatch.setattr("builtins.print", lambda line, flush=False: flushed.append((line, flush)))
    command.run(COMPARE, results.RESULTS / "compare", Config())
    assert ("compare, whole: begins", True) in flushed
    assert all(at_once for _, at_once in flushed)


def test_a_figure_says_its_data_and_what_bands_are(monkeypatch):
    heads = []
    draw = results.draw

    def noted(folder, summary):
        heads.extend(f.get_suptitle() for f in summary.figures.values() if hasattr(f, "axes"))
        return draw(folder, summary)

    monkeypatch.setattr(results, "draw", noted)
    for headed in (True, False):
        picture = Picture(
            "curve", "", "A claim.", "digits", "{config.rounds} rounds", headed=headed
        )
        study = COMPARE._replace(pictures=(picture,))
        command.run(study, results.RESULTS / "compare", Config())
    assert heads == ["digits; 7 rounds", ""]


def test_a_figure_that_does_not_stand_alone_is_named(monkeypatch, capsys):
    run_main(monkeypatch)
    assert "  figure curve, panel 1: the x axis has no label" in capsys.readouterr().out


def test_the_list_says_how_long_each_study_takes(monkeypatch, capsys):
    run_command(monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "python -m experiments." in line]
    assert len(rows) == sum(len(known) for known in all_studies.studies().values())
    for row in rows:
        assert re.search(r"experiments\.\w+ +(\d+ s|\d+ min|some min) ", row), row
