"""Keys of requests, from what an engine passes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.typing import Numbers

__all__ = ["checked_keys", "keys_from_step", "keys_from_uniforms", "request_noise"]

_IMPLEMENTATION = "threefry2x32"


def keys_from_step(step_key: PRNGKeyArray, num_requests: int) -> Key[Array, " B"]:
    """A key for each request of one step, from the key of the step.

    Engines also pass keys of other generators, and keys that are not typed. Such a key is converted
    to a threefry key, which the races need.
    """
    if not hasattr(step_key, "dtype"):
        raise ValueError(f"key: expected a key as of jax.random.key(0), got {step_key!r}")
    if not jnp.issubdtype(step_key.dtype, jax.dtypes.prng_key):
        # Keys of four words are those of XLA's generator, whatever the default one is.
        implementation = "rbg" if step_key.shape == (4,) else _IMPLEMENTATION
        step_key = jax.random.wrap_key_data(step_key, impl=implementation)
    if str(jax.random.key_impl(step_key)) != _IMPLEMENTATION:
        words = jax.random.bits(step_key, (2,), jnp.uint32)
        step_key = jax.random.wrap_key_data(words, impl=_IMPLEMENTATION)
    return races.split_key(step_key, num_requests)


def keys_from_uniforms(uniforms: Float[Array, "B n"]) -> Key[Array, " B"]:
    """A key for each request, from uniforms that an engine drew for it.

    A uniform of float32 has about 23 random bits: all of a request's are folded in.
    """
    words = jax.lax.bitcast_convert_type(uniforms.astype(jnp.float32), jnp.uint32)

    def key_of(request_words):
        def fold(key, word):
            return jax.random.fold_in(key, word), None

        return jax.lax.scan(fold, races.new_key(0), request_words)[0]

    return jax.vmap(key_of)(words)


def request_noise(
    request_keys: Key[Array, " B"] | None, positions: Numbers | None, num_requests: int
) -> tuple[Key[Array, " B"], Int[Array, " B"]] | None:
    """Keys and positions `i32[B]` of the requests, or None where the engine has none.

    Raises:
        ValueError: one without the other, or other shapes or types.
    """
    if request_keys is None and positions is None:
        return None
    if request_keys is None or positions is None:
        raise ValueError("request_keys, positions: expected both or none, got one of them")
    return checked_keys(request_keys, positions, num_requests)


def checked_keys(
    request_keys: Key[Array, " B"], positions: Numbers, num_requests: int
) -> tuple[Key[Array, " B"], Int[Array, " B"]]:
    """Keys and positions `i32[B]`; `ValueError` for other shapes or types."""
    checks.keys(request_keys)
    positions = checks.integers(positions, "positions", "[B]")
    checks.has_shape(request_keys, "request_keys", num_requests)
    checks.has_shape(positions, "positions", num_requests)
    return request_keys, positions
