"""The smallest problem on which a check still fails, so that a maintainer can follow it by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from gls_jax.conformance.problem_set import LARGE, Pair, pair_of
from gls_jax.conformance.session import Outcome

__all__ = ["smallest"]

Fails = Callable[[Pair, int], Outcome | None]
"""``(pair, num_drafts)``: the outcome if the check fails on that problem, else None."""

# Draft and target weights, fewest categories first.
_TINY = (
    ([1, 1], [9, 1]),
    ([9, 1], [1, 1]),
    ([1, 0], [1, 1]),
    ([1, 1], [1, 0]),
    ([1, 1], [1, 1]),
    ([1, 0], [0, 1]),
    ([2, 1, 1], [1, 1, 2]),
    ([6, 3, 1], [1, 3, 6]),
    ([50, 20, 30], [54, 36, 10]),
    ([1, 1, 0], [0, 1, 1]),
    ([1, 0, 0], [0, 1, 1]),
    ([1, 1, 0], [1, 1, 2]),
)
_SIZES = (100, 1_000, 10_000)  # of problems that are as large as a vocabulary


def smallest(fails: Fails, pair: Pair, num_drafts: int) -> Outcome | None:
    """The first failure among small problems, then among those with tokens left out.

    Args:
        fails: the check.
        pair: a problem that fails with `num_drafts` drafts.
        num_drafts: `K`.

    Returns:
        The outcome on the smallest failing problem that was found; None if nothing smaller fails.
    """
    if pair.name in LARGE:
        _, make = LARGE[pair.name]
        candidates = ((make(size), num_drafts) for size in _SIZES)
        return _first_failure(fails, candidates)
    found = _first_failure(fails, _tiny_problems(num_drafts))
    return found or _without_tokens(fails, pair, num_drafts)


def _first_failure(fails: Fails, candidates: Iterator[tuple[Pair, int]]) -> Outcome | None:
    for pair, num_drafts in candidates:
        outcome = fails(pair, num_drafts)
        if outcome is not None:
            return outcome
    return None


def _tiny_problems(num_drafts: int) -> Iterator[tuple[Pair, int]]:
    """Fewest categories first, and of those the fewest drafts."""
    for size in (2, 3):
        for count in sorted({1, min(2, num_drafts)}):
            for p, q in _TINY:
                if len(p) == size:
                    yield pair_of(f"{size} tokens", np.array(p), np.array(q)), count


def _without_tokens(fails: Fails, pair: Pair, num_drafts: int) -> Outcome | None:
    """Leave out one token after another, as long as the check fails; arrays keep their shape."""
    best = None
    for token in range(len(pair.q)):
        p, q = pair.p.copy(), pair.q.copy()
        p[token] = q[token] = 0
        if not p.any() or not q.any():
            continue
        smaller = pair_of(pair.name, p, q)
        outcome = fails(smaller, num_drafts)
        if outcome is not None:
            pair, best = smaller, outcome
    return best
