"""The source given message, side information and shared noise: an estimate that trusts no winner
(ours).

Whoever holds the shared noise can ask what the encoder would have sent for any source `a`. The
posterior is therefore ``p(a | t)`` where that is the message, and 0 elsewhere; its mean has the
least mean squared error there is. The encoder is asked on a grid, an eighth of the target's
standard deviation apart, finer than its answers change.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Array, Float, Int, Key

from gls_jax.compression import list_code
from gls_jax.compression.code import ListCode, gaussian_density
from gls_jax.compression.gaussian import GaussianSource
from gls_jax.compression.groups import Progress

__all__ = ["mean"]

_REACH = 4.0  # of the grid, in standard deviations of the source given side information
_PER_TARGET = 8.0  # points for each standard deviation of the target
_MOST_POINTS = 2**15
_AT_ONCE = 2**19  # questions


def mean(
    code: ListCode,
    law: GaussianSource,
    keys: Key[Array, " n"],
    message: Int[np.ndarray, " n"],
    side_information: Float[np.ndarray, " n"],
    *,
    progress: Progress | None = None,
) -> Float[np.ndarray, " n"]:
    """``E[A | message, side information, shared noise]`` of each symbol.

    Costs ``64 sqrt(var(A | T) / s_W)`` encodings a symbol, 64 to 2^15. Where no point of the grid
    has the message, which says that the side information is not what the law takes it for, it is
    the estimate of silence.

    Args:
        code: of the encoder.
        law: of source and side information.
        keys: one a symbol.
        message: `i32[n]`.
        side_information: `f64[n]`, any one decoder's.
        progress: called with `(symbols done, n)`.
    """
    centre = law.zero_rate(side_information)
    spread = math.sqrt(law.side_variance / (1 + law.side_variance))
    reach = _REACH * spread
    finest = min(math.sqrt(law.target_variance), spread)
    offsets = np.linspace(
        -reach, reach, min(math.ceil(2 * reach * _PER_TARGET / finest), _MOST_POINTS)
    )
    prior = np.exp(-(offsets**2) / (2 * spread**2))
    estimate, size = centre.copy(), max(1, _AT_ONCE // len(offsets))
    for first in range(0, len(centre), size):
        part = slice(first, first + size)
        sources = centre[part, None] + offsets
        asked = np.repeat(np.arange(len(centre))[part], len(offsets))
        rows = law.target_given_source(sources.reshape(-1))
        sent = list_code.encode(code, keys[asked], gaussian_density, (), rows).message.reshape(
            sources.shape
        )
        posterior = prior * (sent == message[part, None])
        total = posterior.sum(axis=1)
        found = (posterior * sources).sum(axis=1) / np.where(total > 0, total, 1)
        estimate[part] = np.where(total > 0, found, centre[part])
        if progress is not None:
            progress(min(first + size, len(centre)), len(centre))
    return estimate
