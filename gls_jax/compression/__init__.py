"""Lossy compression with side information at K decoders: list codes, a Gaussian codec and an image codec."""

from gls_jax.compression.code import Density, ListCode, Normal, gaussian_density
from gls_jax.compression.crops import crops, halves
from gls_jax.compression.image_model import ImageModel
from gls_jax.compression.images import ImageCodec
from gls_jax.compression.list_code import Received, Sent, decode, encode, symbol_keys

__all__ = [
    "Density",
    "ImageCodec",
    "ImageModel",
    "ListCode",
    "Normal",
    "Received",
    "Sent",
    "crops",
    "decode",
    "encode",
    "gaussian_density",
    "halves",
    "symbol_keys",
]
