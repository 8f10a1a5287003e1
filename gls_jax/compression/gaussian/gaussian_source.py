"""Gaussian source with side information: the laws behind the codec, its estimates, and what no code
can beat.

Source ``A ~ N(0, 1)``, side information ``T = A + N(0, s_T)``, target ``W = A + N(0, s_W)`` (Rowan,
Phan, Khisti 2025, arXiv 2506.05632). Candidates are ``sqrt(1 + s_W)`` times the shared standard
normals, so all densities below are over standard normals. Everything here is NumPy in float64: rows
are rounded to float32 once.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from gls_jax import checks
from gls_jax.compression.code import Normal
from gls_jax.typing import Numbers

__all__ = ["GaussianSource", "best_of_converse", "wyner_ziv"]

_SMALLEST, _LARGEST = 1e-9, 1e6  # variances: float32 holds what is computed from them


@dataclasses.dataclass(frozen=True)
class GaussianSource:
    """The joint law of source, target and side information.

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
            if not _SMALLEST <= value <= _LARGEST:
                raise ValueError(
                    f"{name}: expected a number within {_SMALLEST:g}..{_LARGEST:g}, got {value!r}"
                )
            object.__setattr__(self, name, float(value))

    @property
    def scale(self) -> float:
        """Standard deviation of the target."""
        return math.sqrt(1 + self.target_variance)

    def target_given_source(self, source: np.ndarray) -> Normal:
        """``p_{W|A}`` over standard normal candidates, `f32[n, 1]`."""
        return _rows(
            np.asarray(source, np.float64) / self.scale, self.target_variance / self.scale**2
        )

    def target_given_side(self, side_information: np.ndarray) -> Normal:
        """``p_{W|T}`` over standard normal candidates, `f32[n, 1]`."""
        known = 1 / (1 + self.side_variance)
        return _rows(
            np.asarray(side_information, np.float64) * known / self.scale, 1 - known / self.scale**2
        )

    def estimate(self, target: Numbers, side_information: Numbers) -> Float[np.ndarray, ...]:
        """``E[A | W, T]``, which trusts that `target` is the encoder's."""
        precise, side = 1 / self.target_variance, 1 / self.side_variance
        target, side_information = (
            np.asarray(target, np.float64),
            np.asarray(side_information, np.float64),
        )
        return (target * precise + side_information * side) / (1 + precise + side)

    def zero_rate(self, side_information: Numbers) -> Float[np.ndarray, ...]:
        """``E[A | T]``: the estimate of a decoder that hears nothing."""
        return np.asarray(side_information, np.float64) / (1 + self.side_variance)

    def information_density(
        self,
        source: Float[np.ndarray, ...],
        side_information: Float[np.ndarray, ...],
        target: Float[np.ndarray, ...],
    ) -> Float[np.ndarray, ...]:
        """``log2 p_{W|A}(w | a) / p_{W|T}(w | t)``, in bits: what the message has to make up for."""
        of_source = _log_normal(target, source, self.target_variance)
        known = 1 / (1 + self.side_variance)
        of_side = _log_normal(target, side_information * known, 1 + self.target_variance - known)
        return (of_source - of_side) / math.log(2)


def wyner_ziv(rate: Numbers, side_variance: float) -> Float[np.ndarray, ...]:
    """Smallest mean squared error at `rate` bits a symbol with one decoder: ``var(A | T) 2^{-2R}``
    (Wyner, Ziv 1976).

    >>> from gls_jax.compression import wyner_ziv
    >>> round(float(wyner_ziv(3, 0.5)) * 192, 6)
    1.0
    """
    return best_of_converse(rate, 1, side_variance)


def best_of_converse(
    rate: Numbers, num_decoders: int, side_variance: float
) -> Float[np.ndarray, ...]:
    """A bound on the mean squared error of the best of `K` decoders: ``var(A | T_1..T_K) 2^{-2 (R +
    log2 K)}``.

    A genie tells all side information and which decoder is best, in ``log2 K`` bits more. For `K =
    1` this is Wyner and Ziv's function, which is no bound for the best of several. With ``s_T =
    1/2``: ``2^{-2R} / (K^2 (1 + 2K))``.
    """
    num_decoders = checks.count(num_decoders, "num_decoders")
    if not side_variance > 0:
        raise ValueError(f"side_variance: expected a positive number, got {side_variance!r}")
    return 2.0 ** (-2 * np.asarray(rate, np.float64)) / (
        num_decoders**2 * (1 + num_decoders / side_variance)
    )


def _rows(mean: np.ndarray, variance: float) -> Normal:
    return Normal(mean.astype(np.float32)[:, None], np.full((len(mean), 1), variance, np.float32))


def _log_normal(x, mean, variance):
    return -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
