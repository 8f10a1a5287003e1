"""Sampling parameters: how a model's logits become the law that is sampled."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["check_sampling", "log_probs"]


def check_sampling(temperature: float, top_k: int | None) -> None:
    """Raise `ValueError` for a temperature or top-k that gives no law."""
    if not (temperature == 0 or 1e-6 <= temperature < float("inf")):
        raise ValueError(f"temperature: expected 0 or a finite number of at least 1e-6, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1 (None keeps all), got {top_k}")


def log_probs(logits, *, temperature: float = 1.0, top_k: int | None = None) -> Float[Array, "*b V"]:
    """Log-probabilities after temperature and top-k, in float32.

    Args:
        logits: `[..., V]`, any float type; cast to float32 before anything else.
        temperature: positive, or 0 for greedy (all mass on the first largest logit).
        top_k: keep the `k` largest logits, and what ties with the smallest of them; None keeps all.

    Returns:
        `f32[..., V]`, normalised, `-inf` where removed.

    Raises:
        ValueError: a temperature that is neither 0 nor a finite number of at least 1e-6, or `top_k < 1`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> jnp.exp(decoding.log_probs(jnp.log(jnp.array([1.0, 2.0, 6.0])), top_k=2)).round(2).tolist()
    [0.0, 0.25, 0.75]
    """
    check_sampling(temperature, top_k)
    logits = jnp.asarray(logits).astype(jnp.float32)
    if temperature == 0:
        first = jnp.argmax(logits, axis=-1)[..., None]
        return jnp.where(jnp.arange(logits.shape[-1]) == first, 0.0, -jnp.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return jax.nn.log_softmax(logits / temperature, axis=-1)
