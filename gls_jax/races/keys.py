"""Keys: request -> position -> stream, and one private branch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import checks
from gls_jax.races import cipher

__all__ = ["position_key", "private_key", "stream_key", "stream_words", "words"]

_PRIVATE = 0xFFFFFFFF  # the last fold: stream indices never reach it


def position_key(key: PRNGKeyArray, position) -> PRNGKeyArray:
    """Key of the races at one position.

    Args:
        key: key of the request.
        position: absolute index of the token or block (never a round, batch slot or device), `[]` integer.

    Returns:
        The position's key.

    >>> import jax
    >>> from gls_jax import races
    >>> request = jax.random.key(0)
    >>> [races.exponentials(races.position_key(request, t), 1, 1).shape for t in range(2)]
    [(1, 1), (1, 1)]
    """
    checks.key(key)
    return jax.random.fold_in(key, checks.index(position, "position"))


def stream_key(key: PRNGKeyArray, stream) -> PRNGKeyArray:
    """Key of one stream: `S[k]` are the draws of `stream_key(key, k)`."""
    checks.key(key)
    return jax.random.fold_in(key, checks.index(stream, "stream"))


def private_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """Key for noise that is independent of every clock of `key`: a fold that no stream uses."""
    checks.key(key)
    return jax.random.fold_in(key, _PRIVATE)


def words(key: PRNGKeyArray) -> cipher.Words:
    """The key's two words, for the cipher."""
    data = jax.random.key_data(key)
    return data[..., 0], data[..., 1]


def stream_words(key: PRNGKeyArray, streams) -> cipher.Words:
    """`fold_in(key, k)` for every stream `k` that is asked for, as two words each."""
    folded = cipher.threefry2x32(words(key), jnp.asarray(streams).astype(jnp.uint32))
    # Two ciphers fused into one chain take XLA:CPU of jaxlib 0.12 minutes to compile, or for ever.
    return jax.lax.optimization_barrier(folded)
