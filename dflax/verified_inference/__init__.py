"""Inference by nodes that nobody trusts: committees, proofs, secret shares, split execution."""

from dflax.verified_inference.agreement import (
    Measure,
    jensen_shannon,
    labels,
    on_subset,
    relative_difference,
    two_sample_test,
)
from dflax.verified_inference.consensus import Consensus, committee, consensus
from dflax.verified_inference.enclaves import Enclaves, enclaves
from dflax.verified_inference.faults import (
    Fault,
    Nodes,
    colluding,
    copying,
    fewer_bits,
    label_flip,
    nodes,
    other_weights,
    random_output,
    zero_padded,
)
from dflax.verified_inference.homomorphic import (
    HomomorphicLinear,
    homomorphic_forward,
    homomorphic_linear,
)
from dflax.verified_inference.leakage import (
    distance_correlation,
    mlp_inverse,
    reconstruction_error,
    ridge_inverse,
    split_inference,
)
from dflax.verified_inference.proofs.commitment import merkle_member, merkle_path, merkle_root
from dflax.verified_inference.proofs.freivalds import freivalds
from dflax.verified_inference.proofs.lookups import multiplicities, verify_range
from dflax.verified_inference.proofs.network_proof import (
    Claim,
    OtherModelError,
    claim_of,
    prove_inference,
    soundness_error,
    verify_inference,
)
from dflax.verified_inference.proofs.products import modular_product
from dflax.verified_inference.proofs.prover import Prover, mock_prover, sum_check_prover
from dflax.verified_inference.proofs.quantised import (
    QuantisedNetwork,
    layers_of,
    quantise,
    quantised_apply,
)
from dflax.verified_inference.proofs.sum_check import (
    Challenges,
    challenges,
    prove_product,
    sum_check,
    verify_product,
)
from dflax.verified_inference.proofs.zero_knowledge import (
    onnx_bytes,
    proved_outputs,
    zero_knowledge_prover,
)
from dflax.verified_inference.queries import Queries, Query
from dflax.verified_inference.reputation import (
    Incentives,
    Ledger,
    SequentialTest,
    incentives,
    never_removed,
    sequential_test,
)
from dflax.verified_inference.serving import Service, verified_inference
from dflax.verified_inference.shares import reconstructed, shared, shared_forward, shared_linear

__all__ = [
    "Challenges",
    "Claim",
    "Consensus",
    "Enclaves",
    "Fault",
    "HomomorphicLinear",
    "Incentives",
    "Ledger",
    "Measure",
    "Nodes",
    "OtherModelError",
    "Prover",
    "QuantisedNetwork",
    "Queries",
    "Query",
    "SequentialTest",
    "Service",
    "challenges",
    "claim_of",
    "colluding",
    "committee",
    "consensus",
    "copying",
    "distance_correlation",
    "enclaves",
    "fewer_bits",
    "freivalds",
    "homomorphic_forward",
    "homomorphic_linear",
    "incentives",
    "jensen_shannon",
    "label_flip",
    "labels",
    "layers_of",
    "merkle_member",
    "merkle_path",
    "merkle_root",
    "mlp_inverse",
    "mock_prover",
    "modular_product",
    "multiplicities",
    "never_removed",
    "nodes",
    "on_subset",
    "onnx_bytes",
    "other_weights",
    "prove_inference",
    "prove_product",
    "proved_outputs",
    "quantise",
    "quantised_apply",
    "random_output",
    "reconstructed",
    "reconstruction_error",
    "relative_difference",
    "ridge_inverse",
    "sequential_test",
    "shared",
    "shared_forward",
    "shared_linear",
    "soundness_error",
    "split_inference",
    "sum_check",
    "sum_check_prover",
    "two_sample_test",
    "verified_inference",
    "verify_inference",
    "verify_product",
    "verify_range",
    "zero_knowledge_prover",
    "zero_padded",
]


def __dir__() -> list[str]:
    return __all__
