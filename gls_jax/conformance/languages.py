"""Languages for verifiers of several positions: the next token's distributions, and whole texts."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from gls_jax.conformance.problem_set import LARGE, Pair, draws

__all__ = [
    "LANGUAGES",
    "LONGEST_CHAIN",
    "NUM_TOKENS",
    "TREE_LANGUAGES",
    "Language",
    "complete",
    "large_language",
    "text_probs",
]

LONGEST_CHAIN = 3
NUM_TOKENS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Language:
    """Draft and target distributions of the next token, a Markov chain.

    Attributes:
        name: of the problem.
        p: `f32[positions, rows, N]`, of the drafter. Row 0 is the beginning, row ``x + 1`` follows
            token `x`. Later positions and rows than there are repeat the last one.
        q: of the target, likewise.
    """

    name: str
    p: Float[np.ndarray, "P R N"]
    q: Float[np.ndarray, "P R N"]

    @property
    def num_categories(self) -> int:
        """`N`."""
        return self.q.shape[-1]

    @property
    def is_one_distribution(self) -> bool:
        """Whether all positions are alike, as in a problem of the size of a vocabulary."""
        return self.q.shape[:2] == (1, 1)

    def draft_rows(self, position: int, previous: Int[np.ndarray, ...]) -> np.ndarray:
        """The drafter's distributions after some tokens, `f32[..., N]`."""
        return _rows(self.p, position, previous)

    def target_rows(self, position: int, previous: Int[np.ndarray, ...]) -> np.ndarray:
        """The target's distributions after some tokens, `f32[..., N]`."""
        return _rows(self.q, position, previous)

    def target_tokens(
        self, position: int, previous: Int[np.ndarray, ...], uniforms: Float[np.ndarray, ...]
    ) -> Int[np.ndarray, ...]:
        """A token of the target after each of some tokens."""
        return _sampled(self.q, position, previous, uniforms)

    def draft_tokens(
        self, position: int, previous: Int[np.ndarray, ...], uniforms: Float[np.ndarray, ...]
    ) -> Int[np.ndarray, ...]:
        """A token of the drafter after each of some tokens."""
        return _sampled(self.p, position, previous, uniforms)


def _rows(table: np.ndarray, position: int, previous: np.ndarray) -> np.ndarray:
    positions, rows, _ = table.shape
    return table[min(position, positions - 1), np.minimum(np.asarray(previous) + 1, rows - 1)]


def _sampled(table, position: int, previous: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    tokens = np.zeros(np.shape(previous), np.int32)
    num_rows = table.shape[1]
    # A row at a time: there are few, and each is inverted at once.
    row_of = np.minimum(np.asarray(previous) + 1, num_rows - 1)
    for row in range(num_rows):
        is_here = row_of == row
        if is_here.any():
            probs = table[min(position, len(table) - 1), row]
            tokens[is_here] = draws(uniforms[is_here], probs)
    return tokens


def complete(
    language: Language,
    emitted: Int[np.ndarray, "T W"],
    length: int,
    uniforms: Float[np.ndarray, "T length"],
) -> Int[np.ndarray, "T length"]:
    """Texts of one length: what was emitted, -1 and all behind it drawn from the target."""
    num_texts = len(emitted)
    texts = np.full((num_texts, length), -1)
    width = min(length, emitted.shape[1])
    texts[:, :width] = emitted[:, :width]
    previous = np.full(num_texts, -1)
    for position in range(length):
        fresh = language.target_tokens(position, previous, uniforms[:, position])
        # What was emitted is a prefix, so that a fresh token never stands before an emitted one.
        texts[:, position] = np.where(texts[:, position] < 0, fresh, texts[:, position])
        previous = texts[:, position]
    return texts


def text_probs(language: Language, length: int) -> Float[np.ndarray, " C"]:
    """The target's probability of every text, numbered as digits, the first one highest."""
    probs = np.ones(1)
    size = language.num_categories
    for position in range(length):
        previous = np.arange(len(probs)) % size if position else np.array([-1])
        rows = language.target_rows(position, previous).astype(np.float64)
        rows = rows / rows.sum(-1, keepdims=True)
        probs = (probs[:, None] * rows).ravel()
    return probs


def _mixed(seed: int, concentration: float) -> np.ndarray:
    """Distributions that depend on position and previous token."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(NUM_TOKENS, concentration), (LONGEST_CHAIN + 1, NUM_TOKENS + 1))
    return table.astype(np.float32)


def _repeated(weights: list[list[float]]) -> np.ndarray:
    """Distributions that depend on the position alone, the weights taken in turn."""
    rows = np.array([weights[i % len(weights)] for i in range(LONGEST_CHAIN + 1)], np.float64)
    rows = rows / rows.sum(-1, keepdims=True)
    return rows[:, None].astype(np.float32)


_PLAIN = _mixed(3, 1.5), _mixed(4, 1.5)
_TWO = _repeated([[1, 1], [3, 1]]), _repeated([[9, 1], [1, 2]])
LANGUAGES: dict[str, Language] = {
    name: Language(name, p, q)
    for name, (p, q) in {
        "plain": _PLAIN,
        "two tokens": _TWO,
        "peaked": (_mixed(5, 0.4), _mixed(6, 0.4)),
        "equal": (_PLAIN[1], _PLAIN[1]),
        "ties": (_repeated([[1, 1, 2]]), _repeated([[2, 1, 1]])),
        "disjoint": (_repeated([[1, 0, 0]]), _repeated([[0, 2, 3]])),
        "zeros in the draft": (_repeated([[0, 1, 1], [1, 0, 2]]), _PLAIN[1]),
        "zeros in the target": (_PLAIN[0], _repeated([[0, 1, 2], [1, 0, 1]])),
        "point mass draft": (_repeated([[0, 1, 0], [1, 0, 0]]), _PLAIN[1]),
        "point mass target": (_PLAIN[0], _repeated([[0, 1, 0], [1, 0, 0]])),
        "rare drafts": (_repeated([[1 - 3e-5, 1e-5, 2e-5]]), _repeated([[5, 3, 2]])),
    }.items()
}
"""Problems of two or three tokens and up to three drafts in a chain."""


TREE_LANGUAGES: dict[str, Language] = LANGUAGES | {
    # A rejected first sibling leaves a residual against which the second one is really tested.
    "second test": Language("second test", _repeated([[50, 20, 30]]), _repeated([[54, 36, 10]]))
}
"""Those of verifiers that test several drafts of one token."""


def large_language(name: str) -> tuple[Language, Pair]:
    """A problem of :data:`LARGE`, the same at every position, and its cells."""
    size, make = LARGE[name]
    pair = make(size)
    return Language(name, pair.p[None, None], pair.q[None, None]), pair
