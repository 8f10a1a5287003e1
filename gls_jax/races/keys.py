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

_IMPLEMENTATION = "threefry2x32"  # the threefry that the races compute themselves, from the two words of such a key
_PRIVATE = 0xFFFFFFFF  # the last fold: stream indices never reach it


def new_key(seed: Index) -> PRNGKeyArray:
    """The key of a seed: ``jax.random.key(seed)``, also where `JAX_DEFAULT_PRNG_IMPL` names another
    generator.

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
    return jax.random.key(checks.index(seed, "seed", last=2**32 - 1), impl=_IMPLEMENTATION)


def position_key(key: PRNGKeyArray, position: Index) -> PRNGKeyArray:
    """Key of the races at one position.

    Args:
        key: key of the request.
        position: absolute index of the token or block (never a round, batch slot or device), `[]`
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
    """Key for noise that is independent of every clock of `key`: a fold that no stream uses."""
    checks.key(key)
    return jax.random.fold_in(key, _PRIVATE)


def split_key(key: PRNGKeyArray, count: int = 2) -> Key[Array, " count"]:
    """The keys of ``jax.random.split(key, count)``, also where `jax_threefry_partitionable` is off
    and split differs.

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
    """Within it `jax.random` numbers its bits as by default, also where
    `jax_threefry_partitionable` is off.

    For what is drawn by `jax.random` and not by a race: call it outside of `jax.jit`, whose
    programs are made with the setting of the call.
    """
    return jax.threefry_partitionable(True)


def words(key: PRNGKeyArray) -> threefry.Words:
    """The key's two words, for the threefry."""
    data = jax.random.key_data(key)
    return data[..., 0], data[..., 1]


def stream_words(key: PRNGKeyArray, streams: Numbers) -> threefry.Words:
    """`fold_in(key, k)` for every stream `k` that is asked for, as two words each."""
    folded = threefry.threefry2x32(words(key), jnp.asarray(streams).astype(jnp.uint32))
    # Two ciphers fused into one chain take XLA:CPU of jaxlib 0.12 minutes to compile, or for ever.
    return jax.lax.optimization_barrier(folded)
