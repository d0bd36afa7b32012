"""Rounds traced here for a machine that is not here, kept in a file, and run over there."""

import importlib.util
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax import export
from jax.sharding import Mesh
from jaxtyping import Array, Key

from dflax import validation
from dflax.algorithm import (
    Algorithm,
    Metrics,
    Source,
    State,
    rollout,
    verify_algorithm,
    verify_source,
)
from dflax.blame import blamed
from dflax.clients import CLIENTS, is_planned
from dflax.mesh import MODEL, client_mesh, place, replicate_source, state_sharding
from dflax.running.checkpoints.fingerprint import layout
from dflax.running.shapes import laid_out

__all__ = ["load", "save"]

Rounds = Callable[[State, Source, Key[Array, ""]], tuple[State, Metrics]]
# Layouts that a program asks for are no part of what `jax.export` keeps readable. Every compiler that
# runs plans knows them, and one that did not would refuse the program.
UNPROMISED = (export.DisabledSafetyCheck.custom_call("LayoutConstraint"),)
# The first line of a file, then a line of JSON, then what jax.export makes.
FORMAT = b"dflax plan 2\n"


def save(
    path: str | os.PathLike,
    algorithm: Algorithm,
    state: State,
    source: Source,
    *,
    rounds: int,
    mesh: Mesh,
) -> None:
    """Traces `rounds` rounds for the devices of a mesh and writes the program to a file.

    What is kept is the program as it was traced, with every choice by platform made for that mesh and
    every sharding in it. The machine that runs it compiles it with its own compiler, so it may have
    another version of that; `jax.export` keeps its files readable for six months. Nothing is compiled or
    run here: `dflax.profile.round` tells whether it fits.

    Args:
      path: of the file.
      algorithm: whose rounds are run.
      state: arrays, or `jax.ShapeDtypeStruct`s in their place.
      source: of the rounds; arrays or shapes.
      rounds: how many one call does, >= 1.
      mesh: with the axis "clients", for example `dflax.mesh.planned("v5e:16x16")`.

    Raises:
      TypeError, ValueError: naming the argument.
      ImportError: flatbuffers is not installed.
    """
    validation.path("path", path)
    verify_algorithm("algorithm", algorithm)
    validation.arrays("state", state, "Make one with algorithm.init(key, params).", some=True)
    validation.integer("rounds", rounds, low=1)
    verify_source(source, rounds)
    validation.instance("mesh", mesh, Mesh, 'Make one with dflax.mesh.planned("v5e:16x16").')
    _require_flatbuffers("save")
    one_key = jax.eval_shape(lambda: jax.random.key(0))
    given, _ = laid_out(mesh, state, source, one_key)
    leaves, structure = jax.tree.flatten(given)
    paths: list[list[str]] = []

    def program(*leaves: Array) -> list[Array]:
        state, source, key = jax.tree.unflatten(structure, leaves)
        after, metrics = rollout(algorithm, state, source, key, rounds)
        named, _ = jax.tree_util.tree_flatten_with_path(metrics)
        paths[:] = [
            [jax.tree_util.keystr((part,), simple=True) for part in path] for path, _ in named
        ]
        return [*jax.tree.leaves(after), *(leaf for _, leaf in named)]

    platform = mesh.devices.flat[0].platform
    with jax.set_mesh(mesh):
        exporter = export.export(
            jax.jit(program),
            platforms=["cuda" if platform == "gpu" else platform],
            disabled_checks=UNPROMISED,
        )
        exported = blamed("algorithm.step", exporter, *leaves)
    header = {
        "rounds": rounds,
        "platform": platform,
        "kind": mesh.devices.flat[0].device_kind,
        "model": mesh.shape.get(MODEL, 1),
        "clients": mesh.shape[CLIENTS],
        "leaves": _described(given),
        "metrics": paths,
    }
    pathlib.Path(path).write_bytes(
        FORMAT + json.dumps(header).encode() + b"\n" + exported.serialize()
    )


