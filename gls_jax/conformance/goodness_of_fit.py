"""How much counts say against a distribution.

The statistic is ``x = n KL(counts / n, probabilities)``, half of the likelihood-ratio statistic of
the chi-square family. Its p-value is not that of the chi-square distribution, which far out in the
tail is wrong by orders of magnitude where a category is rare, but a bound that holds for every
number of trials:

    P(n KL >= x) <= exp(-x) (e x / d)^d,   d = categories - 1

(Agrawal 2020, Finite-sample concentration of the multinomial in relative entropy). So the
false-failure rate of a report is what it says, and trials may be few.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

__all__ = ["FALSE_FAILURE_RATE", "farthest", "p_value", "rate_p_value", "smallest_bias"]

FALSE_FAILURE_RATE = 1e-6
"""Largest probability that a report calls the counts of a lossless verifier biased."""

# Quantile of the normal distribution: a bias is called visible if 99 % of reports see it.
_POWER_QUANTILE = 2.326


def p_value(
    counts: Int[np.ndarray, " C"],
    probs: Float[np.ndarray, " C"],
    num_categories: int | None = None,
) -> float:
    """Upper bound of the p-value of counts under a distribution; 0 if an impossible one occurs.

    Args:
        counts: of every category.
        probs: of every category.
        num_categories: how many are possible; None counts those of positive probability.

    >>> import numpy as np
    >>> from gls_jax.conformance import goodness_of_fit
    >>> goodness_of_fit.p_value(np.array([51, 49]), np.array([0.5, 0.5]))
    1.0
    >>> goodness_of_fit.p_value(np.array([80, 20]), np.array([0.5, 0.5])) < 1e-6
    True
    """
    total = counts.sum()
    probs = probs / probs.sum()
    if counts[probs == 0].any():
        return 0.0
    if num_categories is None:
        num_categories = int((probs > 0).sum())
    degrees = num_categories - 1
    if total == 0 or degrees < 1:
        return 1.0
    occurred = counts > 0
    ratios = counts[occurred] / (total * probs[occurred])
    return _tail(float(np.sum(counts[occurred] * np.log(ratios))), degrees)


def rate_p_value(count: int, num_trials: int, lowest: float, highest: float) -> float:
    """:func:`p_value` of a count whose probability is known to be within ``[lowest, highest]``."""
    rate = count / num_trials
    nearest = min(max(rate, lowest), highest)
    return p_value(np.array([count, num_trials - count]), np.array([nearest, 1 - nearest]))


def farthest(counts: Int[np.ndarray, " C"], probs: Float[np.ndarray, " C"]) -> int:
    """The category whose count is farthest from its expectation, in standard deviations."""
    total = counts.sum()
    variances = total * probs * (1 - probs)
    deviations = (counts - total * probs) / np.sqrt(variances + 1e-9)
    return int(np.abs(deviations).argmax())


def smallest_bias(num_trials: int, num_cells: int, alpha: float) -> float:
    """Bias in total variation that a test at level `alpha` sees with 99 % probability.

    Whatever the direction of the bias: the least visible one moves mass between two halves of the
    distribution, and adds ``4 n TV^2`` to ``G = 2 n KL``, whose distribution is approximated by a
    normal one.

    >>> from gls_jax.conformance import goodness_of_fit
    >>> round(goodness_of_fit.smallest_bias(100_000, 6, 1e-8), 3)
    0.017
    """
    degrees = num_cells - 1
    if degrees < 1 or num_trials < 1:
        return 1.0
    # The statistic at which the test fails, by bisection of a decreasing function.
    low, high = float(degrees), 10.0 * degrees - 10 * math.log(alpha)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(middle, degrees) > alpha else (low, middle)
    # Non-central chi-square: mean d + added, variance 2 d + 4 added, solved for what is added.
    root = _POWER_QUANTILE + math.sqrt(_POWER_QUANTILE**2 + 2 * high - degrees / 2)
    added = root**2 - degrees / 2
    return min(1.0, math.sqrt(added / (4 * num_trials)))


def _tail(statistic: float, degrees: int) -> float:
    """The bound of the module's docstring; 1 where it says nothing."""
    if statistic <= degrees:
        return 1.0
    return math.exp(degrees - statistic + degrees * math.log(statistic / degrees))
