"""What the image codec knows of a model: parameters and four pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from gls_jax import checks

__all__ = ["ImageModel"]


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A conditional autoencoder with side information, as a bundle of pure functions.

    The latent `w` has prior N(0, I) in `latent` dimensions. All functions take `params` first, are
    deterministic, and are static arguments of `jax.jit`: keep them hashable, and equal for models
    of one architecture, so that nothing compiles twice.

    Attributes:
        params: pytree of weights.
        encode: ``(params, source f32[B, h, w, c]) -> (mean f32[B, D], variance f32[B, D])`` of the
            law of `w` given the source, a diagonal Gaussian.
        project: ``(params, side f32[B, sh, sw, c]) -> features f32[B, F]``.
        score: ``(params, features f32[F], latents f32[B, D]) -> f32[B]``, stands in for
            ``log p(w | side) / p(w)`` up to a constant.
        reconstruct: ``(params, latents f32[B, D], features f32[B, F]) -> estimate f32[B, h, w, c]``
            in [-1, 1].
        latent: `D`.
        source_shape: `(h, w, c)`.
        side_shape: `(sh, sw, c)`.
        fingerprint: of weights and architecture; codecs with different ones do not read each
            other's bytes.
    """

    params: Any
    encode: Callable[[Any, Array], tuple[Array, Array]]
    project: Callable[[Any, Array], Array]
    score: Callable[[Any, Array, Array], Array]
    reconstruct: Callable[[Any, Array, Array], Array]
    latent: int
    source_shape: tuple[int, ...]
    side_shape: tuple[int, ...]
    fingerprint: str

    def __post_init__(self) -> None:
        for name in ("encode", "project", "score", "reconstruct"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"ImageModel.{name}: expected a function, got {getattr(self, name)!r}"
                )
        checks.count(self.latent, "ImageModel.latent")
