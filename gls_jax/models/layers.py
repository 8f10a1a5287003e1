"""The parts of a block: grouped-query attention, gated feed-forward, linear maps, RMSNorm and
rotary positions.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from gls_jax.models.config import Config

KeysValues: TypeAlias = tuple[Float[Array, "b _ hkv d"], Float[Array, "b _ hkv d"]]
"""Keys and values of a run of slots."""

_MASKED = (
    -1e30
)  # finite: a row that sees nothing stays a number (a mean over all slots) instead of NaN


class Attention(nnx.Module):
    """Grouped-query attention over the cached slots followed by the new tokens."""

    head_dim: int
    scale: float
    softcap: float | None
    query: Linear
    key: Linear
    value: Linear
    output: Linear
    query_norm: RMSNorm
    key_norm: RMSNorm
    qk_norm: bool

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.head_dim, self.scale, self.softcap = (
            config.head_dim,
            config.query_scale,
            config.attention_softcap,
        )
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(
            config.hidden_size, queries, bias=config.qkv_bias, dtype=dtype, rngs=rngs
        )
        self.key = Linear(config.hidden_size, keys, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.value = Linear(config.hidden_size, keys, bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.output = Linear(queries, config.hidden_size, dtype=dtype, rngs=rngs)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_dim, config, dtype=dtype)
            self.key_norm = RMSNorm(config.head_dim, config, dtype=dtype)
        self.qk_norm = config.qk_norm

    def __call__(
        self,
        x: Float[Array, "b t m"],
        rotation: tuple[Float[Array, "b t 1 half"], Float[Array, "b t 1 half"]],
        visible: Bool[Array, "b t all"],
        past: KeysValues | None,
    ) -> tuple[Float[Array, "b t m"], KeysValues | None]:
        """`[B, T, M]` to `[B, T, M]`, and with a past the T new keys and values `[B, T, Hkv, D]`."""
        heads = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (
            linear(x).reshape(heads) for linear in (self.query, self.key, self.value)
        )
        if self.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, *rotation) * self.scale, rotate(key, *rotation)
        seen = [(key, value)] if past is None else [past, (key, value)]
        attended = self.output(
            attend(query, seen, visible, softcap=self.softcap).reshape(*x.shape[:2], -1)
        )
        return attended, None if past is None else (key, value)


class FeedForward(nnx.Module):
    """Gated linear unit: down(activation(gate(x)) * up(x))."""

    activation: str
    gate: Linear
    up: Linear
    down: Linear

    def __init__(self, config: Config, *, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        self.activation = config.activation
        self.gate = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.up = Linear(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)
        self.down = Linear(config.intermediate_size, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b t m"]) -> Float[Array, "b t m"]:
        """`[B, T, M]` to `[B, T, M]`."""
        activation = (
            jax.nn.silu if self.activation == "silu" else jax.nn.gelu
        )  # gelu is the tanh form
        return self.down(activation(self.gate(x)) * self.up(x))


class Linear(nnx.Module):
    """`x @ weight + bias` with `weight` of shape `[in, out]`."""

    weight: nnx.Param[Array]
    bias: nnx.Param[Array] | None

    def __init__(
        self, inputs: int, outputs: int, *, bias: bool = False, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.weight = normal(rngs, (inputs, outputs), dtype)
        self.bias = nnx.Param(jnp.zeros((outputs,), dtype)) if bias else None

    def __call__(self, x: Float[Array, "*b inputs"]) -> Float[Array, "*b outputs"]:
        """`[B, T, in]` to `[B, T, out]`."""
        y = x @ self.weight[...]
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """`x / rms(x) * (offset + weight)` over the last axis, in float32."""

    epsilon: float
    offset: float
    weight: nnx.Param[Array]

    def __init__(self, size: int, config: Config, *, dtype: DTypeLike) -> None:
        self.epsilon, self.offset = config.norm_eps, config.norm_offset
        self.weight = nnx.Param(jnp.full((size,), 1 - config.norm_offset, dtype))

    def __call__(self, x: Float[Array, "*b size"]) -> Float[Array, "*b size"]:
        """Any shape `[..., size]`, in the dtype of `x`."""
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.epsilon)
        return (wide * (self.offset + self.weight[...].astype(jnp.float32))).astype(x.dtype)


def rotate(
    x: Float[Array, "b t h d"], cos: Float[Array, "b t 1 half"], sin: Float[Array, "b t 1 half"]
) -> Float[Array, "b t h d"]:
    """RoPE in the half-split convention: coordinate i turns with coordinate i + d/2."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )


def attend(
    query: Float[Array, "b t hq d"],
    seen: list[KeysValues],
    visible: Bool[Array, "b t s"],
    *,
    softcap: float | None = None,
) -> Float[Array, "b t hq d"]:
    """Softmax attention over runs of keys and values, S in all; query head h reads head `h // (hq /
    hkv)` of them.

    The cached run and the new one are joined as scores, which are small, and never as keys: that
        would copy the cache.
    """
    batch, count, heads, size = query.shape
    shared = seen[0][0].shape[2]
    # Tokens and the heads of a group form ONE axis: XLA:CPU runs this batched product twice as fast
    # as with two.
    grouped = (
        query.reshape(batch, count, shared, -1, size)
        .transpose(0, 2, 1, 3, 4)
        .reshape(batch, shared, -1, size)
    )
    scores = jnp.concatenate(
        [
            jnp.einsum("bhxd,bshd->bhxs", grouped, keys, preferred_element_type=jnp.float32)
            for keys, _ in seen
        ],
        -1,
    )
    by_token = soft_cap(scores, softcap).reshape(batch, shared, count, -1, scores.shape[-1])
    by_token = jnp.where(visible[:, None, :, None, :], by_token, _MASKED)
    weights = jax.nn.softmax(by_token, -1).reshape(scores.shape)
    ends = np.cumsum([keys.shape[1] for keys, _ in seen])
    parts = jnp.split(weights, ends[:-1], -1)
    first, *rest = (
        jnp.einsum("bhxs,bshd->bhxd", part.astype(values.dtype), values)
        for part, (_, values) in zip(parts, seen, strict=True)
    )
    mixed = sum(rest, first)
    return (
        mixed.reshape(batch, shared, count, -1, size)
        .transpose(0, 2, 1, 3, 4)
        .reshape(batch, count, heads, size)
    )


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """`cap * tanh(x / cap)`, or `x` without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: DTypeLike) -> nnx.Param[Array]:
    """Random initial weights."""
    return nnx.Param(jax.nn.initializers.normal(0.02)(rngs.params(), shape, dtype))
