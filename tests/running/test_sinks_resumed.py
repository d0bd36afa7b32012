"""No row twice: what files and boards hold after a run was killed and taken up again."""

import csv
import importlib.util
import json
import pathlib
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from dflax import sinks

FILES = {"csv": sinks.csv, "jsonl": sinks.jsonl}


def needs(module, extra):
    """Skips a test of a library that is not installed, naming the extra."""
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"needs dflax[{extra}]"
    )


def rows(*rounds, offset=0.0):
    numbers = np.array(rounds)
    return numbers, {
        "loss": numbers / 4 + offset,
        "evaluation": {"accuracy": np.where(numbers % 2, np.nan, numbers / 8)},
    }


def read(path):
    """Rounds and losses of a file, in its order."""
    text = path.read_text()
    if path.suffix == ".csv":
        found = list(csv.DictReader(text.splitlines()))
    else:
        found = [json.loads(line) for line in text.splitlines()]
    return [(int(row["round"]), float(row["loss"])) for row in found]


@pytest.fixture(params=sorted(FILES))
def file(request, tmp_path):
    return FILES[request.param], tmp_path / f"run.{request.param}"


def test_rounds_done_again_take_the_place_of_the_earlier_ones(file):
    make, path = file
    sink = make(path)
    sink(*rows(1, 2, 3))
    sink(*rows(4, 5))
    # Another process goes on from the checkpoint of round 3, on a device with other last bits.
    resumed = make(path)
    resumed(*rows(4, offset=0.5))
    resumed(*rows(5, 6, offset=0.5))
    assert read(path) == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.5), (5, 1.75), (6, 2.0)]


def test_half_a_row_that_a_kill_left_goes(file):
    make, path = file
    make(path)(*rows(1, 2, 3))
    whole = path.read_text()
    path.write_text(whole[:-4])
    make(path)(*rows(3))
    assert path.read_text() == whole


def test_a_run_killed_before_its_first_checkpoint_begins_again(file):
    make, path = file
    make(path)(*rows(1, 2, 3))
    make(path)(*rows(1, 2))
    assert read(path) == [(1, 0.25), (2, 0.5)]


def test_another_run_is_appended_and_nothing_is_lost(file):
    make, path = file
    sink = make(path)
    sink(*rows(1, 2, 3))
    sink(*rows(1, 2, offset=9.0))
    assert [number for number, _ in read(path)] == [1, 2, 3, 1, 2]
    # The second one is gone on with.
    make(path)(*rows(2, 3, offset=9.0))
    assert [number for number, _ in read(path)] == [1, 2, 3, 1, 2, 3]


def test_lines_of_others_stay(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"rate": 0.1}\n[1]\nwords\n')
    sinks.jsonl(path)(*rows(1, 2))
    sinks.jsonl(path)(*rows(2, 3))
    lines = path.read_text().splitlines()
    assert lines[:3] == ['{"rate": 0.1}', "[1]", "words"]
    assert [json.loads(line)["round"] for line in lines[3:]] == [1, 2, 3]


def test_csv_has_a_header_and_empty_cells_where_nothing_was_measured(tmp_path):
    sink = sinks.csv(tmp_path / "deep" / "run.csv")
    sink(
        np.array([3]), {"loss": np.array([np.inf]), "of each": np.ones((1, 2)), "n": np.array([4])}
    )
    assert (tmp_path / "deep" / "run.csv").read_text() == "round,loss,n\n3,inf,4\n"
    path = tmp_path / "run.csv"
    sinks.csv(path)(*rows(1, 2))
    assert path.read_text() == "round,evaluation/accuracy,loss\n1,,0.25\n2,0.25,0.5\n"


def test_columns_of_a_csv_may_come_late_and_go(tmp_path):
    path = tmp_path / "run.csv"
    sink = sinks.csv(path)
    sink(np.array([1, 2]), {"loss": np.array([0.5, 0.25])})
    sink(np.array([3]), {"loss": np.array([0.125]), "age": np.array([7])})
    sink(np.array([4]), {"age": np.array([8])})
    assert path.read_text() == "round,loss,age\n1,0.5,\n2,0.25,\n3,0.125,7\n4,,8\n"
    assert [other.name for other in tmp_path.iterdir()] == ["run.csv"]


