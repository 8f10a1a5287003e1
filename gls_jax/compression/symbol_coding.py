"""Encode and decode many symbols with a list code, by either search, in bounded memory."""

from __future__ import annotations

import dataclasses
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
from gls_jax.compression.inputs import check_density, check_keys, check_messages, check_rows
from gls_jax.typing import Numbers

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
        index: `i32[n]`; -1 where no candidate of the bin has a weight.
        candidate: `f32[n, D]`, NaN there.
    """

    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # not tuple.index
    candidate: Float[np.ndarray, "n D"]


def symbol_keys(key: PRNGKeyArray, count: int) -> Key[Array, " n"]:
    """Keys of symbols `0..count - 1`: their positions' keys."""
    checks.key(key)
    checks.index(count, "count", last=2**30)
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
        ValueError: rows of another length than `keys` or not finite, weights of another shape, no
            candidate with a weight, or ordered search for weights without a bound.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import compression
    >>> code = compression.ListCode(num_decoders=2, num_candidates=1000, num_bins=8)
    >>> keys = compression.symbol_keys(jax.random.key(0), 3)
    >>> rows = compression.Normal(
    ...     mean=jnp.array([[-1.0], [0.0], [2.0]]), variance=jnp.full((3, 1), 0.01)
    ... )
    >>> sent = compression.encode(code, keys, compression.gaussian_density, (), rows)
    >>> got = compression.decode(
    ...     code, keys, sent.message, 1, compression.gaussian_density, (), rows
    ... )
    >>> got.candidate.shape
    (3, 1)
    """
    check_rows(rows, check_keys(keys))
    check_density(code, density, shared, rows)
    choosing = dataclasses.replace(
        code, num_decoders=code.num_streams, num_bins=1, scheme="gls"
    )  # compiled once
    index = in_groups(
        partial(_choose, code=choosing, density=density), shared, (keys, rows), progress
    )
    if (index < 0).any():
        raise ValueError(
            f"log_weight: expected a positive weight for some candidate, got none at {np.argmin(index)}"
        )
    return Sent(index, in_groups(partial(_bins, num_bins=code.num_bins), (), (keys, index)))


def decode(
    code: ListCode,
    keys: Key[Array, " n"],
    message: Numbers,
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
        density: of ``p_{W|T}``; weights are computed for the members of the bin only (dense
            search).
        shared: what all symbols give `density`.
        rows: what each brings, a pytree of arrays with leading axis `n`.
        progress: called with `(symbols done, n)`.

    Raises:
        ValueError: as :func:`encode`; messages outside of `0..L - 1`, a decoder that does not
            exist.
    """
    count, message = check_keys(keys), check_messages(message, code.num_bins)
    check_rows(message, count, "message")
    check_rows(rows, count)
    check_density(code, density, shared, rows)
    stream, num_streams = (
        np.int32(code.stream(decoder)),
        1 if code.search == "ordered" else code.num_streams,
    )
    picking = dataclasses.replace(
        code, num_decoders=num_streams, scheme="gls"
    )  # compiled once for all that agree
    run = partial(_pick, code=picking, density=density)
    index, candidates = in_groups(run, (shared, stream), (keys, rows, message), progress)
    return Received(
        index, np.where(index[:, None] < 0, np.float32(np.nan), candidates)
    )  # here: debug_nans stops a program


@partial(jax.jit, static_argnames=("code", "density"))
def _choose(shared, arrays, count, *, code: ListCode, density: Density) -> Int[Array, " n"]:
    keys, rows = arrays
    if code.search == "ordered":
        return ordered.choose(code, keys, density, shared, rows, count)
    return over_lanes(lambda key, row: dense.choose(code, key, density, shared, row), arrays, count)


@partial(jax.jit, static_argnames="num_bins")
def _bins(_, arrays, count, *, num_bins: int) -> Int[Array, " n"]:
    return jax.vmap(lambda key, index: races.bins(key, index, num_bins))(*arrays)


@partial(jax.jit, static_argnames=("code", "density"))
def _pick(
    shared, arrays, count, *, code: ListCode, density: Density
) -> tuple[Int[Array, " n"], Float[Array, "n D"]]:
    (shared, stream), (keys, rows, message) = shared, arrays
    if code.search == "ordered":
        index = ordered.pick(code, keys, message, stream, density, shared, rows, count)
    else:
        one = lambda key, row, message: dense.pick(code, key, message, stream, density, shared, row)  # noqa: E731
        index = over_lanes(one, arrays, count)
    candidates = jax.vmap(lambda key, item: races.candidates(key, item, code.dimension))(
        keys, index
    )
    return index, candidates
