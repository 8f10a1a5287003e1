"""Values of log-probabilities and logits, looked at wherever they are known."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify
from jax.typing import ArrayLike

from gls_jax.checks.arrays import as_array, floats, known_values, on_device

__all__ = ["check_log_probs", "logits", "values"]

_NUMBERS_PER_STEP = 2**20  # log-probabilities that the check exponentiates at a time


def check_log_probs(log_probs: ArrayLike, name: str = "log_probs", *, atol: float = 1e-3) -> None:
    """Check log-probabilities: no NaN, nothing above 0, and sum 1 on the last axis.

    Every public function that takes log-probabilities makes this check itself where their values
    are known. They are not known under `jit`, `vmap` over them, or `grad`. There nothing is
    checked, unless you call this function inside: then it is a `checkify.check`. Wrap the
    transformed function with `jax.experimental.checkify.checkify`, and call `error.throw()`.

    Args:
        log_probs: `f[..., N]`, `-inf` where the probability is zero.
        name: of the array, in the error.
        atol: allowed error of the sum, a probability. The default allows the rounding of float32
            with 200,000 categories. The rounding of the array's own float type is allowed on top:
            `eps (1 + entropy)`, a few percent in bfloat16.

    Raises:
        ValueError: what is wrong, in which row, what the values look like, and what to do.

    >>> import jax, jax.numpy as jnp, gls_jax
    >>> from jax.experimental import checkify
    >>> gls_jax.check_log_probs(jnp.log(jnp.array([0.25, 0.75])))
    >>> gls_jax.check_log_probs(jnp.array([0.25, 0.75]), "log_q")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: log_q: expected log-probabilities of at most 0, got 0.75; ... take jnp.log
    >>> def match(log_p, log_q):
    ...     gls_jax.check_log_probs(log_p, "log_p")
    ...     return gls_jax.bounds.list_matching(log_p, log_q, 4)
    >>> error, _ = checkify.checkify(jax.jit(match))(
    ...     jnp.array([0.25, 0.75]), jnp.log(jnp.array([0.5, 0.5]))
    ... )
    >>> error.get().splitlines()[0]
    'log_p: expected log-probabilities of at most 0, got a positive one (`check` failed)'
    """
    array = floats(log_probs, name, integers=False)
    _check_shape(array, name)
    if not isinstance(log_probs, jax.core.Tracer):
        values(log_probs, name, atol=atol)
        return
    eps = float(jnp.finfo(log_probs.dtype).eps)
    probs = jnp.exp(array)
    entropy = -jnp.sum(probs * jnp.where(probs > 0, array, 0), axis=-1)
    error = jnp.abs(jnp.sum(probs, axis=-1) - 1)
    checkify.check(~jnp.isnan(array).any(), f"{name}: expected log-probabilities, got NaN")
    checkify.check(
        (array <= atol + eps).all(),
        f"{name}: expected log-probabilities of at most 0, got a positive one",
    )
    checkify.check(
        (error <= atol + eps * (1 + entropy)).all(),
        f"{name}: expected probabilities that sum to 1 (within {atol:g})",
    )


def _check_shape(array: jax.Array, name: str) -> None:
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(f"{name}: expected shape [..., N] with N >= 1, got {list(array.shape)}")


def values(log_probs: Any, name: str, *, atol: float = 1e-3) -> None:
    """Refuse rows `[..., N]` that are not log-probabilities, where their values are known.

    Call it with the user's own argument, before any `jnp` operation: inside `jit` these trace even
    constants.
    """
    known = known_values(log_probs)
    if known is None:
        return
    # Taken before bfloat16 becomes float32, in which NumPy is fast.
    eps = float(jnp.finfo(known.dtype).eps)
    num_categories = known.shape[-1]
    rows = known.reshape(-1, num_categories)
    rows_per_step = max(1, _NUMBERS_PER_STEP // num_categories)
    for start in range(0, len(rows), rows_per_step):
        chunk = rows[start : start + rows_per_step]
        chunk = chunk.astype(np.promote_types(chunk.dtype, np.float32), copy=False)
        with np.errstate(over="ignore"):
            totals = np.exp(chunk).sum(-1, dtype=np.float64)
        # Fast test first: a row with NaN, or with a value above 0, has no such sum either.
        is_suspect = ~(np.abs(totals - 1) <= atol)
        for row in np.flatnonzero(is_suspect):
            fault = _fault(chunk[row].astype(np.float64), atol, eps)
            if fault is not None:
                index = np.unravel_index(start + int(row), known.shape[:-1])
                where = f"[{', '.join(str(int(i)) for i in index)}]" if index else ""
                raise ValueError(f"{name}{where}: {fault}")


def _fault(row: np.ndarray, atol: float, eps: float) -> str | None:
    """What is wrong with a row, and what to do; None if rounding to precision `eps` explains it."""
    if np.isnan(row).any():
        return "expected log-probabilities, got NaN"
    highest = row.max()
    if highest > atol + eps:
        fault = f"expected log-probabilities of at most 0, got {highest:.6g}"
        if np.isinf(highest):
            return fault
        if row.min() >= 0 and abs(row.sum() - 1) <= 0.02:
            return f"{fault}; these look like probabilities: take jnp.log"
        return f"{fault}; these look like logits: take jax.nn.log_softmax"
    probs = np.exp(row)
    total = probs.sum()
    # Rounding moves log-probability x by up to eps |x| / 2: once when it is stored, and once more,
    # with its maximum and its logsumexp, where log_softmax itself computes in that type, which also
    # rounds the terms of the logsumexp.
    entropy = -np.sum(probs * np.maximum(row, -1e4))
    tolerance = atol + eps * (1 + entropy)
    if abs(total - 1) <= tolerance:
        return None
    fault = f"expected probabilities that sum to 1 (within {tolerance:.2g})"
    fault = f"{fault}, got a sum of {total:.6g}"
    if np.isinf(highest):
        return f"{fault}: every value is -inf"
    return (
        f"{fault}; logits, or a masked distribution? renormalise with jax.nn.log_softmax, "
        "which is log_p - logsumexp(log_p)"
    )


def logits(value: ArrayLike, name: str) -> jax.Array:
    """Logits `[..., N]` in their own float type.

    Where their values are known, those without a softmax are refused.
    """
    given = as_array(value, name, "logits, an array of floats")
    if not jnp.issubdtype(given.dtype, jnp.floating):
        raise ValueError(f"{name}: expected logits, an array of floats, got dtype {given.dtype}")
    array = on_device(given)
    _check_shape(array, name)
    known = known_values(given)
    if known is None or not known.size:
        return array
    with np.errstate(over="ignore"):  # numbers beyond the float type become inf
        rows = known.reshape(-1, known.shape[-1])
        rows = rows.astype(jnp.promote_types(array.dtype, jnp.float32), copy=False)
    if not (rows < np.inf).all():
        raise ValueError(f"{name}: expected logits, -inf where a token is masked, got NaN or inf")
    if not (rows > -np.inf).any(-1).all():
        raise ValueError(
            f"{name}: expected at least one finite logit per position, got nothing but -inf"
        )
    sums_to_one = abs(rows.sum(-1) - 1) < 1e-3
    if rows.shape[-1] > 1 and (rows >= 0).all() and sums_to_one.all():
        raise ValueError(
            f"{name}: expected logits, got what looks like probabilities: take jnp.log"
        )
    return array
