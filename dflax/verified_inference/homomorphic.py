"""Linear layers on encrypted inputs, by the package tenseal (extra `he`)."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dflax import validation
from dflax.data.dataset import AnyArray
from dflax.verified_inference.proofs.quantised import Layers, require_layers

# Degree and bits of the moduli: 128 bits of security, one product deep.
DEGREE = 8192
BITS = [60, 40, 40, 60]
SCALE = 2.0**40


class HomomorphicLinear(NamedTuple):
    """A linear layer whose holder sees neither inputs nor outputs. Functions on bytes, on the host.

    Attributes:
      public: what the layer's holder gets once: the public context with its rotation keys.
      encrypt: `encrypt(x [i]) -> bytes`, by the key's holder.
      evaluate: `evaluate(bytes) -> bytes`, `x W + b` without the key.
      decrypt: `decrypt(bytes) -> [o]`, by the key's holder.
    """

    public: bytes
    encrypt: Callable[[Float[AnyArray, " i"]], bytes]
    evaluate: Callable[[bytes], bytes]
    decrypt: Callable[[bytes], Float[np.ndarray, " o"]]


def homomorphic_linear(
    kernel: Float[AnyArray, "i o"], bias: Float[AnyArray, " o"]
) -> HomomorphicLinear:
    """`x W + b` of encrypted x, in CKKS: real numbers with an error of about 1e-6.

    Args:
      kernel: `[i, o]`, i and o at most 4096.
      bias: `[o]`.

    Raises:
      ImportError: without the package tenseal (extra `he`).
      TypeError, ValueError: naming the argument.

    References:
      Cheon, Kim, Kim and Song, Homomorphic encryption for arithmetic of approximate numbers, ASIACRYPT
      2017. Benaissa et al., TenSEAL, arXiv 2104.03152.
    """
    weights = np.asarray(validation.array("kernel", kernel, kind="real", shape=("i", "o")))
    shape = (weights.shape[1],)
    fix = "One number for each column of kernel."
    added = np.asarray(validation.array("bias", bias, kind="real", shape=shape, fix=fix))
    if max(weights.shape) > DEGREE // 2:
        raise ValueError(
            f"kernel must have at most {DEGREE // 2} rows and columns, got shape {weights.shape}."
        )
    tenseal = _tenseal()
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=DEGREE, coeff_mod_bit_sizes=BITS
    )
    context.generate_galois_keys()
    context.global_scale = SCALE
    public = context.serialize(save_secret_key=False)
    theirs = tenseal.context_from(public)
    rows, offsets = weights.astype(float).tolist(), added.astype(float).tolist()

    def encrypt(x: Float[AnyArray, " i"]) -> bytes:
        given = validation.array("x", x, kind="real", shape=(weights.shape[0],))
        return tenseal.ckks_vector(context, np.asarray(given, np.float64)).serialize()

    def evaluate(sent: bytes) -> bytes:
        found = tenseal.ckks_vector_from(theirs, sent).mm(rows)
        return (found + offsets).serialize()

    def decrypt(sent: bytes) -> Float[np.ndarray, " o"]:
        return np.array(tenseal.ckks_vector_from(context, sent).decrypt())

    return HomomorphicLinear(public, encrypt, evaluate, decrypt)


def homomorphic_forward(layers: Layers, x: Float[AnyArray, " i"]) -> Float[np.ndarray, " o"]:
    """Dense layers one by one on encrypted activations; the key's holder does ReLU between them.

    Args:
      layers: pairs (kernel `[d_in, d_out]`, bias `[d_out]`).
      x: `[i]`, one input.

    Raises:
      ImportError: without the package tenseal (extra `he`).
      TypeError, ValueError: naming the argument.
    """
    kernels, biases = require_layers(layers)
    h = np.asarray(validation.array("x", x, kind="real", shape=(kernels[0].shape[0],)))
    for place, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        layer = homomorphic_linear(kernel, bias)
        h = layer.decrypt(layer.evaluate(layer.encrypt(h)))
        if place < len(kernels) - 1:
            h = np.maximum(h, 0.0)
    return h


def _tenseal() -> Any:
    try:
        return importlib.import_module("tenseal")
    except ImportError as error:
        raise ImportError(
            "Homomorphic layers need the package tenseal, which is not here. Install dflax[he]."
        ) from error