def test_files_that_are_no_such_files_are_refused(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("name,age\nme,3\n")
    with pytest.raises(
        ValueError, match=r"path must be a file that dflax.sinks.csv wrote.*'name,age'"
    ):
        sinks.csv(path)(*rows(1))
    assert path.read_text() == "name,age\nme,3\n"
    with pytest.raises(ValueError, match='got "round", the first column'):
        sinks.csv(tmp_path / "new.csv")(np.array([1]), {"round": np.array([2])})


def in_process(text, folder):
    """Runs a script in a process of its own, as what it opens ends with the process."""
    script = f"import numpy as np\nfrom dflax import sinks\n{ROWS}\n{text}"
    roots = [str(pathlib.Path(__file__).parents[2]), *sys.path]
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={
            "PYTHONPATH": ":".join(filter(None, roots)),
            "HOME": str(folder),
            "PATH": "/usr/bin:/bin",
            "WANDB_SILENT": "true",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


ROWS = textwrap.dedent(
    """
    def rows(*rounds):
        numbers = np.array(rounds)
        gaps = np.where(numbers % 2, np.nan, numbers / 8)
        return numbers, {"loss": numbers / 4, "evaluation": {"accuracy": gaps}}
    """
)


@pytest.mark.slow
@needs("tensorboardX", "tensorboard")
def test_a_resumed_tensorboard_hides_the_rounds_it_does_again(tmp_path):
    # Two writers in one second, whose files must not be one; what a process writes it ends with.
    in_process(
        "for given in (rows(1, 2, 3), rows(3, 4)):\n    sinks.tensorboard('board')(*given)\n",
        tmp_path,
    )
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    files = []
    for path in sorted((tmp_path / "board").iterdir()):
        raw, place, steps, begins = path.read_bytes(), 0, [], []
        while place < len(raw):
            length = int.from_bytes(raw[place : place + 8], "little")
            event = Event.FromString(raw[place + 12 : place + 12 + length])
            place += 16 + length
            begins += [event.step] * (event.session_log.status == SessionLog.START)
            steps += [event.step] * any(one.tag == "loss" for one in event.summary.value)
        files.append((begins, steps))
    assert files == [([], [1, 2, 3]), ([3], [3, 4])]


def logged(raw):
    """The records of a file in LevelDB's format: blocks of 32 KiB, headers of 7 bytes."""
    place, record = 7, b""
    while place + 7 <= len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        record += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            yield record
            record = b""


@pytest.mark.slow
@needs("wandb", "wandb")
def test_wandb_has_every_round_once_over_two_processes(tmp_path):
    for rounds in ("1, 2, 3, 4", "3, 4, 5, 6"):
        in_process(
            "sink = sinks.wandb('federated', run_id='mine', folder='runs', mode='offline')\n"
            f"sink(*rows({rounds}))\n",
            tmp_path,
        )
    from wandb.proto import wandb_internal_pb2

    found = []
    for path in sorted((tmp_path / "runs" / "wandb").glob("offline-run-*/run-mine.wandb")):
        for data in logged(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                found.append((values["_step"], values["loss"], values.get("evaluation/accuracy")))
    assert found == [
        (1, 0.25, None), (2, 0.5, 0.25), (3, 0.75, None), (4, 1.0, 0.5), (5, 1.25, None),
        (6, 1.5, 0.75),
    ]  # fmt: skip


@pytest.mark.slow
@needs("mlflow", "mlflow")
def test_mlflow_has_every_round_once_over_two_processes(tmp_path):
    for rounds in ("1, 2, 3, 4", "3, 4, 5, 6"):
        in_process(
            f"sink = sinks.mlflow('sqlite:///mlflow.db', run_name='mine')\nsink(*rows({rounds}))\n",
            tmp_path,
        )
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("dflax").experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(point.step, point.value) for point in losses] == [(n, n / 4) for n in range(1, 7)]
    evaluated = client.get_metric_history(run.info.run_id, "evaluation/accuracy")
    assert [point.step for point in evaluated] == [2, 4, 6]


@pytest.mark.parametrize(
    ("name", "module", "extra", "argument"),
    [
        ("wandb", "wandb", "wandb", "federated"),
        ("mlflow", "mlflow", "mlflow", "sqlite:///mlflow.db"),
        ("tensorboard", "tensorboardX", "tensorboard", "board"),
    ],
)
def test_without_the_library_the_extra_is_named(name, module, extra, argument, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install 'dflax\[{extra}\]'"):
        getattr(sinks, name)(argument)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sinks.wandb(""), "project must be a name, got an empty string"),
        (lambda: sinks.wandb("a", run_id="../b"), "run_id must be letters, digits, - and _, got"),
        (lambda: sinks.wandb("a", folder=3), "folder must be a path"),
        (lambda: sinks.mlflow("sqlite:///a.db", experiment=3), "experiment must be a string"),
        (lambda: sinks.mlflow("sqlite:///a.db", run_name=""), "run_name must be a name"),
    ],
)
def test_names_that_are_none_are_refused(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()
