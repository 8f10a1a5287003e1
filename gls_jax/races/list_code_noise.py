"""What all parties of a list code share beside the streams: candidates, their bins, and clocks that
are drawn lazily.

All are functions of `(key, item)`: branches of the position key's cipher that its streams never
use.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from gls_jax import checks
from gls_jax.races import threefry
from gls_jax.races.keys import stream_words, words
from gls_jax.races.noise import exponentials_from_bits
from gls_jax.typing import Index, Numbers

__all__ = ["bins", "candidates", "smallest_exponentials", "stream_exponentials"]

_FIRST, _OWNER, _VALUES = (
    1,
    2,
    3,
)  # branches of the position's cipher; dimension d of a value is _VALUES + d
_EXCESS = 3  # branch of a stream's cipher; `arrival_order` has 1 and 2

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


def candidates(key: PRNGKeyArray, items: Numbers, dimension: int) -> Float[Array, "*items D"]:
    """Shared candidates: standard normals, the value of `item` whatever else is drawn.

    Args:
        key: one typed threefry key, the position's.
        items: indices `[...]`.
        dimension: `D`, static; the first dimensions do not change when more are drawn.

    Returns:
        `f32[..., D]`, within 6.4 standard deviations; accurate to 1e-6, beyond 5.4 to .003. The
        last bit depends on the program that this is part of, as XLA fuses its polynomial in one way
        or another.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, items = jax.random.key(0), jnp.arange(5)
    >>> bool((races.candidates(key, items, 2)[:3, :1] == races.candidates(key, items[:3], 1)).all())
    True
    """
    own, counter = _counter(key, items)
    draws = [
        threefry.threefry2x32(own, counter, _VALUES + d)[0]
        for d in range(checks.count(dimension, "dimension"))
    ]
    return _normal(jnp.stack(draws, axis=-1))


def bins(key: PRNGKeyArray, items: Numbers, num_bins: int) -> Int[Array, "*items"]:
    """Shared bins, uniform on `0..num_bins - 1`: exactly for powers of two, else to `num_bins /
    2^32`.

    Made of integers alone (the half of the candidate's word that its value leaves), so that no
    rounding can move one.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> races.bins(jax.random.key(0), jnp.arange(1000), 4).max().item()
    3
    """
    own, counter = _counter(key, items)
    _, low = threefry.threefry2x32(own, counter, _VALUES)
    if checks.count(num_bins, "num_bins") > 2**30:
        raise ValueError(f"num_bins: expected at most 2^30, got {num_bins}")
    return threefry.high_product(low, jnp.uint32(num_bins)).astype(jnp.int32)


def smallest_exponentials(key: PRNGKeyArray, items: Numbers) -> Float[Array, "*items"]:
    """`K` times the smallest of an item's `K` clocks: Exp(1), and the same for every `K`.

    The party that looks at all streams (the target of a list, the encoder of a list code) needs no
    other clock.
    """
    own, counter = _counter(key, items)
    high, low = threefry.threefry2x32(own, counter, _FIRST)
    return exponentials_from_bits(high ^ low, low)


def stream_exponentials(
    key: PRNGKeyArray, items: Numbers, num_streams: int, stream: Index
) -> Float[Array, "*items"]:
    """Clocks of one of `K` streams, from the memoryless property of :func:`smallest_exponentials`.

    A uniform stream, the item's owner, holds ``first / K``, the others ``first / K`` plus an Exp(1)
    of their own: `K` independent Exp(1), drawn only for the items that are asked for.

    Args:
        key: one typed threefry key, the position's.
        items: indices `[...]`.
        num_streams: `K`, static. Unlike :func:`gls_jax.races.exponentials`, other `K` give other
            clocks.
        stream: which, `0..K - 1`; may be traced.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, items = jax.random.key(0), jnp.arange(100)
    >>> streams = jnp.stack([races.stream_exponentials(key, items, 4, k) for k in range(4)])
    >>> bool(jnp.allclose(4 * streams.min(0), races.smallest_exponentials(key, items), rtol=1e-6))
    True
    """
    own, counter = _counter(key, items)
    checks.index(stream, "stream", last=checks.count(num_streams, "num_streams") - 1)
    first = smallest_exponentials(key, items) / num_streams
    if num_streams == 1:
        return first
    owner = threefry.scale(*threefry.threefry2x32(own, counter, _OWNER), num_streams)[0]
    high, low = threefry.threefry2x32(stream_words(key, stream), counter, _EXCESS)
    owned = jnp.asarray(stream).astype(jnp.uint32) == owner
    return jnp.where(owned, first, first + exponentials_from_bits(high ^ low, low))


def _counter(key, items) -> tuple[threefry.Words, UInt32[Array, "*items"]]:
    checks.key(key)
    return words(key), jnp.asarray(items).astype(jnp.uint32)


def _normal(bits: UInt32[Array, ...]) -> Float[Array, ...]:
    """Normal quantile of 31 bits, the sign from the last one: both tails are equally fine."""
    lower = ((bits >> jnp.uint32(1)).astype(jnp.float32) + 0.5) * jnp.float32(
        2.0**-32
    )  # within (0, 1/2)
    x = 1 - 2 * lower
    w = -jnp.log(4 * lower * (1 - lower))  # of 1 - x^2, without its rounding
    centre, tail = jnp.polyval(_CENTRE, w - 2.5), jnp.polyval(_TAIL, jnp.sqrt(w) - 3)
    size = jnp.float32(np.sqrt(2)) * x * jnp.where(w < 5, centre, tail)
    return jnp.where(bits & jnp.uint32(1), -size, size)
