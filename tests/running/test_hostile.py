"""Folders that a stranger, a failing disk or a second process left: refused by name or skipped."""

import fcntl
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import socket
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tasks import assert_trees_equal

import dflax as dx
from dflax.running.checkpoints import lock, manifest, records, untrusted
from dflax.running.checkpoints.arrays import Arrays, verify_shapes
from dflax.running.checkpoints.checkpoint import Checkpoints
from dflax.running.checkpoints.lock import InUseError
from dflax.running.checkpoints.untrusted import DamagedError

KEY = jax.random.key(0)
ROUNDS = 6
NEWEST = "round_000000006"


def step(state, round):
    state = {"x": state["x"] * 1.5 + round[0], "key": jax.random.fold_in(state["key"], 1)}
    return state, {"sum": state["x"].sum()}


WALK = dx.Algorithm(lambda key, params: params, step)
SOURCE = dx.Events(jnp.sin(jnp.arange(12.0)))


def measure(state):
    return {"last": state["x"][-1]}


def run(folder=None, rounds=ROUNDS, every_rounds=2, **options):
    state = {"x": jnp.arange(50.0), "key": KEY}
    checkpoint = None if folder is None else Checkpoints(folder, every_rounds=every_rounds)
    state, history = dx.run(
        WALK,
        state,
        SOURCE,
        rounds=rounds,
        key=KEY,
        evaluate=measure,
        every=4,
        checkpoint=checkpoint,
        **options,
    )
    return (
        state["x"],
        jax.random.key_data(state["key"]),
        history._replace(seconds=0, compile_seconds=0),
    )


@pytest.fixture(scope="module")
def whole():
    return run()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "run"
    run(folder)
    return folder


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "run")


