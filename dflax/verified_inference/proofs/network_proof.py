"""A whole quantised network proved layer by layer, without the verifier's presence (Fiat-Shamir)."""

import hashlib
import io
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.commitment import leaf_hash
from dflax.verified_inference.proofs.field import MERSENNE
from dflax.verified_inference.proofs.lookups import multiplicities, verify_range
from dflax.verified_inference.proofs.products import require_factors
from dflax.verified_inference.proofs.quantised import (
    QuantisedNetwork,
    accumulators,
    activations,
    integers,
    require_network,
    rescaled,
)
from dflax.verified_inference.proofs.sum_check import Challenges, accepted, rounds_of, variables

LARGEST_TABLE = 16


class OtherModelError(ValueError):
    """A proof that is about another model's commitment."""


class Claim(NamedTuple):
    """What a proof says.

    Attributes:
      inputs: `[B, d]` integers.
      outputs: `[B, o]` real outputs.
      commitment: of the model, 32 bytes.
    """

    inputs: Int[np.ndarray, "B d"]
    outputs: Float[np.ndarray, "B o"]
    commitment: bytes


class Transcript:
    """A verifier who is not there: its coins are hashes of all that was said before.

    Args:
      label: what the transcript is of.
    """

    def __init__(self, label: bytes):
        self.state = hashlib.sha256(label).digest()

    def hear(self, value: Any) -> None:
        """Takes a message in."""
        self.state = hashlib.sha256(self.state + leaf_hash(value)).digest()

    def coins(self, count: int) -> np.ndarray:
        """So many field elements."""
        drawn = []
        for _ in range(count):
            self.state = hashlib.sha256(self.state + b"coin").digest()
            drawn.append(int.from_bytes(self.state[:16], "little") % MERSENNE)
        return np.array(drawn, np.uint32)


def prove_inference(
    network: QuantisedNetwork, inputs: Float[AnyArray, "B d"], *, lookups: bool = False
) -> bytes:
    """A proof that a committed network has these outputs for these inputs.

    It holds the commitment, the integer inputs, the products of every layer, and for each product a
    sum-check whose coins are hashes of everything before (Fiat-Shamir). What lies between products,
    bias, rounding shift and ReLU, the verifier does again, or with `lookups` checks by a range
    argument: that each remainder of the shift is in [0, 2^shift). It is not zero knowledge: who
    verifies knows the weights, and reads activations in the proof.

    Args:
      network: from `quantise`.
      inputs: `[B, d]` real numbers.
      lookups: whether remainders are proved to be in range.

    Raises:
      TypeError, ValueError: naming the argument; layers too wide for the modulus 2^31 - 1, with the
        bits that are needed.
    """
    require_network(network)
    validation.flag("lookups", lookups)
    shape = ("B", network.kernels[0].shape[0])
    given = validation.array("inputs", inputs, kind="real", shape=shape)
    entering = integers(network, jnp.asarray(given))
    products = accumulators(network, entering)
    parts: dict[str, Any] = {
        "commitment": np.frombuffer(network.commitment, np.uint8),
        "inputs": np.asarray(entering, np.int32),
        "lookups": np.array(bool(lookups)),
    }
    parts |= {f"products{place}": np.asarray(one) for place, one in enumerate(products)}
    transcript = _opened(network, parts)
    h = entering
    for place, kernel in enumerate(network.kernels):
        h, kernel = require_factors(h, kernel, MERSENNE)
        coins = _points(transcript, products[place])

        def draw(_: int, message: Array) -> Array:
            transcript.hear(np.asarray(message))
            return jnp.asarray(transcript.coins(1)[0])

        messages, _ = rounds_of(h, kernel, *coins, draw, MERSENNE)
        parts[f"messages{place}"] = np.asarray(messages)
        if place < len(network.shifts):
            if lookups and _by_lookup(network, place):
                quotient, rest = rescaled(network, place, products[place])
                counts = np.asarray(multiplicities(rest, 1 << network.shifts[place]))
                for name, part in ((f"quotient{place}", quotient), (f"counts{place}", counts)):
                    parts[name] = np.asarray(part)
                    transcript.hear(parts[name])
                transcript.coins(1)
            h = activations(network, place, products[place])
    file = io.BytesIO()
    np.savez_compressed(file, **parts)
    return file.getvalue()


def verify_inference(network: QuantisedNetwork, proof: bytes) -> bool:
    """Whether a proof of `prove_inference` holds for this network.

    Accepted without being true at most with probability `sum over layers (log2 B + log2 d_out +
    2 log2 d_in) / (2^31 - 1)` for each transcript that a prover tries; `soundness_error` adds it up.

    Raises:
      OtherModelError: a `ValueError`: the proof is about another model's commitment.
      TypeError, ValueError: naming the argument; bytes that are no proof of such a network.
    """
    require_network(network)
    parts = _read(network, proof)
    transcript = _opened(network, parts)
    h = jnp.asarray(parts["inputs"])
    if int(np.abs(parts["inputs"].astype(np.int64)).max()) > network.largest:
        return False
    held = True
    for place, kernel in enumerate(network.kernels):
        products = jnp.asarray(parts[f"products{place}"])
        rows, columns = _points(transcript, products)
        messages = parts[f"messages{place}"]
        drawn = []
        for message in messages:
            transcript.hear(message)
            drawn.append(transcript.coins(1)[0])
        coins = Challenges(rows, columns, jnp.asarray(np.array(drawn, np.uint32)))
        held &= bool(accepted(h, kernel, products, jnp.asarray(messages), coins, MERSENNE))
        if place < len(network.shifts):
            if bool(parts["lookups"]) and _by_lookup(network, place):
                h, fits = _looked_up(network, place, parts, transcript)
                held &= fits
            else:
                h = activations(network, place, products)
    return held


