"""Encode and decode many symbols with a list code, by either search, in bounded memory."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from gls_jax import checks, races, work_shape
from gls_jax.compression import dense_search, ordered_search
from gls_jax.compression.densities import Density
from gls_jax.compression.list_code import MAX_SIZE, ListCode
from gls_jax.compression.symbol_groups import in_groups, over_lanes
from gls_jax.compression.symbol_validation import (
    check_density,
    check_keys,
    check_messages,
    check_rows,
)
from gls_jax.typing import Numbers, Progress
from gls_jax.work_shape import WorkShape

__all__ = ["Received", "Sent", "decode", "encode", "keys_of_seed", "symbol_keys"]


class Sent(NamedTuple):
    """The encoder's choice for each symbol.

    Attributes:
        index: `i32[n]`, of the candidate.
        message: `i32[n]`, the candidate's bin. Only this is sent.
    """

    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # not tuple.index
    message: Int[np.ndarray, " n"]


class Received(NamedTuple):
    """A decoder's choice for each symbol.

    Attributes:
        index: `i32[n]`, of the candidate; -1 if no candidate of the bin has a positive weight.
        candidate: `f32[n, D]`, its value; NaN if there is none.
    """

    index: Int[np.ndarray, " n"]  # type: ignore[assignment]  # not tuple.index
    candidate: Float[np.ndarray, "n D"]


def symbol_keys(key: PRNGKeyArray, count: int) -> Key[Array, " n"]:
    """Position keys of symbols `0..count - 1`."""
    checks.key(key)
    checks.index(count, "count", last=MAX_SIZE)
    return jax.vmap(partial(races.position_key, key))(jnp.arange(count))


def keys_of_seed(seed: int, count: int) -> Key[Array, " n"]:
    """:func:`symbol_keys` of a blob with that seed."""
    return symbol_keys(races.new_key(seed), count)


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
        keys: one per symbol.
        density: ``p_{W|A}``, relative to the candidates' standard normal.
        shared: passed to `density` for every symbol.
        rows: one row per symbol for `density`, a pytree of arrays with leading axis `n`.
        progress: called with `(symbols done, n)`.

    Raises:
        ValueError: rows of another length than `keys` or not finite, weights of another shape, no
            candidate with a positive weight, or ordered search for weights without a bound.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import compression
    >>> code = compression.ListCode(num_decoders=2, num_candidates=1000, num_bins=8)
    >>> keys = compression.symbol_keys(jax.random.key(0), 3)
    >>> rows = compression.Normal(
    ...     mean=jnp.array([[-1.0], [0.0], [2.0]]), variance=jnp.full((3, 1), 0.01)
    ... )
    >>> sent = compression.encode(code, keys, compression.gaussian_density, (), rows)
    >>> received = compression.decode(
    ...     code, keys, sent.message, 1, compression.gaussian_density, (), rows
    ... )
    >>> received.candidate.shape
    (3, 1)
    """
    check_rows(rows, check_keys(keys))
    check_density(code, density, shared, rows)
    # The encoder's program depends neither on the bins nor on the scheme's name: codes that differ
    # in these share one compilation.
    encoder_code = dataclasses.replace(
        code, num_decoders=code.num_streams, num_bins=1, scheme="gls"
    )
    run = partial(_encode_indices, code=encoder_code, density=density, shape=work_shape.current())
    index = in_groups(run, shared, (keys, rows), progress)
    if (index < 0).any():
        raise ValueError(
            "log_weight: expected a positive weight for some candidate, "
            f"got none at {np.argmin(index)}"
        )
    # The bins do not take part in the search, so they are looked up afterwards.
    message = in_groups(partial(_symbol_bins, num_bins=code.num_bins), (), (keys, index))
    return Sent(index=index, message=message)


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
    """The indices of one decoder, and their candidates.

    Args:
        code: what both sides agree on.
        keys: the encoder's, one per symbol.
        message: `i32[n]`.
        decoder: `0..K - 1`.
        density: ``p_{W|T}``. Dense search computes weights for the members of the bin only.
        shared: passed to `density` for every symbol.
        rows: one row per symbol for `density`, a pytree of arrays with leading axis `n`.
        progress: called with `(symbols done, n)`.

    Raises:
        ValueError: as :func:`encode`; messages outside `0..L - 1`, or no such decoder.
    """
    count = check_keys(keys)
    message = check_messages(message, code.num_bins)
    check_rows(message, count, "message")
    check_rows(rows, count)
    check_density(code, density, shared, rows)
    stream = np.int32(code.stream(decoder))
    # One compilation for all codes whose programs agree: the noise of dense search depends on the
    # number of streams, a stream of ordered search does not.
    num_streams = 1 if code.search == "ordered" else code.num_streams
    decoder_code = dataclasses.replace(code, num_decoders=num_streams, scheme="gls")
    run = partial(_decode_indices, code=decoder_code, density=density, shape=work_shape.current())
    index, candidates = in_groups(run, (shared, stream), (keys, rows, message), progress)
    # NaN is put in by NumPy: in the program jax_debug_nans would raise an error.
    candidates = np.where(index[:, None] < 0, np.float32(np.nan), candidates)
    return Received(index=index, candidate=candidates)


@partial(jax.jit, static_argnames=("code", "density", "shape"))
def _encode_indices(
    shared, arrays, count, *, code: ListCode, density: Density, shape: WorkShape
) -> Int[Array, " n"]:
    del shape  # part of the compilation key: it is read while the program is traced
    keys, rows = arrays
    if code.search == "ordered":
        return ordered_search.encode_indices(code, keys, density, shared, rows, count)

    def encode_index(key, row):
        return dense_search.encode_index(code, key, density, shared, row)

    return over_lanes(encode_index, arrays, count)


@partial(jax.jit, static_argnames="num_bins")
def _symbol_bins(_, arrays, count, *, num_bins: int) -> Int[Array, " n"]:
    return jax.vmap(lambda key, index: races.bins(key, index, num_bins))(*arrays)


@partial(jax.jit, static_argnames=("code", "density", "shape"))
def _decode_indices(
    shared, arrays, count, *, code: ListCode, density: Density, shape: WorkShape
) -> tuple[Int[Array, " n"], Float[Array, "n D"]]:
    del shape
    keys, rows, message = arrays
    shared, stream = shared
    if code.search == "ordered":
        index = ordered_search.decode_indices(
            code, keys, message, stream, density, shared, rows, count
        )
    else:

        def decode_index(key, row, message):
            return dense_search.decode_index(code, key, message, stream, density, shared, row)

        index = over_lanes(decode_index, arrays, count)
    draw = jax.vmap(lambda key, index: races.candidates(key, index, code.dimension))
    return index, draw(keys, index)
