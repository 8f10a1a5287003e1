"""Encode and decode many symbols with a list code, by either search, in bounded memory."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.compression import dense, ordered
from gls_jax.compression.code import Density, ListCode
from gls_jax.compression.groups import Progress, in_groups, over_lanes

__all__ = ["Received", "Sent", "decode", "encode", "symbol_keys"]


class Sent(NamedTuple):
    """What the encoder chose.

    Attributes:
        index: `i32[n]`, of the candidate.
        message: `i32[n]`, its bin: all that is sent.
    """

    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # not tuple.index
    message: Int[np.ndarray, " n"]


class Received(NamedTuple):
    """What a decoder chose.

    Attributes:
        index: `i32[n]`; -1 where no candidate has the bin, which no encoder sends.
        candidate: `f32[n, D]`.
    """

    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # not tuple.index
    candidate: Float[np.ndarray, "n D"]


def symbol_keys(key: PRNGKeyArray, count: int) -> Key[Array, " n"]:
    """Keys of symbols `0..count - 1`: their positions' keys."""
    checks.key(key)
    return jax.vmap(partial(races.position_key, key))(jnp.arange(count))


def encode(
    code: ListCode,
    keys: Key[Array, " n"],
    density: Density,
    shared: Any,
    rows: Any,
    *,
    progress: Progress | None = None,
) -> Sent:
    """The encoder's indices and messages.

    Args:
        code: what both sides agree on.
        keys: one a symbol.
        density: of ``p_{W|A}`` over the candidates' standard normal.
        shared: what all symbols give `density`.
        rows: what each brings, a pytree of arrays with leading axis `n`.
        progress: called with `(symbols done, n)`.

    Raises:
        ValueError: rows of another length than `keys`, or ordered search for weights without a bound.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import compression
    >>> code = compression.ListCode(num_decoders=2, num_candidates=1000, num_bins=8)
    >>> keys = compression.symbol_keys(jax.random.key(0), 3)
    >>> rows = compression.Normal(mean=jnp.array([[-1.0], [0.0], [2.0]]), variance=jnp.full((3, 1), 0.01))
    >>> sent = compression.encode(code, keys, compression.gaussian_density, (), rows)
    >>> got = compression.decode(code, keys, sent.message, 1, compression.gaussian_density, (), rows)
    >>> got.candidate.shape
    (3, 1)
    """
    return Sent(*in_groups(partial(_encode, **_checked(code, density)), shared, (keys, rows), progress))


def decode(
    code: ListCode,
    keys: Key[Array, " n"],
    message,
    decoder: int,
    density: Density,
    shared: Any,
    rows: Any,
    *,
    progress: Progress | None = None,
) -> Received:
    """Indices of one decoder, and their candidates.

    Args:
        code: what both sides agree on.
        keys: one a symbol, the encoder's.
        message: `i32[n]`.
        decoder: which, `0..K - 1`.
        density: of ``p_{W|T}``; weights are computed for the members of the bin only (dense search).
        shared: what all symbols give `density`.
        rows: what each brings, a pytree of arrays with leading axis `n`.
        progress: called with `(symbols done, n)`.
    """
    run, stream = partial(_decode, **_checked(code, density)), np.int32(code.stream(decoder))
    rows = (keys, rows, np.asarray(message, np.int32))
    return Received(*in_groups(run, (shared, stream), rows, progress))


@partial(jax.jit, static_argnames=("code", "density"))
def _encode(shared, arrays, count, *, code: ListCode, density: Density):
    keys, rows = arrays
    if code.search == "ordered":
        index = ordered.choose(code, keys, density, shared, rows, count)
    else:
        index = over_lanes(lambda key, row: dense.choose(code, key, density, shared, row), (keys, rows), count)
    bins = jax.vmap(lambda key, item: races.bins(key, item, code.num_bins))
    return index, bins(keys, index)


@partial(jax.jit, static_argnames=("code", "density"))
def _decode(shared, arrays, count, *, code: ListCode, density: Density):
    (shared, stream), (keys, rows, message) = shared, arrays
    if code.search == "ordered":
        index = ordered.pick(code, keys, message, stream, density, shared, rows, count)
    else:
        one = lambda key, row, message: dense.pick(code, key, message, stream, density, shared, row)  # noqa: E731
        index = over_lanes(one, arrays, count)
    candidates = jax.vmap(lambda key, item: races.candidates(key, item, code.dimension))
    return index, candidates(keys, index)


def _checked(code: ListCode, density: Density) -> dict:
    if code.search == "ordered" and density.log_bound is None:
        raise ValueError(
            "search: expected 'dense' for weights without a known bound (Density.log_bound), got 'ordered'"
        )
    return {"code": code, "density": density}
