"""Races: the only place where shared noise is drawn.

Stream ``k`` gives item ``i`` a clock ``S[k, i] ~ Exp(1)``; the item with the smallest ``S[k, i] /
p_i`` is a sample of ``p``. Whoever holds the key holds the clocks, and that is all two parties ever
share.

Clocks are counter based: ``S[k, i]`` is a function of ``(key, k, i)`` alone. A padded vocabulary,
one more stream, a vmapped batch or a sharded axis therefore changes nobody's clocks, and
:func:`leaders` can run a race without ever holding the ``[K, N]`` array. :func:`darts` are counter
based in the same way: points under curves instead of clocks.

Key tree: request key -> :func:`position_key` -> stream. :func:`private_key` is the one branch that
no stream uses; noise that must be independent of the clocks (acceptance tests, residual draws)
comes from there. :func:`new_key` makes the key at the root; nothing below it depends on
`jax_default_prng_impl` or `jax_threefry_partitionable`.
"""

from gls_jax.races import keys, ordered
from gls_jax.races.clocks import (
    LIGHTEST,
    arrivals,
    clocks_from_bits,
    exponentials,
    leaders,
    uniforms,
    weights,
    winner,
)
from gls_jax.races.common import bins, candidates, first_clocks, list_clocks
from gls_jax.races.darts import darts
from gls_jax.races.keys import new_key, position_key, private_key, split_key, stream_key

__all__ = [
    "LIGHTEST",
    "arrivals",
    "bins",
    "candidates",
    "clocks_from_bits",
    "darts",
    "exponentials",
    "first_clocks",
    "keys",
    "leaders",
    "list_clocks",
    "new_key",
    "ordered",
    "position_key",
    "private_key",
    "split_key",
    "stream_key",
    "uniforms",
    "weights",
    "winner",
]