@pytest.fixture
def outside(tmp_path):
    """What must stay as it is, whatever links lead there."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious" * 1000)
    before = snapshot(folder)
    yield folder
    assert snapshot(folder) == before


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def instead(name, put):
    def harm(folder, outside):
        untrusted.remove(folder / name)
        put(folder / name, outside)

    return harm


def link(path, outside):
    path.symlink_to(outside / "precious")


def link_to_folder(path, outside):
    path.symlink_to(outside)


def pipe(path, outside):
    os.mkfifo(path)


def directory(path, outside):
    path.mkdir()


def content(data):
    return lambda path, outside: path.write_bytes(data)


def sealed(change):
    """The newest manifest with other facts, as valid as its writer can make it."""

    def harm(folder, outside):
        path = folder / NEWEST / manifest.MANIFEST
        inside = json.loads(path.read_bytes())["content"]
        changed = change(inside)
        inside = changed if isinstance(changed, (dict, list)) else inside
        digest = hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()
        path.write_text(json.dumps({"content": inside, "sha256": digest}))

    return harm


def facts(**changed):
    return sealed(lambda inside: inside["facts"].update(changed))


def history(**changed):
    return sealed(lambda inside: inside["facts"]["history"].update(changed))


def renamed(folder, outside):
    (folder / NEWEST).rename(folder / "round_000000008")


def kept_elsewhere(name):
    """Moves a part of the checkpoint to another folder, and links to it."""

    def harm(folder, outside):
        shutil.move(folder / name, folder.parent / "moved")
        (folder / name).symlink_to(folder.parent / "moved")

    return harm


def wrong_shape(folder, outside):
    """Arrays of 16 MiB, packed into a few hundred bytes, where 200 bytes are due."""
    shutil.rmtree(folder / NEWEST / "state")
    arrays = Arrays()
    arrays.save(folder / NEWEST / "state", {"key": KEY, "x": jnp.zeros((2048, 2048))}, 6)
    arrays.wait()
    arrays.close()
    seal_again(folder / NEWEST)


def wrong_round(folder, outside):
    shutil.rmtree(folder / NEWEST / "state")
    arrays = Arrays()
    arrays.save(folder / NEWEST / "state", {"key": KEY, "x": jnp.zeros(50)}, 5)
    arrays.wait()
    arrays.close()
    seal_again(folder / NEWEST)


def no_metadata(folder, outside):
    (folder / NEWEST / "state" / "_METADATA").write_text("[" * 100_000)
    seal_again(folder / NEWEST)


def seal_again(folder):
    told = json.loads((folder / manifest.MANIFEST).read_bytes())["content"]["facts"]
    (folder / manifest.MANIFEST).unlink()
    manifest.seal(folder, told)


def added(folder, outside):
    (folder / NEWEST / "state" / "more").write_text("more")


MANIFEST = f"{NEWEST}/manifest.json"
DEEP = b'{"content":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
SKIPPED = [
    (renamed, "it holds round 6, so it was renamed or copied"),
    (kept_elsewhere(NEWEST), "is no folder, or a link to one"),
    (kept_elsewhere(f"{NEWEST}/state"), "its state is a symbolic link"),
    (kept_elsewhere(MANIFEST), "its manifest.json is a symbolic link"),
    (kept_elsewhere(f"{NEWEST}/state/_METADATA"), "its _METADATA is a symbolic link"),
    (instead(NEWEST, link), "is no folder, or a link to one"),
    (instead(NEWEST, link_to_folder), "is no folder, or a link to one"),
    (instead(NEWEST, content(b"")), "is no folder"),
    (instead(MANIFEST, link), "its manifest.json is a symbolic link"),
    (instead(MANIFEST, pipe), "its manifest.json is a pipe or device"),
    (instead(MANIFEST, directory), "its manifest.json is a folder"),
    (instead(MANIFEST, content(DEEP)), "its manifest.json cannot be read"),
    (instead(MANIFEST, content(b"\xff\xfe")), "its manifest.json cannot be read"),
    (instead(MANIFEST, content(b"[]")), "its manifest.json cannot be read"),
    (instead(MANIFEST, content(b'{"content": {"facts": {}}}')), "manifest.json cannot be read"),
    (instead(f"{NEWEST}/state/_METADATA", pipe), "its _METADATA is a pipe"),
    (sealed(lambda inside: []), "its manifest.json cannot be read"),
    (sealed(lambda inside: {**inside, "files": []}), "its manifest.json cannot be read"),
    (sealed(lambda inside: {**inside, "facts": 3}), "its manifest.json cannot be read"),
    (sealed(lambda inside: inside["files"].update({"../../x": "a"})), r"file ../../x is missing"),
    (sealed(lambda inside: inside["files"].update({"state/_METADATA": 3})), "was changed"),
    (sealed(lambda inside: inside["files"].pop("state/_METADATA")), "was not there when"),
    (added, "its file state/more was not there when it was finished"),
    (facts(round="6"), "it holds round 6, so it was renamed"),
    (facts(round=5), "it holds round 5, so it was renamed"),
    (facts(round=True), "so it was renamed"),
    (facts(seconds="1"), "has no times"),
    (facts(compile_seconds=float("nan")), "has no times"),
    (facts(run=None), "does not say of which run it is"),
    (facts(history=None), "does not tell how much of history.bin"),
    (facts(evaluations=[1]), "does not tell how much of evaluations.bin"),
    (history(bytes=10**18), "does not have the rows of its rounds in history.bin"),
    (history(bytes=-1), "does not tell how much"),
    (history(bytes=1.5), "does not tell how much"),
    (history(bytes=True), "does not tell how much"),
    (history(sha256=None), "does not tell how much"),
    (history(sha256="0"), "history.bin was changed or cut short"),
    (wrong_shape, r"should be float32\[50\], and is float32\[2048, 2048\]"),
    (wrong_round, "its arrays are those of round 5"),
    (no_metadata, "its arra"),
]


@pytest.mark.some(2)
@pytest.mark.parametrize(("harm", "why"), SKIPPED)
def test_a_checkpoint_that_cannot_be_trusted_is_skipped(folder, outside, whole, harm, why):
    harm(folder, outside)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        resumed = run(folder)
    told = [str(w.message) for w in caught if "is skipped" in str(w.message)]
    assert len(told) == 1
    assert re.search(why, told[0])
    assert_trees_equal(resumed, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert_trees_equal(run(folder), whole)


REFUSED = [
    (instead(name, put), f"its {name} is a {kind}")
    for name in ("history.bin", "evaluations.bin", "lock")
    for put, kind in (
        (link, "symbolic link"),
        (pipe, "pipe or device"),
        (directory, "folder, not a file"),
    )
] + [
    (facts(run={}), "is of another run: start: stored None, wanted 0"),
    (facts(run={"start": "0"}), "is of another run: start: stored 0, wanted 0"),
    (facts(run={"start": [[[]]], "state": 3}), "is of another run: start: stored"),
    (facts(format=1), "was written by another version"),
    (facts(format=None), "was written by another version"),
]


@pytest.mark.parametrize(("harm", "why"), REFUSED)
def test_a_folder_that_no_run_left_behind_is_refused_before_training(folder, outside, harm, why):
    harm(folder, outside)
    with pytest.raises(ValueError, match=why) as refused:
        run(folder, sinks=[lambda *_: pytest.fail("it trained")], rounds=8)
    assert str(folder) in str(refused.value)


def test_settings_of_a_stranger_are_only_shown(folder):
    facts(settings=3, run=json_of(folder)["run"] | {"evaluate": "other"})(folder, None)
    with pytest.raises(ValueError, match="is of another run: evaluate"):
        run(folder)


def json_of(folder):
    return json.loads((folder / NEWEST / manifest.MANIFEST).read_bytes())["content"]["facts"]


@pytest.mark.some(1)
@pytest.mark.parametrize("seed", range(3))
def test_random_damage_of_any_file_is_harmless(stored, outside, whole, tmp_path, seed):
    draw = random.Random(seed)
    names = sorted(
        path.relative_to(stored)
        for path in stored.rglob("*")
        if path.is_file() and (NEWEST in path.parts or path.parent == stored)
    )
    for number, name in enumerate(names):
        folder = shutil.copytree(stored, tmp_path / f"{number}")
        damage(folder / name, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            assert_trees_equal(run(folder), whole)
        shutil.rmtree(folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_random_damage_that_was_sealed_again_is_read_or_skipped(stored, outside, tmp_path):
    draw = random.Random(7)
    state = stored / NEWEST / "state"
    for number, path in enumerate(sorted(p for p in state.rglob("*") if p.is_file())):
        folder = shutil.copytree(stored, tmp_path / f"{number}")
        damage(folder / path.relative_to(stored), draw)
        seal_again(folder / NEWEST)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            point, _, measured = run(folder)
        assert point.shape == (50,)
        assert measured.rounds.tolist() == [1, 2, 3, 4, 5, 6]


def damage(path, draw):
    data = bytearray(path.read_bytes())
    if draw.random() < 0.3 or not data:
        data = data[: draw.randrange(len(data) + 1)]
    else:
        for _ in range(draw.choice([1, 1, 5])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def test_shapes_are_compared_before_anything_is_read():
    class About:
        shape = (131072, 131072)
        dtype = np.dtype(np.float32)
        storage = None

    wanted = {"a": jax.ShapeDtypeStruct((3,), np.float32)}
    with pytest.raises(DamagedError, match=r"should be float32\[3\], and is float32\[131072, 1310"):
        verify_shapes({"a": About()}, wanted)
    with pytest.raises(DamagedError, match=r"should be float32\[3\], and is missing"):
        verify_shapes(None, wanted)
    About.shape, About.storage = (3,), type("Storage", (), {"chunk_shape": (1 << 40,)})
    with pytest.raises(DamagedError, match="blocks larger than itself"):
        verify_shapes({"a": About()}, wanted)


def test_a_large_text_is_not_read(tmp_path):
    (tmp_path / manifest.MANIFEST).write_bytes(b"")
    os.truncate(tmp_path / manifest.MANIFEST, 1 << 40)
    with pytest.raises(DamagedError, match="has 1099511627776 bytes, more than"):
        manifest.checked(tmp_path)


def test_a_file_swapped_for_a_link_after_the_look_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "history.bin").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(untrusted, "verify_plain", lambda path: None)
    rows = records.Records(tmp_path / "history.bin", jax.ShapeDtypeStruct((), np.int64))
    with pytest.raises(OSError, match=r"history\.bin"):
        rows.append(b"overwritten")
    assert (tmp_path / "precious").read_bytes() == b"precious"


# A second process.


def test_a_second_run_in_a_folder_is_refused_and_told_who_is_there(tmp_path, whole):
    refused = []

    def second(rounds, metrics):
        if not refused:
            with pytest.raises(InUseError) as error:
                run(tmp_path)
            refused.append(str(error.value))

    assert_trees_equal(run(tmp_path, sinks=[second]), whole)
    assert f"process {os.getpid()} on host {socket.gethostname()!r}" in refused[0]
    assert str(tmp_path) in refused[0]
    assert_trees_equal(run(tmp_path), whole)


def test_death_releases_the_lock(tmp_path, whole):
    program = (
        "import pathlib, sys, time; from dflax.running.checkpoints.lock import Lock\n"
        "held = Lock(pathlib.Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"in use by process {holder.pid} on host"):
            run(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert_trees_equal(run(tmp_path), whole)


def test_an_error_releases_the_lock(tmp_path, whole):
    def stop(rounds, metrics):
        raise KeyError("stop")

    for _ in range(2):
        with pytest.raises(KeyError):
            run(tmp_path, sinks=[stop])
    assert_trees_equal(run(tmp_path), whole)


def test_a_disk_without_locks_is_used_with_a_warning(tmp_path, whole, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(RuntimeWarning, match="cannot be locked here .*not supported"):
        assert_trees_equal(run(tmp_path), whole)


def test_a_lock_that_says_nonsense_still_locks(tmp_path):
    held = lock.Lock(tmp_path)
    (tmp_path / lock.NAME).write_bytes(b"[" * 5000)
    with pytest.raises(InUseError, match="in use by another process"):
        lock.Lock(tmp_path)
    held.release()
    held.release()
    lock.Lock(tmp_path).release()


# A disk that takes no more.


def fail_from(number, error):
    """Records' appending that fails at the so-many-th call."""
    calls = []
    append = records.Records.append

    def failing(self, rows):
        calls.append(rows)
        if len(calls) >= number:
            raise error
        return append(self, rows)

    return failing


