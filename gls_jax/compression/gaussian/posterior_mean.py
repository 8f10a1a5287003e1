"""The mean of the source given message, side information and shared noise (ours).

With the shared noise a decoder can compute the message that the encoder would send for any source
`a`. The posterior is therefore proportional to ``p(a | t)`` where that message equals the one
received, and 0 elsewhere. Its mean has the smallest possible mean squared error, and does not use
the decoder's candidate. The encoder is evaluated on a grid whose spacing is an eighth of the
target's standard deviation; its message changes on a coarser scale.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from gls_jax.compression import symbol_coding
from gls_jax.compression.densities import gaussian_density
from gls_jax.compression.gaussian.estimators import Observation
from gls_jax.compression.gaussian.gaussian_source import GaussianSource

__all__ = ["posterior_mean"]

_HALF_WIDTH = 4.0  # of the grid, in standard deviations of the source given side information
_POINTS_PER_DEVIATION = 8.0  # of the target
_MAX_POINTS = 2**15
_ENCODINGS_AT_ONCE = 2**19  # groups of symbols go to the devices one after the other


def posterior_mean(observed: Observation) -> Float[np.ndarray, " n"]:
    """``E[A | message, side information, shared noise]`` of each symbol, `f64[n]`.

    Costs ``64 sqrt(var(A | T) / s_W)`` encodings per symbol, between 64 and 2^15. If no point of
    the grid has the message, the side information does not have the assumed distribution; the
    estimate is then the zero-rate one. The decoder's candidate is not used.
    """
    joint = observed.joint
    centres = joint.zero_rate(observed.side_information)
    offsets, prior = _grid(joint)
    num_symbols, num_points = len(centres), len(offsets)
    symbols_at_once = max(1, _ENCODINGS_AT_ONCE // num_points)
    estimate = centres.copy()
    for first in range(0, num_symbols, symbols_at_once):
        part = slice(first, first + symbols_at_once)
        # The encoder's message for each point of each symbol's grid.
        sources = centres[part, None] + offsets
        symbol_of_point = np.repeat(np.arange(num_symbols)[part], num_points)
        rows = joint.target_given_source(sources.reshape(-1))
        keys = observed.keys[symbol_of_point]
        sent = symbol_coding.encode(observed.code, keys, gaussian_density, (), rows)
        # The posterior is the prior where that message equals the one received, else 0.
        sent_message = sent.message.reshape(sources.shape)
        is_message = sent_message == observed.message[part, None]
        posterior = prior * is_message
        total_mass = posterior.sum(axis=1)
        has_mass = total_mass > 0
        grid_mean = (posterior * sources).sum(axis=1) / np.where(has_mass, total_mass, 1)
        estimate[part] = np.where(has_mass, grid_mean, centres[part])
        if observed.progress is not None:
            observed.progress(min(first + symbols_at_once, num_symbols), num_symbols)
    return estimate


def _grid(joint: GaussianSource) -> tuple[np.ndarray, np.ndarray]:
    """Offsets from ``E[A | T]``, `f64[G]`, and ``p(a | t)`` there up to a constant, `f64[G]`."""
    deviation = math.sqrt(joint.side_variance / (1 + joint.side_variance))
    half_width = _HALF_WIDTH * deviation
    # Where the target is noisier than this deviation, the grid must still resolve the prior.
    finest_scale = min(math.sqrt(joint.target_variance), deviation)
    num_points = math.ceil(2 * half_width * _POINTS_PER_DEVIATION / finest_scale)
    offsets = np.linspace(-half_width, half_width, min(num_points, _MAX_POINTS))
    prior = np.exp(-(offsets**2) / (2 * deviation**2))
    return offsets, prior
