"""Seeds whose keys give a uniform of exactly 0, which happens once in 2^23 draws.

The first number of ``jax.random.uniform``, from ``jax.random.key(seed)`` itself or from one of the
keys that ``jax.random.split`` makes of it, is 0 for these seeds. Found by trying the first 2^26
seeds. A test ``u <= q / p`` then accepts a token of target probability 0, and a race by
``jax.random.exponential`` is won by its first token, whatever the probabilities.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from gls_jax import races

__all__ = ["SEEDS", "keys"]

# Of the key itself, and of the first three keys that it is split into.
_OF_KEY = (780233, 3714538, 5067035, 29018832, 31122535, 33570722)
_OF_SPLIT = (
    (3353848, 10468366, 17565202, 29639874, 42929620, 43169705),
    (2667181, 12355856, 17629967, 21389363, 21789961, 22846054),
    (16438558, 44556663, 48009443),
)

SEEDS: tuple[int, ...] = (*_OF_KEY, *(seed for seeds in _OF_SPLIT for seed in seeds))


def keys() -> Key[Array, " S"]:
    """The keys of :data:`SEEDS`.

    >>> import jax
    >>> from gls_jax.conformance import hard_keys
    >>> float(jax.random.uniform(hard_keys.keys()[0]))
    0.0
    """
    return jax.vmap(races.new_key)(jnp.array(SEEDS, jnp.uint32))
