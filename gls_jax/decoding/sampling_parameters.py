"""Sampling parameters: how a model's logits become the distribution that is sampled.

They apply in the order of `transformers`: repetition penalty, temperature, top-k, top-p, min-p.
Each filter keeps every token that ties with the last one kept, so that the distribution does not
depend on the order of the vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from gls_jax.typing import Numbers

__all__ = ["check_sampling", "log_probs"]

# The largest logits are looked for in groups of so many consecutive tokens, if there are so many
# groups for each logit that is looked for.
_GROUP_SIZE = 64
_LEAST_GROUPS = 4


def check_sampling(
    temperature: Numbers = 1.0,
    top_k: int | None = None,
    top_p: Numbers | None = None,
    min_p: Numbers | None = None,
    repetition_penalty: Numbers | None = None,
) -> None:
    """Raise `ValueError` for sampling parameters out of range; traced values are not checked."""
    _check_range(
        temperature,
        "temperature",
        "0 or a finite number of at least 1e-6",
        lambda t: (t == 0) | ((t >= 1e-6) & (t < 1e30)),
    )
    is_int = isinstance(top_k, int | np.integer) and not isinstance(top_k, bool)
    if top_k is not None and (not is_int or top_k < 1):
        raise ValueError(f"top_k: expected an int of at least 1 (None keeps all), got {top_k!r}")
    _check_range(
        top_p,
        "top_p",
        "a number within (0, 1] (None keeps all)",
        lambda p: (p > 0) & (p <= 1),
    )
    _check_range(
        min_p,
        "min_p",
        "a number within [0, 1] (None keeps all)",
        lambda p: (p >= 0) & (p <= 1),
    )
    _check_range(
        repetition_penalty,
        "repetition_penalty",
        "a number within [1e-3, 1e3] (None for none)",
        lambda penalty: (penalty >= 1e-3) & (penalty <= 1e3),
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

    All parameters but `top_k` are numbers, or arrays that broadcast to `[...]`.

    Args:
        logits: `[..., V]`, any float type; cast to float32 before anything else.
        temperature: positive, or 0 for greedy (all mass on the first largest logit).
        top_k: keep the `k` largest logits, static; None keeps all.
        top_p: keep the most probable tokens up to a mass of at least `top_p`; None keeps all.
        min_p: keep tokens of at least `min_p` times the largest probability; None keeps all.
        repetition_penalty: divides positive logits of `seen` tokens and multiplies negative ones;
            None for none.
        seen: `bool[..., V]`, the tokens of the text so far; required with a repetition penalty.

    Returns:
        `f32[..., V]`, normalised, `-inf` for removed tokens. Invalid logits (NaN or `+inf` among
        them, or all `-inf`) give NaN.

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
                "seen: expected the tokens of the text so far with a repetition penalty, got None"
            )
        penalty = _per_row(repetition_penalty)
        penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
        logits = jnp.where(seen, penalised, logits)

    # The maximum is subtracted first: large logits would overflow when divided by a temperature.
    # Then the largest of `scaled` is 0.
    is_greedy = _per_row(temperature) == 0
    largest_logit = jnp.max(logits, axis=-1, keepdims=True)
    scaled = (logits - largest_logit) / jnp.where(is_greedy, 1, _per_row(temperature))

    log_min_p = -jnp.inf if min_p is None else jnp.log(_per_row(min_p))
    if top_k is not None and top_k < logits.shape[-1]:
        scaled, total = _keep_top_k(scaled, int(top_k), top_p, log_min_p)
    else:
        if top_p is not None:
            scaled = _keep_top_p(scaled, _per_row(top_p))
        scaled = jnp.where(scaled < log_min_p, -jnp.inf, scaled)
        total = jnp.sum(jnp.exp(scaled), axis=-1, keepdims=True)
    log_p = scaled - jnp.log(total)

    # Greedy rows were computed with temperature 1 and are replaced; their NaN stay.
    is_known = not isinstance(temperature, jax.core.Tracer)
    if is_known and not np.any(np.asarray(temperature) == 0):
        return log_p
    # As `races.winner`, with the known maximum. `argmax` takes XLA:CPU several times as long.
    tokens = jnp.arange(logits.shape[-1])
    is_largest = logits == largest_logit
    first = jnp.min(jnp.where(is_largest, tokens, len(tokens)), axis=-1, keepdims=True)
    greedy = jnp.where(tokens == first, 0.0, -jnp.inf)
    return jnp.where(is_greedy & ~jnp.isnan(log_p), greedy, log_p)


def _keep_top_k(scaled, count: int, top_p, log_min_p):
    """Apply top-k, then top-p, then min-p.

    The sum of the exponentials comes from the `count` largest logits and the number of tokens that
    tie with the last of them, so that no exponential of the whole vocabulary is needed.

    Args:
        scaled: logits whose largest is 0.
        count: the k of top-k, static.
        top_p: None for none.
        log_min_p: the logarithm of min-p, `-inf` for none.

    Returns:
        `scaled` with `-inf` for removed tokens, and the sum of the exponentials of the kept ones.
    """
    top = _largest(scaled, count)
    last = top[..., -1:]
    # NaN if there is one anywhere: on a CPU neither a maximum nor a top-k need show it.
    is_in_top_k = jnp.where(jnp.isnan(scaled), jnp.nan, (scaled >= last).astype(scaled.dtype))
    num_further_ties = jnp.sum(is_in_top_k, axis=-1, keepdims=True) - count

    def total_from(threshold):
        of_top = jnp.sum(jnp.where(top < threshold, 0, jnp.exp(top)), axis=-1, keepdims=True)
        # Not a `where` between sum and 0, which would hide a NaN.
        of_ties = num_further_ties * jnp.where(last < threshold, 0, jnp.exp(last))
        return of_top + of_ties

    threshold = jnp.maximum(last, log_min_p)
    if top_p is not None:
        is_before = jnp.cumsum(jnp.exp(top), axis=-1) < _per_row(top_p) * total_from(last)
        # The first that brings the mass up to at least `top_p` is the last one kept.
        last_kept = jnp.minimum(jnp.sum(is_before, axis=-1, keepdims=True), count - 1)
        threshold = jnp.maximum(jnp.take_along_axis(top, last_kept, axis=-1), log_min_p)
    return jnp.where(scaled < threshold, -jnp.inf, scaled), total_from(threshold)


def _largest(values, count: int):
    """The `count` largest values of each row, in decreasing order.

    The values are divided into groups. The largest values are in the `count` groups with the
    largest maxima, so the others need not be searched. With 49,152 tokens and top 50 this takes
    half the time of one top-k on a CPU.
    """
    *batch, size = values.shape
    if size >= _LEAST_GROUPS * count * _GROUP_SIZE:
        padding = [(0, 0)] * len(batch) + [(0, -size % _GROUP_SIZE)]
        groups = jnp.pad(values, padding, constant_values=-jnp.inf)
        groups = groups.reshape(*batch, -1, _GROUP_SIZE)
        best = jax.lax.top_k(jnp.max(groups, axis=-1), count)[1]
        values = jnp.take_along_axis(groups, best[..., None], axis=-2).reshape(*batch, -1)
    # Without the barrier XLA merges the caller's slice of the result into the top-k, and then sorts
    # all values.
    return jax.lax.optimization_barrier(jax.lax.top_k(values, count)[0])


def _keep_top_p(scaled, mass):
    """Keep the smallest set `{scaled >= threshold}` that has at least `mass`.

    Bisection finds the threshold on the bits of the logits, mapped to integers of the same order:
    32 passes, which on the CPU is far less work than a sort.
    """
    log_total = jax.nn.logsumexp(scaled, axis=-1, keepdims=True)
    # The bits are those of the logits, not of a difference: XLA would compute the difference twice,
    # inside the loop and after it, once with a fused multiply-add, and get two values.
    bits = jax.lax.bitcast_convert_type(jnp.where(scaled == 0, 0, scaled), jnp.uint32)  # -0 is 0
    sortable = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))
    probs = jnp.exp(scaled - log_total)

    def halve(_, bounds):
        # `{sortable >= low}` has at least `mass`, `{sortable >= high}` has less.
        low, high = bounds
        middle = low + (high - low) // 2
        mass_above = jnp.sum(jnp.where(sortable >= middle, probs, 0), axis=-1, keepdims=True)
        is_enough = mass_above >= mass
        return jnp.where(is_enough, middle, low), jnp.where(is_enough, high, middle)

    low = jnp.zeros_like(sortable[..., :1])
    high = jnp.max(sortable, axis=-1, keepdims=True) + 1
    threshold, _ = jax.lax.fori_loop(0, 32, halve, (low, high))
    return jnp.where(sortable >= threshold, scaled, -jnp.inf)


def _per_row(parameter):
    """A parameter `[...]` as float32 `[..., 1]`, which broadcasts with logits `[..., V]`."""
    return jnp.asarray(parameter, jnp.float32)[..., None]


def _check_range(value, name: str, expected: str, is_allowed) -> None:
    if value is None or isinstance(value, jax.core.Tracer):
        return
    try:
        numbers = np.asarray(value, np.float64)
        is_wrong = ~(is_allowed(numbers) & np.isfinite(numbers))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected {expected}, got {value!r}") from None
    if is_wrong.any():
        raise ValueError(f"{name}: expected {expected}, got {numbers[is_wrong].flat[0]:g}")
