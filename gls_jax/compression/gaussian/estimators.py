"""Estimators of the source: their argument, and the paper's estimator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax.compression.gaussian.gaussian_source import GaussianSource
from gls_jax.compression.list_code import ListCode
from gls_jax.typing import Progress

__all__ = ["Observation", "plug_in"]


class Observation(NamedTuple):
    """The knowledge of one decoder about `n` symbols: the argument of an estimator.

    Attributes:
        code: the list code.
        joint: distribution of source, target and side information.
        keys: one per symbol.
        message: `i32[n]`.
        side_information: `f[n]`.
        target: `f32[n]`, the candidate that the decoder picked; NaN if there is none.
        progress: called with `(symbols done, n)`.
    """

    code: ListCode
    joint: GaussianSource
    keys: Key[Array, " n"]
    message: Int[np.ndarray, " n"]
    side_information: Float[np.ndarray, " n"]
    target: Float[np.ndarray, " n"]
    progress: Progress | None = None


def plug_in(observed: Observation) -> Float[np.ndarray, " n"]:
    """``E[A | W, T]`` as in the paper, as if the decoder's candidate were the encoder's."""
    zero_rate = observed.joint.zero_rate(observed.side_information)
    estimate = observed.joint.estimate(observed.target, observed.side_information)
    # An empty bin says nothing about the source.
    return np.where(np.isnan(observed.target), zero_rate, estimate)
