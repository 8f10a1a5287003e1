"""Next-token laws of two models along texts, kept in a memory-mapped file, and sweeps that read it."""

from gls_jax.laws.make import Document, Sampling, check_context, own_texts, pieces, write
from gls_jax.laws.store import DTYPES, Dump, Rows, fingerprint, open_dump
from gls_jax.laws.sweep import BRACKETED, Mean, acceptance

__all__ = [
    "BRACKETED",
    "DTYPES",
    "Document",
    "Dump",
    "Mean",
    "Rows",
    "Sampling",
    "acceptance",
    "check_context",
    "fingerprint",
    "open_dump",
    "own_texts",
    "pieces",
    "write",
]
