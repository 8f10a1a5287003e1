"""List codes: an encoder tells K decoders, in log2 L bits, which of N shared candidates it chose.

Rowan, Phan, Khisti 2025 (arXiv 2506.05632), on lossy compression with side information. Candidates
``U_i ~ p_W``, bins ``l_i`` uniform on ``0..L-1`` and clocks ``S[k, i]`` are shared. The encoder,
who sees the source `a`, picks ``Y = argmin_i min_k S[k, i] / w_i`` with ``w_i = p_{W|A}(U_i | a) /
p_W(U_i)`` and sends ``l_Y``; decoder `k`, who sees side information, picks ``argmin S[k, i] / v_i``
among the candidates of that bin. The baseline has one stream for all.

Only ratios of weights matter, so candidates stream by in blocks and are never held. Two searches
give the same law:

* `dense` looks at every candidate (:mod:`gls_jax.compression.dense`);
* `ordered` follows the clocks in the order in which they go off and stops when no later one can win
  (:mod:`gls_jax.compression.ordered`, ours); it needs to know how large a weight can be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gls_jax import checks

__all__ = [
    "MOST",
    "SCHEMES",
    "SEARCHES",
    "Density",
    "ListCode",
    "Normal",
    "gaussian_density",
    "leader",
]

SCHEMES = ("gls", "baseline")
SEARCHES = ("ordered", "dense")
MOST = 2**30


@dataclasses.dataclass(frozen=True)
class ListCode:
    """What encoder and decoders agree on beside the key.

    Attributes:
        num_decoders: `K`.
        num_candidates: `N`, at most 2^30.
        num_bins: `L`, at most `N`; a message is one of them.
        dimension: `D` of a candidate.
        scheme: `gls`, or `baseline`: all decoders share one stream.
        search: `ordered` or `dense`.

    >>> from gls_jax.compression import ListCode
    >>> ListCode(num_decoders=2, num_candidates=4, num_bins=8)
    Traceback (most recent call last):
    ...
    ValueError: num_bins: expected at most num_candidates (4), got 8
    """

    num_decoders: int
    num_candidates: int
    num_bins: int
    dimension: int = 1
    scheme: str = "gls"
    search: str = "ordered"

    def __post_init__(self) -> None:
        for name in ("num_decoders", "num_candidates", "num_bins", "dimension"):
            object.__setattr__(self, name, checks.count(getattr(self, name), name))
        for name in ("num_candidates", "num_decoders"):
            if getattr(self, name) > MOST:
                raise ValueError(f"{name}: expected at most 2^30, got {getattr(self, name)}")
        if self.num_bins > self.num_candidates:
            raise ValueError(
                f"num_bins: expected at most num_candidates ({self.num_candidates}), got {self.num_bins}"
            )
        checks.one_of(self.scheme, SCHEMES, "scheme")
        checks.one_of(self.search, SEARCHES, "search")

    @property
    def num_streams(self) -> int:
        """Independent streams of clocks: one a decoder, or one for all."""
        return self.num_decoders if self.scheme == "gls" else 1

    def stream(self, decoder: int) -> int:
        """Which stream a decoder holds; `ValueError` for a decoder that does not exist."""
        checks.index(decoder, "decoder", last=self.num_decoders - 1)
        return decoder if self.scheme == "gls" else 0


class Density(NamedTuple):
    """Weights of candidates, as two functions of what all symbols share and of what one symbol
    brings (its row).

    Attributes:
        log_weight: ``(shared, row, candidates f32[B, D]) -> f32[B]``, the logarithm of a density
            over the standard normal one, up to a constant.
        log_bound: ``(shared, row) -> f32[]``, no `log_weight` is larger; None where that is not
            known.
    """

    log_weight: Callable[[Any, Any, Float[Array, "B D"]], Float[Array, " B"]]
    log_bound: Callable[[Any, Any], Float[Array, ""]] | None = None


class Normal(NamedTuple):
    """A row of :data:`gaussian_density`: independent normals, quick to search where all variances
    are below 1.
    """

    mean: Float[Array | np.ndarray, "*n D"]
    variance: Float[Array | np.ndarray, "*n D"]


def _gaussian_weight(_, row: Normal, candidates: Float[Array, "B D"]) -> Float[Array, " B"]:
    if row.mean.shape != candidates.shape[1:] or row.variance.shape != candidates.shape[1:]:
        wanted = f"[n, {candidates.shape[1]}]"
        raise ValueError(
            f"rows: expected mean and variance of shape {wanted}, got {row.mean.shape[-1:]} columns"
        )
    return jnp.sum((candidates**2 - (candidates - row.mean) ** 2 / row.variance) / 2, axis=-1)


def _gaussian_bound(_, row: Normal) -> Float[Array, ""]:
    narrow = row.variance < 1  # else weights have no bound
    bounds = row.mean**2 / (2 * jnp.where(narrow, 1 - row.variance, 1))
    return jnp.sum(jnp.where(narrow, bounds, jnp.inf), axis=-1)


gaussian_density: Density = Density(_gaussian_weight, _gaussian_bound)
"""Diagonal normals over the standard normal: the largest weight is at ``mean / (1 - variance)``."""


def leader(
    scores: Float[Array, " B"], items: Int[Array, " B"]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """The smallest score and its item; the smallest item where two are equal, -1 where none is
    below infinity.
    """
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    first = jnp.min(scores)
    item = jnp.min(jnp.where(scores == first, items, jnp.iinfo(jnp.int32).max))
    return first, jnp.where(first < jnp.inf, item, -1)
