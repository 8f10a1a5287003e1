"""Lossy compression with side information at K decoders: list codes, a Gaussian codec and an image
codec.
"""

from gls_jax.compression.code import Density, ListCode, Normal, gaussian_density
from gls_jax.compression.container import Sizes, sizes
from gls_jax.compression.crops import crops, halves
from gls_jax.compression.gaussian import GaussianSource, best_of_converse, wyner_ziv
from gls_jax.compression.gaussian_codec import GaussianCodec, Reconstruction
from gls_jax.compression.image_codec import ImageCodec, ImageReconstruction
from gls_jax.compression.image_model import ImageModel
from gls_jax.compression.image_trials import ImageErrors, ImageTrials, image_trials
from gls_jax.compression.list_code import Received, Sent, decode, encode, symbol_keys
from gls_jax.compression.matching import ListMatch, match
from gls_jax.compression.simulation import Distortion, Simulation, simulate

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
