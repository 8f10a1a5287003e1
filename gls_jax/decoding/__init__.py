"""Batched speculative decoding for any scheme and any model.

>>> import jax, jax.numpy as jnp
>>> from gls_jax import decoding
>>> model = decoding.from_function(lambda params, tokens: params[tokens], jnp.zeros((5, 5)), 5)
>>> decoding.generate(jax.random.key(0), model, model, [[1, 2]], max_new_tokens=3).lengths.tolist()
[3]
"""

from gls_jax.decoding.generation import BrokenLogits, Generation, Stream, generate, stream
from gls_jax.decoding.metrics import Metrics
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.options import DecodeOptions
from gls_jax.decoding.processors import check_sampling, log_probs
from gls_jax.decoding.tree_shape import MarginTree
from gls_jax.decoding.uncached import from_function, ngram_lookup

__all__ = [
    "BrokenLogits",
    "DecodeOptions",
    "Generation",
    "LanguageModel",
    "MarginTree",
    "Metrics",
    "Stream",
    "check_sampling",
    "from_function",
    "generate",
    "log_probs",
    "ngram_lookup",
    "stream",
]
