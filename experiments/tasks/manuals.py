"""Questions to Python's own manual, and sources that hold polluted copies of it.

A question is a sentence of the manual with a word left out; the answer is that word. Every source holds
all passages. In a polluted copy the word is another one.
"""

import functools
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from dflax import p2p

WORD = re.compile(r"[A-Za-z_][A-Za-z_]+")


class Question(NamedTuple):
    """A sentence with a gap.

    Attributes:
      passage: number of the passage it stands in.
      before: its words up to the gap.
      after: its words from the gap on.
      answer: the word that is missing.
    """

    passage: int
    before: list[str]
    after: list[str]
    answer: str


@functools.cache
def passages(least: int = 12, most: int = 60) -> tuple[str, ...]:
    """Paragraphs of the manual's topics that ship with Python, of so many words."""
    from pydoc_data.topics import topics

    found = []
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            plain = " ".join(paragraph.split())
            if least <= len(WORD.findall(plain)) <= most:
                found.append(plain)
    return tuple(dict.fromkeys(found))


def questions(count: int, seed: int) -> list[Question]:
    """Sentences of the passages, each with a rare word left out."""
    texts = [WORD.findall(text.lower()) for text in passages()]
    often: dict[str, int] = {}
    for words in texts:
        for word in set(words):
            often[word] = often.get(word, 0) + 1
    rng = np.random.default_rng(seed)
    asked = []
    for place in rng.permutation(len(texts)):
        words = texts[place]
        rare = [
            j for j, word in enumerate(words) if 2 <= often[word] <= 30 and 2 <= j < len(words) - 2
        ]
        if rare:
            gap = int(rng.choice(rare))
            before, after = words[max(gap - 6, 0) : gap], words[gap + 1 : gap + 7]
            asked.append(Question(int(place), before, after, words[gap]))
        if len(asked) == count:
            break
    return asked


def extracted(passage: list[str], question: Question) -> str | None:
    """What an extractive reader answers from a passage: the word between the gap's neighbours.

    It asks for two neighbours at least that fit, one of them next to the gap.
    """
    best, answer = 1, None
    for place, word in enumerate(passage):
        left = passage[max(place - len(question.before), 0) : place]
        right = passage[place + 1 : place + 1 + len(question.after)]
        fits = sum(a == b for a, b in zip(reversed(left), reversed(question.before), strict=False))
        fits += sum(a == b for a, b in zip(right, question.after, strict=False))
        beside = (left[-1:] == question.before[-1:]) + (right[:1] == question.after[:1])
        if beside and fits > best:
            best, answer = fits, word
    return answer


def offered(
    asked: list[Question], pollution: tuple[float, ...], documents: int, seed: int
) -> p2p.Candidates:
    """`[T]` queries: the documents that each source finds by TF-IDF, BM25 scores, extracted answers.

    A source's copy of the passage in question is polluted with the source's own probability.
    """
    from rank_bm25 import BM25Okapi
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = passages()
    words = [WORD.findall(text.lower()) for text in texts]
    vectors = TfidfVectorizer(token_pattern=WORD.pattern, lowercase=True)
    index = vectors.fit_transform(texts)
    matcher = BM25Okapi(words)
    rng = np.random.default_rng(seed)
    vocabulary = sorted({one.answer for one in asked})
    number = {word: place for place, word in enumerate(vocabulary)}
    shape = (len(asked), len(pollution), documents)
    rows: dict[str, Any] = {
        "similarity": np.zeros(shape, np.float32),
        "matches": np.zeros(shape, np.float32),
        "claim": np.full(shape, -1, np.int32),
    }
    for t, one in enumerate(asked):
        query = one.before + one.after
        cosine = (index @ vectors.transform([" ".join(query)]).T).toarray()[:, 0]
        matches = matcher.get_scores(query)
        found = np.argsort(-cosine, kind="stable")[:documents]
        for source, share in enumerate(pollution):
            lie = vocabulary[rng.integers(len(vocabulary))]
            for place, passage in enumerate(found):
                copy = words[passage]
                if rng.random() < share:
                    copy = [lie if word == one.answer else word for word in copy]
                answer = extracted(copy, one)
                rows["similarity"][t, source, place] = cosine[passage]
                rows["matches"][t, source, place] = matches[passage]
                # Ties between equal copies are broken at random, as clocks would.
                rows["similarity"][t, source, place] += 1e-4 * rng.random()
                if answer is not None:
                    rows["claim"][t, source, place] = number.setdefault(answer, len(number))
    return p2p.Candidates(
        jnp.asarray(rows["similarity"]),
        jnp.asarray(rows["matches"]),
        jnp.zeros(shape),
        jnp.asarray(rows["claim"]),
        jnp.ones(shape, bool),
        jnp.asarray([number[one.answer] for one in asked], jnp.int32),
    )
