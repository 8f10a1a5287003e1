"""Races: the shared noise, which only this package draws.

Stream `k` gives category `i` the exponential noise ``S[k, i] ~ Exp(1)``. The category with the
smallest ``S[k, i] / p_i`` wins the race, and the winner is a sample of `p`. This is the Gumbel-max
trick: ``-log S`` is Gumbel noise, so ``argmin S / p`` is ``argmax(log p - log S)``. *Exponential
noise*, or only *noise*, always means `S`. Everybody who has the key has the noise. The two parties
share nothing else.

The noise is counter based: ``S[k, i]`` is a function of ``(key, k, i)`` alone. So a padded
vocabulary, one more stream, a vmapped batch or a sharded axis changes no draw that was there
before, and :func:`first_arrivals` runs a race without storing the ``[K, N]`` array. :func:`darts`
are counter based too: random points, and each party takes the first one under its curve.

Key tree: request key -> :func:`position_key` -> stream. :func:`private_key` is the one branch that
no stream uses. Noise that must be independent of the streams (acceptance tests, residual samples)
comes from there. :func:`new_key` makes the key at the root. Nothing below it depends on
`jax_default_prng_impl` or `jax_threefry_partitionable`.

* :mod:`gls_jax.races.keys`: the key tree;
* :mod:`gls_jax.races.noise`: exponential noise, and the winners of races;
* :mod:`gls_jax.races.arrival_order`: the categories of one stream in order of arrival;
* :mod:`gls_jax.races.darts`: shared points under curves;
* :mod:`gls_jax.races.list_code_noise`: the other shared noise of a list code;
* :mod:`gls_jax.races.threefry`: the generator.
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
    exponentials_at,
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
    "exponentials_at",
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