def test_a_full_disk_is_one_error_that_says_what_stands(tmp_path, whole, monkeypatch):
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        # Two files a checkpoint: the first of the second one.
        patch.setattr(records.Records, "append", fail_from(3, full))
        with pytest.raises(OSError, match="No space left on device") as failed:
            run(tmp_path)
    told = str(failed.value)
    assert f"checkpoint folder {tmp_path} could not be written" in told
    assert "The checkpoint of round 2 in it stands" in told
    assert failed.value.__cause__ is full
    assert not getattr(failed.value, "__notes__", [])
    with pytest.warns(RuntimeWarning, match="round_000000004 is skipped: .* not finished"):
        assert_trees_equal(run(tmp_path), whole)


def test_a_disk_that_is_full_from_the_start_says_that_nothing_is_there_yet(tmp_path, monkeypatch):
    monkeypatch.setattr(records.Records, "append", fail_from(1, OSError(28, "No space left")))
    with pytest.raises(OSError, match=r"No space left.*holds no finished checkpoint yet"):
        run(tmp_path)


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(records.Records, "append", fail_from(1, OSError(28, "No space left")))

    def stop(rounds, metrics):
        if 3 in rounds:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as raised:
        run(tmp_path, sinks=[stop], chunk=1, every_rounds=2)
    assert any("could not be written" in note for note in raised.value.__notes__)


