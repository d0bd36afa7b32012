"""Sinks that draw curves elsewhere: TensorBoard, Weights & Biases, MLflow."""

import atexit
import contextlib
import os
import pathlib
import time
from typing import Any

import numpy as np

from dflax import validation
from dflax.running.sinks.sink import Sink, finite_rows, scalars

# Of metrics in one request, as MLflow allows.
MOST_METRICS = 1000


def tensorboard(folder: str | pathlib.Path) -> Sink:
    """Writes every scalar metric as a TensorBoard curve (needs the extra `tensorboard`).

    What is not finite is left out of the curve: evaluations of rounds that were not evaluated, and
    means over clients of rounds in which none reported. `jsonl` has them all.

    Rounds that are written to a folder again, since a run was killed and is taken up, hide the earlier
    ones from the first of them on; so does another run in the same folder. Give each its own.

    Raises:
      TypeError: `folder` is no path.
      ImportError: tensorboardX is not installed.
    """
    validation.instance("folder", folder, (str, os.PathLike))
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "sinks.tensorboard needs tensorboardX: pip install 'dflax[tensorboard]'."
        ) from error
    folder = pathlib.Path(folder).expanduser()
    writer: Any = None

    def write(rounds: np.ndarray, metrics: Any) -> None:
        nonlocal writer
        if writer is None and len(rounds):
            there = len(list(folder.glob("events.out.tfevents.*")))
            # TensorBoard then forgets what it read of these rounds in earlier files. Those of one
            # second would have one name, and the later one would overwrite the earlier.
            again = {"purge_step": int(rounds[0]), "filename_suffix": f".{there}"} if there else {}
            writer = SummaryWriter(str(folder), **again)
        for name, values in scalars(metrics).items():
            finite = np.isfinite(values)
            for number, value in zip(rounds[finite], values[finite], strict=True):
                writer.add_scalar(name, float(value), int(number))
        if writer is not None:
            writer.flush()

    return write


def wandb(
    project: str,
    *,
    run_id: str | None = None,
    folder: str | os.PathLike | None = None,
    **options: Any,
) -> Sink:
    """Logs every scalar metric to Weights & Biases (needs the extra `wandb`).

    The run is opened when the first rounds come, on several hosts by process 0 alone, and ends with
    the process. What is not finite is left out.

    With a `run_id` the next process goes on with the same run, and rounds that were logged under this
    name are not logged again: say one wherever `dx.run` has a checkpoint. How far it is, the sink
    notes in a file beside those of the run, and asks the server, unless the run is offline.

    Args:
      project: its name.
      run_id: of the run, a name that is unique within the project; None begins a run every time.
      folder: where wandb puts its files; default that of its own settings.
      **options: of `wandb.init`, such as `mode="offline"`, `name`, `config` or `tags`.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: wandb is not installed.
    """
    _verify_name("project", project)
    if run_id is not None:
        _verify_name("run_id", run_id)
        # It becomes the name of a file.
        if not run_id.replace("-", "").replace("_", "").isalnum():
            raise ValueError(
                f"run_id must be letters, digits, - and _, got {validation.shown(run_id)}."
            )
    if folder is not None:
        validation.path("folder", folder)
    try:
        import wandb as library
    except ImportError as error:
        raise ImportError("sinks.wandb needs wandb: pip install 'dflax[wandb]'.") from error
    run: Any = None
    done, note = 0, None

    def write(rounds: np.ndarray, metrics: Any) -> None:
        nonlocal run, done, note
        if run is None:
            place = {} if folder is None else {"dir": os.fspath(folder)}
            resume = {} if run_id is None else {"id": run_id, "resume": "allow"}
            if folder is not None:
                pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            # Without it a second sink of this process would log to the run of the first.
            own = {"reinit": "create_new"} | options
            run = library.init(project=project, **place, **resume, **own)
            done = run.step - 1
            if run_id is not None:
                note = pathlib.Path(run.settings.wandb_dir) / f"dflax-{run_id}.round"
                done = max(done, int(note.read_text()) if note.exists() else 0)
        for number, values in finite_rows(rounds, metrics):
            if number > done:
                run.log(values, step=number)
                done = number
        if note is not None:
            note.write_text(str(done))

    return write


def mlflow(uri: str, *, experiment: str = "dflax", run_name: str | None = None) -> Sink:
    """Logs every scalar metric to MLflow (needs the extra `mlflow`).

    The run is opened when the first rounds come, on several hosts by process 0 alone, and is marked as
    finished when the process ends. What is not finite is left out.

    With a `run_name` the newest run of this name in the experiment is gone on with, and rounds of a
    metric that it has are not logged again: say one wherever `dx.run` has a checkpoint.

    Args:
      uri: of the tracking server or its database, such as "sqlite:///mlflow.db".
      experiment: its name; made if it is missing.
      run_name: of the run; None begins a run every time.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: mlflow is not installed.
    """
    _verify_name("uri", uri)
    _verify_name("experiment", experiment)
    if run_name is not None:
        _verify_name("run_name", run_name)
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric
    except ImportError as error:
        raise ImportError("sinks.mlflow needs mlflow: pip install 'dflax[mlflow]'.") from error
    client: Any = None
    run: str = ""
    done: dict[str, int] = {}

    def write(rounds: np.ndarray, metrics: Any) -> None:
        nonlocal client, run, done
        if client is None:
            client = MlflowClient(tracking_uri=uri)
            run, done = _mlflow_run(client, experiment, run_name)
            atexit.register(_finished, client, run)
        now = int(time.time() * 1000)
        points = [
            Metric(name, value, now, number)
            for number, values in finite_rows(rounds, metrics)
            for name, value in values.items()
            if number > done.get(name, 0)
        ]
        for start in range(0, len(points), MOST_METRICS):
            client.log_batch(run, metrics=points[start : start + MOST_METRICS])
        done |= {point.key: point.step for point in points}

    return write


def _mlflow_run(client: Any, experiment: str, name: str | None) -> tuple[str, dict[str, int]]:
    """The run that is gone on with, or a new one, and the last round that it has of each metric."""
    found = client.get_experiment_by_name(experiment)
    place = client.create_experiment(experiment) if found is None else found.experiment_id
    if name is not None:
        for run in client.search_runs([place], order_by=["attributes.start_time DESC"]):
            if run.info.run_name == name:
                own = run.info.run_id
                client.update_run(own, status="RUNNING")
                histories = {key: client.get_metric_history(own, key) for key in run.data.metrics}
                return own, {key: max(p.step for p in points) for key, points in histories.items()}
    return client.create_run(place, run_name=name).info.run_id, {}


def _finished(client: Any, run: str) -> None:
    # The store may be gone by now.
    with contextlib.suppress(Exception):
        client.set_terminated(run)


def _verify_name(argument: str, name: Any) -> None:
    validation.text(argument, name)
    if not name:
        raise ValueError(f"{argument} must be a name, got an empty string.")
