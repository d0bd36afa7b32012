"""Token sequences: Markov sources that experts can tell apart, and text that ships with Python."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import dflax as dx

CHARACTERS = 128


class Language(NamedTuple):
    """Sequences to train on and to be measured on.

    Attributes:
      train: inputs `[N, L]` and the tokens that follow.
      test: the same of others.
      vocabulary: V.
      floor: the entropy of a token, in nats, given the source and the token before; NaN if unknown.
    """

    train: dx.data.Dataset
    test: dx.data.Dataset
    vocabulary: int
    floor: float


def markov_sources(
    seed: int,
    *,
    sources: int = 8,
    vocabulary: int = 64,
    likely: int = 4,
    other: float = 0.05,
    length: int = 64,
    train: int = 8192,
    test: int = 128,
) -> Language:
    """Every sequence is of one of the sources, a Markov chain with few likely successors.

    Args:
      seed: of sources and sequences.
      sources: how many.
      vocabulary: V.
      likely: successors of a token that share all but `other` of the probability, by a flat Dirichlet.
      other: probability shared by all tokens.
      length: L.
      train: sequences.
      test: sequences.
    """
    generator = np.random.default_rng(seed)
    chains = np.full((sources, vocabulary, vocabulary), other / vocabulary)
    for chain in chains.reshape(-1, vocabulary):
        successors = generator.choice(vocabulary, likely, replace=False)
        chain[successors] += (1 - other) * generator.dirichlet(np.ones(likely))
    ends = np.cumsum(chains, axis=-1)
    count = train + test
    source = generator.integers(0, sources, count)
    tokens = np.empty((count, length + 1), np.int32)
    tokens[:, 0] = generator.integers(0, vocabulary, count)
    for t in range(length):
        drawn = generator.random((count, 1))
        tokens[:, t + 1] = (drawn > ends[source, tokens[:, t]]).sum(1).clip(max=vocabulary - 1)
    entropies = -(chains * np.log(chains)).sum(-1)
    floor = entropies[source[train:, None], tokens[train:, :-1]].mean()
    return Language(
        _dataset(tokens[:train], vocabulary),
        _dataset(tokens[train:], vocabulary),
        vocabulary,
        float(floor),
    )


def python_reference(seed: int, *, length: int = 64, test: int = 128) -> Language:
    """The topics of `help()`: Python's language reference, a character a token.

    One in ten topics is kept for the test. Topics quote each other, so every paragraph counts once, and
    none of the test's is trained on.

    Args:
      seed: which topics.
      length: L.
      test: sequences at most.
    """
    from pydoc_data.topics import topics

    names = np.random.default_rng(seed).permutation(sorted(topics))
    cut = max(len(names) // 10, 1)

    def paragraphs(chosen: np.ndarray) -> list[str]:
        text = "\n\n".join(topics[name] for name in chosen)
        return list(dict.fromkeys(piece for piece in text.split("\n\n") if piece.strip()))

    def sequences(pieces: list[str]) -> np.ndarray:
        text = "\n\n".join(pieces)
        codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int32)
        count = (len(codes) - 1) // length
        rows = np.arange(count)[:, None] * length + np.arange(length + 1)
        return codes[rows]

    kept = paragraphs(names[:cut])
    known = set(kept)
    others = [piece for piece in paragraphs(names[cut:]) if piece not in known]
    held = sequences(kept)
    some = np.linspace(0, len(held) - 1, min(test, len(held))).astype(int)
    train = _dataset(sequences(others), CHARACTERS)
    return Language(train, _dataset(held[some], CHARACTERS), CHARACTERS, float("nan"))


def _dataset(tokens: np.ndarray, vocabulary: int) -> dx.data.Dataset:
    return dx.data.Dataset(
        jnp.asarray(tokens[:, :-1]), jnp.asarray(tokens[:, 1:]), classes=vocabulary
    )
