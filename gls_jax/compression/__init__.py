"""Lossy compression with side information at K decoders."""

from gls_jax.compression.container import Sizes, sizes
from gls_jax.compression.densities import Density, Normal, gaussian_density
from gls_jax.compression.gaussian.gaussian_codec import GaussianCodec, Reconstruction
from gls_jax.compression.gaussian.gaussian_source import (
    GaussianSource,
    best_of_converse,
    wyner_ziv,
)
from gls_jax.compression.gaussian.monte_carlo_distortion import Distortion, Simulation, simulate
from gls_jax.compression.images.image_codec import ImageCodec, ImageReconstruction
from gls_jax.compression.images.image_crops import crops, halves
from gls_jax.compression.images.image_model import ImageModel
from gls_jax.compression.images.image_trials import ImageErrors, ImageTrials, image_trials
from gls_jax.compression.list_code import ListCode
from gls_jax.compression.matching import ListMatch, match
from gls_jax.compression.symbol_coding import Received, Sent, decode, encode, symbol_keys

__all__ = [
    "Density",
    "Distortion",
    "GaussianCodec",
    "GaussianSource",
    "ImageCodec",
    "ImageErrors",
    "ImageModel",
    "ImageReconstruction",
    "ImageTrials",
    "ListCode",
    "ListMatch",
    "Normal",
    "Received",
    "Reconstruction",
    "Sent",
    "Simulation",
    "Sizes",
    "best_of_converse",
    "crops",
    "decode",
    "encode",
    "gaussian_density",
    "halves",
    "image_trials",
    "match",
    "simulate",
    "sizes",
    "symbol_keys",
    "wyner_ziv",
]
