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
    """One law, `f[N]`; its values are not looked at."""
    array = floats(value, name, integers=False)
    if array.ndim == 1 and array.shape[0] >= 1:
        return array
    batch = "; lift a batch of problems with jax.vmap" if array.ndim > 1 else ""
    raise ValueError(f"{name}: expected shape [N] with N >= 1, got {list(array.shape)}{batch}")


def draft_distributions(
    value: Any, num_drafts: int, *, diverse: bool = True, owner: str = ""
) -> jax.Array:
    """The drafter's law `f[N]`, or where `diverse` allows it one law a draft, `f[K, N]`; values are
    not looked at.
    """
    array = floats(value, "log_p", integers=False)
    got = f"got shape {list(array.shape)}"
    if array.ndim == 2 and not diverse:
        raise ValueError(
            f"log_p: {owner} draws its list from one law, expected shape [N], {got}; "
            f"lift a batch of problems with jax.vmap"
        )
    if array.ndim not in (1, 2) or array.shape[-1] < 1:
        batch = "; lift a batch of problems with jax.vmap" if array.ndim > 1 else ""
        raise ValueError(f"log_p: expected shape [N] or [K, N] with N >= 1, {got}{batch}")
    if array.ndim == 2 and array.shape[0] != num_drafts:
        raise ValueError(
            f"log_p: expected {num_drafts} rows (num_drafts), {got}; "
            f"one law for all drafts is [N], and a batch of problems is lifted with jax.vmap"
        )
    return array


def distribution_rows(value: Any, count: int, name: str) -> jax.Array:
    """`count` laws, `f[count, N]`; values are not looked at."""
    array = floats(value, name, integers=False)
    if array.ndim != 2 or array.shape[0] != count or array.shape[1] < 1:
        batch = "; lift a batch of problems with jax.vmap" if array.ndim > 2 else ""
        raise ValueError(
            f"{name}: expected shape [{count}, N] with N >= 1, got {list(array.shape)}{batch}"
        )
    return array


def problem(log_p: Any, log_q: Any) -> tuple[jax.Array, jax.Array]:
    """The log-probabilities of one problem, `f[N]` each, in their common float type."""
    both = same_categories(distribution(log_p, "log_p"), distribution(log_q, "log_q"))
    log_probabilities.values(log_p, "log_p")
    log_probabilities.values(log_q, "log_q")
    return both


def list_problem(
    log_p: Any, log_q: Any, num_drafts: int, *, diverse: bool = True, owner: str = ""
) -> tuple[jax.Array, jax.Array]:
    """:func:`problem` of a list: where `diverse` allows it, `log_p` may be `f[K, N]`."""
    both = same_categories(
        draft_distributions(log_p, num_drafts, diverse=diverse, owner=owner),
        distribution(log_q, "log_q"),
    )
    log_probabilities.values(log_p, "log_p")
    log_probabilities.values(log_q, "log_q")
    return both


def same_categories(log_p: jax.Array, log_q: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both laws over one set of items, in their common float type."""
    if log_p.shape[-1] != log_q.shape[-1]:
        raise ValueError(
            f"log_p and log_q: expected the same number of items, got {log_p.shape[-1]} and {log_q.shape[-1]}"
        )
    dtype = jnp.promote_types(log_p.dtype, log_q.dtype)
    return log_p.astype(dtype), log_q.astype(dtype)


def within_unit(value: Any, name: str, *, atol: float = 1e-3) -> None:
    """Refuse values outside [0, 1], where values are known."""
    known = known_values(value)
    if known is None:
        return
    outside = ~((known >= -atol) & (known <= 1 + atol))  # NaN too
    if outside.any():
        hint = "; these look like log-probabilities: take jnp.exp" if (known <= 0).all() else ""
        raise ValueError(f"{name}: expected probabilities, got {known[outside][0]:.6g}{hint}")


def host_probabilities(value: Any, name: str) -> np.ndarray:
    """Probabilities `f64[..., N]` as a NumPy array, for functions that run on the host; each row
    must sum to 1.
    """
    kind = floats(value, name).dtype if not hasattr(value, "dtype") else value.dtype
    atol = 1e-3 + float(jnp.finfo(jnp.promote_types(kind, jnp.bfloat16)).eps)
    rows = np.asarray(value, np.float64)
    within_unit(rows, name, atol=atol)
    totals = rows.sum(-1)
    if (wrong := np.abs(totals - 1) > atol).any():
        raise ValueError(
            f"{name}: expected probabilities that sum to 1 (within {atol:.2g}), got a sum of {totals[wrong][0]:.6g}"
        )
    return rows
