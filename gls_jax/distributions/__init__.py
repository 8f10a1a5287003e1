"""Pairs `(p, q)` of draft and target distributions, as arrays, and their sources.

There are no classes of distributions with methods such as `sample`. A pair is two rows of
log-probabilities; the sources of pairs are

* :mod:`gls_jax.distributions.pairs`: random pairs, or a file of pairs;
* :func:`next_token_pairs`: next-token distributions of two models along texts, in memory;
* :func:`write` and :func:`open_dump`: a *dump*, the same in memory-mapped files, cut to the
  likeliest tokens.
"""

from gls_jax.distributions import pairs
from gls_jax.distributions.dump_files import DTYPES, Dump, Rows, open_dump
from gls_jax.distributions.dump_writer import (
    Document,
    Sampling,
    check_context,
    sampled_texts,
    text_pieces,
    write,
)
from gls_jax.distributions.next_token import next_token_pairs

__all__ = [
    "DTYPES",
    "Document",
    "Dump",
    "Rows",
    "Sampling",
    "check_context",
    "next_token_pairs",
    "open_dump",
    "pairs",
    "sampled_texts",
    "text_pieces",
    "write",
]
