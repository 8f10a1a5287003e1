"""The Gaussian source with side information: distributions, estimates, and what no code can beat.

Source ``A ~ N(0, 1)``, side information ``T = A + N(0, s_T)``, target ``W = A + N(0, s_W)`` (Rowan,
Phan, Khisti 2025, arXiv 2506.05632). Candidates are ``sqrt(1 + s_W)`` times the shared standard
normals, so the densities below are relative to standard normals. Everything here is NumPy in
float64; rows are rounded to float32 once, at the end.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from gls_jax import checks
from gls_jax.compression.densities import Normal
from gls_jax.typing import Numbers

__all__ = ["GaussianSource", "best_of_converse", "wyner_ziv"]

# Variances in this range keep everything computed from them within float32.
_MIN_VARIANCE, _MAX_VARIANCE = 1e-9, 1e6


@dataclasses.dataclass(frozen=True)
class GaussianSource:
    """The joint distribution of source, target and side information.

    Attributes:
        target_variance: `s_W`, of the target given the source.
        side_variance: `s_T`, of the side information given the source.

    >>> from gls_jax.compression import GaussianSource
    >>> source = GaussianSource(target_variance=0.01, side_variance=0.5)
    >>> round(float(source.estimate(target=0.0, side_information=1.5)), 4)
    0.0291
    """

    target_variance: float
    side_variance: float

    def __post_init__(self) -> None:
        for name in ("target_variance", "side_variance"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
                raise ValueError(f"{name}: expected a number, got {value!r}")
            # Also true for NaN.
            if not _MIN_VARIANCE <= value <= _MAX_VARIANCE:
                raise ValueError(
                    f"{name}: expected a number within {_MIN_VARIANCE:g}..{_MAX_VARIANCE:g}, "
                    f"got {value!r}"
                )
            object.__setattr__(self, name, float(value))

    @property
    def scale(self) -> float:
        """Standard deviation of the target."""
        return math.sqrt(1 + self.target_variance)

    def target_given_source(self, source: np.ndarray) -> Normal:
        """``p_{W|A}`` relative to standard normal candidates, `f32[n, 1]`."""
        mean = np.asarray(source, np.float64) / self.scale
        return _rows(mean, self.target_variance / self.scale**2)

    def target_given_side(self, side_information: np.ndarray) -> Normal:
        """``p_{W|T}`` relative to standard normal candidates, `f32[n, 1]`."""
        # The variance of W given T is 1 + s_W - var E[A | T], before scaling.
        mean = np.asarray(side_information, np.float64) * self._side_weight / self.scale
        return _rows(mean, 1 - self._side_weight / self.scale**2)

    def estimate(self, target: Numbers, side_information: Numbers) -> Float[np.ndarray, ...]:
        """``E[A | W, T]``, the source estimate if `target` is the encoder's."""
        # Given A both are independent, so precisions add up; the source's own is 1.
        target_precision, side_precision = 1 / self.target_variance, 1 / self.side_variance
        target = np.asarray(target, np.float64)
        side_information = np.asarray(side_information, np.float64)
        weighted = target * target_precision + side_information * side_precision
        return weighted / (1 + target_precision + side_precision)

    def zero_rate(self, side_information: Numbers) -> Float[np.ndarray, ...]:
        """``E[A | T]``: the estimate of a decoder that receives no message."""
        return np.asarray(side_information, np.float64) / (1 + self.side_variance)

    def information_density(
        self,
        source: Float[np.ndarray, ...],
        side_information: Float[np.ndarray, ...],
        target: Float[np.ndarray, ...],
    ) -> Float[np.ndarray, ...]:
        """``log2 p_{W|A}(w | a) / p_{W|T}(w | t)``, in bits: what the message must supply."""
        log_given_source = _log_normal(target, source, self.target_variance)
        mean, variance = side_information * self._side_weight, 1 + self.target_variance
        log_given_side = _log_normal(target, mean, variance - self._side_weight)
        return (log_given_source - log_given_side) / math.log(2)

    @property
    def _side_weight(self) -> float:
        """``E[A | T] / T``, which is also ``var E[A | T]``."""
        return 1 / (1 + self.side_variance)


def wyner_ziv(rate: Numbers, side_variance: float) -> Float[np.ndarray, ...]:
    """The smallest mean squared error of one decoder at `rate` bits per symbol.

    ``var(A | T) 2^{-2R}`` (Wyner, Ziv 1976).

    >>> from gls_jax.compression import wyner_ziv
    >>> round(float(wyner_ziv(3, 0.5)) * 192, 6)
    1.0
    """
    return best_of_converse(rate, 1, side_variance)


def best_of_converse(
    rate: Numbers, num_decoders: int, side_variance: float
) -> Float[np.ndarray, ...]:
    """Lower bound on the mean squared error of the best of `K` decoders.

    ``var(A | T_1..T_K) 2^{-2 (R + log2 K)}``: a genie reveals all side information, and which
    decoder is best in ``log2 K`` more bits. With ``s_T = 1/2`` it is ``2^{-2R} / (K^2 (1 + 2K))``.
    For `K = 1` this is Wyner and Ziv's function, which does not bound the best of several decoders.
    """
    num_decoders = checks.count(num_decoders, "num_decoders")
    if not side_variance > 0:
        raise ValueError(f"side_variance: expected a positive number, got {side_variance!r}")
    # var(A | T_1..T_K) is 1 / (1 + K / s_T): K independent measurements of a unit normal.
    error_without_side = 2.0 ** (-2 * np.asarray(rate, np.float64))
    return error_without_side / (num_decoders**2 * (1 + num_decoders / side_variance))


def _rows(mean: np.ndarray, variance: float) -> Normal:
    mean = mean.astype(np.float32)[:, None]
    return Normal(mean=mean, variance=np.full(mean.shape, variance, np.float32))


def _log_normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
