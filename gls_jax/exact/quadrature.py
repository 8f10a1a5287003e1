"""Integrals ``int_0^inf e^{-k m} f(m) dm`` over a race's clock, for several rates k on one set of
nodes.

With ``m = e^s`` the integrand is analytic in a strip and falls off doubly exponentially on the
right and like `m` on the left, so the plain trapezoid rule in `s` converges exponentially
(Trefethen & Weideman 2014).
"""

from __future__ import annotations

import numpy as np
from jax.typing import DTypeLike

__all__ = ["exponential_nodes"]

_STEP = 0.25  # agrees with finer steps to 1e-10 for the integrands here (tests/test_quadrature.py)
_STEP_SINGLE = 1 / 3  # to 3e-8, half a unit in the last place of a float32 near 1


def exponential_nodes(
    rates: tuple[int, ...], dtype: DTypeLike, *, step: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `m` `[n]` and weights `[len(rates), n]`, cut off where what is left is below `dtype`'s
    resolution.

    Args:
        rates: the factors k in ``e^{-k m}``, positive.
        dtype: float type of the integrand, `f` of order 1.
        step: spacing in ``s = log m``; None: as fine as `dtype` can tell.

    Returns:
        `(m, w)` with ``sum_n w[c, n] f(m[n])`` close to ``int e^{-rates[c] m} f(m) dm``.

    >>> import numpy as np
    >>> m, w = exponential_nodes((1, 3), np.float64)
    >>> (w @ np.exp(-m)).round(9).tolist()
    [0.5, 0.25]
    """
    eps = float(np.finfo(dtype).eps)
    step = step or (_STEP if eps < 1e-10 else _STEP_SINGLE)
    lowest = np.log(0.1 * eps / max(rates))  # below it the integrand holds at most its m
    highest = np.log(-np.log(0.01 * eps) / min(rates))
    s = np.arange(lowest, highest + step, step)
    m = np.exp(s)
    weights = step * m * np.exp(-np.asarray(rates, np.float64)[:, None] * m)
    return m.astype(dtype), weights.astype(dtype)
