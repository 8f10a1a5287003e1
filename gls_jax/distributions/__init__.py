"""Where pairs of draft and target distributions come from.

* :mod:`gls_jax.distributions.pairs`: random pairs, a file of pairs, next-token distributions of two
  models over a text;
* a *dump*: the next-token distributions of two models along texts, in memory-mapped files.
"""

from gls_jax.distributions import pairs
from gls_jax.distributions.dump import DTYPES, Dump, Rows, fingerprint, open_dump
from gls_jax.distributions.dump_writer import (
    Document,
    Sampling,
    check_context,
    own_texts,
    pieces,
    write,
)

__all__ = [
    "DTYPES",
    "Document",
    "Dump",
    "Rows",
    "Sampling",
    "check_context",
    "fingerprint",
    "open_dump",
    "own_texts",
    "pairs",
    "pieces",
    "write",
]
