"""Lossy compression with side information at K decoders: list codes, a Gaussian codec and an image codec."""

from gls_jax.compression.code import Density, ListCode, Normal, gaussian_density
from gls_jax.compression.list_code import Received, Sent, decode, encode, symbol_keys

__all__ = [
    "Density",
    "ListCode",
    "Normal",
    "Received",
    "Sent",
    "decode",
    "encode",
    "gaussian_density",
    "symbol_keys",
]
