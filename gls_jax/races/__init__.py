"""Races: the only place where shared noise is drawn.

Stream ``k`` gives item ``i`` a clock ``S[k, i] ~ Exp(1)``; the item with the smallest ``S[k, i] /
p_i`` is a sample of ``p``. Whoever holds the key holds the clocks, and that is all two parties ever
share.

Clocks are counter based: ``S[k, i]`` is a function of ``(key, k, i)`` alone. A padded vocabulary,
one more stream, a vmapped batch or a sharded axis therefore changes nobody's clocks, and
:func:`first_arrivals` can run a race without ever holding the ``[K, N]`` array. :func:`darts` are counter
based in the same way: points under curves instead of clocks.

Key tree: request key -> :func:`position_key` -> stream. :func:`private_key` is the one branch that
no stream uses; noise that must be independent of the clocks (acceptance tests, residual draws)
comes from there. :func:`new_key` makes the key at the root; nothing below it depends on
`jax_default_prng_impl` or `jax_threefry_partitionable`.
"""

from gls_jax.races import arrival_order, keys
from gls_jax.races.darts import darts
from gls_jax.races.keys import new_key, position_key, private_key, split_key, stream_key
from gls_jax.races.list_code_noise import (
    bins,
    candidates,
    smallest_exponentials,
    stream_exponentials,
)
from gls_jax.races.noise import (
    LIGHTEST,
    arrivals,
    exponentials,
    exponentials_from_bits,
    first_arrivals,
    uniforms,
    weights,
    winner,
)

__all__ = [
    "LIGHTEST",
    "arrival_order",
    "arrivals",
    "bins",
    "candidates",
    "darts",
    "exponentials",
    "exponentials_from_bits",
    "first_arrivals",
    "keys",
    "new_key",
    "position_key",
    "private_key",
    "smallest_exponentials",
    "split_key",
    "stream_exponentials",
    "stream_key",
    "uniforms",
    "weights",
    "winner",
]
