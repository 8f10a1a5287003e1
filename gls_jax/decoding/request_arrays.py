"""Arguments of B requests as arrays, checked: prompts, numbers per request, stop tokens, keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import checks, races
from gls_jax.typing import Numbers

__all__ = [
    "as_numpy",
    "keys",
    "max_new_tokens",
    "per_request",
    "prompts",
    "round_up",
    "stop_tokens",
]


def prompts(
    prompts: Numbers,
    prompt_lengths: Numbers | None,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Prompts `i32[B, P]` padded with 0 to a power of two, and their lengths `[B]`."""
    rows = _rows(prompts)
    if prompt_lengths is not None:
        sizes = [len(row) for row in rows]
        expected = f"{len(rows)} ints of at most {max(sizes)}"
        lengths = as_numpy(prompt_lengths, "prompt_lengths", expected)
        is_valid = lengths.shape == (len(rows),) and lengths.dtype.kind in "iu"
        if not is_valid or (lengths > sizes).any():
            raise ValueError(f"prompt_lengths: expected {expected}, got {lengths.tolist()}")
        # A negative length would cut from the end; like 0 it leaves nothing, and is refused below.
        rows = [row[: max(length, 0)] for row, length in zip(rows, lengths, strict=True)]
    lengths = np.array([len(row) for row in rows])
    tokens = np.zeros((len(rows), round_up(int(lengths.max()))), np.int32)
    for r, row in enumerate(rows):
        if not row.size:
            raise ValueError(
                f"prompts: expected at least one token for every request, got none for request {r}"
            )
        # Compared before the cast to int32, which would wrap large numbers.
        outside = row[(row < 0) | (row >= vocab_size)]
        if outside.size:
            raise ValueError(
                f"prompts: expected tokens within 0..{vocab_size - 1}, "
                f"got {outside[0]} in request {r}"
            )
        tokens[r, : len(row)] = row
    return tokens, lengths


def max_new_tokens(value: Numbers, batch: int) -> np.ndarray:
    """The most new tokens of each request, `[B]`."""
    expected = f"an int of at least 1, or {batch} of them"
    numbers = as_numpy(value, "max_new_tokens", expected)
    if numbers.dtype.kind not in "iu" or numbers.shape not in ((), (batch,)) or (numbers < 1).any():
        raise ValueError(f"max_new_tokens: expected {expected}, got {value!r}")
    return np.broadcast_to(numbers, (batch,))


def per_request(value: Numbers | None, name: str, batch: int) -> jax.Array | None:
    """One number per request, `f32[B]`, from one or B numbers; None stays None."""
    if value is None:
        return None
    # With NumPy: JAX would compile an operation outside `jit` for every shape.
    numbers = np.asarray(value, np.float32)
    if numbers.shape not in ((), (batch,)):
        raise ValueError(
            f"{name}: expected one number, or one for each of {batch} requests, "
            f"got shape {list(numbers.shape)}"
        )
    return jnp.asarray(np.broadcast_to(numbers, (batch,)))


def stop_tokens(value: Numbers | None, batch: int, vocab_size: int) -> jax.Array:
    """Stop tokens of each request, `i32[B, M]`, padded with -1 to a power of two."""
    if value is None:
        value = ()
    elif hasattr(value, "shape"):
        # Entries of an array of JAX are arrays themselves, which would look like sequences.
        value = np.asarray(value).tolist()
    entries: list[Any] = list(value) if isinstance(value, Iterable) else [value]
    are_lists = [isinstance(entry, Iterable) for entry in entries]
    if not any(are_lists):
        # The same tokens for all requests.
        entries = [entries] * batch
    elif len(entries) != batch or not all(are_lists):
        raise ValueError(
            f"stop_tokens: expected token ids, or {batch} sequences of them, "
            f"got {len(entries)} entries"
        )
    rows = [list(row) for row in entries]
    # Few widths, so that another number of stop tokens seldom compiles anything.
    stops = np.full((batch, round_up(max(map(len, rows)), least=4)), -1, np.int32)
    for r, row in enumerate(rows):
        for token in row:
            if checks.index(token, "stop_tokens") >= vocab_size:
                raise ValueError(
                    f"stop_tokens: expected tokens within 0..{vocab_size - 1}, got {token}"
                )
        stops[r, : len(row)] = row
    return jnp.asarray(stops)


def keys(key: PRNGKeyArray, batch: int) -> jax.Array:
    """One key per request, `[B]`: B keys as they are, or one key folded with each row's number."""
    is_list = getattr(key, "ndim", 0) == 1
    if is_list and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if len(key) != batch:
            raise ValueError(
                f"key: expected one key, or {batch} of them for as many requests, got {len(key)}"
            )
        checks.key(key[0])
        return key
    checks.key(key)
    return _fold_in_each(key, np.arange(batch))


def round_up(size: int, least: int = 16) -> int:
    """The next power of two, at least `least`: few sizes, so that few programs are compiled."""
    return max(least, 1 << (size - 1).bit_length())


def as_numpy(value: Numbers, name: str, expected: str) -> np.ndarray:
    """`value` as an array of NumPy, or a `ValueError` that says what was expected."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected {expected}, got {value!r}") from None


def _rows(prompts: Numbers) -> list[np.ndarray]:
    try:
        # As one array first: reading the rows of a `jax.Array` one by one is slow.
        whole: Any = np.asarray(prompts) if hasattr(prompts, "shape") else prompts
        rows: list[np.ndarray] = [np.asarray(row) for row in whole]
    except (TypeError, ValueError):
        raise ValueError(
            f"prompts: expected token ids of B requests, got {type(prompts).__name__}"
        ) from None
    # An empty row has no integer type.
    are_ids = [row.ndim == 1 and (not row.size or row.dtype.kind in "iu") for row in rows]
    if not rows or not all(are_ids):
        raise ValueError(
            "prompts: expected integers of shape [B, P] or B sequences of them, got something else"
        )
    return rows


@jax.jit
def _fold_in_each(key, rows):
    return races.keys.fold_in_each(key, rows)
