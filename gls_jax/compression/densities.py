"""Weights of candidates: a density of what is coded, relative to the candidates' standard normal.

A new density is one :class:`Density`, two pure functions. Nothing else has to change: both
searches, :func:`gls_jax.compression.encode` and :func:`gls_jax.compression.decode` take any of
them. :data:`gaussian_density` is the example to follow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Density", "Normal", "gaussian_density"]


class Density(NamedTuple):
    """Weights of candidates, as functions of what all symbols share and of one symbol's row.

    Attributes:
        log_weight: ``(shared, row, candidates f32[B, D]) -> f32[B]``, the logarithm of a density
            over the standard normal one, up to a constant.
        log_bound: ``(shared, row) -> f32[]``, an upper bound on `log_weight`; None if unknown.
    """

    log_weight: Callable[[Any, Any, Float[Array, "B D"]], Float[Array, " B"]]
    log_bound: Callable[[Any, Any], Float[Array, ""]] | None = None


class Normal(NamedTuple):
    """Rows of :data:`gaussian_density`: a normal distribution with independent components.

    Ordered search is fast where all variances are below 1.
    """

    mean: Float[Array | np.ndarray, "*n D"]
    variance: Float[Array | np.ndarray, "*n D"]


def _gaussian_log_weight(_, row: Normal, candidates: Float[Array, "B D"]) -> Float[Array, " B"]:
    # This runs while JAX traces, so a wrong shape is reported before anything is compiled.
    if {row.mean.shape, row.variance.shape} != {candidates.shape[1:]}:
        raise ValueError(
            f"rows: expected mean and variance of shape [n, {candidates.shape[1]}], "
            f"got {row.mean.shape[-1:]} columns"
        )
    return jnp.sum((candidates**2 - (candidates - row.mean) ** 2 / row.variance) / 2, axis=-1)


def _gaussian_log_bound(_, row: Normal) -> Float[Array, ""]:
    # For variance < 1 the weight is largest at mean / (1 - variance); otherwise it has no maximum.
    is_bounded = row.variance < 1
    log_bounds = row.mean**2 / (2 * jnp.where(is_bounded, 1 - row.variance, 1))
    return jnp.sum(jnp.where(is_bounded, log_bounds, jnp.inf), axis=-1)


gaussian_density: Density = Density(_gaussian_log_weight, _gaussian_log_bound)
"""Normal distributions with diagonal covariance; its rows are :class:`Normal`."""
