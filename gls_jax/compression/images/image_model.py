"""Adapter of an image model for the codec: parameters and four pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from gls_jax import checks

__all__ = ["ImageModel"]


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """Model adapter: a conditional autoencoder with side information, as pure functions.

    The latent `w` has prior N(0, I) in `latent` dimensions. All functions take `params` first, are
    deterministic, and are static arguments of `jax.jit`. Keep them hashable, and equal for models
    of one architecture; otherwise the same program compiles again.

    Attributes:
        params: pytree of weights.
        encode: ``(params, source f32[B, h, w, c]) -> (mean f32[B, D], variance f32[B, D])``, the
            distribution of `w` given the source, a diagonal Gaussian.
        project: ``(params, side f32[B, sh, sw, c]) -> features f32[B, F]``.
        score: ``(params, features f32[F], latents f32[B, D]) -> f32[B]``, stands in for
            ``log p(w | side) / p(w)`` up to a constant.
        reconstruct: ``(params, latents f32[B, D], features f32[B, F]) -> estimate f32[B, h, w, c]``
            in [-1, 1].
        latent: `D`.
        source_shape: `(h, w, c)`.
        side_shape: `(sh, sw, c)`.
        model_hash: of weights and architecture. Blobs can be read with an equal hash only.
    """

    params: Any
    encode: Callable[[Any, Array], tuple[Array, Array]]
    project: Callable[[Any, Array], Array]
    score: Callable[[Any, Array, Array], Array]
    reconstruct: Callable[[Any, Array, Array], Array]
    latent: int
    source_shape: tuple[int, ...]
    side_shape: tuple[int, ...]
    model_hash: str

    def __post_init__(self) -> None:
        for name in ("encode", "project", "score", "reconstruct"):
            value = getattr(self, name)
            if not callable(value):
                raise ValueError(f"ImageModel.{name}: expected a function, got {value!r}")
        checks.count(self.latent, "ImageModel.latent")
