"""The problems that verifiers fail on: pairs of distributions, each with a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

__all__ = ["LARGE", "NUM_CATEGORIES", "SMALL", "Pair", "draws", "first_arrivals", "pair_of"]

NUM_CATEGORIES = 6


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """A draft distribution and a target distribution.

    Attributes:
        name: of the problem.
        p: `f32[N]`, of the drafts.
        q: `f32[N]`, of the target.
        cells: `i32[N]`, cell of each category; the categories of a cell are counted as one.
    """

    name: str
    p: Float[np.ndarray, " N"]
    q: Float[np.ndarray, " N"]
    cells: Int[np.ndarray, " N"]

    def cell_probs(self) -> Float[np.ndarray, " C"]:
        """The target's probability of every cell."""
        return np.bincount(self.cells, weights=self.q.astype(np.float64))

    def cell_counts(self, tokens: Int[np.ndarray, " T"]) -> Int[np.ndarray, " C"]:
        """How many tokens are in every cell."""
        return np.bincount(self.cells[tokens], minlength=self.cells.max() + 1)


def pair_of(name: str, p: np.ndarray, q: np.ndarray, cells: np.ndarray | None = None) -> Pair:
    """A pair whose weights are normalised; every category is a cell unless `cells` says more."""
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    cells = np.arange(len(q)) if cells is None else cells
    return Pair(name, (p / p.sum()).astype(np.float32), (q / q.sum()).astype(np.float32), cells)


def draws(uniforms: Float[np.ndarray, ...], probs: Float[np.ndarray, " N"]) -> np.ndarray:
    """Samples of a distribution from uniforms, by inversion; none of probability 0."""
    edges = np.cumsum(probs, dtype=np.float64)
    last_possible = np.flatnonzero(probs)[-1]
    tokens = np.searchsorted(edges, uniforms * edges[-1], side="right")
    return np.minimum(tokens, last_possible).astype(np.int32)


def first_arrivals(
    noise: Float[np.ndarray, "*rows N"], probs: Float[np.ndarray, "*rows N"]
) -> Int[np.ndarray, "*rows"]:
    """Samples of distributions from exponential noise: the smallest noise over probability."""
    with np.errstate(divide="ignore", invalid="ignore"):
        arrivals = np.where(probs > 0, noise / probs, np.inf)
    return arrivals.argmin(-1).astype(np.int32)


def _padded(weights) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    return np.pad(weights, (0, NUM_CATEGORIES - len(weights)))


def _softmax(logits, temperature: float) -> np.ndarray:
    shifted = (np.asarray(logits) - np.max(logits)) / temperature
    return np.exp(shifted)


# Of one shape, so that a verifier is compiled once for all of them.
_SMALL_WEIGHTS: dict[str, tuple[np.ndarray, np.ndarray]] = {
    "plain": (_padded([5, 30, 10, 20, 15, 20]), _padded([25, 10, 20, 5, 30, 10])),
    "peaked": (_padded([80, 1, 4, 10, 2, 3]), _padded([10, 60, 2, 20, 3, 5])),
    # A rejected first draft leaves a residual against which the second one is really tested.
    "second test": (_padded([50, 20, 30]), _padded([54, 36, 10])),
    "equal": (_padded([3, 1, 2, 5, 4, 1]), _padded([3, 1, 2, 5, 4, 1])),
    "ties": (_padded([1, 2, 3, 4]), _padded([4, 8, 3, 5])),
    "uniform": (_padded([1] * 6), _padded([1] * 6)),
    "disjoint": (_padded([3, 7]), _padded([0, 0, 6, 4])),
    "zeros in the draft": (_padded([0, 1, 0, 1]), _padded([4, 3, 2, 1])),
    "zeros in the target": (_padded([4, 3, 2, 1]), _padded([0, 1, 0, 1])),
    "point mass draft": (_padded([0, 1]), _padded([2, 5, 3])),
    "point mass target": (_padded([2, 5, 3]), _padded([0, 1])),
    "one token": (_padded([1]), _padded([1])),
    "more drafts than tokens": (_padded([9, 1]), _padded([3, 7])),
    "duplicate drafts": (_padded([96, 1, 1, 1, 1]), _padded([30, 20, 20, 15, 15])),
    "rare drafts": (_padded([1 - 3e-5, 1e-5, 2e-5]), _padded([5, 3, 2])),
    "temperature near 0": (
        _softmax([2, 1.99, 1.9, 1, 0, -1], 0.02),
        _softmax([1.98, 2, 1.9, 1.2, 0, -3], 0.02),
    ),
}

SMALL: dict[str, Pair] = {name: pair_of(name, *pair) for name, pair in _SMALL_WEIGHTS.items()}
"""Problems of six categories."""


def _flat_tail(size: int) -> Pair:
    """A vocabulary in which no token but three has more than 1e-5."""
    heavy = 3
    half = (size - heavy) // 2
    tail_p = np.where(np.arange(size - heavy) < half, 2.0, 1.0)
    p = np.append([0.10, 0.01, 0.03], 0.86 * tail_p / tail_p.sum())
    q = np.append([0.05, 0.03, 0.02], np.full(size - heavy, 0.9 / (size - heavy)))
    # The tail is counted in four pieces: ties that go to the first token show.
    pieces = heavy + np.arange(size - heavy) * 4 // (size - heavy)
    return pair_of("flat tail", p, q, np.append(np.arange(heavy), pieces))


def _zero_noise(size: int) -> Pair:
    """One token of probability 1 among many of 1e-30: noise of exactly 0 lets those win."""
    sure, drafted = size // 2, 7
    q = np.full(size, 1e-30)
    q[sure] = 1
    p = np.zeros(size)
    p[drafted] = 1
    return pair_of("zero noise", p, q, (np.arange(size) == sure).astype(int))


LARGE: dict[str, tuple[int, Callable[[int], Pair]]] = {
    "flat tail": (150_000, _flat_tail),
    "zero noise": (200_000, _zero_noise),
}
"""Problems of a vocabulary: its size, and the function that makes them of any size."""

ZERO_UNIFORM = pair_of("uniforms of 0", _padded([1]), _padded([0, 2, 3, 5]))
"""The token that is always drafted has target probability 0, and is the first one."""
