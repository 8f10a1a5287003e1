"""Integrals ``int_0^inf e^{-k m} f(m) dm`` over exponential noise `m`, for several rates k at once.

With ``m = e^s`` the integrand is analytic in a strip. It decays doubly exponentially on the right
and like `m` on the left, so the plain trapezoid rule in `s` converges exponentially (Trefethen &
Weideman 2014).
"""

from __future__ import annotations

import numpy as np
from jax.typing import DTypeLike

__all__ = ["exponential_nodes"]

# Agrees with finer steps to 1e-10 for the integrands here (tests/exact/test_quadrature.py).
_STEP_DOUBLE = 0.25
# Agrees to 3e-8, half a unit in the last place of a float32 near 1.
_STEP_SINGLE = 1 / 3


def exponential_nodes(
    rates: tuple[int, ...],
    dtype: DTypeLike,
    *,
    step: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `m` `[n]` and weights `[len(rates), n]` of the quadrature.

    They are cut off where the rest of the integral is below the resolution of `dtype`.

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
    if step is None:
        step = _STEP_DOUBLE if eps < 1e-10 else _STEP_SINGLE
    # Below the lowest node the integral is at most m, above the highest at most e^{-k m}.
    lowest = np.log(0.1 * eps / max(rates))
    highest = np.log(-np.log(0.01 * eps) / min(rates))
    s = np.arange(lowest, highest + step, step)
    m = np.exp(s)
    rate_column = np.asarray(rates, np.float64)[:, None]
    weights = step * m * np.exp(-rate_column * m)
    return m.astype(dtype), weights.astype(dtype)
