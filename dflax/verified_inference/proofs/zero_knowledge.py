"""Zero-knowledge proofs of small networks, by the prover of the package ezkl (extra `zk`)."""

import asyncio
import contextlib
import hashlib
import inspect
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.network_proof import OtherModelError
from dflax.verified_inference.proofs.prover import Prover
from dflax.verified_inference.proofs.quantised import Layers, require_layers

FILES = ("network.onnx", "settings.json", "compiled", "reference", "verification", "proving")


def onnx_bytes(layers: Layers, examples: int = 1) -> bytes:
    """Dense layers with ReLU between them as an ONNX file, inputs `[examples, d]`.

    Args:
      layers: pairs (kernel `[d_in, d_out]`, bias `[d_out]`).
      examples: >= 1.

    Raises:
      ImportError: without the package onnx (extra `zk`).
      TypeError, ValueError: naming the argument.
    """
    kernels, biases = require_layers(layers)
    validation.integer("examples", examples, low=1)
    onnx = _imported("onnx")
    helper, arrays = onnx.helper, onnx.numpy_helper
    held, nodes, name = [], [], "inputs"
    for place, pair in enumerate(zip(kernels, biases, strict=True)):
        for kind, values in zip(("kernel", "bias"), pair, strict=True):
            held.append(arrays.from_array(values.astype(np.float32), f"{kind}{place}"))
        dense = f"dense{place}"
        nodes.append(helper.make_node("Gemm", [name, f"kernel{place}", f"bias{place}"], [dense]))
        name = dense
        if place < len(kernels) - 1:
            name = f"relu{place}"
            nodes.append(helper.make_node("Relu", [dense], [name]))
    ends = [
        helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, [examples, width])
        for end, width in (("inputs", kernels[0].shape[0]), (name, kernels[-1].shape[1]))
    ]
    graph = helper.make_graph(nodes, "layers", [ends[0]], [ends[1]], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    # What ezkl reads.
    model.ir_version = 8
    return model.SerializeToString()


def zero_knowledge_prover(
    layers: Layers,
    inputs: Float[AnyArray, "B d"],
    *,
    folder: str | os.PathLike[str] | None = None,
    hidden_inputs: bool = False,
    scale: int = 8,
    cost: float | Float[Array, ""] = 1e6,
    verification: float | Float[Array, ""] = 1e4,
) -> Prover:
    """Proofs that show who verifies nothing of the weights: a halo2 circuit of the network, by ezkl.

    Setting up writes the network as ONNX, makes a reference string on this machine (for research: who
    makes it could prove anything) and keys, which takes seconds to minutes and a hundred megabytes for
    thousands of weights. Outputs are public, inputs too unless hidden, and weights are fixed in the
    verification key, which is the model's commitment.

    Args:
      layers: pairs (kernel `[d_in, d_out]`, bias `[d_out]`), ReLU between them.
      inputs: `[B, d]`, examples of what comes; the circuit is for one input at a time.
      folder: where files go, kept there for another process; None: a folder that ends with the process.
      hidden_inputs: whether proofs hide inputs, too.
      scale: bits after the point of weights and activations, in [2, 14]. With few of them outputs are
        less exact and proofs are quicker.
      cost: of a proof, in executions of the model, >= 0: what a simulation charges.
      verification: of a verification, in executions, >= 0.

    Returns:
      A `Prover`. `prove` refuses outputs farther from the circuit's than 2^-(scale - 4) of the largest;
      `verify` gives False for what is altered. `dflax.verified_inference.proved_outputs` reads a proof.

    Raises:
      ImportError: without the packages ezkl and onnx (extra `zk`).
      TypeError, ValueError: naming the argument.

    References:
      ezkl, https://ezkl.xyz. Chen et al., ZKML: an optimizing system for ML inference in zero-knowledge
      proofs, EuroSys 2024.
    """
    kernels, _ = require_layers(layers)
    shape = ("B", kernels[0].shape[0])
    examples = np.asarray(validation.array("inputs", inputs, kind="real", shape=shape), np.float64)
    if folder is not None:
        validation.path("folder", folder)
    validation.flag("hidden_inputs", hidden_inputs)
    validation.integer("scale", scale, low=2, high=14)
    validation.real("cost", cost, low=0.0, scalar=True)
    validation.real("verification", verification, low=0.0, scalar=True)
    ezkl = _imported("ezkl")
    model = onnx_bytes(layers)
    held = None if folder is not None else tempfile.TemporaryDirectory(prefix="dflax-zk-")
    place = pathlib.Path(held.name if held is not None else str(folder))
    place.mkdir(parents=True, exist_ok=True)
    paths = {name: str(place / name) for name in FILES}
    pathlib.Path(paths["network.onnx"]).write_bytes(model)
    _set_up(ezkl, paths, examples[:1], hidden_inputs, scale)
    commitment = hashlib.sha256(pathlib.Path(paths["verification"]).read_bytes()).digest()

    def prove(model_: bytes, inputs: AnyArray, outputs: AnyArray) -> bytes:
        # The folder lives as long as what needs it.
        assert held is None or held.name
        if model_ != commitment:
            raise OtherModelError("model must be the commitment of this prover, got another.")
        found = _proof(ezkl, paths, inputs)
        own, given = proved_outputs(found), np.asarray(outputs, np.float64)
        bound = np.abs(own).max() * 2.0 ** (4 - scale)
        if own.shape != given.shape or np.abs(own - given).max() > bound:
            raise ValueError("outputs must be the network's for inputs: others have no proof.")
        return found

    def verify(proof: bytes) -> bool:
        return _holds(ezkl, paths, proof)

    return Prover(commitment, prove, verify, cost, verification, 2.0**-100, 28_000)


def proved_outputs(proof: bytes) -> Float[np.ndarray, "1 o"]:
    """The outputs that a zero-knowledge proof is about, from the public values that are verified.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    if not isinstance(proof, bytes):
        raise TypeError(f"proof must be bytes, got {validation.shown(proof)}.")
    try:
        content = json.loads(proof)
        width, scale = content["dflax"]["outputs"], content["dflax"]["scale"]
        words = content["instances"][0][-width:]
        return np.array([[_signed(word) / 2.0**scale for word in words]])
    except (ValueError, KeyError, TypeError, IndexError):
        raise ValueError(
            f"proof must be one of zero_knowledge_prover, got {len(proof)} bytes."
        ) from None


# The order of the curve's field: numbers above its half are negative.
ORDER = 21888242871839275222246405745257275088548364400416034343698204186575808495617


def _signed(word: str) -> int:
    value = int.from_bytes(bytes.fromhex(word), "little")
    return value - ORDER if value > ORDER // 2 else value


def _set_up(
    ezkl: Any, paths: dict[str, str], example: np.ndarray, hidden_inputs: bool, scale: int
) -> None:
    """Circuit, reference string and keys."""
    arguments = ezkl.PyRunArgs()
    arguments.input_visibility = "private" if hidden_inputs else "public"
    arguments.output_visibility, arguments.param_visibility = "public", "fixed"
    arguments.input_scale = arguments.param_scale = scale
    # Numbers are cut in digits of 8 bits: with those of 14, ezkl's own, the circuit has eight times as
    # many rows, and all that is done with it takes eight times as long.
    arguments.decomp_base, arguments.decomp_legs = 256, -(-(2 * scale + 16) // 8)
    _called(ezkl.gen_settings, paths["network.onnx"], paths["settings.json"], arguments)
    with _file(json.dumps({"input_data": example.tolist()}).encode()) as data:
        _called(
            ezkl.calibrate_settings,
            *(data, paths["network.onnx"], paths["settings.json"], "resources"),
            scales=[scale],
        )
    _called(ezkl.compile_circuit, paths["network.onnx"], paths["compiled"], paths["settings.json"])
    settings = json.loads(pathlib.Path(paths["settings.json"]).read_text())
    rows = settings["run_args"]["logrows"]
    _called(ezkl.gen_srs, paths["reference"], rows)
    _called(
        ezkl.setup,
        *(paths["compiled"], paths["verification"], paths["proving"]),
        srs_path=paths["reference"],
    )


def _proof(ezkl: Any, paths: dict[str, str], inputs: AnyArray) -> bytes:
    """A proof for one input."""
    given = np.asarray(jnp.asarray(inputs), np.float64)
    if given.ndim != 2 or given.shape[0] != 1:
        raise ValueError(f"inputs must be one example of shape [1, d], got {given.shape}.")
    settings = json.loads(pathlib.Path(paths["settings.json"]).read_text())
    with (
        _file(json.dumps({"input_data": given.tolist()}).encode()) as data,
        _file() as witness,
        _file() as proof,
    ):
        _called(ezkl.gen_witness, data, paths["compiled"], witness)
        _called(
            ezkl.prove,
            *(witness, paths["compiled"], paths["proving"]),
            proof_path=proof,
            srs_path=paths["reference"],
        )
        content = json.loads(pathlib.Path(proof).read_text())
    content["dflax"] = {
        "outputs": int(np.prod(settings["model_instance_shapes"][-1])),
        "scale": settings["model_output_scales"][0],
    }
    return json.dumps(content).encode()


def _holds(ezkl: Any, paths: dict[str, str], proof: bytes) -> bool:
    try:
        content = json.loads(proof)
        content.pop("dflax")
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
    with _file(json.dumps(content).encode()) as path:
        try:
            return bool(
                _called(
                    ezkl.verify,
                    *(path, paths["settings.json"], paths["verification"]),
                    srs_path=paths["reference"],
                )
            )
        # What ezkl raises for a proof that does not hold.
        except RuntimeError:
            return False


def _called(function: Any, *arguments: Any, **named: Any) -> Any:
    """What one of ezkl's functions gives; some of them are coroutines."""

    async def wait() -> Any:
        found = function(*arguments, **named)
        return await found if inspect.isawaitable(found) else found

    return asyncio.run(wait())


@contextlib.contextmanager
def _file(content: bytes = b"") -> Iterator[str]:
    """The path of a file that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="dflax-zk-") as folder:
        path = pathlib.Path(folder) / "file.json"
        path.write_bytes(content)
        yield str(path)


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Zero-knowledge proofs need the package {name}, which is not here. Install dflax[zk]."
        ) from error
