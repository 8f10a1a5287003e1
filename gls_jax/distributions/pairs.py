"""Pairs of draft and target distributions: random ones, and those of a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import checks, races
from gls_jax.runs.files import read_arrays

__all__ = ["Pairs", "load", "random"]

_FAMILIES = ("dirichlet", "gaussian")


class Pairs(NamedTuple):
    """`M` pairs of distributions on `N` categories.

    Attributes:
        log_p: draft log-probabilities `[M, N]`.
        log_q: target log-probabilities `[M, N]`.
    """

    log_p: np.ndarray
    log_q: np.ndarray


def random(
    key: PRNGKeyArray,
    num_pairs: int,
    num_categories: int,
    *,
    family: str = "dirichlet",
    scale: float = 1.0,
) -> Pairs:
    """Random pairs, `p` and `q` independent.

    Args:
        key: one typed key.
        num_pairs: `M`.
        num_categories: `N`.
        family: "dirichlet" (concentration `scale` on every category) or "gaussian" (softmax of
            normals of standard deviation `scale`).
        scale: positive.

    Returns:
        :class:`Pairs` of `f32[M, N]`.

    Raises:
        ValueError: an unknown family, or a size or scale that is not positive.

    >>> import jax
    >>> from gls_jax.distributions import pairs
    >>> pairs.random(jax.random.key(0), 3, 10).log_p.shape
    (3, 10)
    """
    checks.key(key)
    num_pairs = checks.count(num_pairs, "num_pairs")
    num_categories = checks.count(num_categories, "num_categories")
    # 2^28 floats of both distributions take 2 GiB.
    if num_pairs * num_categories > 2**28:
        raise ValueError(
            "num_pairs x num_categories: expected at most 2^28 numbers, "
            f"got {num_pairs * num_categories}"
        )
    if not 1e-3 <= scale <= 1e6:
        raise ValueError(f"scale: expected a number within 1e-3..1e6, got {scale}")
    checks.one_of(family, _FAMILIES, "family")
    shape = (2, num_pairs, num_categories)
    # The same pairs also where `jax_threefry_partitionable` is switched off.
    with races.keys.partitionable_bits():
        if family == "dirichlet":
            # Gamma variates, normalised, are Dirichlet.
            logits = jax.random.loggamma(key, scale, shape, jnp.float32)
        else:
            logits = scale * jax.random.normal(key, shape, jnp.float32)
    log_p, log_q = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    return Pairs(log_p, log_q)


def load(path: str | Path) -> Pairs:
    """The pairs of an `.npz` file with arrays `log_p` and `log_q`, `[M, N]` (or `[N]`) each.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an npz file, arrays missing, of different shape, or not log-probabilities.
    """
    path = Path(path)
    arrays = read_arrays(path, "an .npz file with arrays log_p and log_q")
    if not {"log_p", "log_q"} <= arrays.keys():
        names = ", ".join(arrays) or "none"
        raise ValueError(f"{path}: expected arrays log_p and log_q of shape [M, N], got {names}")
    log_p = np.atleast_2d(np.asarray(checks.floats(arrays["log_p"], "log_p")))
    log_q = np.atleast_2d(np.asarray(checks.floats(arrays["log_q"], "log_q")))
    if log_p.shape != log_q.shape or log_p.ndim != 2 or not log_p.size:
        shapes = f"{list(log_p.shape)} and {list(log_q.shape)}"
        raise ValueError(f"{path}: expected log_p and log_q of one shape [M, N], got {shapes}")
    checks.check_log_probs(log_p, f"{path}: log_p")
    checks.check_log_probs(log_q, f"{path}: log_q")
    return Pairs(log_p, log_q)
