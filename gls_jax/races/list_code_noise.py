"""The other shared noise of a list code: candidates, their bins, and lazy exponentials.

All are functions of `(key, index)`, where the index is that of a candidate. They use branches of
the position key's threefry that its streams never use.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from gls_jax import checks
from gls_jax.races import threefry
from gls_jax.races.keys import stream_words, words
from gls_jax.races.noise import exponentials_from_bits
from gls_jax.typing import Index, Numbers

__all__ = ["bins", "candidates", "smallest_exponentials", "stream_exponentials"]

# Branches of the position's threefry; dimension d of a candidate's value has _VALUES + d.
_SMALLEST = 1
_FIRST_STREAM = 2
_VALUES = 3
# Branch of a stream's threefry; `arrival_order` has 1 and 2.
_EXCESS = 3

# Giles 2010, "Approximating the erfinv function", single precision: centre and tail, highest power
# first.
_CENTRE = np.array(
    [
        2.81022636e-8,
        3.43273939e-7,
        -3.5233877e-6,
        -4.39150654e-6,
        2.1858087e-4,
        -1.25372503e-3,
        -4.17768164e-3,
        0.246640727,
        1.50140941,
    ],
    np.float32,
)
_TAIL = np.array(
    [
        -2.00214257e-4,
        1.00950558e-4,
        1.34934322e-3,
        -3.67342844e-3,
        5.73950773e-3,
        -7.6224613e-3,
        9.43887047e-3,
        1.00167406,
        2.83297682,
    ],
    np.float32,
)


def candidates(key: PRNGKeyArray, indices: Numbers, dimension: int) -> Float[Array, "*indices D"]:
    """Shared candidates: standard normal vectors, each a function of the key and its index.

    Args:
        key: one typed threefry key, the position's.
        indices: of the candidates, `[...]`.
        dimension: `D`, static; the first dimensions do not change when more are drawn.

    Returns:
        `f32[..., D]`, within 6.4 standard deviations; accurate to 1e-6, beyond 5.4 to .003. The
        last bit depends on the program that this is part of, because XLA fuses the polynomial in
        different ways.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, indices = jax.random.key(0), jnp.arange(5)
    >>> values = races.candidates(key, indices, 2)
    >>> bool((values[:3, :1] == races.candidates(key, indices[:3], 1)).all())
    True
    """
    key_words, counter = _counter(key, indices)
    bits = []
    for d in range(checks.count(dimension, "dimension")):
        high, _ = threefry.threefry2x32(key_words, counter, _VALUES + d)
        bits.append(high)
    return _normal(jnp.stack(bits, axis=-1))


def bins(key: PRNGKeyArray, indices: Numbers, num_bins: int) -> Int[Array, "*indices"]:
    """Shared bins of candidates, uniform on `0..num_bins - 1`.

    Exactly uniform for powers of two, else up to `num_bins / 2^32`. Only integers are used (the
    half of the candidate's word that its value does not need), so that no rounding can move a bin.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> races.bins(jax.random.key(0), jnp.arange(1000), 4).max().item()
    3
    """
    key_words, counter = _counter(key, indices)
    _, low = threefry.threefry2x32(key_words, counter, _VALUES)
    if checks.count(num_bins, "num_bins") > 2**30:
        raise ValueError(f"num_bins: expected at most 2^30, got {num_bins}")
    return threefry.high_product(low, jnp.uint32(num_bins)).astype(jnp.int32)


def smallest_exponentials(key: PRNGKeyArray, indices: Numbers) -> Float[Array, "*indices"]:
    """`K` times the smallest of a candidate's `K` exponentials: Exp(1), and the same for every `K`.

    The party that looks at all streams (the target of a list, the encoder of a list code) needs no
    other noise.
    """
    key_words, counter = _counter(key, indices)
    high, low = threefry.threefry2x32(key_words, counter, _SMALLEST)
    return exponentials_from_bits(high ^ low, low)


def stream_exponentials(
    key: PRNGKeyArray,
    indices: Numbers,
    num_streams: int,
    stream: Index,
) -> Float[Array, "*indices"]:
    """Exponential noise of one of `K` streams, given :func:`smallest_exponentials`.

    By the memoryless property: a uniformly chosen stream has the candidate's smallest noise ``s /
    K``, and every other stream ``s / K`` plus an independent Exp(1). These are `K` independent
    Exp(1), drawn only for the candidates in `indices`.

    Args:
        key: one typed threefry key, the position's.
        indices: of the candidates, `[...]`.
        num_streams: `K`, static. Unlike :func:`gls_jax.races.exponentials`, another `K` gives other
            noise.
        stream: which, `0..K - 1`; may be traced.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, indices = jax.random.key(0), jnp.arange(100)
    >>> streams = jnp.stack([races.stream_exponentials(key, indices, 4, k) for k in range(4)])
    >>> smallest = races.smallest_exponentials(key, indices)
    >>> bool(jnp.allclose(4 * streams.min(0), smallest, rtol=1e-6))
    True
    """
    key_words, counter = _counter(key, indices)
    checks.index(stream, "stream", last=checks.count(num_streams, "num_streams") - 1)
    smallest = smallest_exponentials(key, indices) / num_streams
    if num_streams == 1:
        return smallest
    stream_bits = threefry.threefry2x32(key_words, counter, _FIRST_STREAM)
    first_stream, *_ = threefry.scale(*stream_bits, num_streams)
    high, low = threefry.threefry2x32(stream_words(key, stream), counter, _EXCESS)
    is_first = jnp.asarray(stream).astype(jnp.uint32) == first_stream
    return jnp.where(is_first, smallest, smallest + exponentials_from_bits(high ^ low, low))


def _counter(key, indices) -> tuple[threefry.Words, UInt32[Array, "*indices"]]:
    checks.key(key)
    return words(key), jnp.asarray(indices).astype(jnp.uint32)


def _normal(bits: UInt32[Array, ...]) -> Float[Array, ...]:
    """Normal quantile of 31 bits, with the sign from the last one: equally fine in both tails."""
    uniform = (bits >> 1).astype(jnp.float32) + 0.5
    lower_tail = uniform * 2.0**-32  # within (0, 1/2)
    x = 1 - 2 * lower_tail
    w = -jnp.log(4 * lower_tail * (1 - lower_tail))  # -log(1 - x^2), without its rounding
    centre = jnp.polyval(_CENTRE, w - 2.5)
    tail = jnp.polyval(_TAIL, jnp.sqrt(w) - 3)
    quantile = math.sqrt(2) * x * jnp.where(w < 5, centre, tail)
    return jnp.where(bits & 1, -quantile, quantile)