def load(path: str | os.PathLike, *, mesh: Mesh | None = None) -> Rounds:
    """The rounds that `save` kept, to be run on this machine.

    Args:
      path: of the file.
      mesh: as many devices of the same platform as it was saved for; default all devices of this
        machine, or of its hosts.

    Returns:
      `rounds(state, source, key) -> (state, metrics)`: as many rounds as were saved, from round
      `state.round` of the key; metrics `[R, ...]` in dictionaries. The state is given away: its arrays
      are used up. The first call compiles.

    Raises:
      TypeError, ValueError: naming the argument: no such file of ours, or another machine than it was
        saved for; from `rounds`, a leaf of another shape or dtype.
      ImportError: flatbuffers is not installed.
    """
    validation.path("path", path)
    if mesh is not None:
        validation.instance("mesh", mesh, Mesh, "Make one with dflax.client_mesh().")
    if not pathlib.Path(path).exists():
        raise ValueError(f"path must be a file that dflax.plan.save wrote, got {str(path)!r}.")
    content = pathlib.Path(path).read_bytes()
    if not content.startswith(FORMAT):
        raise ValueError(
            f"path must be a file that dflax.plan.save wrote, got another one, {str(path)!r}."
        )
    _require_flatbuffers("load")
    line, _, program = content[len(FORMAT) :].partition(b"\n")
    header = json.loads(line)
    wanted = f"{header['clients'] * header['model']} devices of platform {header['platform']!r}"
    if mesh is None:
        count = len(jax.devices())
        mesh = client_mesh(model=header["model"]) if count % header["model"] == 0 else client_mesh()
    one = mesh.devices.flat[0]
    sides = {CLIENTS: header["clients"]} | ({MODEL: header["model"]} if header["model"] > 1 else {})
    if dict(mesh.shape) != sides or one.platform != header["platform"] or is_planned(mesh):
        raise ValueError(
            f"mesh must be of {wanted} with the axes {sides}, for which {str(path)!r} was saved, got "
            f"{dict(mesh.shape)} of {mesh.devices.size} {one.device_kind}."
        )
    call = export.deserialize(bytearray(program)).call
    count = sum(name.startswith("state") for name in header["leaves"])
    jitted = jax.jit(call, donate_argnums=tuple(range(count)))

    def rounds(state: State, source: Source, key: Key[Array, ""]) -> tuple[State, Metrics]:
        validation.typed_key("key", key)
        placed = (
            place(jax.tree.map(jax.numpy.asarray, state), state_sharding(state, mesh)),
            replicate_source(source, mesh),
            replicate_source(key, mesh),
        )
        _require_alike(header["leaves"], _described(placed))
        with jax.set_mesh(mesh):
            made = jitted(*jax.tree.leaves(placed))
        after: Any = jax.tree.unflatten(jax.tree.structure(state), made[:count])
        return after, _nested(header["metrics"], made[count:])

    return rounds


def _described(given: Any) -> dict[str, str]:
    """The type of every leaf, by name."""
    names = ("state", "source", "key")
    return {
        name + path: kind
        for name, tree in zip(names, given, strict=True)
        for path, kind in layout(tree).items()
    }


def _require_alike(saved: dict[str, str], given: dict[str, str]) -> None:
    for (name, mine), (other, theirs) in zip(given.items(), saved.items(), strict=False):
        if (name, mine) != (other, theirs):
            raise ValueError(
                f"{name} must be as it was saved, {other} of type {theirs}, got type {mine}."
            )
    if len(saved) != len(given):
        raise ValueError(
            f"state and source must have the {len(saved)} leaves that were saved, with the key, got "
            f"{len(given)}."
        )


def _nested(paths: list[list[str]], leaves: list[Array]) -> Metrics:
    metrics: dict[str, Any] = {}
    for path, leaf in zip(paths, leaves, strict=True):
        inside = metrics
        for name in path[:-1]:
            inside = inside.setdefault(name, {})
        inside[path[-1]] = leaf
    return metrics


def _require_flatbuffers(function: str) -> None:
    if importlib.util.find_spec("flatbuffers") is None:
        raise ImportError(f"plan.{function} needs flatbuffers: pip install 'dflax[plan]'.")


def __dir__() -> list[str]:
    return __all__
