"""Next-token laws of two models along texts, kept in a memory-mapped file, and sweeps that read it."""

from gls_jax.laws.make import Document, Sampling, own_texts, pieces, write
from gls_jax.laws.store import Dump, Rows, open_dump

__all__ = ["Document", "Dump", "Rows", "Sampling", "open_dump", "own_texts", "pieces", "write"]
