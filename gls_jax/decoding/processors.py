"""Sampling parameters: how a model's logits become the law that is sampled.

In the order of `transformers`: repetition penalty, temperature, top-k, top-p, min-p. Each keeps all
tokens that tie with the last one kept, so that the law does not depend on the order of the
vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gls_jax.typing import Numbers

__all__ = ["check_sampling", "log_probs"]


def check_sampling(
    temperature: Numbers = 1.0,
    top_k: int | None = None,
    top_p: Numbers | None = None,
    min_p: Numbers | None = None,
    repetition_penalty: Numbers | None = None,
) -> None:
    """Raise `ValueError` for sampling parameters that give no law; traced values are not looked at."""
    _check(
        temperature,
        "temperature",
        "0 or a finite number of at least 1e-6",
        lambda t: (t == 0) | ((t >= 1e-6) & (t < 1e30)),
    )
    if top_k is not None and (
        isinstance(top_k, bool) or not isinstance(top_k, int | np.integer) or top_k < 1
    ):
        raise ValueError(f"top_k: expected an int of at least 1 (None keeps all), got {top_k!r}")
    _check(top_p, "top_p", "a number within (0, 1] (None keeps all)", lambda p: (p > 0) & (p <= 1))
    _check(min_p, "min_p", "a number within [0, 1] (None keeps all)", lambda p: (p >= 0) & (p <= 1))
    _check(
        repetition_penalty,
        "repetition_penalty",
        "a number within [1e-3, 1e3] (None for none)",
        lambda p: (p >= 1e-3) & (p <= 1e3),
    )


def log_probs(
    logits: Numbers,
    *,
    temperature: Numbers = 1.0,
    top_k: int | None = None,
    top_p: Numbers | None = None,
    min_p: Numbers | None = None,
    repetition_penalty: Numbers | None = None,
    seen: Bool[Array, "*b V"] | None = None,
) -> Float[Array, "*b V"]:
    """Log-probabilities under the sampling parameters, in float32.

    Args:
        logits: `[..., V]`, any float type; cast to float32 before anything else.
        temperature: positive, or 0 for greedy (all mass on the first largest logit); all but
            `top_k` are numbers, or arrays that broadcast to `[...]`.
        top_k: keep the `k` largest logits, static; None keeps all.
        top_p: keep the likeliest tokens up to a mass of at least `top_p`; None keeps all.
        min_p: keep tokens of at least `min_p` times the largest probability; None keeps all.
        repetition_penalty: divides positive logits of `seen` tokens and multiplies negative ones;
            None for none.
        seen: `bool[..., V]`, the tokens of the context; needed with a penalty.

    Returns:
        `f32[..., V]`, normalised, `-inf` where removed. Logits with NaN or `+inf`, or without any
        finite one, give NaN.

    Raises:
        ValueError: a temperature that is neither 0 nor a finite number of at least 1e-6, or another
            parameter out of its range.

    >>> import jax.numpy as jnp
    >>> from gls_jax import decoding
    >>> logits = jnp.log(jnp.array([1.0, 2.0, 6.0]))
    >>> jnp.exp(decoding.log_probs(logits, top_k=2)).round(2).tolist()
    [0.0, 0.25, 0.75]
    >>> jnp.exp(decoding.log_probs(logits, top_p=0.6)).round(2).tolist()
    [0.0, 0.0, 1.0]
    """
    check_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    logits = jnp.asarray(logits).astype(jnp.float32)
    if repetition_penalty is not None:
        if seen is None:
            raise ValueError(
                "seen: expected the tokens of the context with a repetition penalty, got None"
            )
        penalty = _column(repetition_penalty)
        logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
    greedy = _column(temperature) == 0
    scaled = logits - jnp.max(
        logits, axis=-1, keepdims=True
    )  # first: a quotient of large logits would overflow
    scaled = scaled / jnp.where(greedy, 1, _column(temperature))
    largest = None
    if top_k is not None and top_k < logits.shape[-1]:
        # XLA sorts everything if `[-1:]` can be merged into the top-k.
        largest = jax.lax.optimization_barrier(jax.lax.top_k(scaled, top_k)[0])
        scaled = jnp.where(scaled < largest[..., -1:], -jnp.inf, scaled)
    if top_p is not None:
        scaled = _nucleus(scaled, largest, _column(top_p))
    if min_p is not None:
        least = jnp.max(scaled, axis=-1, keepdims=True) + jnp.log(_column(min_p))
        scaled = jnp.where(scaled < least, -jnp.inf, scaled)
    law = jax.nn.log_softmax(scaled, axis=-1)
    if not isinstance(temperature, jax.core.Tracer) and not np.any(np.asarray(temperature) == 0):
        return law
    first = jnp.argmax(logits, axis=-1)[..., None]
    best = jnp.where(jnp.arange(logits.shape[-1]) == first, 0.0, -jnp.inf)
    return jnp.where(greedy & ~jnp.isnan(law), best, law)


def _nucleus(scaled, largest, mass):
    """Keep the smallest set `{scaled >= x}` that has at least `mass`.

    Where top-k has sorted the candidates a cumulative sum finds `x`; else bisection on the bits of
    the logits, turned so that they are in the order of the values: 32 passes, far less than a sort
    on the CPU.
    """
    total = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
    if largest is not None:
        before = jnp.cumsum(jnp.exp(largest - total), axis=-1) < mass
        last = jnp.minimum(jnp.sum(before, axis=-1, keepdims=True), largest.shape[-1] - 1)
        return jnp.where(scaled < jnp.take_along_axis(largest, last, axis=-1), -jnp.inf, scaled)
    # Of the logits themselves: a difference is not the same number in the loop and behind it, for
    # XLA computes it twice, once with a fused multiply-add.
    bits = jax.lax.bitcast_convert_type(jnp.where(scaled == 0, 0, scaled), jnp.uint32)  # -0 is 0
    keys = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    chance = jnp.exp(scaled - total)

    def halve(_, bounds):
        low, high = bounds  # {keys >= low} has the mass, {keys >= high} has not
        middle = low + (high - low) // 2
        enough = jnp.sum(jnp.where(keys >= middle, chance, 0), axis=-1, keepdims=True) >= mass
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    ends = jnp.zeros_like(keys[..., :1]), jnp.max(keys, axis=-1, keepdims=True) + 1
    least, _ = jax.lax.fori_loop(0, 32, halve, ends)
    return jnp.where(keys >= least, scaled, -jnp.inf)


def _column(value) -> jax.Array:
    """A parameter `[...]` beside logits `[..., V]`."""
    return jnp.asarray(value, jnp.float32)[..., None]


def _check(value, name: str, expected: str, good) -> None:
    if value is None or isinstance(value, jax.core.Tracer):
        return
    try:
        numbers = np.asarray(value, np.float64)
        wrong = ~(good(numbers) & np.isfinite(numbers))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected {expected}, got {value!r}") from None
    if wrong.any():
        raise ValueError(f"{name}: expected {expected}, got {numbers[wrong].flat[0]:g}")
