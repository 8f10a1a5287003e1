"""Shapes of one coupling problem: draft and target log-probabilities over the same categories."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax.checks import log_probabilities
from gls_jax.checks.arrays import floats, known_values

__all__ = [
    "distribution",
    "distribution_rows",
    "draft_distributions",
    "host_probabilities",
    "list_problem",
    "problem",
    "same_categories",
    "within_unit",
]


def distribution(value: Any, name: str) -> jax.Array:
    """One distribution, `f[N]`; its values are not looked at."""
    array = floats(value, name, integers=False)
    if array.ndim != 1 or array.shape[0] < 1:
        got = f"{list(array.shape)}{_batch_hint(array, 1)}"
        raise ValueError(f"{name}: expected shape [N] with N >= 1, got {got}")
    return array


def draft_distributions(
    value: Any,
    num_drafts: int,
    *,
    diverse: bool = True,
    owner: str = "",
) -> jax.Array:
    """The draft distribution `f[N]`, or where `diverse` allows it one for each draft, `f[K, N]`.

    Values are not looked at.
    """
    array = floats(value, "log_p", integers=False)
    got = f"got shape {list(array.shape)}"
    if array.ndim == 2 and not diverse:
        raise ValueError(
            f"log_p: {owner} draws its list from one distribution, expected shape [N], {got}; "
            "lift a batch of problems with jax.vmap"
        )
    if array.ndim not in (1, 2) or array.shape[-1] < 1:
        raise ValueError(
            f"log_p: expected shape [N] or [K, N] with N >= 1, {got}{_batch_hint(array, 1)}"
        )
    if array.ndim == 2 and array.shape[0] != num_drafts:
        raise ValueError(
            f"log_p: expected {num_drafts} rows (num_drafts), {got}; one distribution for all "
            "drafts is [N], and a batch of problems is lifted with jax.vmap"
        )
    return array


def distribution_rows(value: Any, count: int, name: str) -> jax.Array:
    """`count` distributions, `f[count, N]`; values are not looked at."""
    array = floats(value, name, integers=False)
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] < 1:
        raise ValueError(
            f"{name}: expected shape [{count}, N] with N >= 1, "
            f"got {list(array.shape)}{_batch_hint(array, 2)}"
        )
    return array


def problem(log_p: Any, log_q: Any) -> tuple[jax.Array, jax.Array]:
    """The log-probabilities of one problem, `f[N]` each, in their common float type."""
    p = distribution(log_p, "log_p")
    return _checked_values(log_p, log_q, p, distribution(log_q, "log_q"))


def list_problem(
    log_p: Any,
    log_q: Any,
    num_drafts: int,
    *,
    diverse: bool = True,
    owner: str = "",
) -> tuple[jax.Array, jax.Array]:
    """:func:`problem` of a list: where `diverse` allows it, `log_p` may be `f[K, N]`."""
    p = draft_distributions(log_p, num_drafts, diverse=diverse, owner=owner)
    return _checked_values(log_p, log_q, p, distribution(log_q, "log_q"))


def _checked_values(given_log_p, given_log_q, log_p: jax.Array, log_q: jax.Array):
    """The arrays in their common type, after a look at the values as they were given."""
    log_p, log_q = same_categories(log_p, log_q)
    log_probabilities.values(given_log_p, "log_p")
    log_probabilities.values(given_log_q, "log_q")
    return log_p, log_q


def same_categories(log_p: jax.Array, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both distributions over one set of categories, in their common float type."""
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(
            "log_p and log_q: expected the same number of categories, "
            f"got {log_p.shape[-1]} and {log_q.shape[-1]}"
        )
    # Explicitly, also under strict promotion.
    dtype = jnp.promote_types(log_p.dtype, log_q.dtype)
    return log_p.astype(dtype), log_q.astype(dtype)


def within_unit(value: Any, name: str, *, atol: float = 1e-3) -> None:
    """Refuse values outside [0, 1], where values are known."""
    known = known_values(value)
    if known is None:
        return
    is_outside = ~((known >= -atol) & (known <= 1 + atol))  # NaN too
    if is_outside.any():
        hint = "; these look like log-probabilities: take jnp.exp" if (known <= 0).all() else ""
        raise ValueError(f"{name}: expected probabilities, got {known[is_outside][0]:.6g}{hint}")


def host_probabilities(value: Any, name: str) -> np.ndarray:
    """Probabilities `f64[..., N]` as a NumPy array, for functions that run on the host.

    Each row must sum to 1, up to the rounding of the array's own float type.
    """
    # The rounding of the user's own type is allowed.
    dtype = value.dtype if hasattr(value, "dtype") else floats(value, name).dtype
    atol = 1e-3 + float(jnp.finfo(jnp.promote_types(dtype, jnp.bfloat16)).eps)
    probs = np.asarray(value, np.float64)
    within_unit(probs, name, atol=atol)
    totals = probs.sum(-1)
    is_wrong = np.abs(totals - 1) > atol
    if is_wrong.any():
        raise ValueError(
            f"{name}: expected probabilities that sum to 1 (within {atol:.2g}), "
            f"got a sum of {totals[is_wrong][0]:.6g}"
        )
    return probs


def _batch_hint(array: jax.Array, max_axes: int) -> str:
    return "; lift a batch of problems with jax.vmap" if array.ndim > max_axes else ""