def claim_of(network: QuantisedNetwork, proof: bytes) -> Claim:
    """What a proof is about: its inputs and outputs. Whether it holds, `verify_inference` says.

    Raises:
      OtherModelError, TypeError, ValueError: as `verify_inference`.
    """
    require_network(network)
    parts = _read(network, proof)
    last = parts[f"products{len(network.kernels) - 1}"] + np.asarray(network.biases[-1])
    outputs = last.astype(np.float32) * np.float32(2.0**-network.output_bits)
    return Claim(parts["inputs"], outputs, network.commitment)


def soundness_error(network: QuantisedNetwork, examples: int) -> float:
    """The probability at most with which one wrong transcript is accepted.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    require_network(network)
    validation.integer("examples", examples, low=1)
    total = 0
    for kernel in network.kernels:
        inputs, outputs = kernel.shape
        total += variables(examples) + variables(outputs) + 2 * variables(inputs)
    return total / MERSENNE


def _looked_up(
    network: QuantisedNetwork, place: int, parts: dict[str, np.ndarray], transcript: Transcript
) -> tuple[Array, bool]:
    """Activations from the quotients that the proof holds, and whether their remainders are in range."""
    shift = network.shifts[place]
    quotient, counts = parts[f"quotient{place}"], parts[f"counts{place}"]
    bound = 1 << (31 - shift)
    if quotient.shape != parts[f"products{place}"].shape or counts.shape != (1 << shift,):
        return jnp.zeros(quotient.shape, jnp.int32), False
    # Beyond these a quotient times 2^shift is no integer of 32 bits, and another of the same residue.
    small = bool(np.all(np.abs(quotient.astype(np.int64)) < bound))
    shifted = parts[f"products{place}"] + np.asarray(network.biases[place]) + ((1 << shift) >> 1)
    rest = shifted - quotient * np.int32(1 << shift)
    transcript.hear(quotient)
    transcript.hear(counts)
    fits = bool(verify_range(rest, counts, int(transcript.coins(1)[0])))
    return jnp.clip(jnp.asarray(quotient), 0, network.largest), small and fits


def _by_lookup(network: QuantisedNetwork, place: int) -> bool:
    return 0 < network.shifts[place] <= LARGEST_TABLE


def _opened(network: QuantisedNetwork, parts: dict[str, np.ndarray]) -> Transcript:
    """A transcript that has heard the claim."""
    transcript = Transcript(b"dflax.verified_inference.network_proof")
    for name in ("commitment", "inputs", "lookups"):
        transcript.hear(parts[name])
    for place in range(len(network.kernels)):
        transcript.hear(parts[f"products{place}"])
    return transcript


def _points(transcript: Transcript, products: Array) -> tuple[Array, Array]:
    rows, columns = (transcript.coins(variables(length)) for length in products.shape)
    return jnp.asarray(rows), jnp.asarray(columns)


def _read(network: QuantisedNetwork, proof: Any) -> dict[str, np.ndarray]:
    """The parts of a proof, refused where they are not those of such a network."""
    if not isinstance(proof, bytes):
        raise TypeError(
            f"proof must be bytes, got {validation.shown(proof)}. Make it with prove_inference."
        )
    try:
        with np.load(io.BytesIO(proof), allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        found = bytes(parts["commitment"])
    except Exception:
        raise ValueError(f"proof must be one of prove_inference, got {len(proof)} bytes.") from None
    if found != network.commitment:
        raise OtherModelError(
            f"proof must be about the commitment {network.commitment.hex()[:16]}... of network, got one "
            f"about {found.hex()[:16]}.... It proves another model's outputs."
        )
    batch = parts["inputs"].shape[:1]
    wanted: dict[str, tuple[tuple[int, ...], Any]] = {
        "inputs": ((*batch, network.kernels[0].shape[0]), np.int32),
        "lookups": ((), np.bool_),
    }
    for place, kernel in enumerate(network.kernels):
        wanted[f"products{place}"] = ((*batch, kernel.shape[1]), np.int32)
        wanted[f"messages{place}"] = ((variables(kernel.shape[0]), 3), np.uint32)
    for name, (shape, kind) in wanted.items():
        part = parts.get(name)
        if part is None or part.shape != shape or part.dtype != kind:
            raise ValueError(f"proof must hold {name} of shape {shape}, which it does not.")
    if bool(parts["lookups"]):
        for place in range(len(network.shifts)):
            for name in (f"quotient{place}", f"counts{place}"):
                if _by_lookup(network, place) and name not in parts:
                    raise ValueError(f"proof must hold {name}, which it does not.")
    return parts