def test_arrays_that_do_not_fit_on_the_disk_are_the_same_one_error(tmp_path, whole):
    """A limit on the size of files, as the system enforces it, in a process of its own."""
    run(tmp_path, rounds=2)
    program = (
        "import resource, signal, sys\n"
        "import test_hostile as hostile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    hostile.run(sys.argv[1])\n"
        "except OSError as error:\n"
        "    assert 'The checkpoint of round 2 in it stands' in str(error), error\n"
        "    assert 'could not be written' in str(error), error\n"
        "    sys.exit(7)\n"
    )
    here = pathlib.Path(__file__).parent
    paths = os.pathsep.join(map(str, (here, here.parent, here.parent.parent)))
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        env=os.environ | {"PYTHONPATH": paths, "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr[-3000:]
    with pytest.warns(RuntimeWarning, match="round_000000004 is skipped"):
        point, _, measured = run(tmp_path)
    np.testing.assert_array_equal(point, whole[0])
    assert_trees_equal(measured.metrics, whole[2].metrics)


def test_a_folder_that_may_not_be_written_is_named(folder, monkeypatch):
    usual = os.open

    def read_only(path, flags, *rest, **named):
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(OSError, match=r"could not be written: .*Permission denied") as failed:
        run(folder, rounds=8)
    assert f"checkpoint folder {folder}" in str(failed.value)
    assert "The checkpoint of round 6 in it stands" in str(failed.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    with pytest.raises(OSError, match=r"new could not be written: .*Read-only file system"):
        run(tmp_path / "new")


def test_the_home_folder_is_understood(tmp_path, monkeypatch, whole):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("~/runs/mine")
    assert (tmp_path / "runs" / "mine" / NEWEST / manifest.MANIFEST).is_file()
