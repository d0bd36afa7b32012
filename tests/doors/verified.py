"""Right calls of the room of verified inference."""

import numpy as np

import dflax as dx
from doors.things import KEY, MODULE, SPLIT_MODEL, WEIGHTS, N, score

vi = dx.verified_inference
LAYERS = [(np.full((3, 2), 0.5), np.zeros(2))]
ROWS = np.arange(6.0).reshape(2, 3)
NETWORK = vi.quantise(LAYERS, ROWS)
PROOF = vi.prove_inference(NETWORK, ROWS)
LEAVES = [np.arange(2), np.arange(3)]
A, B = np.array([[1, 2]]), np.array([[3], [4]])
COINS = vi.challenges(KEY, (1, 2, 1))
HONEST = vi.nodes(np.zeros(N, int))
SHARES = vi.shared(KEY, np.array([1, 2]))
PRODUCT = {"a": A, "b": B, "c": A @ B}
PAIR = {"sent": ROWS, "inputs": ROWS}
EIGHT = {"sent": np.ones((8, 3)), "inputs": np.ones((8, 3))}

CALLS = {
    "models.split_mlp": {"model": MODULE},
    "verified_inference.Queries": {"inputs": ROWS},
    "verified_inference.challenges": {"key": KEY, "shape": (1, 2, 1)},
    "verified_inference.claim_of": {"network": NETWORK, "proof": PROOF},
    "verified_inference.colluding": {"fault": vi.random_output()},
    "verified_inference.committee": {"key": KEY, "weights": np.ones(N), "size": 2},
    "verified_inference.consensus": {
        "agreement": np.eye(2, dtype=bool),
        "present": np.ones(2, bool),
        "quorum": 0.5,
    },
    "verified_inference.copying": {"otherwise": None},
    "verified_inference.distance_correlation": {"inputs": ROWS, "sent": ROWS},
    "verified_inference.enclaves": {"attested": np.ones(N, bool)},
    "verified_inference.fewer_bits": {"bits": 4},
    "verified_inference.freivalds": {"key": KEY, **PRODUCT},
    "verified_inference.homomorphic_forward": {"layers": LAYERS, "x": np.ones(3)},
    "verified_inference.homomorphic_linear": {"kernel": np.ones((3, 2)), "bias": np.ones(2)},
    "verified_inference.incentives": {},
    "verified_inference.jensen_shannon": {},
    "verified_inference.label_flip": {"shift": 1},
    "verified_inference.labels": {},
    "verified_inference.layers_of": {"params": WEIGHTS},
    "verified_inference.merkle_member": {
        "root": vi.merkle_root(LEAVES),
        "leaf": LEAVES[0],
        "path": vi.merkle_path(LEAVES, 0),
    },
    "verified_inference.merkle_path": {"leaves": LEAVES, "place": 0},
    "verified_inference.merkle_root": {"leaves": LEAVES},
    "verified_inference.mlp_inverse": {"key": KEY, **EIGHT, "steps": 2},
    "verified_inference.mock_prover": {"apply": lambda x: x, "model": bytes(32)},
    "verified_inference.modular_product": {"a": A, "b": B},
    "verified_inference.multiplicities": {"values": A, "size": 4},
    "verified_inference.never_removed": {},
    "verified_inference.nodes": {"kinds": np.zeros(N, int)},
    "verified_inference.on_subset": {"measure": vi.relative_difference(), "size": 2},
    "verified_inference.onnx_bytes": {"layers": LAYERS},
    "verified_inference.other_weights": {"params": WEIGHTS},
    "verified_inference.prove_inference": {"network": NETWORK, "inputs": ROWS},
    "verified_inference.prove_product": {"a": A, "b": B, "coins": COINS},
    "verified_inference.proved_outputs": {"proof": b"{}"},
    "verified_inference.quantise": {"layers": LAYERS, "inputs": ROWS},
    "verified_inference.quantised_apply": {"network": NETWORK, "inputs": ROWS},
    "verified_inference.random_output": {},
    "verified_inference.reconstructed": {"shares": SHARES},
    "verified_inference.reconstruction_error": {"reconstructed": ROWS, "inputs": ROWS},
    "verified_inference.relative_difference": {},
    "verified_inference.ridge_inverse": PAIR,
    "verified_inference.sequential_test": {},
    "verified_inference.shared": {"key": KEY, "values": A},
    "verified_inference.shared_forward": {"key": KEY, "layers": LAYERS, "inputs": ROWS},
    "verified_inference.shared_linear": {
        "key": KEY,
        "kernel": np.ones((3, 2)),
        "bias": np.ones(2),
        "inputs": ROWS,
    },
    "verified_inference.soundness_error": {"network": NETWORK, "examples": 2},
    "verified_inference.split_inference": {"split": SPLIT_MODEL},
    "verified_inference.sum_check": {"key": KEY, **PRODUCT},
    "verified_inference.sum_check_prover": {"network": NETWORK},
    "verified_inference.two_sample_test": {"samples": 4, "permutations": 19},
    "verified_inference.verified_inference": {
        "apply": score,
        "nodes": HONEST,
        "committee": 3,
    },
    "verified_inference.verify_inference": {"network": NETWORK, "proof": PROOF},
    "verified_inference.verify_product": {
        **PRODUCT,
        "messages": vi.prove_product(A, B, COINS),
        "coins": COINS,
    },
    "verified_inference.verify_range": {"values": A, "counts": np.ones(4, int), "point": 9},
    "verified_inference.zero_knowledge_prover": {"layers": LAYERS, "inputs": ROWS},
    "verified_inference.zero_padded": {"small": WEIGHTS, "like": WEIGHTS},
}
