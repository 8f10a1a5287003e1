"""Mistakes that verifiers are known to make, and what each one emits against one draft."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from gls_jax.conformance import goodness_of_fit

__all__ = ["KNOWN_MISTAKES", "Counted", "that_fit"]

Probs = Float[np.ndarray, " N"]
Counted = tuple[Probs, Probs, Int[np.ndarray, " N"]]
"""Draft distribution, target distribution, and how often each token was emitted."""

# A mistake is named if its p-value for the counts is above this.
_FITS = 1e-3


def _accepted(p: Probs, q: Probs) -> tuple[Probs, float, Probs]:
    """Accepted mass of each token, probability of a rejection, and the residual."""
    accepted = np.minimum(p, q)
    residual = np.maximum(q - p, 0)
    total = residual.sum()
    return accepted, float(total), residual / total if total > 0 else q


def _on_rejection(replacement: Callable[[Probs, Probs], Probs]) -> Callable[[Probs, Probs], Probs]:
    """The right test, and another distribution after a rejection."""

    def probs(p: Probs, q: Probs) -> Probs:
        accepted, rejection, _ = _accepted(p, q)
        return accepted + rejection * replacement(p, q)

    return probs


def _with_test(acceptance: Callable[[Probs, Probs], Probs]) -> Callable[[Probs, Probs], Probs]:
    """Another test, and the right residual after a rejection."""

    def probs(p: Probs, q: Probs) -> Probs:
        accepted = p * acceptance(p, q)
        return accepted + (1 - accepted.sum()) * _accepted(p, q)[2]

    return probs


def _likeliest(weights: Probs) -> Probs:
    return np.eye(len(weights))[weights.argmax()]


def _ratio(numerator: Probs, denominator: Probs) -> Probs:
    """``min(1, a / b)``, and 1 where both are 0."""
    return np.minimum(1, numerator / np.maximum(denominator, 1e-300))


def _not_normalised(token: int) -> Callable[[Probs, Probs], Probs]:
    """The residual is inverted as if it summed to 1; what is missing goes to one token."""

    def replacement(p: Probs, q: Probs) -> Probs:
        residual = np.maximum(q - p, 0)
        residual[token] += 1 - residual.sum()
        return residual

    return _on_rejection(replacement)


KNOWN_MISTAKES: dict[str, Callable[[Probs, Probs], Probs]] = {
    "a fresh sample of the target after a rejection, in place of the residual": _on_rejection(
        lambda p, q: q
    ),
    "a sample of the draft distribution after a rejection": _on_rejection(lambda p, q: p),
    "every draft is accepted, or the residual is (p - q)+": lambda p, q: p,
    "the residual is |q - p|": _on_rejection(lambda p, q: abs(q - p) / max(abs(q - p).sum(), 1e-9)),
    "the residual is not normalised": _not_normalised(-1),
    "the residual is not normalised, and what is missing goes to token 0": _not_normalised(0),
    "the likeliest token of the residual, not a sample": _on_rejection(
        lambda p, q: _likeliest(_accepted(p, q)[2])
    ),
    "the likeliest token of the target, not a sample": lambda p, q: _likeliest(q),
    "no draft is ever accepted": lambda p, q: _accepted(p, q)[2],
    "the test is p / q in place of q / p": _with_test(lambda p, q: _ratio(p, q)),
    "the test is the target probability alone, without dividing by p": _with_test(lambda p, q: q),
}
"""What each one emits, ``(p, q) -> f64[N]``."""


def that_fit(counted: Sequence[Counted]) -> list[str]:
    """Names of the mistakes that explain the counts of every problem, of one draft each.

    >>> import numpy as np
    >>> from gls_jax.conformance import known_mistakes
    >>> p, q = np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.7, 0.1])
    >>> known_mistakes.that_fit([(p, q, np.array([5000, 5000, 0]))])
    ['every draft is accepted, or the residual is (p - q)+']
    """
    names = []
    for name, emits in KNOWN_MISTAKES.items():
        are_explained = []
        for p, q, counts in counted:
            probs = np.maximum(emits(p.astype(np.float64), q.astype(np.float64)), 0)
            # Differences of float32 probabilities leave dust where there is nothing.
            probs[probs < 1e-7] = 0
            are_explained.append(goodness_of_fit.p_value(counts, probs) > _FITS)
        if are_explained and all(are_explained):
            names.append(name)
    return names
