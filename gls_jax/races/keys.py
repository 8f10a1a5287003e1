"""Keys: request -> position -> stream, and one private branch."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PRNGKeyArray

from gls_jax import checks
from gls_jax.races import threefry
from gls_jax.typing import Index, Numbers

__all__ = [
    "fold_in_each",
    "new_key",
    "partitionable_bits",
    "position_key",
    "private_key",
    "split_key",
    "stream_key",
    "stream_words",
    "words",
]

# The races compute this generator themselves, from the two words of a key.
_IMPLEMENTATION = "threefry2x32"
# The largest number that fits a fold. No stream index reaches it.
_PRIVATE = 0xFFFFFFFF


def new_key(seed: Index) -> PRNGKeyArray:
    """The key ``jax.random.key(seed)``, always of the threefry generator.

    `JAX_DEFAULT_PRNG_IMPL` has no influence on it.

    Args:
        seed: within `0..2^32 - 1`, `[]` integer.

    Raises:
        ValueError: another seed.

    >>> import jax
    >>> from gls_jax import races
    >>> with jax.default_prng_impl("rbg"):
    ...     print(jax.random.key_impl(races.new_key(0)))
    threefry2x32
    """
    return jax.random.key(checks.seed(seed), impl=_IMPLEMENTATION)


def position_key(key: PRNGKeyArray, position: Index) -> PRNGKeyArray:
    """Key of the races at one position.

    Args:
        key: key of the request.
        position: absolute index of the token or block (never a round, batch row or device), `[]`
            integer.

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


def stream_key(key: PRNGKeyArray, stream: Index) -> PRNGKeyArray:
    """Key of one stream: `S[k]` are the draws of `stream_key(key, k)`."""
    checks.key(key)
    return jax.random.fold_in(key, checks.index(stream, "stream"))


def private_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """Key for noise that is independent of all streams of `key`."""
    checks.key(key)
    return jax.random.fold_in(key, _PRIVATE)


def split_key(key: PRNGKeyArray, count: int = 2) -> Key[Array, " count"]:
    """The keys of ``jax.random.split(key, count)`` with partitionable threefry.

    They are the same where `jax_threefry_partitionable` is off, unlike those of `split`.

    >>> import jax
    >>> from gls_jax import races
    >>> key = jax.random.key(0)
    >>> bool((races.split_key(key) == jax.random.split(key)).all())
    True
    """
    checks.key(key)
    return fold_in_each(key, jnp.arange(checks.count(count, "count"), dtype=jnp.uint32))


def fold_in_each(key: PRNGKeyArray, numbers: Numbers) -> Key[Array, " count"]:
    """The keys ``jax.random.fold_in(key, n)`` of several numbers `n`, `[count]` integers."""
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(numbers))


def partitionable_bits() -> AbstractContextManager[Any]:
    """A context in which `jax.random` numbers its bits as with partitionable threefry.

    That is JAX's default, which `jax_threefry_partitionable` can turn off. Use the context for what
    `jax.random` draws and no race does, and outside `jax.jit`: a compiled program keeps the setting
    that it was called with.
    """
    return jax.threefry_partitionable(True)


def words(key: PRNGKeyArray) -> threefry.Words:
    """The two words of a key, which threefry takes."""
    data = jax.random.key_data(key)
    return data[..., 0], data[..., 1]


def stream_words(key: PRNGKeyArray, streams: Numbers) -> threefry.Words:
    """Words of the keys ``fold_in(key, k)`` of several streams `k`."""
    numbers = jnp.asarray(streams).astype(jnp.uint32)
    folded = threefry.threefry2x32(words(key), numbers)
    # XLA:CPU of jaxlib 0.12 compiles two fused threefry calls for minutes, or without end.
    return jax.lax.optimization_barrier(folded)
