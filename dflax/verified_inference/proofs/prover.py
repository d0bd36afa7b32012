"""What proves that a model gave an output: real or mock, as two functions on bytes and their costs."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.commitment import leaf_hash, require_root
from dflax.verified_inference.proofs.network_proof import (
    OtherModelError,
    prove_inference,
    soundness_error,
    verify_inference,
)
from dflax.verified_inference.proofs.quantised import (
    QuantisedNetwork,
    quantised_apply,
    require_network,
)


class Prover(NamedTuple):
    """A service that proves outputs, outside of compiled programs, and what it costs within them.

    Attributes:
      model: the commitment of the model that is proved, 32 bytes.
      prove: `prove(model, inputs, outputs) -> bytes`.
      verify: `verify(proof) -> bool`, False also for a proof about another model.
      cost: of a proof, in executions of the model.
      verification: cost of a verification, in executions of the model.
      soundness_error: the probability at most with which a wrong proof is accepted.
      proof_bytes: how long a proof is.
    """

    model: bytes
    prove: Callable[[bytes, AnyArray, AnyArray], bytes]
    verify: Callable[[bytes], bool]
    cost: Any = 0.0
    verification: Any = 0.0
    soundness_error: Any = 0.0
    proof_bytes: int = 0


def mock_prover(
    apply: Callable[[Any], AnyArray],
    model: bytes,
    *,
    cost: float | Float[Array, ""] = 1000.0,
    verification: float | Float[Array, ""] = 0.1,
    soundness_error: float | Float[Array, ""] = 0.0,
    proof_bytes: int = 28_000,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> Prover:
    """A prover that proves nothing and knows the truth: it stands in where proofs take too long.

    `verify` runs the model. A true claim is accepted; a false one is accepted with the probability
    `soundness_error`, drawn by a hash of the claim and the seed.

    Args:
      apply: `apply(inputs) -> outputs` of the model.
      model: its commitment, 32 bytes; see `merkle_root`.
      cost: of a proof, in executions, >= 0.
      verification: of a verification, in executions, >= 0.
      soundness_error: probability in [0, 1].
      proof_bytes: length of every proof, >= 1.
      tolerance: up to which absolute difference outputs are the model's, >= 0.
      seed: of the draws.

    Raises:
      TypeError, ValueError: naming the argument.
    """
    validation.function("apply", apply, "It gives the model's outputs for inputs.", takes=1)
    require_root("model", model)
    validation.real("cost", cost, low=0.0, scalar=True)
    validation.real("verification", verification, low=0.0, scalar=True)
    validation.probability("soundness_error", soundness_error)
    validation.integer("proof_bytes", proof_bytes, low=1)
    validation.real("tolerance", tolerance, low=0.0, scalar=True)
    validation.seed("seed", seed)

    def prove(model_: bytes, inputs: AnyArray, outputs: AnyArray) -> bytes:
        require_root("model", model_)
        claim = {
            "model": model_.hex(),
            "inputs": np.asarray(inputs, np.float64).tolist(),
            "outputs": np.asarray(outputs, np.float64).tolist(),
        }
        return json.dumps(claim).encode().ljust(proof_bytes)

    def verify(proof: bytes) -> bool:
        try:
            claim = json.loads(proof)
            named, given = claim["model"], np.array(claim["outputs"])
            right = np.asarray(apply(np.array(claim["inputs"], np.float32)))
        except (ValueError, KeyError, TypeError):
            return False
        close = given.shape == right.shape and bool(np.all(np.abs(given - right) <= tolerance))
        if named == model.hex() and close:
            return True
        drawn = hashlib.sha256(f"{seed} ".encode() + leaf_hash(proof)).digest()
        return int.from_bytes(drawn[:8], "little") < float(soundness_error) * 2.0**64

    return Prover(model, prove, verify, cost, verification, soundness_error, int(proof_bytes))


def sum_check_prover(
    network: QuantisedNetwork,
    *,
    examples: int = 1,
    lookups: bool = False,
    cost: float | Float[Array, ""] = 3.0,
    verification: float | Float[Array, ""] = 1.0,
) -> Prover:
    """Real proofs of a quantised network, by sum-checks made non-interactive; not zero knowledge.

    Args:
      network: from `quantise`.
      examples: B >= 1, how many inputs one proof is of; what `soundness_error` is of.
      lookups: see `prove_inference`.
      cost: of a proof, in executions, >= 0.
      verification: of a verification, in executions, >= 0.

    Raises:
      TypeError, ValueError: naming the argument. `prove` refuses outputs that are not the network's.
    """
    require_network(network)
    validation.integer("examples", examples, low=1)
    validation.flag("lookups", lookups)
    validation.real("cost", cost, low=0.0, scalar=True)
    validation.real("verification", verification, low=0.0, scalar=True)

    def prove(model: bytes, inputs: AnyArray, outputs: AnyArray) -> bytes:
        if model != network.commitment:
            raise OtherModelError("model must be the commitment of network, got another.")
        own = np.asarray(quantised_apply(network, inputs))
        if own.shape != np.shape(outputs) or not np.array_equal(own, np.asarray(outputs)):
            raise ValueError("outputs must be those of network for inputs: others have no proof.")
        return prove_inference(network, inputs, lookups=lookups)

    def verify(proof: bytes) -> bool:
        try:
            return verify_inference(network, proof)
        except ValueError:
            return False

    example = prove_inference(network, np.zeros((examples, network.kernels[0].shape[0])))
    error = soundness_error(network, examples)
    return Prover(network.commitment, prove, verify, cost, verification, error, len(example))
